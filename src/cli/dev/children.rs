//! The node processes of one `dev`.

use std::fs::File;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child as Process, ChildStdin, Command};

use super::Error;
use super::layout::Place;

/// How long the nodes may take to stop by themselves.
const STOP_GRACE: Duration = Duration::from_secs(30);

/// Settings that make a node the one it is: an environment meant for one node must not make three of them alike.
const OWN_SECTIONS: [&str; 4] = ["RAFTHOLD_NODE__", "RAFTHOLD_RPC__", "RAFTHOLD_CLUSTER__", "RAFTHOLD_API__LISTEN"];

/// One node process.
#[derive(Debug)]
pub(super) struct Child {
    name: String,
    pid: u32,
    process: Process,
    /// The node's standard input: while it is open, the node knows that `dev` lives.
    _pipe: Option<ChildStdin>,
    config: PathBuf,
    log: PathBuf,
}

impl Child {
    /// Starts a node; its log is appended to the node's `log` file.
    pub(super) fn start(place: &Place) -> Result<Self, Error> {
        let log = place.log();
        let io = |doing, path: PathBuf| move |source| Error::Io { doing, path, source };
        let out = File::options().create(true).append(true).open(&log).map_err(io("open", log.clone()))?;
        let me = std::env::current_exe().map_err(io("find", PathBuf::from("rafthold")))?;
        let mut command = Command::new(&me);
        command.args(["serve", "--stop-with-parent", "--config"]).arg(place.config());
        for (name, _) in std::env::vars_os() {
            if OWN_SECTIONS.iter().any(|own| name.to_string_lossy().starts_with(own)) {
                command.env_remove(name);
            }
        }
        // a group of its own: Ctrl-C reaches `dev` alone, which then stops its nodes in good order
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(out);
        let mut process = command.spawn().map_err(io("start", me))?;
        let pid = process.id().expect("a process just started has an id");
        // taken out, because waiting for the process would close it
        let pipe = process.stdin.take();
        Ok(Self { name: place.name.clone(), pid, process, _pipe: pipe, config: place.config(), log })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for the node's end and says what to do about it.
    pub(super) async fn ended(&mut self) -> String {
        let status = self.process.wait().await;
        let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        format!(
            "node {} (pid {}) ended: {how}; its log is {}\n  start it again with: rafthold serve --config {}",
            self.name,
            self.pid,
            self.log.display(),
            self.config.display(),
        )
    }

    fn signal(&self, signal: Signal) {
        // a process that was waited for has no id any more, so nobody else's can be hit
        let pid = self.process.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        if let Some(pid) = pid {
            kill_process(pid, signal).ok();
        }
    }

    /// Asks all nodes to stop and waits for them, at most the grace period.
    pub(super) async fn stop_all(children: &mut [Self]) {
        for child in &*children {
            child.signal(Signal::TERM);
        }
        let stopped = futures::future::join_all(children.iter_mut().map(|child| child.process.wait()));
        tokio::time::timeout(STOP_GRACE, stopped).await.ok();
    }

    /// Ends the nodes that are still there.
    pub(super) async fn kill_all(children: &mut [Self]) {
        for child in children {
            child.signal(Signal::KILL);
            child.process.wait().await.ok();
        }
    }
}
