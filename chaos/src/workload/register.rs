//! Tags as registers: read and overwritten through all nodes, with the times at which each began and ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use rand::Rng;
use rand::rngs::StdRng;
use tokio::time::Instant;

use crate::check::linearizable::{Kind, Operation};
use crate::client::Client;

use super::Ledger;

const REGISTERS: usize = 4;
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Values are unique over the whole run, so that a read tells which write it saw.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// Reads and writes registers until told to stop.
pub(super) async fn run(
    client: Client,
    ledger: Arc<Ledger>,
    stop: Arc<AtomicBool>,
    mut random: StdRng,
    began: Instant,
) {
    let now = || u64::try_from(began.elapsed().as_nanos()).expect("a run is shorter than 500 years");
    while !stop.load(Ordering::Relaxed) {
        let register = random.random_range(0..REGISTERS);
        let node = random.random_range(0..client.nodes());
        let path = format!("/v2/chaos/registers/manifests/r{register}");
        let start = now();
        if random.random_bool(0.4) {
            let value = NEXT.fetch_add(1, Ordering::Relaxed);
            let outcome = write(&client, &ledger, node, &path, value).await;
            if outcome != Some(false) {
                let ended = (outcome == Some(true)).then(now);
                ledger.register(register, Operation { kind: Kind::Write(value), began: start, ended });
            }
        } else if let Some(value) = read(&client, &ledger, node, &path).await {
            ledger.register(register, Operation { kind: Kind::Read(value), began: start, ended: Some(now()) });
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(1..30))).await;
    }
}

/// Writes a value; `Some(false)` if it certainly did not take effect, `None` if nobody knows.
async fn write(client: &Client, ledger: &Ledger, node: usize, path: &str, value: u64) -> Option<bool> {
    let body = serde_json::json!({
        "schemaVersion": 2, "mediaType": INDEX, "manifests": [], "annotations": {"value": value.to_string()},
    });
    let what = format!("PUT {path} at node {}", node + 1);
    match client.send(node, (Method::PUT, path), &[("content-type", INDEX)], Bytes::from(body.to_string())).await {
        Ok(answer) if answer.status == 201 => {
            ledger.wrote();
            Some(true)
        }
        Ok(answer) => {
            ledger.note(&what, &answer);
            if answer.status < 500 {
                ledger.violation(format!("{what}: {}", answer.status));
            }
            (answer.header("rafthold-outcome") == Some("none")).then_some(false)
        }
        Err(error) => {
            ledger.note_broken(&what, &error);
            None
        }
    }
}

/// Reads a register; `None` if the answer says nothing (an error, or one marked as possibly stale).
async fn read(client: &Client, ledger: &Ledger, node: usize, path: &str) -> Option<Option<u64>> {
    let what = format!("GET {path} at node {}", node + 1);
    match client.get(node, path).await {
        Ok(answer) if answer.header("warning").is_some() => None,
        Ok(answer) if answer.status == 200 => {
            ledger.pulls.fetch_add(1, Ordering::Relaxed);
            let body: serde_json::Value = serde_json::from_slice(&answer.body).ok()?;
            Some(Some(body["annotations"]["value"].as_str()?.parse().ok()?))
        }
        Ok(answer) if answer.status == 404 => Some(None),
        Ok(answer) => {
            ledger.note(&what, &answer);
            None
        }
        Err(error) => {
            ledger.note_broken(&what, &error);
            None
        }
    }
}
