//! Books that catch up with each other, without wires: what merging means, what it costs, and how fast news goes round.

#![expect(clippy::print_stdout, reason = "the figures of ARCHITECTURE.md come from here")]

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::topology::NodeId;

use super::book::{Book, Step, TAIL_MAX, Version};
use super::exchange::{Answer, Exchange, Outcome, Question};
use super::holdings::Holdings;
use super::keys::{Key, KeySet};
use super::wire;

const ENTRIES_MAX: u64 = 1 << 40;

fn nodes(count: u64) -> BTreeSet<NodeId> {
    (1..=count).map(NodeId).collect()
}

fn holdings(me: u64, count: u64) -> Holdings {
    let mut holdings = Holdings::new(NodeId(me), 1, ENTRIES_MAX);
    holdings.set_nodes(&nodes(count));
    holdings
}

fn answer(holdings: &Holdings, question: &Question) -> Answer {
    match question {
        Question::Pull(positions) => Answer::News(holdings.news(positions)),
        Question::Compare(node, ranges) => Answer::Differences(holdings.compare(*node, ranges)),
    }
}

/// Has `asking` hear of `answering` and take over what it lags behind in.
fn catch_up(asking: &mut Holdings, answering: (NodeId, &mut Holdings)) -> Outcome {
    catch_up_counting(asking, answering).0
}

/// The same, with the bytes of all questions and answers.
fn catch_up_counting(asking: &mut Holdings, (from, answering): (NodeId, &mut Holdings)) -> (Outcome, usize) {
    asking.hear(from, answering.standings());
    let mut plan = asking.plan(|node| node == from, |_| true);
    let mut exchange = Exchange::new(plan.remove(&from).unwrap_or_default());
    let mut bytes = 0;
    while let Some(question) = exchange.question(asking) {
        let answer = answer(answering, &question);
        bytes += message_bytes(&question, &answer);
        exchange.take(asking, answer);
    }
    (exchange.outcome, bytes)
}

fn message_bytes(question: &Question, answer: &Answer) -> usize {
    let asked = match question {
        Question::Pull(positions) => wire::positions(positions).encoded_len(),
        Question::Compare(node, ranges) => wire::ranges(*node, ranges).encoded_len(),
    };
    asked
        + match answer {
            Answer::News(parts) => wire::news(parts).encoded_len(),
            Answer::Differences(found) => wire::comparison(found.as_ref()).encoded_len(),
        }
}

/// What is known, without the notes of who said what.
fn known(holdings: &Holdings) -> Vec<(NodeId, Version, Vec<Key>)> {
    let books = holdings.books.iter().filter(|(_, book)| book.version() > Version::default());
    books.map(|(node, book)| (*node, book.version(), book.held().keys().collect())).collect()
}

/// Digests have random bits; so do these.
fn keys(count: usize, seed: u64) -> Vec<Key> {
    let mut random = StdRng::seed_from_u64(seed);
    (0..count).map(|_| random.random()).collect()
}

fn held(keys: &[Key]) -> KeySet {
    keys.iter().copied().collect()
}

fn write_all(holdings: &mut Holdings, keys: &[Key], gained: bool) {
    keys.iter().for_each(|key| holdings.write(Step { key: *key, gained }));
}

/// The book of one node at some versions, as it went through them.
fn history(steps: &[(u8, bool)]) -> Vec<Book> {
    let mut book = Book::new(1);
    book.rewrite(KeySet::default());
    let mut books = vec![book.clone()];
    for (key, gained) in steps {
        book.write(Step { key: Key::from(*key) << 120, gained: *gained });
        books.push(book.clone());
    }
    books
}

/// A node that knows of two others up to some point.
fn knowing(histories: &[Vec<Book>; 2], at: [usize; 2]) -> Holdings {
    let mut holdings = holdings(3, 3);
    for ((node, history), at) in [NodeId(1), NodeId(2)].into_iter().zip(histories).zip(at) {
        holdings.books.insert(node, history[at].clone());
    }
    holdings
}

/// What `left` knows after it has taken over everything from `right`.
fn merged(mut left: Holdings, mut right: Holdings) -> Holdings {
    // The own book of both is the same empty one: they stand for one node at different times.
    catch_up(&mut left, (NodeId(1), &mut right));
    left
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn merging_is_commutative_associative_and_idempotent(
        steps in (vec(any::<(u8, bool)>(), 1..60), vec(any::<(u8, bool)>(), 1..60)),
        at in any::<[(usize, usize); 3]>(),
    ) {
        let histories = [history(&steps.0), history(&steps.1)];
        let [a, b, c] = at.map(|at| [at.0 % histories[0].len(), at.1 % histories[1].len()]);
        let knowing = |at| knowing(&histories, at);
        let of = |left: [usize; 2], right: [usize; 2]| merged(knowing(left), knowing(right));
        prop_assert_eq!(known(&of(a, b)), known(&of(b, a)));
        prop_assert_eq!(known(&merged(of(a, b), knowing(c))), known(&merged(knowing(a), of(b, c))));
        prop_assert_eq!(known(&of(a, a)), known(&knowing(a)));
        prop_assert_eq!(known(&merged(of(a, b), knowing(b))), known(&of(a, b)));
        // And what comes out is the newer of both, exactly.
        prop_assert_eq!(known(&of(a, b)), known(&knowing([a[0].max(b[0]), a[1].max(b[1])])));
    }

    #[test]
    fn a_comparison_ends_with_what_the_other_holds(
        shared in 0..3000usize, only_here in 0..1500usize, only_there in 0..1500usize, seed in any::<u64>(),
    ) {
        let all = keys(shared + only_here + only_there, seed);
        let (ours, theirs) = (&all[..shared + only_here], [&all[..shared], &all[shared + only_here..]].concat());
        let (mut asking, mut answering) = (holdings(1, 3), holdings(2, 3));
        let mut old = Book::new(0);
        old.rewrite(held(ours));
        asking.books.insert(NodeId(2), old);
        answering.rewrite(held(&theirs));
        catch_up(&mut asking, (NodeId(2), &mut answering));
        prop_assert_eq!(asking.books[&NodeId(2)].held(), answering.books[&NodeId(2)].held());
        prop_assert_eq!(asking.version(NodeId(2)), answering.version(NodeId(2)));
        prop_assert_eq!(catch_up(&mut asking, (NodeId(2), &mut answering)), Outcome::default());
    }
}

#[test]
fn a_few_steps_are_told_as_steps_and_many_are_compared_at_the_cost_of_the_difference() {
    let (mut asking, mut answering) = (holdings(1, 2), holdings(2, 2));
    let all = keys(50_000 + 3 * TAIL_MAX, 5);
    answering.rewrite(held(&all[..50_000]));
    let (first, all_bytes) = catch_up_counting(&mut asking, (NodeId(2), &mut answering));
    assert_eq!((first.compared, first.followed), (1, 0));
    write_all(&mut answering, &all[50_000..50_100], true);
    let lag = catch_up(&mut asking, (NodeId(2), &mut answering));
    assert_eq!((lag.compared, lag.followed, lag.questions), (0, 1, 2));
    // The journal is cut: more happened than it keeps, though hardly anything is different in the end.
    write_all(&mut answering, &all[50_100..], true);
    write_all(&mut answering, &all[50_200..], false);
    let (gap, bytes) = catch_up_counting(&mut asking, (NodeId(2), &mut answering));
    assert_eq!(gap.compared, 1);
    let questions = (first.questions, gap.questions);
    println!("50,000 blobs took {all_bytes} bytes, 100 of 50,200 that differ {bytes}, in {questions:?} questions");
    assert!(bytes < all_bytes / 5);
    // One of very many costs hardly more than one of few.
    let more = keys(200_000, 11);
    answering.rewrite(held(&more));
    catch_up(&mut asking, (NodeId(2), &mut answering));
    asking.books.get_mut(&NodeId(2)).unwrap().held_mut().remove(more[7]);
    let (_, bytes) = catch_up_counting(&mut asking, (NodeId(2), &mut answering));
    println!("one of 200,000 took {bytes} bytes");
    assert!(bytes < 8_000);
    answering.rewrite(held(&all[..50_200]));
    catch_up(&mut asking, (NodeId(2), &mut answering));
    assert_eq!(asking.books[&NodeId(2)].held(), &held(&all[..50_200]));
}

#[test]
fn a_restart_costs_one_question_where_nothing_changed() {
    let all = keys(20_000, 6);
    let (mut asking, mut answering) = (holdings(1, 2), holdings(2, 2));
    answering.rewrite(held(&all));
    catch_up(&mut asking, (NodeId(2), &mut answering));
    let mut restarted = Holdings::new(NodeId(2), 2, ENTRIES_MAX);
    restarted.set_nodes(&nodes(2));
    // Until its index is complete the node says what comes and goes, and nobody forgets what it held before.
    restarted.write(Step { key: 1, gained: true });
    restarted.write(Step { key: all[0], gained: false });
    catch_up(&mut asking, (NodeId(2), &mut restarted));
    assert!(!asking.known()[&NodeId(2)].whole);
    assert_eq!(asking.holders(all[1]).collect::<Vec<_>>(), [NodeId(2)]);
    assert_eq!(asking.holders(1).collect::<Vec<_>>(), [NodeId(2)]);
    assert_eq!(asking.holders(all[0]).count(), 0, "lost since the restart");
    let mut now: Vec<Key> = all[1..].to_vec();
    now.push(1);
    restarted.rewrite(held(&now));
    let outcome = catch_up(&mut asking, (NodeId(2), &mut restarted));
    assert_eq!((outcome.compared, outcome.questions), (1, 2), "news, and the sum over everything");
    assert!(asking.known()[&NodeId(2)].whole);
}

#[test]
fn a_copy_that_differs_is_found_by_its_sum_and_brought_in_line() {
    let (mut asking, mut answering) = (holdings(1, 2), holdings(2, 2));
    answering.rewrite(held(&keys(500, 7)));
    catch_up(&mut asking, (NodeId(2), &mut answering));
    asking.books.get_mut(&NodeId(2)).unwrap().held_mut().insert(9);
    assert_eq!(catch_up(&mut asking, (NodeId(2), &mut answering)).compared, 1);
    assert_eq!(known(&asking)[1], known(&answering)[0]);
}

#[test]
fn a_node_whose_clock_went_back_outdoes_what_is_told_of_it() {
    let mut before = Holdings::new(NodeId(2), 100, ENTRIES_MAX);
    before.set_nodes(&nodes(2));
    before.rewrite(held(&keys(10, 8)));
    let mut other = holdings(1, 2);
    catch_up(&mut other, (NodeId(2), &mut before));
    let mut after = Holdings::new(NodeId(2), 50, ENTRIES_MAX);
    after.set_nodes(&nodes(2));
    after.rewrite(held(&keys(12, 8)));
    catch_up(&mut after, (NodeId(1), &mut other));
    catch_up(&mut other, (NodeId(2), &mut after));
    assert_eq!(other.known()[&NodeId(2)].blobs, 12);
}

#[test]
fn a_removed_node_holds_nothing() {
    let (mut asking, mut answering) = (holdings(1, 2), holdings(2, 2));
    answering.rewrite(held(&[7]));
    catch_up(&mut asking, (NodeId(2), &mut answering));
    asking.set_nodes(&nodes(1));
    assert_eq!((asking.holders(7).count(), asking.len()), (0, 0));
    assert!(!asking.hear(NodeId(2), answering.standings()), "and is not listened to");
}

#[test]
fn who_claims_too_much_has_its_share_and_no_more() {
    let mut asking = Holdings::new(NodeId(1), 1, 2000);
    asking.set_nodes(&nodes(3));
    let mut answering = holdings(2, 3);
    answering.rewrite(held(&keys(50_000, 9)));
    let first = catch_up(&mut asking, (NodeId(2), &mut answering));
    assert_eq!(asking.known()[&NodeId(2)], super::Known { blobs: 1000, whole: false });
    assert!(first.questions < 20, "{first:?}");
    let again = catch_up(&mut asking, (NodeId(2), &mut answering));
    assert_eq!(again, Outcome::default(), "it is not asked again and again");
    let mut third = holdings(3, 3);
    catch_up(&mut third, (NodeId(1), &mut asking));
    assert_eq!(third.known().get(&NodeId(2)), None, "and a part is not passed on");
}

/// Nodes that each hear of a few others at random in a round.
struct Swarm {
    nodes: Vec<Holdings>,
    random: StdRng,
    /// Of a hundred exchanges so many are lost.
    loss_percent: u32,
    /// Nodes up to this one and those beyond do not hear each other.
    cut: usize,
}

impl Swarm {
    fn new(count: u64, seed: u64) -> Self {
        let mut nodes: Vec<Holdings> = (1..=count).map(|me| holdings(me, count)).collect();
        for (at, node) in nodes.iter_mut().enumerate() {
            node.rewrite(held(&keys(20, seed ^ at as u64)));
        }
        Self { nodes, random: StdRng::seed_from_u64(seed), loss_percent: 0, cut: 0 }
    }

    /// Every node hears of two others.
    fn round(&mut self) {
        for at in 0..self.nodes.len() {
            for _ in 0..2 {
                let other = self.random.random_range(0..self.nodes.len());
                let lost = self.random.random_range(0..100) < self.loss_percent;
                if other == at || lost || (at < self.cut) != (other < self.cut) {
                    continue;
                }
                let [asking, answering] = self.nodes.get_disjoint_mut([at, other]).unwrap();
                catch_up(asking, (NodeId(other as u64 + 1), answering));
            }
        }
    }

    fn agrees(&self) -> bool {
        self.nodes.iter().all(|node| known(node) == known(&self.nodes[0]))
    }

    fn rounds_until_agreed(&mut self) -> u32 {
        (1..=200)
            .find(|_| {
                self.round();
                self.agrees()
            })
            .expect("it agrees in the end")
    }

    fn write_everywhere(&mut self, steps: usize) {
        for at in 0..self.nodes.len() {
            let new = keys(steps, self.random.random());
            write_all(&mut self.nodes[at], &new, true);
        }
    }
}

/// Rounds in which fifty nodes may take to agree: a multiple of log2(50) = 5.6.
fn bound(factor: f64) -> u32 {
    (1..200).find(|rounds| f64::from(*rounds) >= factor * 50f64.log2()).unwrap()
}

#[test]
fn fifty_nodes_agree_within_a_few_times_log_n_rounds() {
    for seed in 1..=5 {
        let mut swarm = Swarm::new(50, seed);
        let first = swarm.rounds_until_agreed();
        swarm.write_everywhere(3);
        let steps = swarm.rounds_until_agreed();
        println!("seed {seed}: agreed after {first} rounds from nothing, {steps} rounds after news everywhere");
        assert!(first <= bound(2.0) && steps <= bound(2.0), "seed {seed}: {first}, {steps}");
    }
}

#[test]
fn fifty_nodes_agree_although_a_third_of_all_exchanges_is_lost() {
    for seed in 1..=5 {
        let mut swarm = Swarm::new(50, seed);
        swarm.loss_percent = 33;
        let rounds = swarm.rounds_until_agreed();
        println!("seed {seed}: agreed after {rounds} rounds with 33 % loss");
        assert!(rounds <= bound(3.0), "seed {seed}: {rounds}");
    }
}

#[test]
fn fifty_nodes_agree_after_a_cut_in_which_both_sides_went_on() {
    for seed in 1..=5 {
        let mut swarm = Swarm::new(50, seed);
        swarm.rounds_until_agreed();
        swarm.cut = 20;
        for _ in 0..8 {
            swarm.write_everywhere(2);
            swarm.round();
        }
        assert!(!swarm.agrees());
        // Beyond what journals keep, on one node of each side.
        for at in [3, 30] {
            let many = keys(TAIL_MAX + 100, seed);
            write_all(&mut swarm.nodes[at], &many, true);
        }
        (0..8).for_each(|_| swarm.round());
        swarm.cut = 0;
        let rounds = swarm.rounds_until_agreed();
        println!("seed {seed}: agreed {rounds} rounds after the cut was healed");
        assert!(rounds <= bound(2.0), "seed {seed}: {rounds}");
    }
}

/// Resident memory of this process in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
#[ignore = "takes 600 MB and minutes: `cargo test --lib -- --ignored --nocapture ten_million_blobs`"]
fn ten_million_blobs_take_a_hundred_bytes_per_blob_and_holder_at_most() {
    const BLOBS: u64 = 10_000_000;
    let mut random = StdRng::seed_from_u64(10);
    let mut books = holdings(1, 6);
    let before = resident();
    // As they come in over time: in no order, each blob on three of five nodes.
    for blob in 0..BLOBS {
        let key = random.random();
        for holder in 0..3 {
            let node = NodeId(2 + (blob + holder) % 5);
            books.other(node).unwrap().held_mut().insert(key);
        }
    }
    let pairs = books.len();
    let each = (resident() - before) as f64 / pairs as f64;
    println!("{BLOBS} blobs, {pairs} pairs of blob and holder: {each:.1} bytes of resident memory each");
    assert_eq!(pairs, 3 * BLOBS);
    assert!(each <= 100.0);
}
