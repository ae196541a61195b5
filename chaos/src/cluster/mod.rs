//! A cluster of real processes, each with a data directory of its own, that can be killed and cut off from power.

mod disk;
mod operator;
mod process;

pub(crate) use disk::Filler;
pub(crate) use operator::{Operator, Said};
pub(crate) use process::{Cluster, Options, Serving};
