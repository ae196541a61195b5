//! `rafthold repair status`: how far the nodes are with fetching what they should hold.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use crate::ops::client::Error;

use super::cluster::{Endpoint, fetch_status};
use super::print;

/// How often it is looked again with `--watch`.
const EVERY: Duration = Duration::from_secs(1);

/// Options of `repair status`.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    #[command(flatten)]
    endpoint: Endpoint,
    /// Show a progress bar until every blob has its copies in their places.
    #[arg(long)]
    watch: bool,
}

/// Runs the command.
pub(super) fn run(options: &Options) -> ExitCode {
    let outcome = super::runtime().map_err(Error::Io).and_then(|runtime| runtime.block_on(follow(options)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => print::failure(&error, 1),
    }
}

async fn follow(options: &Options) -> Result<(), Error> {
    let client = options.endpoint.client()?;
    let mut most = 0;
    loop {
        let left = Left::of(&fetch_status(&client).await?);
        most = most.max(left.work());
        let line = left.line(most);
        if !options.watch || left.is_done() {
            print::clear_progress();
            print::line(&line);
            return Ok(());
        }
        print::progress(&line);
        tokio::time::sleep(EVERY).await;
    }
}

/// What is still to be done, as the cluster says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Left {
    contents: u64,
    bytes: u64,
    rate: u64,
    seconds: Option<u64>,
    under: Option<u64>,
    misplaced: Option<u64>,
    over: Option<u64>,
    lost: Option<u64>,
}

impl Left {
    fn of(status: &Value) -> Self {
        let number = |section: &str, key: &str| status[section][key].as_u64();
        Self {
            contents: number("repair", "queue").unwrap_or(0),
            bytes: number("repair", "bytes_left").unwrap_or(0),
            rate: number("repair", "bytes_per_second").unwrap_or(0),
            seconds: number("repair", "eta_seconds"),
            under: number("blobs", "under_replicated"),
            misplaced: number("blobs", "misplaced"),
            over: number("blobs", "over_replicated"),
            lost: number("blobs", "lost"),
        }
    }

    /// Bytes, and something for each file.
    const fn work(&self) -> u64 {
        self.bytes + self.contents
    }

    fn is_done(&self) -> bool {
        self.contents == 0 && [self.under, self.misplaced, self.over].iter().all(|count| *count == Some(0))
    }

    fn line(&self, most: u64) -> String {
        let bar = print::bar(self.work(), most);
        let count = |count: Option<u64>| count.map_or_else(|| "?".to_owned(), |count| count.to_string());
        let time = match (self.contents, self.seconds) {
            (0, _) => String::new(),
            (_, Some(seconds)) => format!(", {} min {} s left", seconds / 60, seconds % 60),
            (_, None) => ", nothing is fetched at the moment".to_owned(),
        };
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        format!(
            "[{bar}] {} missing, {} MiB at {} MiB/s{time}; too few copies {}, misplaced {}, too many {}, lost {}",
            self.contents,
            mib(self.bytes),
            mib(self.rate),
            count(self.under),
            count(self.misplaced),
            count(self.over),
            count(self.lost),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_fills_as_what_is_left_shrinks() {
        let status = |queue, bytes| {
            serde_json::json!({
                "repair": { "queue": queue, "bytes_left": bytes, "bytes_per_second": 1 << 20, "eta_seconds": 65 },
                "blobs": { "under_replicated": queue, "misplaced": 0, "over_replicated": 0, "lost": null },
            })
        };
        let half = Left::of(&status(1, (64 << 20) - 1));
        let line = half.line(128 << 20);
        assert!(
            line.starts_with("[###############...............] 1 missing, 64 MiB at 1 MiB/s, 1 min 5 s left"),
            "{line}"
        );
        assert!(line.ends_with("too few copies 1, misplaced 0, too many 0, lost ?"), "{line}");
        assert!(!half.is_done());
        let done = Left::of(&status(0, 0));
        assert!(done.is_done() && done.line(128 << 20).starts_with("[##############################] 0 missing"));
    }
}
