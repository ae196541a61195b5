//! Says who is asking and what they may do.
//!
//! Owns, in memory, the users of the htpasswd file and the verdicts of the last minute. Invariants: every route of every
//! door passes [`Auth::decide`]; when authentication is on, what is not allowed is denied; a password is never kept,
//! compared in variable time, or shown in a log or a `Debug` form. Does not speak HTTP: it is handed the text of one
//! `Authorization` header. Start reading at [`Auth::authenticate`].

mod basic;
mod config;
mod htpasswd;
mod principal;
#[cfg(test)]
mod tests;
mod verdicts;

pub use config::Config;
pub use principal::{Action, Decision, Principal};

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::env::Seed;
use crate::oci::RepositoryName;

use basic::Credentials;
use htpasswd::{Stamp, Users};
use verdicts::{Key, Verdicts};

/// How often the htpasswd file is looked at for a change.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How many passwords are checked at once; bcrypt is made to be slow, and pulls must go on meanwhile.
const CHECKS_MAX: usize = 2;

/// Says why the users could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is larger than a htpasswd file may be.
    #[error("{path} is larger than {max} bytes")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The largest size, in bytes.
        max: u64,
    },
    /// A line is not `user:hash`, or its hash is not bcrypt (`2a`, `2b`, `2y`) of a bearable cost.
    #[error("{path} line {line}: {reason}")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong; never the line's own text.
        reason: &'static str,
    },
}

/// Authenticates and authorizes; cheap to clone.
#[derive(Clone)]
pub struct Auth(Option<Arc<On>>);

/// The state behind an [`Auth`] that asks for credentials.
struct On {
    path: PathBuf,
    /// Keys the verdicts and the choice of stand-in hashes: drawn at start, never stored.
    secret: [u8; 32],
    users: RwLock<Loaded>,
    verdicts: Mutex<Verdicts>,
    looked: tokio::sync::Mutex<Instant>,
    checks: Arc<Semaphore>,
}

struct Loaded {
    users: Arc<Users>,
    /// Of the file last looked at, good or bad: a bad one is complained of once.
    stamp: Option<Stamp>,
    /// Counts the loads: a verdict is kept only if the users it was reached with are still the users.
    generation: u64,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").field("is_on", &self.is_on()).finish_non_exhaustive()
    }
}

impl Auth {
    /// Reads the users, if a file is configured.
    ///
    /// # Errors
    ///
    /// Any [`Error`]: a node does not start with users that it cannot read.
    pub fn open(config: Config) -> Result<Self, Error> {
        let Some(path) = config.htpasswd else { return Ok(Self(None)) };
        let (users, stamp) = htpasswd::read(&path)?;
        let mut secret = [0; 32];
        Seed::from_os().fill(&mut secret);
        Ok(Self(Some(Arc::new(On {
            path,
            secret,
            users: RwLock::new(Loaded { users: Arc::new(users), stamp: Some(stamp), generation: 0 }),
            verdicts: Mutex::default(),
            looked: tokio::sync::Mutex::new(Instant::now()),
            checks: Arc::new(Semaphore::new(CHECKS_MAX)),
        }))))
    }

    /// Says whether credentials are asked for at all.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Says who sends this `Authorization` header; `None` if the credentials are wrong or malformed (401).
    ///
    /// Without a header it is [`Principal::Anonymous`]; with authentication off it always is. The file of users is looked
    /// at again every two seconds. bcrypt runs off the runtime, a few at a time; verdicts are remembered for a minute.
    ///
    /// # Cancel safety
    ///
    /// A dropped call leaves at most one check running to its end on a blocking thread.
    pub async fn authenticate(&self, authorization: Option<&str>) -> Option<Principal> {
        self.authenticate_at(authorization, Instant::now()).await
    }

    async fn authenticate_at(&self, authorization: Option<&str>, now: Instant) -> Option<Principal> {
        let (Some(on), Some(header)) = (&self.0, authorization) else { return Some(Principal::Anonymous) };
        let credentials = Credentials::parse(header)?;
        on.look_again(now).await;
        on.check(credentials, now).await
    }

    /// Reads the users again now, and forgets all verdicts.
    ///
    /// # Errors
    ///
    /// Any [`Error`]; the users stay those of before.
    pub async fn reload(&self) -> Result<(), Error> {
        match &self.0 {
            Some(on) => on.load(Look::Read).await,
            None => Ok(()),
        }
    }

    /// Says whether `principal` may perform `action` on `repository`: the one authorization point.
    #[must_use]
    pub fn decide(&self, principal: &Principal, action: Action, repository: Option<&RepositoryName>) -> Decision {
        principal::decide(self.is_on(), principal, action, repository)
    }
}

impl On {
    /// Loads the file again if it changed since it was last looked at.
    async fn look_again(&self, now: Instant) {
        // Whoever finds another at it goes on with the users as they are: a slow disk must not stop logins.
        let Ok(mut looked) = self.looked.try_lock() else { return };
        if now.duration_since(*looked) < LOOK_EVERY {
            return;
        }
        let known = self.users.read().expect("no panic under the lock").stamp;
        if let Err(error) = self.load(Look::IfNot(known)).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "kept the users of before");
        }
        *looked = now;
    }

    /// Reads the file if `look` says so, and puts its users in place.
    async fn load(&self, look: Look) -> Result<(), Error> {
        let path = self.path.clone();
        let found = blocking(move || read_changed(&path, look)).await;
        let Some((stamp, read)) = found else { return Ok(()) };
        let mut loaded = self.users.write().expect("no panic under the lock");
        loaded.stamp = stamp;
        let users = read?;
        loaded.users = Arc::new(users);
        loaded.generation += 1;
        self.verdicts.lock().expect("no panic under the lock").clear();
        Ok(())
    }

    /// Compares credentials with the users, or with a verdict of the last minute.
    async fn check(self: &Arc<Self>, credentials: Credentials, now: Instant) -> Option<Principal> {
        let key = Key::of(&self.secret, &credentials);
        if let Some(good) = self.remembered(&key, now) {
            return good.then_some(Principal::User(credentials.user));
        }
        let permit = Arc::clone(&self.checks).acquire_owned().await.expect("the semaphore is never closed");
        // Another connection of the same client may have been checked while this one waited.
        if let Some(good) = self.remembered(&key, now) {
            return good.then_some(Principal::User(credentials.user));
        }
        let this = Arc::clone(self);
        blocking(move || {
            let good = this.compare(&key, &credentials, now);
            drop(permit);
            good.then_some(Principal::User(credentials.user))
        })
        .await
    }

    fn remembered(&self, key: &Key, now: Instant) -> Option<bool> {
        self.verdicts.lock().expect("no panic under the lock").get(key, now)
    }

    /// Runs bcrypt and remembers what it said. An unknown user costs what a known one does.
    fn compare(&self, key: &Key, credentials: &Credentials, now: Instant) -> bool {
        let (users, generation) = {
            let loaded = self.users.read().expect("no panic under the lock");
            (Arc::clone(&loaded.users), loaded.generation)
        };
        let good = users.verify(&self.secret, credentials);
        // The users' lock is held while the verdict goes in: a load that follows clears it.
        let loaded = self.users.read().expect("no panic under the lock");
        if loaded.generation == generation {
            self.verdicts.lock().expect("no panic under the lock").insert(*key, good, now);
        }
        good
    }
}

type Found = (Option<Stamp>, Result<Users, Error>);

/// When to read the file.
#[derive(Debug, Clone, Copy)]
enum Look {
    /// In any case.
    Read,
    /// If it no longer has this stamp; `None` is a file that could not be looked at.
    IfNot(Option<Stamp>),
}

fn read_changed(path: &Path, look: Look) -> Option<Found> {
    let stamp = htpasswd::stamp(path).ok();
    if matches!(look, Look::IfNot(known) if known == stamp) {
        return None;
    }
    Some(match htpasswd::read(path) {
        Ok((users, stamp)) => (Some(stamp), Ok(users)),
        Err(error) => (stamp, Err(error)),
    })
}

/// Runs `work` on a blocking thread; a panic in it goes on here.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down and nobody waits for the answer any more.
            Err(_) => std::future::pending().await,
        },
    }
}
