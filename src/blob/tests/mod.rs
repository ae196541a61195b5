//! What crashes, damage, full disks and many tasks at once must not break.

mod bad_disk;
mod damage;
mod extents;
mod restart;
mod support;
