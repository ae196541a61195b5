//! A node as a process: from its start to a signal or its own end.

use std::io::Read;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::config::Config;

use super::{Node, Outcome, Seams, StartError, machine};

/// Runs a node until it is told to stop or cannot go on.
///
/// SIGINT and SIGTERM stop it in good order, a second one at once; with `stop_with_parent` so does the end of standard
/// input. SIGHUP reads the users and the certificate for clients again.
pub async fn run(config: Config, stop_with_parent: bool) -> Outcome {
    machine::raise_descriptors();
    let mut signals = match Signals::new(stop_with_parent) {
        Ok(signals) => signals,
        Err(source) => return Outcome::Unusable(StartError::Machine { source }),
    };
    // without this a hangup would end the process
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => hangup,
        Err(source) => return Outcome::Unusable(StartError::Machine { source }),
    };
    let started = tokio::select! {
        started = Node::start(config, Seams::machine()) => started,
        () = signals.stop() => return Outcome::Stopped,
    };
    let node = match started {
        Ok(node) => node,
        Err(error) => {
            tracing::error!(error = crate::rpc::describe(&error), "node cannot start");
            return Outcome::Unusable(error);
        }
    };
    let ended = tokio::select! {
        ended = node.ended() => Some(ended),
        () = signals.stop() => None,
        never = reload(&node, &mut hangup) => match never {},
    };
    if let Some(ended) = ended {
        tracing::error!(error = %ended, "node ends");
        return Outcome::Ended;
    }
    tokio::select! {
        () = node.stop() => {}
        () = signals.signal() => tracing::warn!("second signal: leaving at once"),
    }
    Outcome::Stopped
}

/// Reads the users and the certificate again at each SIGHUP.
async fn reload(node: &Node, hangup: &mut Signal) -> std::convert::Infallible {
    loop {
        if hangup.recv().await.is_none() {
            return std::future::pending().await;
        }
        node.doors.reload();
        match node.parts.auth.reload().await {
            Ok(()) => tracing::info!("users read again"),
            Err(error) => {
                tracing::warn!(error = crate::rpc::describe(&error), "users could not be read: the old ones stay")
            }
        }
    }
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// Ends with standard input.
    parent: Option<oneshot::Receiver<()>>,
}

impl Signals {
    fn new(stop_with_parent: bool) -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            parent: stop_with_parent.then(watch_parent),
        })
    }

    /// Waits for a signal or the end of the parent.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            () = gone(self.parent.as_mut()) => {}
        }
    }

    /// Waits for a signal.
    async fn signal(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Reads standard input to its end, on a thread of its own, since a read of it cannot be given up.
fn watch_parent() -> oneshot::Receiver<()> {
    let (lives, gone) = oneshot::channel();
    std::thread::spawn(move || {
        let mut ignored = [0; 64];
        while std::io::stdin().read(&mut ignored).is_ok_and(|read| read > 0) {}
        drop(lives);
    });
    gone
}

/// Waits for the end of standard input; without one, for ever.
async fn gone(parent: Option<&mut oneshot::Receiver<()>>) {
    match parent {
        None => std::future::pending().await,
        // nothing is ever sent: the end is what is waited for
        Some(parent) => drop(parent.await),
    }
}
