//! How what is left to do falls to nothing, as the cluster itself says it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::cluster::{Cluster, Said};

const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How long nothing may get less before the cluster counts as stuck.
const STALL_MAX: Duration = Duration::from_secs(90);

/// How long after a change the cluster may take to say that there is something to do.
const BEGINS_WITHIN: Duration = Duration::from_secs(60);

/// Of what a node must fetch at least, in seconds of its limit, for its rate to be judged.
const JUDGED_SECONDS: u64 = 5;

/// How far back a node's own measure of its rate looks.
const RATE_WINDOW: Duration = Duration::from_secs(11);

/// Contents that are smaller on average are held up by the disk and not by the limit.
const JUDGED_MEAN_BYTES: u64 = 256 << 10;

/// What one node said.
#[derive(Debug, Clone, Default)]
struct Here {
    name: String,
    queue: u64,
    bytes_left: u64,
    held_bytes: u64,
    /// Bytes per second let pass lately; what clients waited for is held back by nothing, and not in it.
    rate: u64,
}

/// What the cluster said at one moment.
#[derive(Debug, Clone, Default)]
struct Sample {
    /// Since the beginning.
    at: Duration,
    under: u64,
    misplaced: u64,
    over: u64,
    queue: u64,
    nodes: Vec<Here>,
}

impl Sample {
    fn of(status: &Value, at: Duration) -> Option<Self> {
        let blobs = |key: &str| status["blobs"][key].as_u64();
        let here = |node: &Value| {
            Some(Here {
                name: node["name"].as_str()?.to_owned(),
                queue: node["repair_queue"].as_u64()?,
                bytes_left: node["repair_bytes_left"].as_u64()?,
                held_bytes: node["blob_bytes"].as_u64()?,
                rate: node["repair_bytes_per_second"].as_u64()?,
            })
        };
        Some(Self {
            at,
            under: blobs("under_replicated")?,
            misplaced: blobs("misplaced")?,
            over: blobs("over_replicated")?,
            queue: status["repair"]["queue"].as_u64()?,
            nodes: status["nodes"].as_array()?.iter().filter_map(here).collect(),
        })
    }

    /// Copies to be made or moved.
    const fn left(&self) -> u64 {
        self.under + self.misplaced + self.queue
    }
}

/// The sequence from a change of the cluster to the end of the work that it made.
#[derive(Debug)]
pub(super) struct Countdown {
    pub(super) began: Instant,
    pub(super) ended: Instant,
    samples: Vec<Sample>,
    /// What `rafthold repair status --watch` printed meanwhile.
    watched: Vec<String>,
}

/// How fast a node fetched, compared with its limit.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rate {
    pub(super) node: String,
    pub(super) contents: u64,
    pub(super) bytes: u64,
    pub(super) seconds: f64,
    /// All that came to the node, in parts of its limit: repair's bytes and those that clients waited for.
    pub(super) held_of_limit: f64,
    /// Repair's bytes alone, in parts of the limit.
    pub(super) of_limit: f64,
    /// Whether the limit, not the number of files, is what the node had to wait for.
    pub(super) is_judged: bool,
}

impl Countdown {
    /// Asks a node until all copies are made and in their places, and watches the operator's command do the same.
    ///
    /// `because` is when the change was made.
    pub(super) async fn follow(cluster: &Cluster, asked: usize, because: Instant, within: Duration) -> Result<Self> {
        let began = Instant::now();
        let mut samples: Vec<Sample> = Vec::new();
        let mut watch: JoinSet<Result<Said>> = JoinSet::new();
        loop {
            let sample = cluster.status(asked).await.ok().and_then(|status| Sample::of(&status, because.elapsed()));
            if let Some(sample) = sample {
                let left = sample.left();
                let is_begun = samples.iter().any(|sample| sample.left() > 0);
                samples.push(sample);
                if left > 0 && watch.is_empty() {
                    let (operator, endpoint) = (cluster.operator(), cluster.api(asked).to_owned());
                    let arguments = ["repair", "status", "--watch", "--endpoint", &endpoint].map(str::to_owned);
                    watch.spawn(async move { operator.run(&arguments, within).await });
                }
                if is_begun && left == 0 {
                    break;
                }
                ensure!(is_begun || left > 0 || began.elapsed() < BEGINS_WITHIN, "VOID: there was nothing to do");
            }
            let last = samples.last();
            ensure!(began.elapsed() < within, "not all copies are made within {within:?}: {last:?}");
            sleep(LOOK_EVERY).await;
        }
        let ended = Instant::now();
        let said = watch.join_next().await.context("nobody watched")???.expect_done("repair status --watch")?;
        let watched = said.lines().map(str::to_owned).collect();
        Ok(Self { began: because, ended, samples, watched })
    }

    /// Prints some of the sequence, and fails unless it went down to nothing without standing still.
    pub(super) fn judge(&self) -> Result<()> {
        let most = self.samples.len().div_ceil(14).max(1);
        let (last, first) = (self.samples.len() - 1, self.samples.iter().position(|sample| sample.left() > 0));
        let first = first.context("VOID: there was nothing to do")?;
        let shown = |at: usize| at == last || (at >= first && (at - first).is_multiple_of(most));
        for (_, sample) in self.samples.iter().enumerate().filter(|(at, _)| shown(*at)) {
            println!(
                "{:5.1} s: too few copies {}, misplaced {}, too many {}, missing {}",
                sample.at.as_secs_f64(),
                sample.under,
                sample.misplaced,
                sample.over,
                sample.queue
            );
        }
        println!("repair status --watch: {}", self.watched.first().map_or("", String::as_str));
        println!("repair status --watch: {}", self.watched.last().map_or("", String::as_str));
        let end = self.watched.last().is_some_and(|line| line.contains("] 0 missing") && line.contains("copies 0,"));
        ensure!(end, "repair status --watch did not count down to nothing: {:?}", self.watched.last());
        ensure!(self.samples[last].left() == 0, "it did not count down to nothing");
        let stall = longest_stall(self.samples[first..].iter().map(|sample| (sample.at, sample.left())));
        ensure!(stall < STALL_MAX, "nothing got less for {stall:?}");
        Ok(())
    }

    /// How fast each node fetched while it was at it.
    pub(super) fn rates(&self, limit: u64) -> Vec<Rate> {
        let mut names: Vec<&str> =
            self.samples.iter().flat_map(|sample| &sample.nodes).map(|node| &*node.name).collect();
        names.sort_unstable();
        names.dedup();
        names.into_iter().filter_map(|name| self.rate(name, limit)).collect()
    }

    #[expect(clippy::cast_precision_loss, reason = "a ratio to be read by people")]
    fn rate(&self, name: &str, limit: u64) -> Option<Rate> {
        let course: Vec<(Duration, &Here)> = self
            .samples
            .iter()
            .filter_map(|sample| {
                let here = sample.nodes.iter().find(|node| node.name == name)?;
                Some((sample.at, here))
            })
            .collect();
        let begin = course.iter().position(|(_, here)| here.bytes_left > 0)?;
        let (from, first) = course[begin];
        // A comparison with the disk finds what is missing little by little.
        let (most, (_, peak)) = course.iter().enumerate().skip(begin).max_by_key(|(_, (_, here))| here.bytes_left)?;
        let (contents, bytes_left) = (peak.queue, peak.bytes_left);
        // Near the end single files are waited for, and the limit is not.
        let (to, last) = *course[most..].iter().find(|(_, here)| here.bytes_left < limit * 2)?;
        if to == from {
            return None;
        }
        let (bytes, seconds) = (last.held_bytes.saturating_sub(first.held_bytes), (to - from).as_secs_f64());
        let is_judged = bytes_left >= limit * JUDGED_SECONDS && bytes_left / contents.max(1) >= JUDGED_MEAN_BYTES;
        let per_limit = |bytes: f64| bytes / limit as f64;
        let held_of_limit = per_limit(bytes as f64 / seconds);
        let steady = course.iter().filter(|(at, _)| (from + RATE_WINDOW..to).contains(at));
        let own: Vec<f64> = steady.map(|(_, here)| per_limit(here.rate as f64)).collect();
        // Done before its own measure can say anything: all that came has to do.
        let is_short = own.is_empty();
        let of_limit = if is_short { held_of_limit } else { own.iter().sum::<f64>() / own.len() as f64 };
        Some(Rate { node: name.to_owned(), contents, bytes, seconds, held_of_limit, of_limit, is_judged })
    }
}

/// The longest time in which a value did not fall below what it had been.
fn longest_stall(course: impl Iterator<Item = (Duration, u64)>) -> Duration {
    let (mut least, mut longest) = (None::<(Duration, u64)>, Duration::ZERO);
    // The most there is to do may be known only after a while.
    let course: Vec<_> = course.collect();
    let peak = course.iter().enumerate().max_by_key(|(_, (_, left))| *left).map_or(0, |(at, _)| at);
    for (at, left) in course.into_iter().skip(peak) {
        match least {
            Some((since, fewest)) if left >= fewest => longest = longest.max(at - since),
            _ => least = Some((at, left)),
        }
        if left == 0 {
            break;
        }
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn sample(at: u32, left: u64, nodes: &[(&str, u64, u64, u64)]) -> Sample {
        let here = |(name, queue, bytes_left, held_bytes): &(&str, u64, u64, u64)| Here {
            name: (*name).to_owned(),
            queue: *queue,
            bytes_left: *bytes_left,
            held_bytes: *held_bytes,
            rate: 4 << 20,
        };
        Sample { at: SECOND * at, under: left, nodes: nodes.iter().map(here).collect(), ..Sample::default() }
    }

    fn countdown(samples: Vec<Sample>) -> Countdown {
        let watched = vec!["[##] 0 missing; too few copies 0, misplaced 0, too many 0, lost 0".to_owned()];
        Countdown { began: Instant::now(), ended: Instant::now(), samples, watched }
    }

    #[test]
    fn a_sequence_that_stands_still_or_does_not_end_is_no_countdown() {
        let course =
            |values: &[u64]| countdown(values.iter().zip(0..).map(|(left, at)| sample(at * 50, *left, &[])).collect());
        assert!(course(&[0, 9, 7, 8, 3, 0]).judge().is_ok());
        assert!(course(&[0, 9, 7, 7, 8, 3, 0]).judge().is_err(), "100 s without progress");
        assert!(course(&[0, 9, 7, 3, 1]).judge().is_err());
        assert!(course(&[0, 0]).judge().is_err());
        let mut liar = course(&[9, 0]);
        liar.watched = vec!["[##] 1 missing; too few copies 0,".to_owned()];
        assert!(liar.judge().is_err());
    }

    #[test]
    fn a_rate_is_judged_only_where_the_limit_is_what_holds_a_node_up() {
        const MIB: u64 = 1 << 20;
        let fetched = |contents| {
            let course =
                [(0, 1, 10, 0), (1, contents, 95, 5), (10, contents / 2, 50, 50), (15, 1, 20, 80), (20, 1, 1, 99)];
            let samples =
                course.iter().map(|(at, queue, left, held)| sample(*at, 1, &[("n1", *queue, left * MIB, held * MIB)]));
            countdown(samples.collect()).rates(5 * MIB).remove(0)
        };
        let rate = fetched(100);
        assert!(rate.is_judged && (rate.held_of_limit - 0.99).abs() < 0.01, "{rate:?}");
        assert!((rate.of_limit - 0.8).abs() < 0.01, "clients' bytes are no merit of repair: {rate:?}");
        assert!(!fetched(10_000).is_judged);
    }
}
