//! What a node without an identity does next, given what the seeds said. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::topology::{ClusterId, NodeId};

use super::promise::Promise;

/// How far a node has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stage {
    /// No identity.
    Empty { promise: Option<(ClusterId, String)> },
    /// An identity, but its agreed state does not answer yet.
    Forming { cluster: ClusterId },
    /// A member of a running cluster.
    Formed { cluster: ClusterId },
}

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SeedState {
    pub(super) name: String,
    pub(super) instance: u128,
    pub(super) expect: usize,
    pub(super) stage: Stage,
    pub(super) node: Option<NodeId>,
    /// The recovery epoch of its cluster; 0 if it is in none, or does not say.
    pub(super) epoch: u64,
}

/// What came of asking one seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Heard {
    Silent(String),
    WrongSecret,
    Said(SeedState),
}

/// This node.
#[derive(Debug, Clone)]
pub(super) struct Own<'a> {
    pub(super) name: &'a str,
    pub(super) instance: u128,
    pub(super) expect: usize,
    pub(super) promise: Option<&'a Promise>,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Ask one of these seeds (by index) to become a member of `cluster`.
    Join { cluster: ClusterId, seeds: Vec<usize> },
    /// Form the cluster: promise, have these seeds promise, and only then make the identity.
    Initialise { ask: Vec<usize>, participants: Vec<String> },
    /// Ask again a little later.
    Wait(Reason),
}

/// Why a node waits, for the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Reason {
    #[error("seed {address} does not answer: {problem}")]
    Silent { address: String, problem: String },
    #[error("seed {address} has another secret file than this node, or is not of this registry")]
    WrongSecret { address: String },
    #[error("seeds belong to two clusters, {first} and {second}")]
    TwoClusters { first: ClusterId, second: ClusterId },
    #[error("this node has promised itself to cluster {promised}, but seed {name} belongs to {found}")]
    Promised { promised: ClusterId, name: String, found: ClusterId },
    #[error("{name} is starting cluster {cluster}")]
    Starting { name: String, cluster: ClusterId },
    #[error("none of the seeds is this node: waiting for them to form a cluster")]
    NotASeed,
    #[error("{found} seeds are in reach, bootstrap_expect is {expect}")]
    Count { expect: usize, found: usize },
    #[error("two seeds are called {name}")]
    SameName { name: String },
    #[error("{name} has bootstrap_expect {theirs}, this node {own}")]
    ExpectDiffers { name: String, theirs: usize, own: usize },
    #[error("{name} will form the cluster")]
    Lowest { name: String },
    #[error("this node has promised itself to cluster {cluster}, which {initialiser} forms")]
    PromisedTo { cluster: ClusterId, initialiser: String },
    #[error("{name} has promised itself to another cluster, {cluster}, which {initialiser} forms")]
    TheyPromised { name: String, cluster: ClusterId, initialiser: String },
}

impl Reason {
    /// A human must look at the configuration: time alone does not help.
    pub(super) fn is_wrong(&self) -> bool {
        !matches!(
            self,
            Self::Silent { .. } | Self::Starting { .. } | Self::NotASeed | Self::Count { .. } | Self::Lowest { .. }
        )
    }
}

/// Decides what to do next (P10).
///
/// A node joins whatever cluster its seeds have formed, and initialises only when every configured seed answers, none
/// belongs to a cluster, there are exactly as many as expected, and it is the lowest of them by name.
pub(super) fn next(own: &Own<'_>, seeds: &[(String, Heard)]) -> Step {
    match join(own, seeds).or_else(|| wait_for_all(seeds)) {
        Some(step) => step,
        None => form(own, seeds),
    }
}

fn said(seeds: &[(String, Heard)]) -> impl Iterator<Item = (usize, &SeedState)> {
    seeds.iter().enumerate().filter_map(|(index, (_, heard))| match heard {
        Heard::Said(state) => Some((index, state)),
        _ => None,
    })
}

/// Joins, or waits for, the cluster that is there already.
fn join(own: &Own<'_>, seeds: &[(String, Heard)]) -> Option<Step> {
    let mut members = said(seeds).filter_map(|(index, state)| match state.stage {
        Stage::Formed { cluster } => Some((index, state, cluster, true)),
        Stage::Forming { cluster } => Some((index, state, cluster, false)),
        Stage::Empty { .. } => None,
    });
    let (first_index, first, cluster, formed) = members.next()?;
    let mut ready: Vec<usize> = formed.then_some(first_index).into_iter().collect();
    for (index, _, other, formed) in members {
        if other != cluster {
            return Some(Step::Wait(Reason::TwoClusters { first: cluster, second: other }));
        }
        ready.extend(formed.then_some(index));
    }
    let name = first.name.clone();
    Some(match own.promise {
        Some(promise) if promise.cluster != cluster => {
            Step::Wait(Reason::Promised { promised: promise.cluster, name, found: cluster })
        }
        _ if ready.is_empty() => Step::Wait(Reason::Starting { name, cluster }),
        _ => Step::Join { cluster, seeds: ready },
    })
}

/// Without a cluster in sight nothing is decided before every seed has spoken: the silent one may be in one.
fn wait_for_all(seeds: &[(String, Heard)]) -> Option<Step> {
    let reasons = seeds.iter().filter_map(|(address, heard)| {
        let address = address.clone();
        match heard {
            Heard::WrongSecret => Some(Reason::WrongSecret { address }),
            Heard::Silent(problem) => Some(Reason::Silent { address, problem: problem.clone() }),
            Heard::Said(_) => None,
        }
    });
    // What a human must mend goes before what may mend itself.
    reasons.max_by_key(Reason::is_wrong).map(Step::Wait)
}

/// Every seed has spoken and none belongs to a cluster.
fn form(own: &Own<'_>, seeds: &[(String, Heard)]) -> Step {
    // By process, not by address: one node may stand under two.
    let others: BTreeMap<u128, (usize, &SeedState)> = said(seeds)
        .filter(|(_, state)| state.instance != own.instance)
        .map(|(index, state)| (state.instance, (index, state)))
        .collect();
    let listed = said(seeds).any(|(_, state)| state.instance == own.instance);
    let found = others.len() + 1;
    // Seeds may be "all of them" or "all the others"; a node that is neither is a later joiner.
    if !listed && found != own.expect {
        return Step::Wait(Reason::NotASeed);
    }
    if found != own.expect {
        return Step::Wait(Reason::Count { expect: own.expect, found });
    }
    let mut names = BTreeSet::from([own.name.to_owned()]);
    for (_, state) in others.values() {
        if !names.insert(state.name.clone()) {
            return Step::Wait(Reason::SameName { name: state.name.clone() });
        }
        if state.expect != own.expect {
            let name = state.name.clone();
            return Step::Wait(Reason::ExpectDiffers { name, theirs: state.expect, own: own.expect });
        }
    }
    let lowest = names.first().expect("this node's own name is in it");
    if let Some(promise) = own.promise.filter(|promise| promise.initialiser != own.name) {
        let Promise { cluster, initialiser, .. } = promise.clone();
        return Step::Wait(if &initialiser == lowest {
            Reason::Lowest { name: initialiser }
        } else {
            Reason::PromisedTo { cluster, initialiser }
        });
    }
    if lowest != own.name {
        return Step::Wait(Reason::Lowest { name: lowest.clone() });
    }
    let own_cluster = own.promise.map(|promise| promise.cluster);
    for (_, state) in others.values() {
        if let Stage::Empty { promise: Some((cluster, initialiser)) } = &state.stage
            && own_cluster != Some(*cluster)
        {
            let (name, cluster, initialiser) = (state.name.clone(), *cluster, initialiser.clone());
            return Step::Wait(Reason::TheyPromised { name, cluster, initialiser });
        }
    }
    let ask = others.values().map(|(index, _)| *index).collect();
    Step::Initialise { ask, participants: names.into_iter().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const C: ClusterId = ClusterId(1);
    const D: ClusterId = ClusterId(2);

    fn empty(name: &str) -> (String, Heard) {
        said_as(name, Stage::Empty { promise: None })
    }

    fn said_as(name: &str, stage: Stage) -> (String, Heard) {
        let instance = u128::from(name.as_bytes()[0]);
        (
            name.to_owned(),
            Heard::Said(SeedState { name: name.to_owned(), instance, expect: 3, stage, node: None, epoch: 0 }),
        )
    }

    fn silent(name: &str) -> (String, Heard) {
        (name.to_owned(), Heard::Silent("refused".to_owned()))
    }

    fn step(name: &str, promise: Option<&Promise>, seeds: &[(String, Heard)]) -> Step {
        next(&Own { name, instance: u128::from(name.as_bytes()[0]), expect: 3, promise }, seeds)
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn promise(cluster: ClusterId, initialiser: &str) -> Promise {
        Promise::new(cluster, initialiser.to_owned(), names(&["a", "b", "c"]))
    }

    #[test]
    fn only_the_lowest_of_exactly_the_expected_seeds_initialises() {
        let all = [empty("c"), empty("a"), empty("b")];
        assert_eq!(step("a", None, &all), Step::Initialise { ask: vec![2, 0], participants: names(&["a", "b", "c"]) });
        assert_eq!(step("b", None, &all), Step::Wait(Reason::Lowest { name: "a".to_owned() }));
        // Seeds that name only the others mean the same.
        let others = [empty("c"), empty("b")];
        assert!(matches!(step("a", None, &others), Step::Initialise { .. }));
        // A later joiner with the same seeds, even the lowest by name, never does.
        assert_eq!(step("0", None, &all), Step::Wait(Reason::NotASeed));
        let four = [empty("a"), empty("b"), empty("c"), empty("d")];
        assert_eq!(step("a", None, &four), Step::Wait(Reason::Count { expect: 3, found: 4 }));
        // One node under two addresses is one.
        assert_eq!(
            step("a", None, &[empty("a"), empty("b"), empty("b")]),
            Step::Wait(Reason::Count { expect: 3, found: 2 })
        );
    }

    #[test]
    fn nothing_is_formed_while_a_seed_is_silent_or_has_another_secret() {
        assert!(matches!(step("a", None, &[empty("a"), empty("b"), silent("c")]), Step::Wait(Reason::Silent { .. })));
        let wrong = ("b".to_owned(), Heard::WrongSecret);
        assert!(matches!(
            step("a", None, &[silent("c"), wrong, empty("a")]),
            Step::Wait(Reason::WrongSecret { address }) if address == "b"
        ));
    }

    #[test]
    fn a_formed_cluster_is_joined_even_while_seeds_are_silent() {
        let formed = said_as("b", Stage::Formed { cluster: C });
        assert_eq!(step("a", None, &[silent("c"), formed.clone()]), Step::Join { cluster: C, seeds: vec![1] });
        assert_eq!(step("0", None, std::slice::from_ref(&formed)), Step::Join { cluster: C, seeds: vec![0] });
        assert_eq!(
            step("a", Some(&promise(C, "b")), std::slice::from_ref(&formed)),
            Step::Join { cluster: C, seeds: vec![0] }
        );
        assert!(matches!(
            step("a", Some(&promise(D, "b")), std::slice::from_ref(&formed)),
            Step::Wait(Reason::Promised { .. })
        ));
        let other = said_as("c", Stage::Formed { cluster: D });
        assert!(matches!(step("a", None, &[formed, other]), Step::Wait(Reason::TwoClusters { .. })));
    }

    #[test]
    fn a_cluster_that_is_starting_is_waited_for() {
        let forming = said_as("b", Stage::Forming { cluster: C });
        let waiting = Step::Wait(Reason::Starting { name: "b".to_owned(), cluster: C });
        assert_eq!(step("a", None, &[empty("a"), forming.clone(), empty("c")]), waiting);
        assert_eq!(step("a", None, &[forming, silent("c")]), waiting);
    }

    #[test]
    fn the_initialiser_resumes_its_own_promise_and_no_other() {
        let promised = |name: &str, cluster, initialiser: &str| {
            said_as(name, Stage::Empty { promise: Some((cluster, initialiser.to_owned())) })
        };
        let seeds = [promised("a", C, "a"), promised("b", C, "a"), empty("c")];
        assert!(matches!(step("a", Some(&promise(C, "a")), &seeds), Step::Initialise { .. }));
        assert!(matches!(step("b", Some(&promise(C, "a")), &seeds), Step::Wait(Reason::Lowest { .. })));
        // It lost its disk, or another took its place: those who promised stay with their word.
        assert!(matches!(
            step("a", None, &[empty("a"), promised("b", C, "a"), empty("c")]),
            Step::Wait(Reason::TheyPromised { .. })
        ));
        assert!(matches!(
            step("a", Some(&promise(D, "a")), &[empty("a"), promised("b", C, "a"), empty("c")]),
            Step::Wait(Reason::TheyPromised { .. })
        ));
        // Its own word to another holds too.
        assert!(matches!(step("a", Some(&promise(C, "b")), &seeds), Step::Wait(Reason::PromisedTo { .. })));
    }

    #[test]
    fn settings_that_differ_are_told_and_not_guessed() {
        let mut seeds = [empty("a"), empty("b"), empty("c")];
        if let Heard::Said(state) = &mut seeds[1].1 {
            state.expect = 5;
        }
        assert!(matches!(step("a", None, &seeds), Step::Wait(Reason::ExpectDiffers { theirs: 5, own: 3, .. })));
        let twin = |instance| {
            let stage = Stage::Empty { promise: None };
            let state = SeedState { name: "b".into(), instance, expect: 3, stage, node: None, epoch: 0 };
            ("b".to_owned(), Heard::Said(state))
        };
        assert!(matches!(step("a", None, &[empty("a"), twin(7), twin(8)]), Step::Wait(Reason::SameName { .. })));
    }

    #[test]
    fn one_node_alone_initialises_and_one_that_names_another_joins() {
        let own = |promise| Own { name: "a", instance: 1, expect: 1, promise };
        assert_eq!(next(&own(None), &[]), Step::Initialise { ask: vec![], participants: names(&["a"]) });
        assert_eq!(next(&own(None), &[empty("b")]), Step::Wait(Reason::NotASeed));
    }
}
