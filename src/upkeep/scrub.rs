//! Hashes again what lies on this disk, slowly, so that rot is found before the last good copy is needed.

use std::time::{Duration, UNIX_EPOCH};

use tokio::time::sleep;

use crate::blob::{BlobEntry, Verdict};
use crate::db::{Batch, Table};
use crate::oci::{Algorithm, Digest};

use super::Upkeep;

/// Copies listed in one go; the cursor is kept after each.
const PAGE: usize = 64;

/// A pass begins, and is over, within one part in so many of the period; what was checked within as much is passed over. So
/// no check is ever older than three of them.
const PARTS: u64 = 4;

/// The slowest that makes sense while no client moves bytes, in bytes per second.
const RATE_MIN: u64 = 1 << 20;

/// The same while clients do: whatever the pass still has before it, a copy of 1 GiB takes an hour and a half at most.
const BUSY_RATE_MIN: u64 = 192 << 10;

/// How long to wait before looking again whether a pass is due.
const NAP: Duration = Duration::from_secs(30);

/// Where the cursor is kept in the index.
const CURSOR: &[u8] = b"scrub";

const VERSION: u8 = 1;

/// How far this node is with hashing again what it holds; times are in seconds of Unix time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScrubProgress {
    /// Copies hashed since the start of the process.
    pub checked: u64,
    /// Bytes of those.
    pub checked_bytes: u64,
    /// Copies that proved bad since the start of the process, and were set aside.
    pub bad: u64,
    /// How much of the pass under way is done, in percent; 100 between two passes.
    pub percent: u64,
    /// When the last pass ended; 0 if none has.
    pub ended_at: u64,
}

/// What survives a restart; all of it may be lost, then a pass begins anew.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Cursor {
    /// Copies up to this one are done; `None` between two passes.
    after: Option<Digest>,
    under_way: bool,
    began_at: u64,
    ended_at: u64,
}

impl Cursor {
    fn encode(&self) -> Vec<u8> {
        let after = self.after.as_ref().map(ToString::to_string);
        postcard::to_stdvec(&(VERSION, after, self.under_way, self.began_at, self.ended_at))
            .expect("plain values encode")
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        type Kept = (u8, Option<String>, bool, u64, u64);
        let (version, after, under_way, began_at, ended_at): Kept = postcard::from_bytes(bytes).ok()?;
        let after = after.map(|digest| digest.parse()).transpose().ok()?;
        (version == VERSION).then_some(Self { after, under_way, began_at, ended_at })
    }

    /// Begins a pass if one is due; says whether one is under way.
    fn begin(&mut self, now: u64, part: u64) -> bool {
        // A clock that was set back must not put the next pass off.
        if !self.under_way && (now >= self.began_at + part || now < self.began_at) {
            *self = Self { after: None, under_way: true, began_at: now, ended_at: self.ended_at };
        }
        self.under_way
    }

    /// How much of a pass is done: digests are spread evenly.
    fn done(&self) -> f64 {
        let Some(after) = &self.after else { return if self.under_way { 0.0 } else { 1.0 } };
        let first = u32::from_be_bytes(after.hash()[..4].try_into().expect("a digest has more"));
        match after.algorithm() {
            Algorithm::Sha256 => f64::from(first) / f64::from(u32::MAX),
            // Few have another algorithm, and they come last.
            Algorithm::Sha512 => 1.0,
        }
    }

    /// The bytes per second at which a pass over `bytes` ends in its time: not below `least`, within the limit.
    fn rate(&self, bytes: u64, now: u64, (part, least, limit): (u64, u64, u64)) -> u64 {
        let left = (self.began_at + part).saturating_sub(now).max(1);
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a pace"
        )]
        let needed = (bytes as f64 * (1.0 - self.done()) / left as f64).ceil() as u64;
        needed.max(least).clamp(1, limit.max(1))
    }
}

impl Upkeep {
    /// Hashes every copy on this disk again within the period, and sets aside what is bad; repair fetches it anew. Never
    /// ends.
    pub async fn scrub(self) {
        let kept = self.0.parts.db.get(Table::Cursors, CURSOR);
        let mut cursor = kept.as_deref().and_then(Cursor::decode).unwrap_or_default();
        self.0.scrub.send_modify(|progress| progress.ended_at = cursor.ended_at);
        let part = self.0.config.scrub_period.as_secs().max(PARTS) / PARTS;
        loop {
            // Until the index is complete, a pass would miss copies.
            let may = self.0.parts.blobs.usage().index_complete && cursor.begin(self.now(), part);
            if !may {
                sleep(NAP.min(Duration::from_secs(part))).await;
                continue;
            }
            match self.scrub_page(&mut cursor, part).await {
                Ok(()) => {}
                Err(crate::blob::Error::Stopped) => return std::future::pending().await,
                Err(error) => {
                    tracing::warn!(%error, "copies could not be checked, trying again");
                    sleep(NAP).await;
                }
            }
            let mut batch = Batch::default();
            batch.put(Table::Cursors, CURSOR, &cursor.encode());
            self.0.parts.db.commit(&batch);
        }
    }

    fn now(&self) -> u64 {
        self.0.parts.env.clock.now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }

    async fn scrub_page(&self, cursor: &mut Cursor, part: u64) -> Result<(), crate::blob::Error> {
        let page = self.0.parts.blobs.list_blobs(cursor.after.clone(), PAGE).await?;
        if page.is_empty() {
            (cursor.after, cursor.under_way, cursor.ended_at) = (None, false, self.now());
        }
        for entry in page {
            let now = self.now();
            if now.saturating_sub(entry.verified_at) >= part || entry.verified_at > now {
                match self.check(&entry, cursor, part).await {
                    Err(crate::blob::Error::Stopped) => return Err(crate::blob::Error::Stopped),
                    // It has its turn again in the next pass; those behind it have theirs now.
                    Err(error) => tracing::warn!(digest = %entry.digest, %error, "copy could not be checked"),
                    Ok(()) => {}
                }
            }
            cursor.after = Some(entry.digest);
        }
        self.0.scrub.send_modify(|progress| {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 100")]
            let percent = (cursor.done() * 100.0) as u64;
            (progress.percent, progress.ended_at) = (percent, cursor.ended_at);
        });
        self.0.metrics.set_scrub(&self.0.scrub.borrow());
        Ok(())
    }

    fn rate(&self, cursor: &Cursor, part: u64) -> u64 {
        let limit = match self.0.config.scrub_bandwidth {
            0 => u64::MAX,
            limit => limit,
        };
        // Done sooner is better while nobody is in a hurry; and one copy must not hold up those behind it for days.
        let least = if self.0.pace.is_busy() { BUSY_RATE_MIN } else { RATE_MIN };
        cursor.rate(self.0.parts.blobs.usage().blob_bytes, self.now(), (part, least, limit))
    }

    async fn check(&self, entry: &BlobEntry, cursor: &Cursor, part: u64) -> Result<(), crate::blob::Error> {
        // The agreed size, where there is one: a file cut short may have been indexed as it is.
        let linked = self.0.parts.meta.local().content(&entry.digest);
        let size = linked.map_or(entry.size, |content| content.size);
        let rate = || self.rate(cursor, part);
        let verdict = self.0.parts.blobs.verify(&entry.digest, size, Some(&rate)).await?;
        self.0.scrub.send_modify(|progress| {
            progress.checked += 1;
            progress.checked_bytes += size;
            progress.bad += u64::from(verdict == Verdict::Quarantined);
        });
        if verdict != Verdict::Good {
            tracing::warn!(digest = %entry.digest, ?verdict, "scrub found a copy that is not good");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(first: u8) -> Option<Digest> {
        let mut hash = [0; 32];
        hash[0] = first;
        Digest::from_hash(Algorithm::Sha256, &hash)
    }

    #[test]
    fn a_cursor_survives_and_another_version_is_no_cursor() {
        let cursor = Cursor { after: at(7), under_way: true, began_at: 5, ended_at: 3 };
        let mut bytes = cursor.encode();
        assert_eq!(Cursor::decode(&bytes), Some(cursor));
        bytes[0] = VERSION + 1;
        assert_eq!(Cursor::decode(&bytes), None);
        assert_eq!(Cursor::decode(&[]), None);
    }

    #[test]
    fn passes_begin_on_time_whatever_the_clock_does() {
        let mut cursor = Cursor::default();
        assert!(cursor.begin(1000, 100) && cursor.begin(1050, 100), "the one under way goes on");
        (cursor.under_way, cursor.ended_at) = (false, 1010);
        assert!(!cursor.begin(1099, 100));
        assert!(cursor.clone().begin(1100, 100));
        assert!(cursor.begin(900, 100), "the clock was set back");
    }

    #[test]
    fn a_pass_goes_as_fast_as_it_must_and_not_faster_than_it_may() {
        let mut cursor = Cursor { after: None, under_way: true, began_at: 0, ended_at: 0 };
        assert_eq!(cursor.rate(1000, 0, (100, 1, 1 << 30)), 10);
        assert_eq!(cursor.rate(1000, 50, (100, 1, 1 << 30)), 20, "half the time is gone");
        cursor.after = at(128);
        assert_eq!(cursor.rate(1000, 50, (100, 1, 1 << 30)), 10, "and half the work");
        assert_eq!(cursor.rate(1000, 500, (100, 1, 300)), 300, "late: as fast as allowed");
        assert_eq!(cursor.rate(0, 0, (100, 1, 300)), 1);
        // The last of a pass, and those of a rare algorithm, which come after all others, are no reason to stand still.
        cursor.after = Digest::from_hash(Algorithm::Sha512, &[7; 64]);
        assert_eq!(cursor.rate(1 << 40, 0, (100, 200, 300)), 200);
    }
}
