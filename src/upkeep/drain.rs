//! What of a leaving node's content does not lie yet where it belongs without it; looked at by the leader alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::meta::command::LogTime;
use crate::meta::plan::Leave;
use crate::meta::{Content, RaftState, State, Upload};
use crate::oci::Digest;
use crate::topology::{NodeId, NodeState, Policy, Topology, placement};

use super::Upkeep;
use super::holdings::{Holdings, all_in};

/// Pause between two pages.
const PAUSE: Duration = Duration::from_millis(10);
/// How long the leader rests between two looks.
const REST: Duration = Duration::from_secs(1);
/// A push that began before a node was to leave may still end on it; longer than a push waits for its copies.
const SETTLED_AFTER: Duration = Duration::from_secs(10);
/// An upload that was used so lately, in milliseconds of log time, still goes on; others are idle.
const UPLOAD_USED_MS: u64 = 5 * 60 * 1000;

/// How far a leaving node is with being empty, as of one look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drain {
    /// The log index applied when the look began.
    pub began: u64,
    /// What the node holds of what is linked; all that is linked if it does not answer.
    pub total: u64,
    /// Of that, what is not on every node that should hold it without the leaving one.
    pub left: u64,
    /// Bytes of that.
    pub left_bytes: u64,
    /// Of that, what no other node has.
    pub only_here: u64,
    /// Uploads that keep it: those under way with bytes on it, and those of `idle_uploads`.
    pub uploads: u64,
    /// Of those, the ones that nobody has used lately: some of their bytes are on no node that stays.
    pub idle_uploads: u64,
    /// Whether it was to leave long enough before the look that no push still ends on it.
    pub settled: bool,
}

impl Drain {
    /// Whether the node may go.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        self.left == 0 && self.uploads == 0 && self.settled
    }
}

/// The leaving nodes and how far they are.
pub type Drains = BTreeMap<NodeId, Drain>;

impl Drain {
    /// Adds what a page of contents says of a leaving node.
    fn count(&mut self, node: NodeId, page: &[Content], holdings: &Holdings, wanted: impl Fn(&Content) -> Vec<NodeId>) {
        for (n, content) in page.iter().enumerate().filter(|(n, _)| holdings.may_have(node, *n)) {
            self.total += 1;
            let holders = wanted(content);
            // Where nobody is wanted nothing can be complete.
            if !holders.is_empty() && holders.iter().all(|holder| holdings.surely_has(*holder, n)) {
                continue;
            }
            self.left += 1;
            self.left_bytes += content.size;
            self.only_here += u64::from(!holdings.is_beside(node, n));
        }
    }
}

impl Upkeep {
    /// Looks, while this node leads, how far leaving nodes are. Never ends.
    pub async fn watch_drains(self) {
        let mut since: BTreeMap<NodeId, Instant> = BTreeMap::new();
        let mut topology = self.0.parts.meta.topology();
        loop {
            let leaving = match self.0.parts.meta.status().state {
                RaftState::Leader => leaving(&self.0.parts.meta.local()),
                _ => Vec::new(),
            };
            let now = Instant::now();
            since.retain(|node, _| leaving.contains(node));
            for node in &leaving {
                since.entry(*node).or_insert(now);
            }
            if leaving.is_empty() {
                self.0.drains.send_if_modified(|drains| !std::mem::take(drains).is_empty());
                tokio::select! {
                    Ok(()) = topology.changed() => {}
                    () = sleep(REST) => {}
                }
                continue;
            }
            let mut drains = self.look_at(&leaving).await;
            for (node, drain) in &mut drains {
                drain.settled = since.get(node).is_some_and(|since| now.duration_since(*since) >= SETTLED_AFTER);
            }
            self.0.drains.send_replace(Arc::new(drains));
            sleep(REST).await;
        }
    }

    /// Follows how far leaving nodes are; empty unless this node leads.
    #[must_use]
    pub fn drains(&self) -> watch::Receiver<Arc<Drains>> {
        self.0.drains.subscribe()
    }

    /// Looks once, at all that is linked.
    pub(super) async fn look_at(&self, leaving: &[NodeId]) -> Drains {
        let state = self.0.parts.meta.local();
        // The running time, not the state's: that stands still while nothing is written.
        let now = self.0.parts.meta.log_time();
        let topology = state.topology();
        let stays = |node| topology.node(node).is_some_and(|record| record.state == NodeState::In);
        let begin = |node: &NodeId| {
            let open = state.uploads().map(|(_, upload)| upload);
            let (uploads, idle_uploads) =
                uploads_through(open, (*node, self.0.parts.replicas.is_dead(*node)), now, &stays);
            (*node, Drain { began: state.applied(), uploads, idle_uploads, ..Drain::default() })
        };
        let mut drains: Drains = leaving.iter().map(begin).collect();
        let mut after = None;
        while let Some(page) = self.next_page(&mut after) {
            let holdings = self.ask_all(&page).await;
            for (node, drain) in &mut drains {
                drain.count(*node, &page, &holdings, |content| self.wanted(content));
            }
            sleep(PAUSE).await;
        }
        drains
    }

    /// Counts what no other node has for certain, and names the first of it.
    pub async fn only_on(&self, node: NodeId, names_max: usize) -> (u64, Vec<Digest>) {
        let (mut count, mut names) = (0, Vec::new());
        let mut after = None;
        while let Some(page) = self.next_page(&mut after) {
            let holdings = self.ask_all(&page).await;
            let only_there = |n: &usize| holdings.may_have(node, *n) && !holdings.is_beside(node, *n);
            for content in (0..page.len()).filter(only_there).map(|n| &page[n]) {
                count += 1;
                if names.len() < names_max {
                    names.push(content.digest.clone());
                }
            }
        }
        (count, names)
    }

    /// Counts, for each other node, the bytes that it lacks of what it should hold without a node.
    ///
    /// A node that does not answer lacks everything.
    pub async fn needs_without(&self, node: NodeId) -> BTreeMap<NodeId, u64> {
        let replicas = &self.0.parts.replicas;
        let mut needs = BTreeMap::new();
        let mut after = None;
        while let Some(page) = self.next_page(&mut after) {
            let holdings = self.ask_all(&page).await;
            let mut without = Topology::clone(&replicas.topology());
            if let Some(record) = without.nodes.get_mut(&node) {
                record.state = NodeState::Decommissioned;
            }
            let policy = without.policy.clone().unwrap_or_else(|| Policy::of_copies(replicas.copies_configured()));
            add_needs(&mut needs, &page, &holdings, |content| match content.body {
                true => all_in(&without),
                false => placement(&content.digest, &without, &policy),
            });
        }
        needs
    }
}

/// Adds up what each node lacks of a page.
fn add_needs(
    needs: &mut BTreeMap<NodeId, u64>,
    page: &[Content],
    holdings: &Holdings,
    wanted: impl Fn(&Content) -> Vec<NodeId>,
) {
    for (n, content) in page.iter().enumerate() {
        for holder in wanted(content).into_iter().filter(|holder| !holdings.has(*holder, n)) {
            *needs.entry(holder).or_default() += content.size;
        }
    }
}

/// The nodes that are to go when they are empty.
fn leaving(state: &State) -> Vec<NodeId> {
    let plan = state.plan();
    plan.nodes.iter().filter(|(_, plan)| plan.leave == Leave::WhenEmpty).map(|(node, _)| *node).collect()
}

/// Counts the open uploads that keep a leaving node, and those of them that are idle.
///
/// One that was used lately does if its bytes lie or will lie on the node; a dead node is waited for only where it alone has
/// some of them, else the upload goes on with its other holders. An idle one may be abandoned, or its client may only pause:
/// it does if the node has acknowledged bytes of it that are on no node that stays.
fn uploads_through<'a>(
    uploads: impl Iterator<Item = &'a Upload>,
    (node, is_dead): (NodeId, bool),
    now: LogTime,
    stays: &dyn Fn(NodeId) -> bool,
) -> (u64, u64) {
    let (mut under_way, mut idle) = (0, 0);
    for upload in uploads.filter(|upload| upload.closed.is_none()) {
        let last_used = upload.expires.0.saturating_sub(upload.ttl_ms);
        let mut parts_here = upload.extents.iter().filter(|part| part.holders.contains(&node));
        if last_used < now.0.saturating_sub(UPLOAD_USED_MS) {
            idle += u64::from(parts_here.any(|part| !part.holders.iter().any(|holder| stays(*holder))));
        } else if is_dead {
            under_way += u64::from(parts_here.any(|part| part.holders == [node]));
        } else {
            under_way += u64::from(upload.holders.contains(&node) || parts_here.next().is_some());
        }
    }
    (under_way + idle, idle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::command::HeldExtent;
    use crate::oci::{Algorithm, ExtentId, HashState};
    use crate::upkeep::holdings::Answer;

    fn content(n: u8) -> Content {
        Content { digest: Digest::of(Algorithm::Sha256, &[n]), size: 10, body: false, links: 1, index: 1 }
    }

    /// Three contents, node 3 leaves, and each belongs to 1 and 2.
    fn count(answers: [Option<[bool; 3]>; 3]) -> Drain {
        let contents = [content(1), content(2), content(3)];
        let sure = |present: [bool; 3]| Answer { present: present.to_vec(), is_sure: true };
        let answers = answers.into_iter().zip(1..).map(|(answer, id)| (NodeId(id), answer.map(sure)));
        let mut drain = Drain::default();
        drain.count(NodeId(3), &contents, &Holdings(answers.collect()), |_| vec![NodeId(1), NodeId(2)]);
        drain
    }

    #[test]
    fn what_is_not_on_every_node_that_should_hold_it_keeps_a_node_from_going() {
        let all = Some([true; 3]);
        assert_eq!(count([all, all, all]), Drain { total: 3, ..Drain::default() });
        let drain = count([Some([true, true, false]), Some([true, false, false]), all]);
        assert_eq!(drain, Drain { total: 3, left: 2, left_bytes: 20, only_here: 1, ..Drain::default() });
        // What it never had is no business of its own.
        let drain = count([Some([true, false, false]), all, Some([true, false, false])]);
        assert_eq!(drain, Drain { total: 1, ..Drain::default() });
    }

    #[test]
    fn a_silent_node_may_hold_everything_and_a_silent_holder_nothing() {
        let all = Some([true; 3]);
        assert_eq!(count([all, Some([true, true, false]), None]).left, 1);
        assert_eq!(count([all, None, all]).left, 3);
        assert_eq!(count([all, None, all]).only_here, 0);
    }

    #[test]
    fn each_node_needs_room_for_what_it_lacks_of_its_own_share() {
        let contents = [content(1), content(2), content(3)];
        let answer = |present: [bool; 3]| Some(Answer { present: present.to_vec(), is_sure: true });
        let answers =
            [(NodeId(1), answer([true, true, false])), (NodeId(2), answer([true, false, false])), (NodeId(3), None)];
        let mut needs = BTreeMap::new();
        let holdings = Holdings(answers.into_iter().collect());
        add_needs(&mut needs, &contents, &holdings, |_| vec![NodeId(1), NodeId(2)]);
        assert_eq!(needs, BTreeMap::from([(NodeId(1), 10), (NodeId(2), 20)]));
    }

    const DAY_MS: u64 = 24 * 60 * 60 * 1000;

    /// An upload last used at this time whose extents lie on these nodes.
    fn upload(used: u64, extents: &[&[u64]]) -> Upload {
        let extent = |(n, holders): (usize, &&[u64])| HeldExtent {
            id: ExtentId::from_random(n as u128),
            offset: n as u64,
            length: 1,
            holders: holders.iter().copied().map(NodeId).collect(),
        };
        Upload {
            repository: "a/b".parse().unwrap(),
            algorithm: Algorithm::Sha256,
            hash_state: HashState::initial(Algorithm::Sha256),
            length: extents.len() as u64,
            extents: extents.iter().enumerate().map(extent).collect(),
            holders: vec![NodeId(1), NodeId(2)],
            principal: "".into(),
            ttl_ms: DAY_MS,
            expires: LogTime(used + DAY_MS),
            closed: None,
        }
    }

    #[test]
    fn an_idle_upload_keeps_a_node_that_has_bytes_which_are_on_no_node_that_stays() {
        let now = LogTime(DAY_MS);
        let through = |upload: &Upload, leaving: &[u64]| {
            let stays = |node: NodeId| !leaving.contains(&node.0);
            uploads_through(std::iter::once(upload), (NodeId(leaving[0]), false), now, &stays)
        };
        let idle = upload(DAY_MS - UPLOAD_USED_MS - 1, &[&[1, 2], &[1, 3]]);
        assert_eq!(through(&idle, &[1]), (0, 0), "another holder of each stays");
        assert_eq!(through(&idle, &[1, 2]), (1, 1), "the first is on leaving nodes alone");
        assert_eq!(through(&idle, &[2, 1]), (1, 1));
        assert_eq!(through(&idle, &[3, 2]), (0, 0));
        // The first node is gone by now, and with it its copies.
        let left = upload(0, &[&[1, 2]]);
        assert_eq!(through(&left, &[2, 1]), (1, 1));
        assert_eq!(through(&upload(0, &[]), &[1, 2]), (0, 0), "nothing to lose");
        let closed = Upload { closed: Some(Digest::of(Algorithm::Sha256, b"")), ..left };
        assert_eq!(through(&closed, &[2, 1]), (0, 0));
    }

    #[test]
    fn an_upload_under_way_keeps_a_node_until_it_is_idle_by_the_running_time() {
        let lately = upload(DAY_MS, &[&[1, 2]]);
        let through =
            |now| uploads_through(std::iter::once(&lately), (NodeId(1), false), LogTime(now), &|node| node.0 != 1);
        assert_eq!(through(DAY_MS + UPLOAD_USED_MS), (1, 0));
        assert_eq!(through(DAY_MS + UPLOAD_USED_MS + 1), (0, 0));
    }

    #[test]
    fn a_dead_node_is_not_waited_for_by_uploads_that_go_on_with_another_holder() {
        let through = |extents: &[&[u64]], is_dead| {
            let upload = upload(DAY_MS, extents);
            uploads_through(std::iter::once(&upload), (NodeId(1), is_dead), LogTime(DAY_MS), &|node| node.0 != 1)
        };
        assert_eq!((through(&[], false), through(&[&[1, 2]], false)), ((1, 0), (1, 0)));
        assert_eq!((through(&[], true), through(&[&[1, 2], &[2]], true)), ((0, 0), (0, 0)));
        assert_eq!(through(&[&[1, 2], &[1]], true), (1, 0), "nobody else has its last bytes");
    }
}
