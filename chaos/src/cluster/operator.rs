//! Runs the commands that an operator types, with the real binary.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;
use tokio::time::timeout;

/// Somebody at a command line.
#[derive(Debug, Clone)]
pub(crate) struct Operator {
    binary: PathBuf,
}

/// What a command said, and whether it ended well.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) done: bool,
    pub(crate) out: String,
    pub(crate) errors: String,
}

impl Said {
    /// What was said on standard output, if the command ended well.
    pub(crate) fn expect_done(self, what: &str) -> Result<String> {
        ensure!(self.done, "{what}: {}{}", self.out, self.errors);
        Ok(self.out)
    }
}

impl Operator {
    pub(super) const fn new(binary: PathBuf) -> Self {
        Self { binary }
    }

    /// Runs a command to its end; one that takes longer than `within` is ended and an error.
    pub(crate) async fn run(&self, arguments: &[impl AsRef<OsStr>], within: Duration) -> Result<Said> {
        let mut command = Command::new(&self.binary);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let words: Vec<_> = arguments.iter().map(|argument| argument.as_ref().to_string_lossy()).collect();
        let output = timeout(within, command.output())
            .await
            .with_context(|| format!("`{}` did not end within {within:?}", words.join(" ")))?
            .with_context(|| format!("run {}", self.binary.display()))?;
        Ok(Said {
            done: output.status.success(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}
