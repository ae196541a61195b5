//! Tests of the wire between two real nodes' disks over loopback.
