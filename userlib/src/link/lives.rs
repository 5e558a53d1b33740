//! The way to the next adapter. Who finds the last one gone goes it first, for all threads of the session.

use std::collections::{HashMap, HashSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use wire::Status;
use wire::control::Request;

use super::opened::Opened;
use super::queues::Watched;
use super::{Connection, Link, hello};
use crate::error::Error;
use crate::transport::{Transport, TransportError};

/// Between two attempts to connect.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Makes a connection, each time it is called.
type Connect = Box<dyn Fn() -> Result<Box<dyn Transport>, Error> + Send + Sync>;

/// What a session with patience has.
pub(super) struct Lives {
    connect: Connect,
    patience: Duration,
    stage: Mutex<Stage>,
    moved_on: Condvar,
    held: Mutex<Held>,
    pub(super) settled: Condvar,
}

/// How far the way to the next adapter is.
#[derive(Default)]
struct Stage {
    life: u32,
    /// Somebody is on the way.
    taken: bool,
    /// Since then the adapter is known to be gone.
    since: Option<Instant>,
    /// There will be none.
    over: Option<String>,
}

/// What is made anew in each life.
#[derive(Default)]
pub(super) struct Held {
    pub(super) opened: HashMap<u64, Opened>,
    pub(super) queues: HashMap<u64, Watched>,
    pub(super) next_queue: u64,
    /// Volumes whose files were changed in this life.
    pub(super) changed: HashSet<String>,
    /// Volumes of whose files something may be gone that was not synced.
    pub(super) lost: HashSet<String>,
}

impl Lives {
    pub(super) fn new(connect: Connect, patience: Duration) -> Self {
        Self {
            connect,
            patience,
            stage: Mutex::default(),
            moved_on: Condvar::new(),
            held: Mutex::default(),
            settled: Condvar::new(),
        }
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link {
    /// Goes on with the next adapter after that of `life`, if nobody did. False: not before `until`.
    ///
    /// # Errors
    /// [`TransportError::Gone`] if there was none within the session's patience, or not one that takes the session.
    pub(crate) fn resume(&self, life: u32, until: Option<Instant>) -> Result<bool, Error> {
        let Some(lives) = &self.lives else {
            return Err(TransportError::Gone("the session ended with it: connect again".to_owned()).into());
        };
        let mut stage = lives.stage();
        loop {
            if stage.life != life {
                return Ok(true);
            }
            if let Some(why) = &stage.over {
                return Err(TransportError::Gone(why.clone()).into());
            }
            if !stage.taken {
                break;
            }
            let left = until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Ok(false);
            }
            let waited = lives.moved_on.wait_timeout(stage, left.min(LONGEST_PAUSE));
            stage = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        stage.taken = true;
        let since = *stage.since.get_or_insert_with(Instant::now);
        drop(stage);
        let found = self.find_next(lives, since, until);
        let mut stage = lives.stage();
        stage.taken = false;
        let resumed = match found {
            Ok(Some(())) => {
                (stage.life, stage.since) = (life.wrapping_add(1), None);
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(why) => {
                stage.over = Some(why.clone());
                Err(TransportError::Gone(why).into())
            }
        };
        lives.moved_on.notify_all();
        resumed
    }

    /// The error is why there will be none.
    fn find_next(&self, lives: &Lives, since: Instant, until: Option<Instant>) -> Result<Option<()>, String> {
        let end = since + lives.patience;
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match self.attempt(lives) {
                Ok(()) => return Ok(Some(())),
                Err(error) => error,
            };
            let now = Instant::now();
            let passes = matches!(error, Error::Connect { .. })
                || error.is_gone()
                || error.status() == Some(Status::E_NO_RESOURCES);
            if !passes {
                return Err(format!("it ended, and the session cannot go on with the next one: {error}"));
            }
            if now >= end {
                return Err(format!(
                    "it ended {:.1?} ago, and none took the session since; the last attempt: {error}",
                    now.duration_since(since)
                ));
            }
            let left = until.unwrap_or(end).min(end).saturating_duration_since(now);
            if left.is_zero() {
                return Ok(None);
            }
            std::thread::sleep(pause.min(left));
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Connects, opens everything again, and lets all threads of the session know of it.
    fn attempt(&self, lives: &Lives) -> Result<(), Error> {
        let mut transport = (lives.connect)()?;
        let welcome = hello(&mut *transport)?;
        let before = self.welcome();
        if welcome.adapter == before.adapter {
            let text = "it still runs and has ended this session; its log says why";
            return Err(Error::Protocol(text.to_owned()));
        }
        let successive = welcome.life == before.life.wrapping_add(1);
        let settled = welcome.settled;
        let opened: Vec<(u64, Opened)> =
            lives.held().opened.iter().map(|(name, opened)| (*name, opened.clone())).collect();
        let mut again = Vec::with_capacity(opened.len());
        for (name, mut opened) in opened {
            opened.open_again(&mut *transport, successive)?;
            again.push((name, opened));
        }
        let mut connection = self.lock();
        let mut held = lives.held();
        let mut unwanted = Vec::new();
        for (name, opened) in again {
            match held.opened.get_mut(&name) {
                Some(it) => *it = opened,
                None => unwanted.extend(opened.now.ok()), // Closed meanwhile.
            }
        }
        if !(successive && settled) {
            held.lose_unsynced();
        }
        let replays = successive && held.opened.values().any(|opened| opened.replays);
        held.queues.values_mut().for_each(|watched| watched.adapter_ended(replays));
        drop(held);
        *connection = Connection { transport, welcome, life: connection.life.wrapping_add(1) };
        for key in unwanted {
            // Best effort: the session's end closes it at the latest.
            let _ = connection.transport.call(&Request::Close { key }, &[]);
        }
        Ok(())
    }
}
