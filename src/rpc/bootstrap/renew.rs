//! Fresh certificates for nodes whose old one comes to its end.

use std::time::Duration;

use super::proto::RenewRequest;
use super::proto::bootstrap_client::BootstrapClient;
use super::wire::BYTES_MAX;
use super::{Error, Identity, Inner, Lane, Peers, Result, blocking, describe, describe_status, within};

/// How long another node may take to sign.
const RENEW_TIMEOUT: Duration = Duration::from_secs(5);

impl Inner {
    /// Renews this node's certificate if that is due; says whether it did.
    pub(super) async fn renew(&self, peers: &Peers) -> Result<bool> {
        let Some(identity) = self.credentials.identity() else { return Ok(false) };
        if !identity.is_due(&self.env)? {
            return Ok(false);
        }
        let renewed = match identity.renewed(&self.env)? {
            Some(renewed) => renewed,
            None => self.ask_for_certificate(&identity, peers).await?,
        };
        let (dir, stored) = (self.dir.clone(), renewed.clone());
        blocking(move || dir.store_certificate(&stored)).await?;
        self.credentials.install(renewed)?;
        Ok(true)
    }

    /// Asks one node after the other: some have the authority's key.
    async fn ask_for_certificate(&self, identity: &Identity, peers: &Peers) -> Result<Identity> {
        let request = RenewRequest { certificate_request: identity.request()?.into() };
        let nodes = self.hooks().map(|hooks| hooks.nodes()).unwrap_or_default();
        for node in nodes.into_iter().map(|node| node.id).filter(|node| *node != identity.node()) {
            let Ok(channel) = peers.channel(node, Lane::Control) else { continue };
            let mut client = BootstrapClient::new(channel).max_decoding_message_size(BYTES_MAX);
            match within(RENEW_TIMEOUT, client.renew(request.clone())).await {
                Ok(answer) => match identity.with_certificate(&self.env, answer.into_inner().certificate_pem) {
                    Ok(renewed) => return Ok(renewed),
                    Err(error) => {
                        tracing::warn!(peer = %node, error = describe(&error), "renewed certificate is not good")
                    }
                },
                Err(status) => {
                    tracing::debug!(peer = %node, error = describe_status(&status), "certificate not renewed")
                }
            }
        }
        Err(Error::NoAuthority)
    }
}
