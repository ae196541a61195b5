//! The name in a node's certificate.

use std::fmt;

use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::topology::{ClusterId, NodeId};

use super::{Error, Result};

/// The name of one node in one cluster: `rafthold://<cluster id>/<recovery epoch>/node/<node id>`.
///
/// Parsing takes exactly what printing gives: no other case, no leading zero, nothing after the id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeUri {
    /// The cluster.
    pub cluster: ClusterId,
    /// How often the cluster was recovered by hand after the loss of its quorum.
    pub epoch: u64,
    /// The node.
    pub node: NodeId,
}

impl fmt::Display for NodeUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rafthold://{}/{}/node/{}", self.cluster, self.epoch, self.node)
    }
}

impl NodeUri {
    /// Reads a name; nothing for any other text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix("rafthold://")?.split('/');
        let (cluster, epoch, role, node) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        if role != "node" || parts.next().is_some() {
            return None;
        }
        let uri = Self { cluster: cluster.parse().ok()?, epoch: epoch.parse().ok()?, node: NodeId(node.parse().ok()?) };
        // One spelling only, so that two different certificates never name one node.
        (uri.to_string() == text).then_some(uri)
    }

    /// Reads the one name of a certificate.
    ///
    /// # Errors
    ///
    /// [`Error::WrongName`] unless the certificate has exactly one alternative name and it is a node's.
    pub(super) fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Self> {
        let names = alternative_names(certificate);
        match names.as_slice() {
            [one] => Self::parse(one),
            _ => None,
        }
        .ok_or_else(|| Error::WrongName { expected: "one node".to_owned(), found: names })
    }
}

fn alternative_names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let Ok(Some(extension)) = parsed.subject_alternative_name() else { return Vec::new() };
    extension
        .value
        .general_names
        .iter()
        .map(|name| match name {
            GeneralName::URI(uri) => (*uri).to_owned(),
            other => format!("{other:?}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_printed_form_is_read() {
        let uri = NodeUri { cluster: ClusterId(0xabc), epoch: 2, node: NodeId(7) };
        let text = uri.to_string();
        assert_eq!(text, "rafthold://00000000000000000000000000000abc/2/node/7");
        assert_eq!(NodeUri::parse(&text), Some(uri));
        let cluster = "00000000000000000000000000000abc";
        for bad in [
            String::new(),
            "rafthold://".to_owned(),
            text.to_uppercase(),
            format!("{text}/"),
            format!("{text} "),
            format!("{text}0x"),
            format!("rafthold://{cluster}/2/node/07"),
            format!("rafthold://{cluster}/+2/node/7"),
            format!("rafthold://{cluster}/2/admin/7"),
            format!("rafthold://{cluster}/2/node"),
            "rafthold://abc/2/node/7".to_owned(),
            "rafthold://00000000000000000000000000000ABC/2/node/7".to_owned(),
            format!("https://{cluster}/2/node/7"),
        ] {
            assert_eq!(NodeUri::parse(&bad), None, "{bad}");
        }
    }
}
