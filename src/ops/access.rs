//! Who may see more than whether the node lives.

use http::{HeaderMap, header};

use crate::auth::{Action, Auth, Decision};

use super::error::Refusal;

/// Lets only administrators through; everybody is one where no login is set up.
pub(super) async fn admit(auth: &Auth, headers: &HeaderMap) -> Result<(), Refusal> {
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let authorization = match (given.next(), given.next()) {
        (None, _) => None,
        (Some(value), None) => Some(value.to_str().map_err(|_| Refusal::UNAUTHENTICATED)?),
        (Some(_), Some(_)) => return Err(Refusal::UNAUTHENTICATED),
    };
    let principal = auth.authenticate(authorization).await.ok_or(Refusal::UNAUTHENTICATED)?;
    match auth.decide(&principal, Action::Administer, None) {
        Decision::Allowed => Ok(()),
        Decision::Unauthenticated => Err(Refusal::UNAUTHENTICATED),
        Decision::Denied => Err(Refusal::DENIED),
    }
}
