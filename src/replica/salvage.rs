//! What of a broken upload can be kept: the greatest length that is synced on enough nodes (P28).

use futures::StreamExt;
use futures::stream::FuturesUnordered;

use crate::blob::StoredExtent;
use crate::topology::NodeId;

use super::fan_out::FanOut;
use super::{ExtentRequest, ReceivedExtent, Replicas, Result};

impl Replicas {
    /// Cuts all copies of a broken extent to the greatest length that `write_copies` nodes have synced.
    pub(super) async fn salvage(
        &self,
        request: &ExtentRequest,
        here: Option<StoredExtent>,
        fan_out: &FanOut<StoredExtent>,
    ) -> Result<ReceivedExtent> {
        let mut copies: Vec<(NodeId, u64)> = here.iter().map(|stored| (self.me(), stored.length)).collect();
        copies.extend(fan_out.done().map(|(node, stored)| (node, stored.length)));
        copies.extend(self.partial_copies(request, fan_out).await);
        copies.retain(|(node, _)| self.counts(*node));
        let needed = self.write_copies();
        let length = salvaged_length(&mut copies, needed);
        let cut = ReceivedExtent {
            id: request.id,
            length: 0,
            hash_state: request.resume.clone(),
            holders: Vec::new(),
            complete: false,
        };
        if length == 0 {
            // Nothing of it will ever be listed: it need not wait for the reaper.
            self.local().blobs.remove_extents(&[request.id]).await?;
            return Ok(cut);
        }
        let mut trims: FuturesUnordered<_> = copies
            .iter()
            .filter(|(_, had)| *had >= length)
            .map(|(node, _)| self.trim(request, *node, length))
            .collect();
        let mut salvaged = cut;
        while let Some(trimmed) = trims.next().await {
            let Some((node, stored)) = trimmed else { continue };
            // Copies of one length have one hash state; the first of them says which.
            if salvaged.holders.is_empty() {
                salvaged.hash_state = stored.hash_state;
            } else if salvaged.hash_state != stored.hash_state {
                tracing::warn!(peer = %node, extent = %request.id, "salvaged copies differ");
                continue;
            }
            salvaged.holders.push(node);
        }
        if salvaged.holders.len() < needed {
            return Err(self.too_few_copies(salvaged.holders.len(), fan_out.reason()));
        }
        salvaged.length = length;
        Ok(salvaged)
    }

    /// Asks the peers that broke off what they had synced by then.
    async fn partial_copies(&self, request: &ExtentRequest, fan_out: &FanOut<StoredExtent>) -> Vec<(NodeId, u64)> {
        let client = &self.local().client;
        let ask = |node| async move { (node, client.extent_info(node, request.id).await) };
        let mut asked: FuturesUnordered<_> = fan_out.failed().map(ask).collect();
        let mut copies = Vec::new();
        while let Some((node, answer)) = asked.next().await {
            match answer {
                Ok(Some(stored)) => copies.push((node, stored.length)),
                Ok(None) => {}
                Err(error) => self.note(node, &error),
            }
        }
        copies
    }

    async fn trim(&self, request: &ExtentRequest, node: NodeId, length: u64) -> Option<(NodeId, StoredExtent)> {
        let local = self.local();
        let resume = &request.resume;
        let trimmed = if node == self.me() {
            local.blobs.trim_extent(request.id, length, resume.clone()).await.map_err(Into::into)
        } else {
            local.client.trim_extent(node, request.id, length, resume).await
        };
        match trimmed {
            Ok(stored) if stored.length == length => Some((node, stored)),
            Ok(_) => None,
            Err(error) => {
                self.note(node, &error);
                None
            }
        }
    }
}

/// The greatest length that `needed` of the copies reach.
fn salvaged_length(copies: &mut [(NodeId, u64)], needed: usize) -> u64 {
    copies.sort_by_key(|(_, length)| std::cmp::Reverse(*length));
    copies.get(needed - 1).map_or(0, |(_, length)| *length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_salvaged_length_is_the_greatest_that_enough_nodes_have() {
        let check = |lengths: &[u64], needed, expected| {
            let mut copies: Vec<_> = lengths.iter().zip(1..).map(|(length, id)| (NodeId(id), *length)).collect();
            assert_eq!(salvaged_length(&mut copies, needed), expected, "{lengths:?} on {needed}");
        };
        check(&[10], 1, 10);
        check(&[10], 2, 0);
        check(&[10, 4], 2, 4);
        check(&[4, 7, 10], 2, 7);
        check(&[4, 7, 10], 3, 4);
    }
}
