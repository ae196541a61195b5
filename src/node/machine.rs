//! What the node takes of its machine beside files and sockets: descriptors and threads.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::{Builder, Handle, Runtime};

/// Below so many descriptors a busy node would soon refuse connections.
const DESCRIPTORS_WANTED: u64 = 8192;

/// Raises the limit of open files to what the machine allows, and says so when that is little.
pub(super) fn raise_descriptors() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum && setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_err() {
        tracing::warn!("limit of open files could not be raised");
    }
    // no limit reads as `None`
    let now = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if now < DESCRIPTORS_WANTED {
        tracing::warn!(limit = now, wanted = DESCRIPTORS_WANTED, "few open files are allowed; see ulimit -n");
    }
}

/// Threads for consensus alone, which nothing else may block.
#[derive(Debug)]
pub(super) struct RaftThreads(Option<Runtime>);

impl RaftThreads {
    pub(super) fn start() -> std::io::Result<Self> {
        let runtime =
            Builder::new_multi_thread().worker_threads(2).thread_name("rafthold-raft").enable_all().build()?;
        Ok(Self(Some(runtime)))
    }

    pub(super) fn handle(&self) -> Handle {
        self.0.as_ref().expect("taken only when dropped").handle().clone()
    }
}

impl Drop for RaftThreads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // waiting is not allowed here, and what still runs is to die with the node
            runtime.shutdown_background();
        }
    }
}
