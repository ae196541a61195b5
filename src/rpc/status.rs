//! What a caller may do about a failed call.

use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::{Code, Status};

/// The metadata key that carries the class; text in the message is for people only.
const KEY: &str = "rafthold-retry";

/// What a caller may do about a failed call: three classes, carried as a typed detail in gRPC metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// The same call at the same node may succeed soon.
    Here,
    /// Another node may well be able to do it; this one is not, for now.
    Elsewhere,
    /// It will fail wherever it is tried.
    GiveUp,
}

impl Retry {
    const fn name(self) -> &'static str {
        match self {
            Self::Here => "here",
            Self::Elsewhere => "elsewhere",
            Self::GiveUp => "give-up",
        }
    }

    /// Makes a status of this class; `message` is for logs.
    #[must_use]
    pub fn status(self, code: Code, message: impl Into<String>) -> Status {
        let mut metadata = MetadataMap::new();
        metadata.insert(KEY, AsciiMetadataValue::from_static(self.name()));
        Status::with_metadata(code, message, metadata)
    }

    /// Reads the class of a failed call.
    ///
    /// A status without one was made by the transport, or by a node that never saw the request: the connection broke,
    /// the deadline passed, the service is not there yet. Another node is then worth a try, unless the code says that
    /// the request itself was wrong.
    #[must_use]
    pub fn of(status: &Status) -> Self {
        let named = status.metadata().get(KEY).and_then(|value| value.to_str().ok());
        match (named, status.code()) {
            (Some("here"), _) => Self::Here,
            (Some("elsewhere"), _) => Self::Elsewhere,
            (Some("give-up"), _) => Self::GiveUp,
            (
                _,
                Code::InvalidArgument
                | Code::NotFound
                | Code::AlreadyExists
                | Code::PermissionDenied
                | Code::FailedPrecondition
                | Code::OutOfRange
                | Code::Unauthenticated
                | Code::DataLoss,
            ) => Self::GiveUp,
            _ => Self::Elsewhere,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_survives_the_wire() {
        for class in [Retry::Here, Retry::Elsewhere, Retry::GiveUp] {
            let sent = class.status(Code::Internal, "why");
            let received = Status::from_header_map(sent.into_http::<()>().headers()).unwrap();
            assert_eq!(Retry::of(&received), class);
            assert_eq!(received.message(), "why");
        }
    }

    #[test]
    fn a_broken_connection_means_elsewhere() {
        assert_eq!(Retry::of(&Status::unavailable("connection refused")), Retry::Elsewhere);
        assert_eq!(Retry::of(&Status::deadline_exceeded("late")), Retry::Elsewhere);
        assert_eq!(Retry::of(&Status::invalid_argument("bad")), Retry::GiveUp);
    }
}
