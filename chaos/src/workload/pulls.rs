//! Clients that pull the stock through all nodes without a pause worth the name, and measure each pull.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::client::Client;
use crate::cluster::{Cluster, Serving};

use super::stock::Stock;

/// Pause of one client between two pulls, in milliseconds: there is to be load, and room for more.
const PAUSE_MS: std::ops::Range<u64> = 20..80;

/// How long after a broken pull the laboratory may still say that it is what took the node away.
const EXCUSED_WITHIN: Duration = Duration::from_secs(3);

/// One pull that was answered whole.
#[derive(Debug, Clone, Copy)]
struct Pull {
    ended: Instant,
    took: Duration,
    node: usize,
}

/// What the clients saw.
#[derive(Debug, Default)]
struct Seen {
    pulls: Vec<Pull>,
    failed: Vec<String>,
    /// Connections cut or refused at nodes that the laboratory took away.
    excused: usize,
}

/// Running clients; they end when told to, or dropped.
#[derive(Debug)]
pub(crate) struct Pulls {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    clients: JoinSet<()>,
}

/// One client.
struct Puller {
    client: Client,
    serving: Serving,
    stock: Arc<Stock>,
    seen: Arc<Mutex<Seen>>,
}

impl Pulls {
    pub(crate) fn start(cluster: &Cluster, stock: &Arc<Stock>, (seed, clients): (u64, usize)) -> Self {
        let pulls = Self { seen: Arc::default(), stop: Arc::default(), clients: JoinSet::new() };
        let mut pulls = pulls;
        for at in 0..clients {
            let puller = Puller {
                client: Client::new(cluster.apis()),
                serving: cluster.serving(),
                stock: stock.clone(),
                seen: pulls.seen.clone(),
            };
            let (stop, mut random) = (pulls.stop.clone(), StdRng::seed_from_u64(seed.wrapping_mul(7919) + at as u64));
            pulls.clients.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    puller.pull(&mut random).await;
                    sleep(Duration::from_millis(random.random_range(PAUSE_MS))).await;
                }
            });
        }
        pulls
    }

    /// Stops the clients; what they saw stays.
    pub(crate) async fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            if let Err(error) = ended {
                self.lock().failed.push(format!("a client of the laboratory failed: {error}"));
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().expect("no panic while held")
    }

    /// Pulls that failed at nodes that were left alone.
    pub(crate) fn failed(&self) -> Vec<String> {
        self.lock().failed.clone()
    }

    /// Pulls whose connections were cut or refused by nodes that the laboratory took away.
    pub(crate) fn excused(&self) -> usize {
        self.lock().excused
    }

    /// Times of the pulls that ended in a span of time, shortest first.
    pub(crate) fn times(&self, from: Instant, to: Instant) -> Times {
        let seen = self.lock();
        let within = seen.pulls.iter().filter(|pull| (from..to).contains(&pull.ended));
        let mut times: Vec<Duration> = within.map(|pull| pull.took).collect();
        times.sort();
        Times(times)
    }

    /// How many pulls a node has answered.
    pub(crate) fn answered_by(&self, node: usize) -> usize {
        self.lock().pulls.iter().filter(|pull| pull.node == node).count()
    }
}

impl Puller {
    async fn pull(&self, random: &mut StdRng) {
        let item = self.stock.draw(random).clone();
        let node = random.random_range(0..self.client.nodes());
        let (was_serving, began) = (self.serving.has(node), Instant::now());
        let outcome = self.client.pull(node, &item.path, &item.digest).await;
        let ended = Instant::now();
        let failure = match outcome {
            Ok(Ok(_)) => {
                let mut seen = self.seen.lock().expect("no panic while held");
                seen.pulls.push(Pull { ended, took: ended - began, node });
                return;
            }
            Ok(Err(answer)) => format!("{} {}", answer.status, String::from_utf8_lossy(&answer.body)),
            Err(error) => format!("{error:#}"),
        };
        let answered = failure.starts_with(|first: char| first.is_ascii_digit());
        let wrong = failure.contains("WRONG BYTES") || failure.contains("HANG");
        let mut excused = !was_serving || !self.serving.has(node);
        if !excused && !answered {
            // A node that ends by itself is taken from the clients' list a moment after.
            sleep(EXCUSED_WITHIN).await;
            excused = !self.serving.has(node);
        }
        let mut seen = self.seen.lock().expect("no panic while held");
        if excused && !wrong {
            seen.excused += 1;
        } else {
            let failure = format!("PULL FAILED {} at node {}: {failure}", item.path, node + 1);
            eprintln!("{failure}");
            seen.failed.push(failure);
        }
    }
}

/// How long pulls took, shortest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The time that so many percent of the pulls kept within.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let at = (self.0.len() * percent).div_ceil(100).saturating_sub(1);
        self.0.get(at).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_time_that_so_many_pulls_kept_within() {
        let times = Times((1..=200).map(Duration::from_millis).collect());
        assert_eq!(times.percentile(50), Duration::from_millis(100));
        assert_eq!(times.percentile(99), Duration::from_millis(198));
        assert_eq!(times.percentile(100), Duration::from_millis(200));
        assert_eq!(Times(Vec::new()).percentile(99), Duration::ZERO);
    }
}
