//! A sorted map whose clones share structure: the container of every table of the agreed state.
//!
//! A B+ tree with nodes of up to 32 entries behind `Arc`s. A change copies only the nodes on its path that a clone still
//! shares; an unshared map changes in place. Wide nodes and not a binary tree, because most of the state is millions of
//! small rows: a red-black node costs two allocations and 80 bytes a row beside the row, a leaf of 32 about a tenth.

use std::borrow::Borrow;
use std::fmt;
use std::slice;
use std::sync::Arc;

/// The most entries of a node.
const ENTRIES_MAX: usize = 32;
/// A node that shrinks below this is merged with a neighbour if both fit one node.
const ENTRIES_MIN: usize = ENTRIES_MAX / 4;

/// By how many entries a full node's memory grows.
const ENTRIES_SLACK: usize = 4;

/// A map in key order; cloning is O(1).
#[derive(Clone)]
pub(super) struct SortedMap<K, V> {
    root: Arc<Node<K, V>>,
    len: usize,
}

/// A set in order.
pub(super) type SortedSet<K> = SortedMap<K, ()>;

#[derive(Clone)]
enum Node<K, V> {
    Leaf(Vec<(K, V)>),
    /// Each child with a lower bound of its keys that is above all keys to its left; the first bound is never read.
    Branch(Vec<(K, Arc<Self>)>),
}

/// A child of a branch, after its bound.
type Child<K, V> = (K, Arc<Node<K, V>>);

/// A right half that an overfull node gave off, with its lower bound.
type Split<K, V> = Option<Child<K, V>>;

impl<K, V> Default for SortedMap<K, V> {
    fn default() -> Self {
        Self { root: Arc::new(Node::Leaf(Vec::new())), len: 0 }
    }
}

impl<K, V> SortedMap<K, V> {
    /// Returns the number of entries.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Says whether there is no entry.
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Goes through all entries in key order.
    pub(super) fn iter(&self) -> Iter<'_, K, V> {
        self.iter_after(|_| false)
    }

    /// Returns the first key.
    pub(super) fn first(&self) -> Option<&K> {
        self.iter().next().map(|(key, _)| key)
    }

    /// Goes through all keys in order.
    pub(super) fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// Goes in key order from the first entry whose key is not `before`.
    ///
    /// `before` must hold for all keys up to some point and for none beyond it.
    pub(super) fn iter_after(&self, before: impl Fn(&K) -> bool) -> Iter<'_, K, V> {
        let mut branches = Vec::new();
        let mut node = &self.root;
        loop {
            match &**node {
                Node::Leaf(entries) => {
                    let start = entries.partition_point(|(key, _)| before(key));
                    return Iter { branches, leaf: entries[start..].iter() };
                }
                Node::Branch(children) => {
                    let place = children[1..].partition_point(|(bound, _)| before(bound));
                    branches.push(children[place + 1..].iter());
                    node = &children[place].1;
                }
            }
        }
    }
}

impl<K: Ord, V> SortedMap<K, V> {
    /// Returns the value of a key.
    pub(super) fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.get_entry(key).map(|(_, value)| value)
    }

    /// Returns a key as the map holds it, and its value.
    pub(super) fn get_entry<Q: Ord + ?Sized>(&self, key: &Q) -> Option<(&K, &V)>
    where
        K: Borrow<Q>,
    {
        let mut node = &self.root;
        loop {
            match &**node {
                Node::Leaf(entries) => {
                    let place = entries.binary_search_by(|(other, _)| other.borrow().cmp(key)).ok()?;
                    return Some((&entries[place].0, &entries[place].1));
                }
                Node::Branch(children) => node = &children[child_of(children, key)].1,
            }
        }
    }

    /// Says whether a key is there.
    pub(super) fn contains<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }
}

impl<K: Ord + Clone, V: Clone> SortedMap<K, V> {
    /// Returns the value of a key, to be changed in place.
    pub(super) fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        // A miss must not copy the path.
        if !self.contains(key) {
            return None;
        }
        let mut node = &mut self.root;
        loop {
            match Arc::make_mut(node) {
                Node::Leaf(entries) => {
                    let place = entries.binary_search_by(|(other, _)| other.borrow().cmp(key)).ok()?;
                    return Some(&mut entries[place].1);
                }
                Node::Branch(children) => {
                    let place = child_of(children, key);
                    node = &mut children[place].1;
                }
            }
        }
    }

    /// Sets the value of a key and returns the one it had.
    pub(super) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let (old, split) = insert(&mut self.root, key, value);
        if let Some((bound, right)) = split {
            let left = Arc::clone(&self.root);
            self.root = Arc::new(Node::Branch(vec![(bound.clone(), left), (bound, right)]));
        }
        self.len += usize::from(old.is_none());
        old
    }

    /// Removes a key and returns the value it had.
    pub(super) fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        if !self.contains(key) {
            return None;
        }
        let old = remove(&mut self.root, key);
        self.len -= usize::from(old.is_some());
        while let Node::Branch(children) = &*self.root
            && let [(_, only)] = children.as_slice()
        {
            self.root = Arc::clone(only);
        }
        old
    }
}

impl<K, V> Node<K, V> {
    fn entries(&self) -> usize {
        match self {
            Self::Leaf(entries) => entries.len(),
            Self::Branch(children) => children.len(),
        }
    }
}

/// The place of the child that may hold `key`.
fn child_of<Q: Ord + ?Sized, K: Borrow<Q>, C>(children: &[(K, C)], key: &Q) -> usize {
    children[1..].partition_point(|(bound, _)| bound.borrow() <= key)
}

/// Adds to a full or not full list of entries and gives off a right half if it was full.
fn add<K: Clone, T>(entries: &mut Vec<(K, T)>, place: usize, entry: (K, T)) -> Option<(K, Vec<(K, T)>)> {
    if entries.len() < ENTRIES_MAX {
        if entries.len() == entries.capacity() {
            // Not doubled: most nodes rest at some size for long, and their slack would be a third of the state.
            entries.reserve_exact(ENTRIES_SLACK);
        }
        entries.insert(place, entry);
        return None;
    }
    // Growth at the end leaves full nodes behind: tables are loaded in key order, and log indexes only rise.
    let middle = if place == entries.len() { place } else { entries.len() / 2 };
    let mut right = entries.split_off(middle);
    entries.shrink_to_fit();
    if place < middle {
        entries.insert(place, entry);
    } else {
        right.insert(place - middle, entry);
    }
    Some((right[0].0.clone(), right))
}

fn insert<K: Ord + Clone, V: Clone>(node: &mut Arc<Node<K, V>>, key: K, value: V) -> (Option<V>, Split<K, V>) {
    match Arc::make_mut(node) {
        Node::Leaf(entries) => match entries.binary_search_by(|(other, _)| other.cmp(&key)) {
            Ok(place) => (Some(std::mem::replace(&mut entries[place].1, value)), None),
            Err(place) => {
                let split = add(entries, place, (key, value));
                (None, split.map(|(bound, right)| (bound, Arc::new(Node::Leaf(right)))))
            }
        },
        Node::Branch(children) => {
            let place = child_of(children, &key);
            let (old, split) = insert(&mut children[place].1, key, value);
            let split = split.and_then(|child| add(children, place + 1, child));
            (old, split.map(|(bound, right)| (bound, Arc::new(Node::Branch(right)))))
        }
    }
}

fn remove<Q, K, V>(node: &mut Arc<Node<K, V>>, key: &Q) -> Option<V>
where
    Q: Ord + ?Sized,
    K: Borrow<Q> + Clone,
    V: Clone,
{
    match Arc::make_mut(node) {
        Node::Leaf(entries) => {
            let place = entries.binary_search_by(|(other, _)| other.borrow().cmp(key)).ok()?;
            Some(entries.remove(place).1)
        }
        Node::Branch(children) => {
            let place = child_of(children, key);
            let old = remove(&mut children[place].1, key);
            match children[place].1.entries() {
                0 => drop(children.remove(place)),
                1..ENTRIES_MIN => merge(children, place),
                _ => {}
            }
            old
        }
    }
}

/// Merges the small child at `place` with a neighbour, if both fit one node.
fn merge<K: Clone, V: Clone>(children: &mut Vec<Child<K, V>>, place: usize) {
    let fits = |left: usize| {
        left + 1 < children.len() && children[left].1.entries() + children[left + 1].1.entries() <= ENTRIES_MAX
    };
    let Some(left) = [Some(place), place.checked_sub(1)].into_iter().flatten().find(|left| fits(*left)) else { return };
    let (bound, right) = children.remove(left + 1);
    match (Arc::make_mut(&mut children[left].1), Arc::unwrap_or_clone(right)) {
        (Node::Leaf(entries), Node::Leaf(more)) => entries.extend(more),
        (Node::Branch(grandchildren), Node::Branch(mut more)) => {
            // The first bound of a branch is never read, so it may be anything; inside the merged node it counts.
            more[0].0 = bound;
            grandchildren.extend(more);
        }
        _ => unreachable!("all leaves lie equally deep"),
    }
}

/// Goes through entries in key order.
pub(super) struct Iter<'a, K, V> {
    branches: Vec<slice::Iter<'a, Child<K, V>>>,
    leaf: slice::Iter<'a, (K, V)>,
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.leaf.next() {
                return Some((key, value));
            }
            let Some((_, child)) = self.branches.last_mut()?.next() else {
                self.branches.pop();
                continue;
            };
            match &**child {
                Node::Leaf(entries) => self.leaf = entries.iter(),
                Node::Branch(children) => self.branches.push(children.iter()),
            }
        }
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for SortedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: PartialEq, V: PartialEq> PartialEq for SortedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn depths<K, V>(node: &Node<K, V>, depth: usize, found: &mut Vec<usize>) {
        match node {
            Node::Leaf(entries) => {
                assert!(entries.len() <= ENTRIES_MAX);
                found.push(depth);
            }
            Node::Branch(children) => {
                assert!((1..=ENTRIES_MAX).contains(&children.len()));
                children.iter().for_each(|(_, child)| depths(child, depth + 1, found));
            }
        }
    }

    fn check(map: &SortedMap<u16, u32>, model: &BTreeMap<u16, u32>) {
        assert!(map.iter().eq(model.iter()));
        assert_eq!(map.len(), model.len());
        let mut found = Vec::new();
        depths(&map.root, 0, &mut found);
        assert!(found.iter().all(|depth| *depth == found[0]), "leaves at different depths");
    }

    proptest! {
        #[test]
        fn behaves_as_the_standard_map_and_leaves_its_clones_alone(
            steps in proptest::collection::vec((any::<bool>(), 0u16..600, any::<u32>()), 0..3000),
            cut in 0usize..3000,
        ) {
            let (mut map, mut model) = (SortedMap::default(), BTreeMap::new());
            let mut kept = None;
            for (place, (put, key, value)) in steps.into_iter().enumerate() {
                if place == cut {
                    kept = Some((map.clone(), model.clone()));
                }
                if put || key % 3 == 0 {
                    prop_assert_eq!(map.insert(key, value), model.insert(key, value));
                } else {
                    prop_assert_eq!(map.remove(&key), model.remove(&key));
                }
                if let Some(slot) = map.get_mut(&(key / 2)) {
                    *slot ^= 1;
                    *model.get_mut(&(key / 2)).unwrap() ^= 1;
                }
                prop_assert_eq!(map.get(&key), model.get(&key));
            }
            check(&map, &model);
            for start in [0, 1, 299, 599, 600] {
                prop_assert!(map.iter_after(|key| *key < start).eq(model.range(start..)));
            }
            if let Some((map, model)) = kept {
                check(&map, &model);
            }
        }
    }

    #[test]
    fn a_map_emptied_from_either_end_is_empty() {
        for forward in [true, false] {
            let mut map = SortedMap::default();
            let mut model = BTreeMap::new();
            for key in 0..5000u16 {
                map.insert(key, 0);
                model.insert(key, 0);
            }
            check(&map, &model);
            for step in 0..5000u16 {
                let key = if forward { step } else { 4999 - step };
                assert_eq!(map.remove(&key), Some(0));
            }
            assert!(map.is_empty() && map.iter().next().is_none());
        }
    }
}
