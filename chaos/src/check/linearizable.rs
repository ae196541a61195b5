//! Whether the reads and writes of one tag have one order in real time (I3).
//!
//! Source: Wing and Gong, "Testing and verifying concurrent objects", 1993, with the memoisation of Lowe, "Testing for
//! linearizability", 2017. A tag is a register; a write whose outcome is unknown may take effect at any time after it
//! began, or never.

use std::collections::HashSet;

/// What an operation did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Set the register.
    Write(u64),
    /// Saw this value; `None` before the first write.
    Read(Option<u64>),
}

/// One operation on one register.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operation {
    pub(crate) kind: Kind,
    /// Nanoseconds of the run's clock.
    pub(crate) began: u64,
    /// `None`: nobody knows whether it took effect.
    pub(crate) ended: Option<u64>,
}

/// Says whether the operations of one register can be put in one order.
///
/// Values written must be distinct.
pub(crate) fn is_linearizable(operations: &[Operation]) -> bool {
    let seen: HashSet<u64> = operations
        .iter()
        .filter_map(|operation| match operation.kind {
            Kind::Read(value) => value,
            Kind::Write(_) => None,
        })
        .collect();
    // An unknown write that nobody saw can be left out: it may never have happened. An unknown read says nothing.
    let mut operations: Vec<Operation> = operations
        .iter()
        .filter(|operation| match (operation.kind, operation.ended) {
            (_, Some(_)) => true,
            (Kind::Write(value), None) => seen.contains(&value),
            (Kind::Read(_), None) => false,
        })
        .copied()
        .collect();
    operations.sort_by_key(|operation| operation.began);
    search(&operations)
}

fn search(operations: &[Operation]) -> bool {
    let mut tried: HashSet<(Vec<u64>, Option<u64>)> = HashSet::new();
    let mut stack = vec![(vec![0u64; operations.len().div_ceil(64)], None)];
    while let Some((done, value)) = stack.pop() {
        let is_done = |at: usize| done[at / 64] & (1 << (at % 64)) != 0;
        let open = || (0..operations.len()).filter(|at| !is_done(*at));
        if open().all(|at| operations[at].ended.is_none()) {
            return true;
        }
        // Nothing that began after another open operation had ended can come before it.
        let horizon = open().filter_map(|at| operations[at].ended).min().unwrap_or(u64::MAX);
        for at in open().take_while(|at| operations[*at].began <= horizon) {
            let next = match operations[at].kind {
                Kind::Write(written) => Some(written),
                Kind::Read(read) if read == value => value,
                Kind::Read(_) => continue,
            };
            let mut then = done.clone();
            then[at / 64] |= 1 << (at % 64);
            if tried.insert((then.clone(), next)) {
                stack.push((then, next));
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn write(value: u64, began: u64, ended: u64) -> Operation {
        Operation { kind: Kind::Write(value), began, ended: Some(ended) }
    }

    fn read(value: Option<u64>, began: u64, ended: u64) -> Operation {
        Operation { kind: Kind::Read(value), began, ended: Some(ended) }
    }

    #[test]
    fn a_read_that_goes_back_in_time_is_caught() {
        let history = [write(1, 0, 1), write(2, 2, 3), read(Some(2), 4, 5), read(Some(1), 6, 7)];
        assert!(is_linearizable(&history[..3]));
        assert!(!is_linearizable(&history));
    }

    #[test]
    fn a_lost_write_is_caught() {
        assert!(!is_linearizable(&[write(1, 0, 1), read(None, 2, 3)]));
    }

    #[test]
    fn concurrent_operations_may_go_either_way() {
        let both = [write(1, 0, 10), write(2, 0, 10)];
        for last in [1, 2] {
            assert!(is_linearizable(&[both[0], both[1], read(Some(last), 11, 12)]));
        }
        let split = [both[0], both[1], read(Some(1), 11, 12), read(Some(2), 13, 14)];
        assert!(!is_linearizable(&split));
    }

    #[test]
    fn an_unknown_write_may_take_effect_late_or_never_but_not_twice() {
        let unknown = Operation { kind: Kind::Write(9), began: 0, ended: None };
        assert!(is_linearizable(&[unknown, write(1, 1, 2), read(Some(1), 3, 4), read(Some(9), 5, 6)]));
        assert!(is_linearizable(&[unknown, write(1, 1, 2), read(Some(1), 3, 4)]));
        let twice =
            [unknown, write(1, 1, 2), read(Some(9), 3, 4), write(2, 5, 6), read(Some(2), 7, 8), read(Some(9), 9, 10)];
        assert!(!is_linearizable(&twice));
    }

    proptest! {
        /// Histories made by a real register are accepted; one whose last read is changed to an older value is not.
        #[test]
        fn histories_of_a_register_pass_and_mutated_ones_do_not(writes in proptest::collection::vec(0u8..2, 2..60)) {
            let mut history = Vec::new();
            let (mut value, mut clock, mut next) = (None, 0, 0);
            for is_write in writes {
                if is_write == 1 {
                    next += 1;
                    value = Some(next);
                    history.push(write(next, clock, clock + 1));
                } else {
                    history.push(read(value, clock, clock + 1));
                }
                clock += 2;
            }
            prop_assert!(is_linearizable(&history));
            if next >= 2 {
                history.push(read(Some(next - 1), clock, clock + 1));
                prop_assert!(!is_linearizable(&history));
            }
        }
    }
}
