//! A sixth node joins under load: its share moves to it and nothing else moves, then surplus copies go (P22).

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use rafthold::oci::Digest;
use rafthold::topology::{NodeId, NodeRecord, NodeState, Policy, Region, Topology, Zone, placement};
use serde_json::Value;
use tokio::time::Instant;

use crate::client::Client;
use crate::workload::{Item, Ledger};

use super::Setup;
use super::moving::{COPIES, Lab, Scale};

const ZONES: &[usize] = &[1, 1, 2, 2, 3, 3];
const OLD: usize = 5;
const NEW: usize = 5;

/// What may move to the new node, in parts of its share.
const SHARE_MAX: f64 = 1.1;

/// Has a node join in the zone that had one node only.
pub(crate) async fn join(setup: &Setup, scale: Scale) -> Result<()> {
    let mut lab = Lab::begin(setup, scale, (ZONES, 1)).await?;
    // The writes end before: what is pushed to the new node is no copy that moved.
    let writers = lab.write().await?;
    let ledger = lab.end_writes(writers).await;
    let mut fetched = Vec::new();
    for node in 0..OLD {
        fetched.push(metric(&lab, node, "rafthold_upkeep_fetched").await?);
    }
    let changed = Instant::now();
    lab.join(0, NEW).await?;
    let countdown = lab.count_down(0, changed).await?;
    let moved = metric(&lab, NEW, "rafthold_blob_written_bytes_total").await?;
    let mut others = 0;
    for (node, before) in fetched.iter().enumerate() {
        others += metric(&lab, node, "rafthold_upkeep_fetched").await? - before;
    }
    let status = lab.cluster.status(0).await?;
    let id = lab.id(0, NEW).await?.context("the new node is no member")?;
    let share = share(&lab, &ledger, &topology(&status), NodeId(id)).await?;
    #[expect(clippy::cast_precision_loss, reason = "a ratio to be read by people")]
    let ratio = moved as f64 / share as f64;
    println!(
        "the new node's share is {} MiB, {} MiB moved to it: {ratio:.3} of it; contents that moved to other nodes: {others}",
        share >> 20,
        moved >> 20
    );
    ensure!(ratio <= SHARE_MAX, "{moved} bytes moved, and the share of the new node is {share}");
    ensure!(ratio >= 0.99, "{moved} bytes are less than the share of the new node, {share}");
    ensure!(others == 0, "{others} contents moved between nodes that were there before");
    lab.finish(ledger, &countdown).await.map(drop)
}

async fn metric(lab: &Lab, node: usize, name: &str) -> Result<u64> {
    let answer = Client::new(lab.cluster.apis()).get(node, "/metrics").await?;
    let text = String::from_utf8_lossy(&answer.body);
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.with_context(|| format!("node {} has no metric {name}", node + 1))?.trim().parse().context("no number")
}

/// The nodes as the cluster has agreed on them.
fn topology(status: &Value) -> Topology {
    let text = |node: &Value, key: &str| node[key].as_str().unwrap_or_default().to_owned();
    let record = |node: &Value| {
        let id = NodeId(node["id"].as_u64()?);
        let state = if node["placement"] == "in" { NodeState::In } else { NodeState::Out };
        let (zone, region) = (Zone(text(node, "zone")), Region(text(node, "region")));
        let (rpc_address, api_url) = (text(node, "rpc"), text(node, "api"));
        Some((id, NodeRecord { id, name: text(node, "name"), zone, region, rpc_address, api_url, weight: 1, state }))
    };
    let nodes: BTreeMap<NodeId, NodeRecord> =
        status["nodes"].as_array().into_iter().flatten().filter_map(record).collect();
    Topology { nodes, ..Topology::default() }
}

/// Bytes that a node should hold: blobs by placement, and every manifest.
async fn share(lab: &Lab, ledger: &Ledger, topology: &Topology, node: NodeId) -> Result<u64> {
    let policy = Policy::of_copies(u32::try_from(COPIES)?);
    let wanted = |digest: &Digest| placement(digest, topology, &policy).contains(&node);
    let stock = lab.stock.blobs().filter(|item| wanted(&item.digest)).chain(&lab.stock.manifests);
    let mut bytes: u64 = stock.map(|item: &Item| item.bytes).sum();
    let client = Client::new(lab.cluster.apis());
    for image in ledger.images() {
        let path = |kind: &str, digest: &Digest| format!("/v2/{}/{kind}/{digest}", image.repository);
        let blobs = image.blobs.iter().filter(|blob| wanted(blob)).map(|blob| path("blobs", blob));
        for path in blobs.chain([path("manifests", &image.manifest)]) {
            bytes += client.get(0, &path).await?.body.len() as u64;
        }
    }
    Ok(bytes)
}
