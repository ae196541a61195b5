//! A compact set of truncated digests, with sums over ranges: what one node holds.
//!
//! Some 20 bytes a key: keys lie sorted in blocks, one block for each value of some bits, and the number of blocks of a
//! shard doubles as the shard grows. Each block keeps the sum of its keys, so that a range is summed up without reading its
//! keys; each of 256 shards keeps its own, so that the widest ranges are summed up without going through the blocks, and no
//! insertion moves more than a shard.

use crate::oci::Digest;

/// The first 16 bytes of a hash: enough for a hint, which may be wrong once in a while.
pub(super) type Key = u128;

/// Bytes of a key.
pub(super) const KEY_BYTES: usize = size_of::<Key>();
/// Bits that one level of ranges adds.
const LEVEL_BITS: u32 = 4;
/// The deepest level: a range of one key.
const DEPTH_MAX: u32 = Key::BITS / LEVEL_BITS;
/// Parts of a range.
pub(super) const PARTS: usize = 1 << LEVEL_BITS;
/// A shard is a range of two levels.
const SHARD_BITS: u32 = 2 * LEVEL_BITS;
const SHARDS: usize = 1 << SHARD_BITS;
/// Keys per block, on average, after which the number of blocks of a shard doubles.
const BLOCK_KEYS: usize = 64;
/// Keys of one block, beyond which they are no hashes: honest ones are spread evenly.
const BLOCK_KEYS_MAX: usize = 4096;
/// Blocks of a shard are found by at most so many bits: 2^18 blocks of 64 keys.
const BITS_MAX: u32 = 18;

/// Returns the key of a digest.
pub(super) fn key_of(digest: &Digest) -> Key {
    Key::from_be_bytes(digest.hash()[..KEY_BYTES].try_into().expect("a hash has 32 bytes or more"))
}

/// All keys that begin with the first `depth` × 4 bits of `prefix`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    depth: u32,
    prefix: Key,
}

impl Range {
    /// Everything.
    pub(super) const ALL: Self = Self { depth: 0, prefix: 0 };

    /// The range at a depth that begins with a prefix; nothing if there is no such depth, or bits lie beyond it.
    pub(super) fn new(depth: u32, prefix: Key) -> Option<Self> {
        let range = Self { depth, prefix };
        (depth <= DEPTH_MAX && prefix & range.below() == 0).then_some(range)
    }

    pub(super) const fn depth(self) -> u32 {
        self.depth
    }

    pub(super) const fn prefix(self) -> Key {
        self.prefix
    }

    /// The bits that the range fixes.
    const fn bits(self) -> u32 {
        self.depth * LEVEL_BITS
    }

    /// The bits that the range leaves open, as a mask.
    const fn below(self) -> Key {
        match self.bits() {
            Key::BITS.. => 0,
            fixed => Key::MAX >> fixed,
        }
    }

    /// The 16 parts of the range in order; none of a single key.
    pub(super) fn parts(self) -> impl Iterator<Item = Self> {
        let count = if self.depth < DEPTH_MAX { 1u128 << LEVEL_BITS } else { 0 };
        let (depth, prefix) = (self.depth + 1, self.prefix);
        (0..count).map(move |part| Self { depth, prefix: prefix | part << (Key::BITS - depth * LEVEL_BITS) })
    }

    pub(super) const fn contains(self, key: Key) -> bool {
        key & !self.below() == self.prefix
    }

    const fn last(self) -> Key {
        self.prefix | self.below()
    }
}

/// What is in a range, in short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Summary {
    pub(super) count: u64,
    /// The wrapping sum of the mixed keys.
    pub(super) sum: u64,
}

impl Summary {
    fn of(key: Key) -> Self {
        Self { count: 1, sum: mix(key) }
    }

    fn add(&mut self, other: Self) {
        self.count += other.count;
        self.sum = self.sum.wrapping_add(other.sum);
    }

    fn take_off(&mut self, other: Self) {
        self.count -= other.count;
        self.sum = self.sum.wrapping_sub(other.sum);
    }
}

/// A sorted run of keys that share some bits.
#[derive(Debug, Clone, Default)]
struct Block {
    keys: Vec<Key>,
    sum: u64,
}

impl Block {
    /// Adds a key at a place found before.
    fn insert(&mut self, place: usize, key: Key) {
        if self.keys.len() == self.keys.capacity() {
            // Small steps: doubling would leave half of all memory unused.
            self.keys.reserve_exact(4 + self.keys.len() / 8);
        }
        self.keys.insert(place, key);
        self.sum = self.sum.wrapping_add(mix(key));
    }

    fn remove(&mut self, key: Key) -> bool {
        let Ok(place) = self.keys.binary_search(&key) else { return false };
        self.keys.remove(place);
        self.sum = self.sum.wrapping_sub(mix(key));
        if self.keys.capacity() > 16 + 2 * self.keys.len() {
            self.keys.shrink_to_fit();
        }
        true
    }

    fn summary(&self) -> Summary {
        Summary { count: self.keys.len() as u64, sum: self.sum }
    }

    fn slice(&self, range: Range) -> &[Key] {
        let from = self.keys.partition_point(|key| *key < range.prefix);
        let to = self.keys.partition_point(|key| *key <= range.last());
        &self.keys[from..to]
    }
}

/// The keys that begin with the same 8 bits.
#[derive(Debug, Clone, Default)]
struct Shard {
    /// There are 2^bits blocks, in order, or none at all yet.
    bits: u32,
    blocks: Vec<Block>,
    all: Summary,
}

impl Shard {
    fn block_of(&self, key: Key) -> usize {
        // A shift by all 128 bits has no meaning; then there is one block.
        let number = (key << SHARD_BITS).checked_shr(Key::BITS - self.bits).unwrap_or(0);
        usize::try_from(number).expect("at most 18 bits")
    }

    fn contains(&self, key: Key) -> bool {
        self.blocks.get(self.block_of(key)).is_some_and(|block| block.keys.binary_search(&key).is_ok())
    }

    fn insert(&mut self, key: Key) -> Inserted {
        if self.blocks.is_empty() {
            self.blocks = vec![Block::default()];
        }
        let block = self.block_of(key);
        let block = &mut self.blocks[block];
        let Err(place) = block.keys.binary_search(&key) else { return Inserted::Known };
        if block.keys.len() >= BLOCK_KEYS_MAX {
            return Inserted::NoRoom;
        }
        block.insert(place, key);
        self.all.add(Summary::of(key));
        if self.all.count > (self.blocks.len() * BLOCK_KEYS) as u64 && self.bits < BITS_MAX {
            self.double();
        }
        Inserted::New
    }

    fn remove(&mut self, key: Key) -> bool {
        let block = self.block_of(key);
        let removed = self.blocks.get_mut(block).is_some_and(|block| block.remove(key));
        if removed {
            self.all.take_off(Summary::of(key));
        }
        removed
    }

    /// The blocks of a range that lies in this shard, or that this shard lies in.
    fn blocks_of(&self, range: Range) -> &[Block] {
        if self.blocks.is_empty() || range.bits() <= SHARD_BITS {
            return &self.blocks;
        }
        &self.blocks[self.block_of(range.prefix)..=self.block_of(range.last())]
    }

    fn summary(&self, range: Range) -> Summary {
        if range.bits() <= SHARD_BITS {
            return self.all;
        }
        let mut summary = Summary::default();
        if range.bits() - SHARD_BITS <= self.bits {
            self.blocks_of(range).iter().for_each(|block| summary.add(block.summary()));
        } else {
            let keys = self.blocks_of(range).iter().flat_map(|block| block.slice(range));
            keys.for_each(|key| summary.add(Summary::of(*key)));
        }
        summary
    }

    /// Splits each block by its next bit.
    fn double(&mut self) {
        self.bits += 1;
        let bit = 1u128 << (Key::BITS - SHARD_BITS - self.bits);
        let old = std::mem::take(&mut self.blocks);
        self.blocks.reserve_exact(old.len() * 2);
        for mut block in old {
            let upper = block.keys.split_off(block.keys.partition_point(|key| key & bit == 0));
            block.keys.shrink_to_fit();
            let sum = upper.iter().fold(0u64, |sum, key| sum.wrapping_add(mix(*key)));
            block.sum = block.sum.wrapping_sub(sum);
            self.blocks.push(block);
            self.blocks.push(Block { keys: upper, sum });
        }
    }
}

/// What became of a key that was to be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inserted {
    New,
    Known,
    NoRoom,
}

/// A set of keys, up to a number of them.
#[derive(Debug, Clone)]
pub(super) struct KeySet {
    /// In order; none at all while the set is new.
    shards: Vec<Shard>,
    all: Summary,
    keys_max: u64,
    overflowed: bool,
}

impl Default for KeySet {
    fn default() -> Self {
        Self { shards: Vec::new(), all: Summary::default(), keys_max: u64::MAX, overflowed: false }
    }
}

impl PartialEq for KeySet {
    fn eq(&self, other: &Self) -> bool {
        self.all == other.all && self.keys().eq(other.keys())
    }
}

impl Eq for KeySet {}

impl FromIterator<Key> for KeySet {
    fn from_iter<T: IntoIterator<Item = Key>>(keys: T) -> Self {
        let mut set = Self::default();
        for key in keys {
            set.insert(key);
        }
        set
    }
}

impl KeySet {
    pub(super) const fn all(&self) -> Summary {
        self.all
    }

    /// Says whether keys were left out for want of room.
    pub(super) const fn has_overflowed(&self) -> bool {
        self.overflowed
    }

    /// Sets how many keys there may be; what is there already stays.
    pub(super) fn limit(&mut self, keys_max: u64) {
        self.keys_max = keys_max;
        self.note_room();
    }

    /// After an overflow the set counts as too small until there is some room, not until there is any.
    fn note_room(&mut self) {
        self.overflowed &= self.all.count >= self.keys_max - self.keys_max / 8;
    }

    pub(super) fn contains(&self, key: Key) -> bool {
        self.shards.get(shard_of(key)).is_some_and(|shard| shard.contains(key))
    }

    /// Adds a key; says whether it is new. Without room for it the set has overflowed.
    pub(super) fn insert(&mut self, key: Key) -> bool {
        if self.shards.is_empty() {
            self.shards.resize_with(SHARDS, Shard::default);
        }
        let shard = &mut self.shards[shard_of(key)];
        let inserted = match self.all.count < self.keys_max {
            true => shard.insert(key),
            false if shard.contains(key) => Inserted::Known,
            false => Inserted::NoRoom,
        };
        self.overflowed |= inserted == Inserted::NoRoom;
        if inserted == Inserted::New {
            self.all.add(Summary::of(key));
        }
        inserted == Inserted::New
    }

    /// Removes a key; says whether it was there.
    pub(super) fn remove(&mut self, key: Key) -> bool {
        let removed = self.shards.get_mut(shard_of(key)).is_some_and(|shard| shard.remove(key));
        if removed {
            self.all.take_off(Summary::of(key));
            self.note_room();
        }
        removed
    }

    /// All keys, in order.
    pub(super) fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        self.keys_in(Range::ALL)
    }

    /// The keys of a range, in order.
    pub(super) fn keys_in(&self, range: Range) -> impl Iterator<Item = Key> + '_ {
        let blocks = self.shards_of(range).iter().flat_map(move |shard| shard.blocks_of(range));
        blocks.flat_map(move |block| block.slice(range).iter().copied())
    }

    /// Sums up a range: at the cost of its shards or blocks, or of its keys where it is smaller than a block.
    pub(super) fn summary(&self, range: Range) -> Summary {
        if range == Range::ALL {
            return self.all;
        }
        let mut summary = Summary::default();
        self.shards_of(range).iter().for_each(|shard| summary.add(shard.summary(range)));
        summary
    }

    /// Makes the range hold exactly `keys`, as far as there is room; keys outside of the range are passed over.
    pub(super) fn replace(&mut self, range: Range, mut keys: Vec<Key>) {
        keys.retain(|key| range.contains(*key));
        keys.sort_unstable();
        let gone: Vec<Key> = self.keys_in(range).filter(|key| keys.binary_search(key).is_err()).collect();
        for key in gone {
            self.remove(key);
        }
        for key in keys {
            self.insert(key);
        }
    }

    fn shards_of(&self, range: Range) -> &[Shard] {
        match self.shards.is_empty() {
            true => &[],
            false => &self.shards[shard_of(range.prefix)..=shard_of(range.last())],
        }
    }
}

fn shard_of(key: Key) -> usize {
    usize::try_from(key >> (Key::BITS - SHARD_BITS)).expect("8 bits are left")
}

/// Spreads a key over 64 bits, so that sums of different sets differ: `SplitMix64`'s finaliser (Steele, Lea, Flood, 2014).
fn mix(key: Key) -> u64 {
    let upper = u64::try_from(key >> 64).expect("64 bits are left");
    let lower = u64::try_from(key & u128::from(u64::MAX)).expect("64 bits are left");
    finish(finish(upper).wrapping_add(lower))
}

const fn finish(mut word: u64) -> u64 {
    word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    /// Keys that share their first bits now and then, so that blocks of all sizes come up.
    fn keys() -> impl Strategy<Value = Key> {
        prop_oneof![any::<Key>(), any::<Key>().prop_map(|key| key >> 96), any::<Key>().prop_map(|key| key & !0xff)]
    }

    fn ranges() -> impl Strategy<Value = Range> {
        (0..=DEPTH_MAX, keys()).prop_map(|(depth, key)| {
            let below = Range { depth, prefix: 0 }.below();
            Range::new(depth, key & !below).unwrap()
        })
    }

    proptest! {
        #[test]
        fn a_set_is_a_set_and_its_sums_are_those_of_its_keys(
            steps in proptest::collection::vec((keys(), prop::bool::weighted(0.8)), 0..600),
            ranges in proptest::collection::vec(ranges(), 20),
        ) {
            let (mut set, mut model) = (KeySet::default(), BTreeSet::new());
            for (key, add) in &steps {
                match add {
                    true => prop_assert_eq!(set.insert(*key), model.insert(*key)),
                    false => {
                        let key = model.range(key..).next().copied().unwrap_or(*key);
                        prop_assert_eq!(set.remove(key), model.remove(&key));
                    }
                }
            }
            prop_assert!(set.keys().eq(model.iter().copied()));
            for range in ranges.into_iter().chain([Range::ALL]).chain(Range::ALL.parts()) {
                let inside: Vec<Key> = model.iter().copied().filter(|key| range.contains(*key)).collect();
                prop_assert!(set.keys_in(range).eq(inside.iter().copied()));
                let sum = inside.iter().fold(0u64, |sum, key| sum.wrapping_add(mix(*key)));
                prop_assert_eq!(set.summary(range), Summary { count: inside.len() as u64, sum });
            }
        }

        #[test]
        fn the_parts_of_a_range_make_the_range(range in ranges(), key in keys()) {
            let parts = range.parts().filter(|part| part.contains(key)).count();
            prop_assert_eq!(parts, usize::from(range.contains(key) && range.depth < DEPTH_MAX));
        }

        #[test]
        fn a_replaced_range_holds_what_it_was_given(
            before in proptest::collection::vec(keys(), 0..300),
            given in proptest::collection::vec(keys(), 0..100),
            range in ranges(),
        ) {
            let mut set: KeySet = before.iter().copied().collect();
            set.replace(range, given.clone());
            let inside = given.iter().copied().filter(|key| range.contains(*key));
            let outside = before.iter().copied().filter(|key| !range.contains(*key));
            prop_assert_eq!(&set, &outside.chain(inside).collect::<KeySet>());
        }
    }

    #[test]
    fn a_range_off_the_tree_is_none() {
        assert_eq!(Range::new(33, 0), None);
        assert_eq!(Range::new(1, 1), None);
        assert_eq!(Range::new(0, 0), Some(Range::ALL));
        assert!(Range::new(32, 7).is_some_and(|range| range.contains(7) && range.parts().count() == 0));
    }

    #[test]
    fn a_set_takes_no_more_than_its_limit_and_says_so_until_there_is_room() {
        let mut set = KeySet::default();
        set.limit(16);
        for key in 0..20 {
            set.insert(key);
        }
        assert_eq!((set.all().count, set.has_overflowed()), (16, true));
        assert!(!set.insert(3), "known");
        set.remove(3);
        assert!(set.has_overflowed(), "hardly any room");
        for key in 4..6 {
            set.remove(key);
        }
        assert!(!set.has_overflowed());
    }

    #[test]
    fn keys_that_are_no_hashes_are_not_taken_without_end() {
        let set: KeySet = (0..10_000).collect();
        assert!(set.has_overflowed() && set.all().count < 10_000, "{:?}", set.all());
    }
}
