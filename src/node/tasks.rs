//! The only place that starts tasks, and that notices when one ends.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::env::{BoxFuture, Spawner};

/// Why a node ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// A task that must run as long as the node came to its end.
    Task {
        /// Its name.
        name: &'static str,
        /// What it said.
        reason: String,
    },
    /// A task panicked: its part of the node can no longer be trusted.
    Panic {
        /// Its name.
        name: &'static str,
    },
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Task { name, reason } => write!(f, "task {name} ended: {reason}"),
            Self::Panic { name } => write!(f, "task {name} panicked"),
        }
    }
}

/// The tasks of one node; cheap to clone, all aborted when [`Tasks::abort`] is called.
#[derive(Clone)]
pub(super) struct Tasks(Arc<Inner>);

struct Inner {
    running: Mutex<JoinSet<()>>,
    /// Work that stop waits for: what [`Spawner::spawn`] began.
    work: watch::Sender<usize>,
    ended: watch::Sender<Option<Ended>>,
}

impl std::fmt::Debug for Tasks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tasks").field("work", &*self.0.work.borrow()).finish_non_exhaustive()
    }
}

impl Default for Tasks {
    fn default() -> Self {
        Self(Arc::new(Inner {
            running: Mutex::new(JoinSet::new()),
            work: watch::Sender::new(0),
            ended: watch::Sender::new(None),
        }))
    }
}

impl Tasks {
    /// Runs a task without which the node is not whole: when it ends, the node ends.
    pub(super) fn critical<E: std::fmt::Display + Send>(
        &self,
        name: &'static str,
        work: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        self.critical_on(&Handle::current(), name, work);
    }

    /// Like [`Tasks::critical`], on other threads.
    pub(super) fn critical_on<E: std::fmt::Display + Send>(
        &self,
        threads: &Handle,
        name: &'static str,
        work: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let inner = Arc::downgrade(&self.0);
        self.start(threads, name, async move {
            let reason = match work.await {
                Ok(()) => "it came to its end".to_owned(),
                Err(error) => error.to_string(),
            };
            if let Some(inner) = inner.upgrade() {
                inner.end(Ended::Task { name, reason });
            }
        });
    }

    /// Runs a task that comes to its end when the node stops.
    pub(super) fn background(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        self.start(&Handle::current(), name, work);
    }

    fn start(&self, threads: &Handle, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let inner = Arc::downgrade(&self.0);
        let guarded = async move {
            if AssertUnwindSafe(work).catch_unwind().await.is_err()
                && let Some(inner) = inner.upgrade()
            {
                inner.end(Ended::Panic { name });
            }
        };
        let mut running = self.0.running.lock().unwrap_or_else(PoisonError::into_inner);
        while running.try_join_next().is_some() {}
        running.spawn_on(guarded, threads);
    }

    /// Waits until a critical task has ended or any task has panicked.
    pub(super) async fn ended(&self) -> Ended {
        let mut ended = self.0.ended.subscribe();
        let found = ended.wait_for(Option::is_some).await.map(|ended| ended.clone());
        match found {
            Ok(Some(ended)) => ended,
            _ => std::future::pending().await,
        }
    }

    /// Waits until the work begun through [`Spawner::spawn`] is done, at most `grace`; says whether it is.
    pub(super) async fn work_done(&self, grace: Duration) -> bool {
        let mut work = self.0.work.subscribe();
        tokio::time::timeout(grace, work.wait_for(|running| *running == 0)).await.is_ok()
    }

    /// Drops every task where it stands.
    pub(super) fn abort(&self) {
        self.0.running.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}

impl Inner {
    fn end(&self, reason: Ended) {
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            if first {
                *ended = Some(reason);
            }
            first
        });
    }
}

/// Counts one piece of work down when it is done or dropped.
struct Counted(watch::Sender<usize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|running| *running -= 1);
    }
}

impl Spawner for Tasks {
    fn spawn(&self, name: &'static str, work: BoxFuture<'static, ()>) {
        self.0.work.send_modify(|running| *running += 1);
        let counted = Counted(self.0.work.clone());
        self.start(&Handle::current(), name, async move {
            let _counted = counted;
            work.await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_a_critical_task_is_seen() {
        let tasks = Tasks::default();
        tasks.critical("one", async { Err("disk is gone") });
        assert_eq!(tasks.ended().await, Ended::Task { name: "one", reason: "disk is gone".to_owned() });
    }

    #[tokio::test]
    async fn a_panic_in_any_task_is_seen() {
        let tasks = Tasks::default();
        tasks.spawn("rescue", Box::pin(async { panic!("on purpose") }));
        assert_eq!(tasks.ended().await, Ended::Panic { name: "rescue" });
        assert!(tasks.work_done(Duration::ZERO).await);
    }

    #[tokio::test]
    async fn stop_waits_for_work_but_not_for_ever() {
        let tasks = Tasks::default();
        tasks.spawn("slow", Box::pin(tokio::time::sleep(Duration::from_millis(100))));
        assert!(!tasks.work_done(Duration::from_millis(10)).await);
        assert!(tasks.work_done(Duration::from_secs(5)).await);
    }
}
