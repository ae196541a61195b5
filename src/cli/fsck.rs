//! `rafthold fsck`: checks the data directory of a node that does not run.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::node::{self, Fsck};

use super::print::{self, Output};

/// Findings printed in a table; JSON has them all.
const SHOWN_MAX: usize = 50;

/// Options of `fsck`.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// The node's configuration file; without it, the data in ./rafthold-data.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Read and hash every byte.
    #[arg(long)]
    deep: bool,
    /// `table` for people, `json` for scripts.
    #[arg(short, long, default_value = "table")]
    output: Output,
}

/// Runs the command: 0 if nothing is wrong, 1 if something is, or the directory cannot be checked.
pub(super) fn run(options: &Options) -> ExitCode {
    let config = match super::load(options.config.as_deref()) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let found = match node::fsck(&config, options.deep) {
        Ok(found) => found,
        Err(error) => return print::failure(&error, 1),
    };
    let printed = match options.output {
        Output::Json => print::json(&found),
        Output::Table => print::text(&table(&found)),
    };
    match printed {
        code if code != ExitCode::SUCCESS || found.findings.is_empty() => code,
        _ => ExitCode::FAILURE,
    }
}

fn table(found: &Fsck) -> String {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let (state, disk) = (&found.state, &found.disk);
    let mut text = format!(
        "data directory: {}\nnode: {}, cluster: {}\nstate: applied {}, hash {}, {} contents, {} open uploads, {} entries \
         replayed, snapshots {:?}\ndisk: {} blobs of {} bytes ({} hashed, {} unlinked, {} without sums), {} extents, {} \
         temporary files, {} in quarantine\nmissing here: {}\nfindings: {}\n",
        found.data_dir.display(),
        or_dash(found.node.map(|node| node.to_string())),
        or_dash(found.cluster.clone()),
        state.applied,
        or_dash(state.state_hash.clone()),
        state.contents,
        state.uploads,
        state.replayed,
        state.snapshots,
        disk.blobs,
        disk.blob_bytes,
        disk.hashed,
        disk.unlinked,
        disk.unsummed,
        disk.extents,
        disk.temporaries,
        disk.quarantined,
        found.missing,
        found.findings.len(),
    );
    for flaw in found.findings.iter().take(SHOWN_MAX) {
        text.push_str(&format!("{}: {}: {}\n", flaw.kind, flaw.path.display(), flaw.detail));
    }
    if found.findings.len() > SHOWN_MAX {
        text.push_str(&format!("and {} more: --output json has them all\n", found.findings.len() - SHOWN_MAX));
    }
    text
}
