//! What each module is handed of the configuration.

use std::time::Duration;

use crate::meta::command::CollectionRules;
use crate::{auth, blob, meta, registry, replica, upkeep};

use super::{Config, Error, Result, Sparse, Untagged};

impl Config {
    /// The settings of the agreement.
    #[must_use]
    pub fn for_meta(&self) -> meta::Config {
        meta::Config {
            heartbeat_ms: millis(self.raft.heartbeat),
            election_min_ms: millis(self.raft.election_min),
            election_max_ms: millis(self.raft.election_max),
            snapshot_entries: self.raft.snapshot_entries,
            log_entries_kept: self.raft.keep_entries,
            out_after_ms: millis(self.cluster.out_after),
            reserve_bytes: self.raft.reserve,
            copies: self.storage.copies,
            ..meta::Config::default()
        }
    }

    /// The settings of this node's bytes.
    #[must_use]
    pub fn for_blob(&self) -> blob::Config {
        blob::Config {
            refuse_free_bytes: self.storage.free_min,
            reserve_free_bytes: self.storage.free_reserve,
            quarantine_files_max: self.storage.quarantine_files as usize,
            quarantine_bytes_max: self.storage.quarantine_bytes,
            pin: self.storage.pin,
            ..blob::Config::default()
        }
    }

    /// The settings of copies.
    #[must_use]
    pub fn for_replica(&self) -> replica::Config {
        replica::Config { copies: self.storage.copies as usize, write_copies: self.storage.write_copies as usize }
    }

    /// How copies and disks are kept in order.
    #[must_use]
    pub fn for_upkeep(&self) -> upkeep::Config {
        upkeep::Config {
            fetches_max: (self.repair.fetches as usize).max(1),
            repair: upkeep::Limits::new(self.repair.bandwidth, self.repair.busy_percent),
            compare_every: self.repair.compare_every,
            survey_every: self.repair.survey_every,
            rules: self.collection_rules(),
            collect_every: (!self.gc.every.is_zero()).then_some(self.gc.every),
            reap_grace: self.gc.grace,
            // Often enough that nothing lies much longer than its grace.
            reap_every: (self.gc.grace / 4).clamp(Duration::from_millis(500), Duration::from_secs(600)),
            scrub_period: self.scrub.period,
            scrub_bandwidth: self.scrub.bandwidth,
            ..upkeep::Config::default()
        }
    }

    /// The registry's policies.
    #[must_use]
    pub fn for_registry(&self) -> registry::Config {
        registry::Config {
            read: self.registry.read,
            sparse: self.registry.sparse == Sparse::Allow,
            upload_ttl: self.registry.upload_ttl,
            uploads_per_principal_max: self.registry.uploads_per_principal_max,
            manifest_bytes_max: usize::try_from(self.registry.manifest_bytes_max).unwrap_or(usize::MAX),
            rules: self.collection_rules(),
        }
    }

    fn collection_rules(&self) -> CollectionRules {
        let untagged_ms = match self.gc.untagged {
            Untagged::Keep => None,
            Untagged::After(age) => Some(millis(age)),
        };
        CollectionRules { lease_ms: millis(self.gc.lease), untagged_ms }
    }

    /// Who may come in.
    #[must_use]
    pub fn for_auth(&self) -> auth::Config {
        auth::Config { htpasswd: self.auth.htpasswd.clone() }
    }

    /// Lets each module check its own settings.
    pub(super) fn validate_parts(&self) -> Result<()> {
        let invalid = |key, problem| Error::Invalid { key, problem };
        self.for_meta().validate().map_err(|error| invalid("raft", error.to_string()))?;
        self.for_blob().validate().map_err(|error| invalid("storage.free_min", error.to_string()))?;
        self.for_registry().validate().map_err(|(key, problem)| invalid(key, problem))?;
        self.gc.validate().map_err(|(key, problem)| invalid(key, problem))?;
        self.for_auth().validate().map_err(|problem| invalid("auth.htpasswd", problem))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
