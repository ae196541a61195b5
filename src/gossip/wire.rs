//! Between the messages of `gossip.proto` and the types of this node. What is too long is cut, what is malformed left out.

use bytes::{BufMut, Bytes, BytesMut};

use crate::rpc::proto;
use crate::topology::NodeId;

use super::book::{News, Step, Version};
use super::exchange::{Comparison, Difference, FRESH_WHOLE_MAX, KEYS_MAX, RANGES_MAX};
use super::holdings::{BOOKS_MAX, Part, STEPS_MAX, Standing};
use super::keys::{KEY_BYTES, Key, PARTS, Range, Summary};

/// The largest request or beat taken.
pub(super) const REQUEST_BYTES_MAX: usize = 16 << 10;
/// The largest answer taken: the keys of a full comparison and the sums beside them.
pub(super) const ANSWER_BYTES_MAX: usize = 256 << 10;
/// Bytes of another node's problem that are kept.
const PROBLEM_BYTES_MAX: usize = 256;
/// Beyond this nobody's clock stands, and nobody counts: there must be room for the next one.
const NUMBER_MAX: u64 = 1 << 62;

const _: () = assert!(BOOKS_MAX * 64 <= REQUEST_BYTES_MAX && RANGES_MAX * 64 <= REQUEST_BYTES_MAX);
const _: () = assert!(STEPS_MAX * (KEY_BYTES + 1) + BOOKS_MAX * 64 <= ANSWER_BYTES_MAX);
// The last range looked at may go beyond the keys told until then.
const _: () = assert!((KEYS_MAX + FRESH_WHOLE_MAX) * KEY_BYTES + RANGES_MAX * (PARTS + 1) * 24 <= ANSWER_BYTES_MAX);

pub(super) fn beat(incarnation: u64, standings: &[Standing]) -> proto::Beat {
    let standing = |standing: &Standing| proto::BookStanding {
        node: standing.node.0,
        version: Some(version(standing.version)),
        sum: standing.sum,
    };
    proto::Beat { incarnation, leaving: false, standings: standings.iter().map(standing).collect() }
}

pub(super) fn standings(beat: &proto::Beat) -> Vec<Standing> {
    let read = |standing: &proto::BookStanding| {
        let version = read_version(standing.version)?;
        Some(Standing { node: NodeId(standing.node), version, sum: standing.sum })
    };
    beat.standings.iter().take(BOOKS_MAX).filter_map(read).collect()
}

fn version(version: Version) -> proto::BookVersion {
    proto::BookVersion { epoch: version.epoch, whole: version.whole, sequence: version.sequence }
}

fn read_version(version: Option<proto::BookVersion>) -> Option<Version> {
    let proto::BookVersion { epoch, whole, sequence } = version?;
    (epoch < NUMBER_MAX && sequence < NUMBER_MAX).then_some(Version { epoch, whole, sequence })
}

pub(super) fn positions(positions: &[(NodeId, Version)]) -> proto::PullRequest {
    let position = |(node, at): &(NodeId, Version)| proto::BookPosition { node: node.0, version: Some(version(*at)) };
    proto::PullRequest { positions: positions.iter().map(position).collect() }
}

pub(super) fn read_positions(request: &proto::PullRequest) -> Vec<(NodeId, Version)> {
    let read = |position: &proto::BookPosition| Some((NodeId(position.node), read_version(position.version)?));
    request.positions.iter().take(BOOKS_MAX).filter_map(read).collect()
}

pub(super) fn news(parts: &[Part]) -> proto::PullAnswer {
    let book = |part: &Part| match &part.news {
        News::Compare => proto::BookNews { node: part.node.0, compare: true, ..proto::BookNews::default() },
        News::Steps(after, steps) => proto::BookNews {
            node: part.node.0,
            compare: false,
            after: Some(version(*after)),
            keys: keys(steps.iter().map(|step| step.key)),
            gained: steps.iter().map(|step| u8::from(step.gained)).collect(),
        },
    };
    proto::PullAnswer { books: parts.iter().map(book).collect() }
}

pub(super) fn read_news(answer: &proto::PullAnswer) -> Vec<Part> {
    let read = |book: &proto::BookNews| {
        let news = match book.compare {
            true => News::Compare,
            false => {
                let steps = read_keys(&book.keys).zip(&book.gained).take(STEPS_MAX);
                let steps = steps.map(|(key, gained)| Step { key, gained: *gained != 0 });
                News::Steps(read_version(book.after)?, steps.collect())
            }
        };
        Some(Part { node: NodeId(book.node), news })
    };
    answer.books.iter().take(BOOKS_MAX).filter_map(read).collect()
}

fn keys(keys: impl Iterator<Item = Key>) -> Bytes {
    let mut bytes = BytesMut::with_capacity(keys.size_hint().0 * KEY_BYTES);
    keys.for_each(|key| bytes.put_u128(key));
    bytes.freeze()
}

fn read_keys(bytes: &[u8]) -> impl Iterator<Item = Key> + '_ {
    let (keys, _) = bytes.as_chunks::<KEY_BYTES>();
    keys.iter().map(|key| Key::from_be_bytes(*key))
}

fn sum(summary: Summary) -> proto::BookSum {
    proto::BookSum { count: summary.count, sum: summary.sum }
}

fn read_sum(sum: proto::BookSum) -> Summary {
    Summary { count: sum.count, sum: sum.sum }
}

pub(super) fn ranges(node: NodeId, ranges: &[(Range, Summary)]) -> proto::CompareRequest {
    let range = |(range, summary): &(Range, Summary)| proto::BookRange {
        depth: range.depth(),
        prefix: Bytes::copy_from_slice(&range.prefix().to_be_bytes()),
        sum: Some(sum(*summary)),
    };
    proto::CompareRequest { node: node.0, ranges: ranges.iter().map(range).collect() }
}

/// Reads ranges; nothing if one is malformed, for they are answered by their places.
pub(super) fn read_ranges(request: &proto::CompareRequest) -> Option<Vec<(Range, Summary)>> {
    let read = |range: &proto::BookRange| {
        let prefix = Key::from_be_bytes(range.prefix.as_ref().try_into().ok()?);
        Some((Range::new(range.depth, prefix)?, read_sum(range.sum?)))
    };
    request.ranges.iter().take(RANGES_MAX).map(read).collect()
}

pub(super) fn comparison(comparison: Option<&Comparison>) -> proto::CompareAnswer {
    let Some(comparison) = comparison else { return proto::CompareAnswer::default() };
    let difference = |(place, difference): &(usize, Difference)| {
        let place = count(*place);
        match difference {
            Difference::Keys(told) => {
                proto::BookDifference { place, parts: Vec::new(), keys: keys(told.iter().copied()) }
            }
            Difference::Parts(parts) => {
                let parts = parts.iter().copied().map(sum).collect();
                proto::BookDifference { place, parts, keys: Bytes::new() }
            }
        }
    };
    proto::CompareAnswer {
        known: true,
        version: Some(version(comparison.version)),
        looked_at: count(comparison.looked_at),
        differences: comparison.differing.iter().map(difference).collect(),
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).expect("at most as many as the ranges of a message")
}

pub(super) fn read_comparison(answer: &proto::CompareAnswer) -> Option<Comparison> {
    let read = |difference: &proto::BookDifference| {
        let told = match difference.parts.is_empty() {
            true => Difference::Keys(read_keys(&difference.keys).collect()),
            false => Difference::Parts(difference.parts.iter().copied().take(PARTS).map(read_sum).collect()),
        };
        Some((usize::try_from(difference.place).ok()?, told))
    };
    let version = read_version(answer.version.filter(|_| answer.known))?;
    Some(Comparison {
        version,
        looked_at: usize::try_from(answer.looked_at).ok()?,
        differing: answer.differences.iter().take(RANGES_MAX).filter_map(read).collect(),
    })
}

pub(super) fn finding(problem: Option<String>) -> proto::ProbeAnswer {
    proto::ProbeAnswer { reached: problem.is_none(), problem: problem.unwrap_or_default() }
}

/// Why the other node could not be reached, or nothing.
pub(super) fn read_finding(answer: proto::ProbeAnswer) -> Option<String> {
    let mut problem = answer.problem;
    problem.truncate(problem.floor_char_boundary(PROBLEM_BYTES_MAX));
    (!answer.reached).then_some(problem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn versions() -> impl Strategy<Value = Version> {
        (0..NUMBER_MAX, any::<bool>(), 0..NUMBER_MAX).prop_map(|(epoch, whole, sequence)| Version {
            epoch,
            whole,
            sequence,
        })
    }

    fn news_of_a_book() -> impl Strategy<Value = News> {
        let steps = vec((any::<Key>(), any::<bool>()).prop_map(|(key, gained)| Step { key, gained }), 0..20);
        prop_oneof![Just(News::Compare), (versions(), steps).prop_map(|(after, steps)| News::Steps(after, steps))]
    }

    fn summaries() -> impl Strategy<Value = Summary> {
        any::<(u64, u64)>().prop_map(|(count, sum)| Summary { count, sum })
    }

    fn differences() -> impl Strategy<Value = Difference> {
        prop_oneof![
            vec(any::<Key>(), 0..20).prop_map(Difference::Keys),
            vec(summaries(), PARTS).prop_map(Difference::Parts)
        ]
    }

    fn range_of(depth: u32, key: Key) -> Range {
        let open = Key::MAX.checked_shr(depth * 4).unwrap_or(0);
        Range::new(depth, key & !open).unwrap()
    }

    proptest! {
        #[test]
        fn messages_read_as_they_were_written(
            told in vec((any::<u64>(), versions(), any::<u64>()), 0..10),
            parts in vec((any::<u64>(), news_of_a_book()), 0..5),
            asked in vec((0..=32u32, any::<Key>(), summaries()), 0..10),
            version in versions(),
            differing in vec((0..RANGES_MAX, differences()), 0..10),
        ) {
            let told: Vec<Standing> =
                told.into_iter().map(|(node, version, sum)| Standing { node: NodeId(node), version, sum }).collect();
            prop_assert_eq!(&standings(&beat(3, &told)), &told);
            let known: Vec<(NodeId, Version)> = told.iter().map(|told| (told.node, told.version)).collect();
            prop_assert_eq!(read_positions(&positions(&known)), known);
            let parts: Vec<Part> = parts.into_iter().map(|(node, news)| Part { node: NodeId(node), news }).collect();
            prop_assert_eq!(read_news(&news(&parts)), parts);
            let asked: Vec<(Range, Summary)> = asked
                .into_iter()
                .map(|(depth, key, sum)| (range_of(depth, key), sum))
                .collect();
            prop_assert_eq!(read_ranges(&ranges(NodeId(1), &asked)), Some(asked));
            let found = Comparison { version, looked_at: 7, differing };
            prop_assert_eq!(read_comparison(&comparison(Some(&found))), Some(found));
        }
    }

    #[test]
    fn what_no_honest_node_says_is_left_out() {
        let version = proto::BookVersion { epoch: u64::MAX, whole: true, sequence: 0 };
        let standing = proto::BookStanding { node: 1, version: Some(version), sum: 0 };
        assert_eq!(standings(&proto::Beat { standings: vec![standing; 100], ..proto::Beat::default() }), []);
        let range = proto::BookRange { depth: 33, prefix: vec![0; 16].into(), sum: Some(proto::BookSum::default()) };
        assert_eq!(read_ranges(&proto::CompareRequest { node: 1, ranges: vec![range] }), None);
        assert_eq!(read_comparison(&proto::CompareAnswer::default()), None);
        let long = proto::ProbeAnswer { reached: false, problem: "ä".repeat(1000) };
        assert_eq!(read_finding(long).map(|problem| problem.len()), Some(256));
        assert_eq!(read_finding(finding(None)), None);
    }
}
