//! Moves a blob's bytes between two nodes, within limits, checked at both ends.
//!
//! CONTRACT: owned together with `replica`; only `replica` and `node` see it.
