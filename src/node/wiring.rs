//! Joins parts that do not know each other: facts that travel upward, and questions that travel down.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, UNIX_EPOCH};

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

use crate::blob::{BlobStore, Event};
use crate::config::Config;
use crate::env::{BoxFuture, Env};
use crate::gossip::{self, Gossip, Liveness};
use crate::meta::command::{Command, Rejection, Response};
use crate::meta::plan::TokenJoin;
use crate::meta::{FEATURE_LEVEL_MAX, Hooks, Meta, Sight};
use crate::ops::{Health, Stage};
use crate::rpc::{AddNodeError, Admission, ClusterHooks, NodeDescription};
use crate::topology::{ClusterId, NodeId, NodeRecord, NodeState};
use crate::upkeep::Upkeep;

/// How long a command of the node's own may take.
const PROPOSE_MAX: Duration = Duration::from_secs(5);
/// How long between two tries of it.
const TRY_EVERY: Duration = Duration::from_secs(2);
/// How often it is looked whether the node has become ready.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// After so long without an answer from every other node, those that are silent are taken for away.
const GOSSIP_MAX: Duration = Duration::from_secs(2);

/// How often it is looked whether the index has become complete.
const LIST_EVERY: Duration = Duration::from_millis(200);
/// Blobs listed at once.
const LIST_PAGE: usize = 4096;

/// What `meta` asks of a part that is built after it.
pub(super) type Later<T> = Arc<OnceLock<T>>;

/// What `meta` may not see for itself.
pub(super) fn meta_hooks(env: &Env, upkeep: Later<Upkeep>, gossip: Later<Gossip>) -> Hooks {
    let (seed, clock) = (env.seed.clone(), env.clock.clone());
    let (complete, bodies) = (upkeep.clone(), upkeep.clone());
    Hooks {
        random: Arc::new(move || seed.draw_u128()),
        wall_seconds: Arc::new(move || clock.now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())),
        bodies_complete: Arc::new(move |applied| {
            complete.get().is_some_and(|upkeep| upkeep.progress().borrow().bodies_are_complete(applied))
        }),
        bodies_to: Arc::new(move || bodies.get().map_or(0, |upkeep| upkeep.progress().borrow().bodies_to)),
        sight: Arc::new(move |node| {
            let liveness = gossip.get().and_then(|gossip| Some(gossip.members().borrow().get(&node)?.liveness));
            match liveness {
                Some(Liveness::Live) => Sight::Live,
                Some(Liveness::Dead) => Sight::Dead,
                Some(Liveness::Suspect) | None => Sight::Unsure,
            }
        }),
        is_empty: Arc::new(move |node, since| {
            let drain = upkeep.get().and_then(|upkeep| upkeep.drains().borrow().get(&node).copied());
            drain.is_some_and(|drain| drain.is_done() && drain.began >= since)
        }),
    }
}

/// The command that puts this node into the agreed state.
pub(super) fn add_node(node: NodeDescription) -> Command {
    Command::AddNode {
        name: node.name,
        zone: node.zone,
        region: node.region,
        rpc_address: node.rpc_address,
        api_url: node.api_url,
        weight: node.weight,
        key_fingerprint: node.key_fingerprint,
    }
}

/// Lets removed nodes knock in vain.
pub(super) fn admission(meta: Meta) -> Admission {
    Arc::new(move |peer| meta.admits(peer.node))
}

/// The agreed state as the bootstrap service may see it.
pub(super) struct Joins {
    pub(super) meta: Meta,
    pub(super) gossip: Later<Gossip>,
}

impl ClusterHooks for Joins {
    fn formed(&self) -> Option<ClusterId> {
        self.meta.local().cluster()
    }

    fn nodes(&self) -> Vec<NodeRecord> {
        self.meta.local().topology().nodes.values().cloned().collect()
    }

    fn add_node(&self, node: NodeDescription) -> BoxFuture<'_, Result<NodeId, AddNodeError>> {
        let name = node.name.clone();
        Box::pin(self.join(name, add_node(node)))
    }

    fn join_by_token(&self, token: [u8; 32], node: NodeDescription) -> BoxFuture<'_, Result<NodeId, AddNodeError>> {
        let name = node.name.clone();
        let join = TokenJoin {
            token,
            name: node.name,
            zone: node.zone,
            region: node.region,
            rpc_address: node.rpc_address,
            api_url: node.api_url,
            weight: node.weight,
            key_fingerprint: node.key_fingerprint,
        };
        Box::pin(self.join(name, Command::JoinByToken(Box::new(join))))
    }
}

impl Joins {
    async fn join(&self, name: String, command: Command) -> Result<NodeId, AddNodeError> {
        match self.propose(command.clone()).await? {
            Response::NodeAdded { node } => return Ok(node),
            Response::Rejected(Rejection::NameTaken) => self.free_name(&name).await?,
            other => return Err(refused(&other)),
        }
        match self.propose(command).await? {
            Response::NodeAdded { node } => Ok(node),
            other => Err(refused(&other)),
        }
    }

    async fn propose(&self, command: Command) -> Result<Response, AddNodeError> {
        let applied = self.meta.propose(command, PROPOSE_MAX).await.map_err(|_| AddNodeError::Unavailable)?;
        Ok(applied.response)
    }

    /// Takes a dead node out so that its name is free: a machine whose disk was wiped comes back as a new node (P10).
    async fn free_name(&self, name: &str) -> Result<(), AddNodeError> {
        let topology = self.meta.local().topology();
        let holder = topology.nodes.values().find(|node| node.name == name && node.state == NodeState::In);
        let Some(holder) = holder else { return Ok(()) };
        let members = self.gossip.get().map(|gossip| gossip.members().borrow().clone()).unwrap_or_default();
        if members.get(&holder.id).is_none_or(|member| member.liveness != Liveness::Dead) {
            return Err(AddNodeError::Refused(format!(
                "node {} has the name `{name}` and lives, or was heard of a moment ago: each node needs a name of its own",
                holder.id
            )));
        }
        tracing::warn!(node = holder.id.0, name, "a new node takes the place of a dead one");
        let state = NodeState::Out;
        match self.propose(Command::SetNodeState { node: holder.id, state }).await? {
            Response::Done => Ok(()),
            other => Err(AddNodeError::Refused(format!("{other:?}"))),
        }
    }
}

/// Says in words why a node was not taken in.
fn refused(response: &Response) -> AddNodeError {
    let text = match response {
        Response::Rejected(Rejection::TokenUnknown) => "the token is unknown, or was taken back".to_owned(),
        Response::Rejected(Rejection::TokenExpired) => "the token has expired".to_owned(),
        Response::Rejected(Rejection::TokenUsed) => "the token was used by another node".to_owned(),
        Response::Rejected(Rejection::NotOpen) => "the cluster is being formed".to_owned(),
        Response::Rejected(Rejection::FeatureLevel { agreed }) => {
            format!("not every node knows tokens: the agreed feature level is {agreed}")
        }
        other => format!("{other:?}"),
    };
    AddNodeError::Refused(text)
}

/// Tells the others which blobs lie here: all of them once the index agrees with the disk, and what comes and goes.
pub(super) async fn announce_blobs(blobs: BlobStore, gossip: Gossip) {
    let mut events = blobs.events();
    let (mut listed, mut was_complete) = (false, false);
    loop {
        let is_complete = blobs.usage().index_complete;
        if is_complete && !(listed && was_complete) {
            match list_blobs(&blobs, &mut events).await {
                Ok(Some(listing)) => {
                    gossip.publish(listing);
                    listed = true;
                }
                // events were missed meanwhile: from the beginning
                Ok(None) => continue,
                Err(_stopping) => return std::future::pending().await,
            }
        }
        was_complete = is_complete;
        match tokio::time::timeout(LIST_EVERY, events.recv()).await {
            Ok(Ok(Event::Added { digest, .. })) => gossip.gained(&digest),
            Ok(Ok(Event::Removed { digest } | Event::Quarantined { digest })) => gossip.lost(&digest),
            Ok(Err(RecvError::Lagged(_))) => listed = false,
            Ok(Err(RecvError::Closed)) => return std::future::pending().await,
            Err(_nothing_happened) => {}
        }
    }
}

/// Lists what lies here, with what comes and goes meanwhile; nothing if some of that was missed.
async fn list_blobs(
    blobs: &BlobStore,
    events: &mut Receiver<Event>,
) -> Result<Option<gossip::Listing>, crate::blob::Error> {
    let mut listing = gossip::Listing::default();
    // A page may show what came or went before or after its event is read: the last event of a blob decides.
    let mut changes = Vec::new();
    let mut after = None;
    loop {
        let page = blobs.list_blobs(after, LIST_PAGE).await?;
        page.iter().for_each(|entry| listing.add(&entry.digest));
        loop {
            match events.try_recv() {
                Ok(event) => changes.push(event),
                Err(TryRecvError::Lagged(_)) => return Ok(None),
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        let Some(last) = page.last() else { break };
        after = Some(last.digest.clone());
    }
    for event in &changes {
        match event {
            Event::Added { digest, .. } => listing.add(digest),
            Event::Removed { digest } | Event::Quarantined { digest } => listing.remove(digest),
        }
    }
    Ok(Some(listing))
}

/// Keeps the agreed record of this node as its configuration has it (P11).
pub(super) async fn keep_record(meta: Meta, wanted: NodeDescription) {
    let mut topology = meta.topology();
    let me = meta.status().me;
    loop {
        let record = topology.borrow_and_update().node(me).cloned();
        // A newer binary says so, or the agreed feature level would never rise; an older one that took its place says so,
        // or the level would rise above what it knows (P8).
        let is_other = meta.local().node(me).is_some_and(|row| row.feature_level != FEATURE_LEVEL_MAX);
        let differs = record.is_some_and(|record| {
            is_other
                || (&record.zone, &record.region, &record.rpc_address, &record.api_url, record.weight)
                    != (&wanted.zone, &wanted.region, &wanted.rpc_address, &wanted.api_url, wanted.weight)
        });
        if differs {
            let command = Command::UpdateNode {
                node: me,
                zone: wanted.zone.clone(),
                region: wanted.region.clone(),
                rpc_address: wanted.rpc_address.clone(),
                api_url: wanted.api_url.clone(),
                weight: wanted.weight,
                feature_level: FEATURE_LEVEL_MAX,
            };
            match meta.propose(command, PROPOSE_MAX).await {
                Ok(applied) => match applied.response {
                    Response::Rejected(rejection) => tracing::warn!(?rejection, "own record could not be changed"),
                    _ => tracing::info!("own record changed"),
                },
                Err(error) => tracing::debug!(%error, "own record"),
            }
            tokio::time::sleep(TRY_EVERY).await;
        } else if topology.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Says so, when the agreed number of copies is not the one that this node is configured with.
pub(super) async fn compare_policy(meta: Meta, copies_configured: u32) {
    let mut topology = meta.topology();
    let mut said = None;
    loop {
        let policy = topology.borrow_and_update().policy.clone();
        if policy != said {
            if let Some(policy) = policy.as_ref().filter(|policy| policy.copies != copies_configured) {
                let copies = policy.copies;
                tracing::warn!(
                    copies,
                    copies_configured,
                    "`storage.copies` is not what the cluster has agreed on (`rafthold cluster policy`), and has no effect"
                );
            }
            said = policy;
        }
        if topology.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Says when the node is ready, for the first time: from then on it is, until it stops.
pub(super) async fn become_ready(meta: Meta, gossip: Gossip, health: Health) {
    loop {
        let status = meta.status();
        let waiting = if status.leader.is_none() {
            "no leader yet"
        } else if !status.fresh {
            "log is not replayed yet"
        } else if !meta.local().is_open() {
            "registry is not open yet"
        } else {
            break;
        };
        health.set(Stage::Starting(waiting));
        tokio::time::sleep(LOOK_EVERY).await;
    }
    health.set(Stage::Starting("first gossip round"));
    let me = meta.status().me;
    let all_heard = async {
        loop {
            let members = gossip.members().borrow().clone();
            let heard = |(id, member): (&NodeId, &gossip::Member)| {
                *id == me || member.since_heard.is_some() || member.liveness == Liveness::Dead
            };
            if members.iter().all(heard) {
                break;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(GOSSIP_MAX, all_heard).await.ok();
    health.set(Stage::Serving);
    tracing::info!(node = me.0, "ready");
}

/// This node as it describes itself to others.
pub(super) fn description(config: &Config, api: std::net::SocketAddr, rpc: std::net::SocketAddr) -> NodeDescription {
    let advertised = match config.rpc.advertise.clone() {
        Some(address) => address,
        // port 0 was asked for: the bound one is the one to tell
        None if config.rpc.listen.ends_with(":0") => rpc.to_string(),
        None => config.rpc.listen.clone(),
    };
    NodeDescription {
        name: config.node.name.clone(),
        zone: crate::topology::Zone(config.node.zone.clone()),
        region: crate::topology::Region(config.node.region.clone()),
        rpc_address: advertised,
        api_url: config.api_url(api),
        weight: config.node.weight,
        key_fingerprint: [0; 32],
    }
}
