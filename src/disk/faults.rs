//! Where tests make the disk fail; nothing in a build that is not a test.

use std::io;
use std::path::Path;

/// What is about to be done to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Bytes or names are written.
    Write,
    /// A file or directory is synced.
    Sync,
}

/// Fails if a test wants this step on this path to fail.
#[cfg(not(test))]
#[inline]
#[expect(clippy::unnecessary_wraps, reason = "the test build's twin fails")]
pub(super) fn check(_: Step, _: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
pub(super) use injected::check;
#[cfg(test)]
pub(crate) use injected::inject;

#[cfg(test)]
mod injected {
    use std::path::PathBuf;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::{Path, Step, io};

    struct Fault {
        id: u64,
        step: Step,
        under: PathBuf,
        errno: i32,
    }

    static FAULTS: Mutex<Vec<Fault>> = Mutex::new(Vec::new());
    static NEXT: AtomicU64 = AtomicU64::new(0);

    /// A fault that holds until dropped.
    #[derive(Debug)]
    pub(crate) struct Injected(u64);

    impl Drop for Injected {
        fn drop(&mut self) {
            FAULTS.lock().unwrap().retain(|fault| fault.id != self.0);
        }
    }

    /// Makes every `step` on a path under `under` fail with `errno`.
    pub(crate) fn inject(under: &Path, step: Step, errno: i32) -> Injected {
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        FAULTS.lock().unwrap().push(Fault { id, step, under: under.into(), errno });
        Injected(id)
    }

    pub(in super::super) fn check(step: Step, path: &Path) -> io::Result<()> {
        let faults = FAULTS.lock().unwrap();
        match faults.iter().find(|fault| fault.step == step && path.starts_with(&fault.under)) {
            Some(fault) => Err(io::Error::from_raw_os_error(fault.errno)),
            None => Ok(()),
        }
    }
}
