//! Tests of the loops on real disks.
