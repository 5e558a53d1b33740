//! What is kept for each user over all its sessions: which they are, what waits for an answer, and how much of it is worth
//! a line in the log.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::SessionId;
use crate::mailbox::DenialGate;

/// Lines about connections that one user gets in a second; the rest is counted.
const LINES: u32 = 20;
/// How often lines are counted anew.
const PERIOD: Duration = Duration::from_secs(1);

/// One user.
#[derive(Default)]
pub(super) struct User {
    pub(super) sessions: BTreeSet<SessionId>,
    /// Requests without an answer, of all its sessions.
    pub(super) outstanding: u64,
    gate: Arc<DenialGate>,
    lines: u32,
    suppressed: u64,
}

/// All users who are connected, or were a moment ago.
#[derive(Default)]
pub(super) struct Users {
    all: BTreeMap<u32, User>,
    since: Option<Instant>,
}

impl Users {
    pub(super) fn get(&self, uid: u32) -> Option<&User> {
        self.all.get(&uid)
    }

    pub(super) fn entry(&mut self, uid: u32) -> &mut User {
        self.all.entry(uid).or_default()
    }

    /// What lets denials of this user through to the log.
    pub(super) fn gate(&mut self, uid: u32) -> Arc<DenialGate> {
        self.entry(uid).gate.clone()
    }

    /// Whether one more line about this user's connections is written; if not, it is counted.
    pub(super) fn may_log(&mut self, uid: u32) -> bool {
        let user = self.entry(uid);
        let may = user.lines < LINES;
        if may {
            user.lines += 1;
        } else {
            user.suppressed += 1;
        }
        may
    }

    /// Once in a while: tells what was suppressed, counts anew, and forgets who is gone.
    pub(super) fn sweep(&mut self, now: Instant, mut tell: impl FnMut(u32, Suppressed)) {
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) < PERIOD {
            return;
        }
        self.since = Some(now);
        self.all.retain(|&uid, user| {
            user.lines = 0;
            let suppressed =
                Suppressed { lines: std::mem::take(&mut user.suppressed), denials: user.gate.open_again() };
            if suppressed != Suppressed::default() {
                tell(uid, suppressed);
            }
            !user.sessions.is_empty()
        });
    }
}

/// What was left out of the log.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Suppressed {
    /// Lines about connections.
    pub(super) lines: u64,
    /// Requests denied.
    pub(super) denials: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_user_has_lines_of_its_own_and_the_rest_is_counted() {
        let mut users = Users::default();
        let start = Instant::now();
        let told = |users: &mut Users, at: Duration| {
            let mut told = Vec::new();
            users.sweep(start + at, |uid, what| told.push((uid, what.lines, what.denials)));
            told
        };
        assert!(told(&mut users, Duration::ZERO).is_empty());
        let flood = (0..1000).filter(|_| users.may_log(1)).count();
        assert_eq!(flood, LINES as usize);
        assert!(users.may_log(2), "others have their own");
        let gate = users.gate(3);
        let let_through = (0..50).filter(|_| gate.pass()).count();
        assert!(told(&mut users, PERIOD / 2).is_empty());
        let told_now = told(&mut users, PERIOD);
        assert_eq!(told_now, [(1, 1000 - u64::from(LINES), 0), (3, 0, 50 - let_through as u64)]);
        assert!(users.may_log(1) && gate.pass(), "a new period begins");
        assert!(users.get(2).is_none(), "who has no session is forgotten");
    }
}
