//! One file per thing that is checked; each can fail, and has a test that shows it.

pub(crate) mod acked;
pub(crate) mod copies;
pub(crate) mod linearizable;
pub(crate) mod orphans;
