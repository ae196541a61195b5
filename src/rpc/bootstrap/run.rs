//! From an empty disk to an identity, over as many restarts as it takes.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::topology::{ClusterId, NodeId, NodeRecord, Topology};

use super::client::{AskError, Asker};
use super::decide::{self, Heard, Own, Reason, SeedState, Stage, Step};
use super::promise::Promise;
use super::wire::{self, Answer, Join};
use super::{
    Bootstrapped, FIRST_EPOCH, Identity, Inner, NodeDescription, NodeFile, NodeUri, Peers, Result, blocking, ca,
    describe,
};

/// How long one seed may take for one answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a seed may take for a join: longer than it gives itself.
const JOIN_TIMEOUT: Duration = Duration::from_secs(12);
/// How often a waiting node says again why it waits.
const REMIND_AFTER: Duration = Duration::from_secs(30);

/// How often a restarted node that knows no address asks its seeds.
const FIND_INTERVAL: Duration = Duration::from_secs(1);

/// Says why the node waits, once per reason and again from time to time.
#[derive(Default)]
struct Log {
    last: Option<(String, Instant)>,
}

impl Log {
    fn say(&mut self, reason: String, wrong: bool) {
        let now = Instant::now();
        if self.last.as_ref().is_some_and(|(said, at)| *said == reason && now - *at < REMIND_AFTER) {
            return;
        }
        if wrong {
            tracing::warn!(reason, "this node cannot become a member");
        } else {
            tracing::info!(reason, "waiting to become a member");
        }
        self.last = Some((reason, now));
    }
}

impl Inner {
    /// Asks, decides and acts until this node is a member.
    pub(super) async fn become_member(self: &Arc<Self>) -> Result<Bootstrapped> {
        let mut log = Log::default();
        let mut turn = 0;
        loop {
            let seeds = self.ask_all().await;
            let promise = self.place.lock().await.promise.clone();
            let own = Own {
                name: &self.options.node.name,
                instance: self.instance,
                expect: self.options.expect,
                promise: promise.as_ref(),
            };
            match decide::next(&own, &seeds) {
                Step::Join { cluster, seeds: ready } => {
                    // Another one each time: the first may be cut off from the quorum.
                    let seed = &seeds[ready[turn % ready.len()]].0;
                    match self.join_at(seed, cluster, promise.as_ref()).await? {
                        Ok(done) => return Ok(done),
                        Err(reason) => log.say(format!("{seed}: {reason}"), true),
                    }
                }
                Step::Initialise { ask, participants } => {
                    let ask = ask.into_iter().map(|index| seeds[index].0.clone()).collect();
                    match self.initialise(promise, ask, participants).await? {
                        Ok(done) => return Ok(done),
                        Err(reason) => log.say(reason, true),
                    }
                }
                Step::Wait(reason) => {
                    let wrong = reason.is_wrong() || matches!(reason, Reason::Count { .. });
                    log.say(reason.to_string(), wrong);
                }
            }
            turn += 1;
            // Not in step with the others, so that they do not all ask in one moment for ever.
            let jitter = self.env.seed.draw_u64() % 128;
            sleep(self.options.interval + self.options.interval.mul_f64(jitter as f64 / 512.0)).await;
        }
    }

    /// Asks every seed how it stands.
    pub(super) async fn ask_all(self: &Arc<Self>) -> Vec<(String, Heard)> {
        let mut asked = JoinSet::new();
        for (index, seed) in self.options.seeds.iter().enumerate() {
            let (inner, seed) = (self.clone(), seed.clone());
            asked.spawn(async move { (index, inner.ask_standing(&seed).await) });
        }
        let silent = || Heard::Silent("not asked".to_owned());
        let mut heard: Vec<_> = self.options.seeds.iter().map(|seed| (seed.clone(), silent())).collect();
        while let Some(done) = asked.join_next().await {
            if let Ok((index, said)) = done {
                heard[index].1 = said;
            }
        }
        heard
    }

    async fn ask_standing(&self, seed: &str) -> Heard {
        if seed == self.options.node.rpc_address {
            return Heard::Said(self.standing().await); // which may not be reachable from this side
        }
        let asked = async {
            let mut session = self.asker().open(seed, ASK_TIMEOUT).await?;
            session.ask(wire::ask_standing(), ASK_TIMEOUT).await
        };
        match asked.await {
            Ok(Answer::Standing(told)) => match wire::standing(&told) {
                Some(state) => Heard::Said(state),
                None => Heard::Silent("it answers in another version".to_owned()),
            },
            Ok(_) => Heard::Silent("it answers another question".to_owned()),
            Err(AskError::WrongSecret) => Heard::WrongSecret,
            Err(AskError::Silent(problem)) => Heard::Silent(problem),
        }
    }

    fn asker(&self) -> Asker<'_> {
        Asker { env: &self.env, credentials: &self.credentials, secret: &self.options.secret }
    }

    /// Asks one member to take this node in; the inner error is the reason to try again.
    async fn join_at(
        &self,
        seed: &str,
        cluster: ClusterId,
        promise: Option<&Promise>,
    ) -> Result<Result<Bootstrapped, String>> {
        let dir = self.dir.clone();
        let key = blocking(move || dir.key()).await?;
        let node = NodeDescription { key_fingerprint: [0; 32], ..self.options.node.clone() };
        let promised = promise.map(|promise| promise.cluster);
        let question = wire::ask_join(Join { node, certificate_request: ca::request(&key)?, promised });
        let asked = async {
            let mut session = self.asker().open(seed, ASK_TIMEOUT).await?;
            session.ask(question, JOIN_TIMEOUT).await
        };
        let membership = match asked.await {
            Ok(Answer::Joined(told)) => match wire::joined(told) {
                Some(membership) if membership.cluster == cluster => membership,
                _ => return Ok(Err("its answer is not for this cluster or version".to_owned())),
            },
            Ok(Answer::Refused(refused)) => return Ok(Err(refused.reason)),
            Ok(_) => return Ok(Err("it answers another question".to_owned())),
            Err(error) => return Ok(Err(error.to_string())),
        };
        let uri = NodeUri { cluster, epoch: membership.epoch, node: membership.node };
        let identity = match Identity::assemble(&self.env, uri, key, &membership.pems) {
            Ok(identity) => identity,
            Err(error) => return Ok(Err(format!("its answer makes no identity: {}", describe(&error)))),
        };
        self.settle(&identity, NodeFile::new(&identity, None, membership.nodes.clone())).await?;
        tracing::info!(%cluster, node = %uri.node, "joined the cluster");
        Ok(Ok(Bootstrapped::Joined { identity, nodes: membership.nodes }))
    }

    /// Promises, has all others promise, and makes the cluster's first identity; the inner error is the reason to try
    /// again.
    ///
    /// Each step is on disk before the next begins, so that a restart goes on with the same cluster id: a promise that
    /// others have given must not be to a cluster that nobody remembers.
    async fn initialise(
        self: &Arc<Self>,
        promise: Option<Promise>,
        ask: Vec<String>,
        participants: Vec<String>,
    ) -> Result<Result<Bootstrapped, String>> {
        let name = self.options.node.name.clone();
        let cluster = promise.map_or_else(|| ClusterId(self.env.seed.draw_u128()), |promise| promise.cluster);
        let promise = Promise::new(cluster, name, participants);
        match self.promise(promise.clone()).await {
            Ok(Answer::Promised(_)) => {}
            Ok(Answer::Refused(refused)) => return Ok(Err(refused.reason)),
            Ok(_) => return Ok(Err("no promise".to_owned())),
            Err(status) => return Ok(Err(status.message().to_owned())),
        }
        let mut asked = JoinSet::new();
        for seed in ask {
            let (inner, question) = (self.clone(), wire::ask_promise(&promise));
            asked.spawn(async move {
                let answer = async {
                    let mut session = inner.asker().open(&seed, ASK_TIMEOUT).await?;
                    session.ask(question, ASK_TIMEOUT).await
                };
                match answer.await {
                    Ok(Answer::Promised(_)) => Ok(()),
                    Ok(Answer::Refused(refused)) => Err(format!("{seed} does not promise: {}", refused.reason)),
                    Ok(_) => Err(format!("{seed} answers another question")),
                    Err(error) => Err(format!("{seed} does not promise: {error}")),
                }
            });
        }
        while let Some(done) = asked.join_next().await {
            if let Err(reason) = done.unwrap_or_else(|_| Err("asking for a promise failed".to_owned())) {
                return Ok(Err(reason));
            }
        }
        let dir = self.dir.clone();
        let key = blocking(move || dir.key()).await?;
        let identity = Identity::found(&self.env, NodeUri { cluster, epoch: FIRST_EPOCH, node: NodeId(1) }, key)?;
        let expected = self.options.expect;
        self.settle(&identity, NodeFile::new(&identity, Some(expected), Vec::new())).await?;
        tracing::info!(%cluster, expected, "forming the cluster");
        Ok(Ok(Bootstrapped::Initialise { cluster, identity, expected }))
    }

    /// Makes a new identity durable, then shows it.
    pub(super) async fn settle(&self, identity: &Identity, file: NodeFile) -> Result<()> {
        let mut place = self.place.lock().await;
        let (dir, stored, written) = (self.dir.clone(), identity.clone(), file.clone());
        blocking(move || dir.store(&stored, &written)).await?;
        self.credentials.install(identity.clone())?;
        place.identity = Some(file);
        Ok(())
    }

    /// Asks the seeds for their ids until the agreed state says where everyone is.
    pub(super) async fn find_seeds(self: &Arc<Self>, peers: &Peers, topology: &mut watch::Receiver<Arc<Topology>>) {
        while topology.borrow_and_update().nodes.len() < 2 {
            let own = self.place.lock().await.identity.as_ref().map(|file| file.cluster);
            for (seed, heard) in self.ask_all().await {
                let Heard::Said(SeedState { node: Some(node), stage, .. }) = heard else { continue };
                let (Stage::Forming { cluster } | Stage::Formed { cluster }) = stage else { continue };
                if own == Some(cluster) && node != peers.me() {
                    peers.learn(node, seed);
                }
            }
            if let Ok(Err(_)) = timeout(FIND_INTERVAL, topology.changed()).await {
                return; // its owner is gone: the node is stopping
            }
        }
    }

    /// Writes where the nodes are, when that changed.
    pub(super) async fn remember(&self, nodes: Vec<NodeRecord>) -> Result<()> {
        let mut place = self.place.lock().await;
        let Some(file) = place.identity.as_mut().filter(|file| !nodes.is_empty() && file.nodes != nodes) else {
            return Ok(());
        };
        file.nodes = nodes;
        let (dir, written) = (self.dir.clone(), file.clone());
        blocking(move || dir.store_file(&written)).await
    }
}
