//! What each session gets of a turn, and what limits leave of it.
//!
//! Shares are *fair* by virtual time (start-time fair queueing, Goyal, Vin and Cheng 1996): what a session takes moves its
//! own time on, by its cost over its weight, and in a turn it may take while it is not ahead of the one furthest behind by
//! more than a quantum. So two sessions that both have enough waiting take in the ratio of their weights, in each turn give
//! or take one request and over any number of turns by no more than [`QUANTUM`] and a request; the one furthest behind
//! always takes; and nobody saves up what it does not use. While a session is alone nothing is counted.
//!
//! Limits are token buckets, see [`super::limiter`].

use std::sync::Arc;

use wire::layout::{SubmissionEntry, opcode};

use super::limiter::{Limiter, Purse, Tokens};

/// What a session weighs unless it was told otherwise, and the most that it may weigh.
pub const DEFAULT_WEIGHT: u32 = 100;
/// See [`DEFAULT_WEIGHT`].
pub const MAX_WEIGHT: u32 = 1000;

/// What one unit of cost moves the time of a session of weight 1 on.
const SCALE: u64 = 1_000_000;
/// How far in a turn a session may get ahead of the one furthest behind: four units at the default weight, so that a turn
/// stays short for who has one request at a time.
pub const QUANTUM: u64 = 4 * SCALE / DEFAULT_WEIGHT as u64;
/// Sessions that took something in the last so many turns share: longer than an application with one request at a time
/// needs to come back.
const LATELY: u64 = 32;
/// Bytes that cost as much as one more small request.
const UNIT_SHIFT: u32 = 14;
/// Of one request no more bytes are counted: it may be nonsense.
const MOST_BYTES: u64 = 16 << 20;

/// What a request costs its session.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Cost {
    /// Of a turn: 1, and one for each 16 KiB.
    pub units: u64,
    /// Moved between memory and device.
    pub bytes: u64,
}

impl Cost {
    /// Of a submission entry, every field of which may be nonsense.
    #[inline]
    pub fn of(entry: &SubmissionEntry) -> Self {
        let moves =
            matches!(entry.opcode, opcode::READ | opcode::WRITE | opcode::COMPARE | opcode::WRITE_BYTES);
        let bytes = if moves { u64::from(entry.length) } else { 0 };
        Self { units: 1 + (bytes.min(MOST_BYTES) >> UNIT_SHIFT), bytes }
    }
}

/// How much time a unit of cost is for a session of this weight.
pub fn step(weight: u32) -> u64 {
    SCALE / u64::from(weight.clamp(1, MAX_WEIGHT))
}

/// Units that a session may begin to take in a turn, when its time is `at` and that of the one furthest behind is `behind`.
pub(super) fn units_in_turn(at: u64, behind: u64, step: u64) -> u64 {
    (behind + QUANTUM).saturating_sub(at).div_ceil(step)
}

/// What the control plane says about a session.
#[derive(Clone, Debug)]
pub struct Terms {
    /// From 1 to [`MAX_WEIGHT`].
    pub weight: u32,
    /// Of the session, and of its user in all sessions.
    pub limiters: Vec<Arc<Limiter>>,
}

impl Default for Terms {
    fn default() -> Self {
        Self { weight: DEFAULT_WEIGHT, limiters: Vec::new() }
    }
}

/// What may be taken from one queue in this turn, and what was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Allowance {
    counted: bool,
    units: u64,
    tokens: Tokens,
    units_spent: u64,
    spent: Tokens,
}

impl Allowance {
    const FREE: Self = Self {
        counted: false,
        units: u64::MAX,
        tokens: Tokens::MAX,
        units_spent: 0,
        spent: Tokens { requests: 0, bytes: 0 },
    };

    /// Whether more may be taken.
    #[inline]
    pub(super) fn is_left(&self) -> bool {
        !self.counted || self.units_spent < self.units && !self.is_throttled()
    }

    fn is_throttled(&self) -> bool {
        self.spent.requests >= self.tokens.requests || self.spent.bytes >= self.tokens.bytes
    }

    /// An entry was taken. Whether more may be.
    #[inline]
    pub(super) fn take(&mut self, entry: &SubmissionEntry) -> bool {
        if self.counted {
            let cost = Cost::of(entry);
            self.units_spent += cost.units;
            self.spent.requests += 1;
            self.spent.bytes += cost.bytes;
        }
        self.is_left()
    }
}

/// A session as this engine knows it.
struct Account {
    session: u64,
    /// Its queues here.
    ports: Vec<usize>,
    step: u64,
    /// Its virtual time.
    at: u64,
    purses: Vec<Purse>,
    /// Its tokens come at this time.
    due_ns: u64,
}

impl Account {
    fn set_terms(&mut self, terms: &Terms) {
        self.step = step(terms.weight);
        // A limit that stays keeps what was taken of it.
        let mut old = std::mem::take(&mut self.purses);
        let purse = |limiter: &Arc<Limiter>| match old.iter().position(|purse| purse.is_of(limiter)) {
            Some(at) => old.swap_remove(at),
            None => Purse::new(limiter.clone()),
        };
        self.purses = terms.limiters.iter().map(purse).collect();
        self.due_ns = 0;
    }

    /// What its limits let through now.
    fn tokens(&mut self, now_ns: u64) -> Tokens {
        let mut left = Tokens::MAX;
        self.due_ns = 0;
        for purse in &mut self.purses {
            let its = purse.fill(now_ns);
            self.due_ns = self.due_ns.max(purse.due_ns());
            left = Tokens { requests: left.requests.min(its.requests), bytes: left.bytes.min(its.bytes) };
        }
        left
    }
}

/// The sessions that have queues at this engine.
#[derive(Default)]
pub(super) struct Shares {
    accounts: Vec<Option<Account>>,
    sessions: usize,
    turn: u64,
    /// The time of the session that was furthest behind.
    behind: u64,
    /// Of this turn: the least time of a session that would have taken more, and the greatest of any.
    least: Option<u64>,
    greatest: u64,
    /// Who took something last, and until which turn several share.
    last: usize,
    shared_until: u64,
    /// Some session has limits.
    limited: bool,
}

impl Shares {
    /// A queue of a session is served here from now on. Returns the session's account.
    pub(super) fn join(&mut self, session: u64, terms: &Terms, port: usize) -> usize {
        let has = |account: &Option<Account>| account.as_ref().is_some_and(|its| its.session == session);
        let at = self.accounts.iter().position(has).unwrap_or_else(|| self.open(session));
        let account = self.account(at);
        account.ports.push(port);
        account.set_terms(terms);
        self.look_for_limits();
        at
    }

    fn open(&mut self, session: u64) -> usize {
        let new = Account { session, ports: Vec::new(), step: 1, at: 0, purses: Vec::new(), due_ns: 0 };
        let at = self.accounts.iter().position(Option::is_none).unwrap_or_else(|| {
            self.accounts.push(None);
            self.accounts.len() - 1
        });
        self.accounts[at] = Some(new);
        self.sessions += 1;
        at
    }

    /// The queue is gone.
    pub(super) fn leave(&mut self, at: usize, port: usize) {
        let account = self.account(at);
        account.ports.retain(|&other| other != port);
        if account.ports.is_empty() {
            self.accounts[at] = None;
            self.sessions -= 1;
            self.look_for_limits();
        }
    }

    /// The control plane has changed what holds for a session, which may have no queue here.
    pub(super) fn set_terms(&mut self, session: u64, terms: &Terms) {
        let mut accounts = self.accounts.iter_mut().flatten();
        if let Some(account) = accounts.find(|account| account.session == session) {
            account.set_terms(terms);
            self.look_for_limits();
        }
    }

    fn look_for_limits(&mut self) {
        self.limited = self.accounts.iter().flatten().any(|account| !account.purses.is_empty());
    }

    fn account(&mut self, at: usize) -> &mut Account {
        self.accounts[at].as_mut().expect("a port's session has an account")
    }

    /// Sessions that have queues here.
    pub(super) fn sessions(&self) -> usize {
        self.sessions
    }

    /// A number of requests for a session of the default weight, for this one.
    pub(super) fn weighted(&self, at: usize, requests: usize) -> usize {
        let step = self.accounts[at].as_ref().map_or(1, |account| account.step);
        let most = requests as u64 * SCALE / u64::from(DEFAULT_WEIGHT) / step;
        usize::try_from(most).unwrap_or(usize::MAX).max(1)
    }

    /// The queues of a session, by the places of their ports.
    pub(super) fn ports(&self, at: usize) -> &[usize] {
        self.accounts[at].as_ref().map_or(&[], |account| &account.ports)
    }

    /// A turn begins to take.
    #[inline]
    pub(super) fn begin_turn(&mut self) {
        self.turn += 1;
        if self.turn <= self.shared_until {
            // If nobody waits for more all that was taken is forgotten.
            self.behind = self.behind.max(self.least.take().unwrap_or(self.greatest));
        }
    }

    /// What may be taken now from a queue in which something waits.
    #[inline]
    pub(super) fn allowance(&mut self, at: usize, now_ns: u64) -> Allowance {
        if at == self.last && self.turn >= self.shared_until && !self.limited {
            return Allowance::FREE;
        }
        self.counted(at, now_ns)
    }

    fn counted(&mut self, at: usize, now_ns: u64) -> Allowance {
        if at != self.last {
            self.last = at;
            self.shared_until = self.turn + LATELY;
        }
        let shared = self.turn < self.shared_until;
        let behind = self.behind;
        let account = self.account(at);
        let units = if shared {
            account.at = account.at.max(behind);
            units_in_turn(account.at, behind, account.step)
        } else {
            u64::MAX
        };
        Allowance { counted: true, units, tokens: account.tokens(now_ns), ..Allowance::FREE }
    }

    /// What became of an allowance, and whether the queue would have given more.
    #[inline]
    pub(super) fn charge(&mut self, at: usize, allowance: &Allowance, more: bool, now_ns: u64) {
        if allowance.counted {
            self.charge_counted(at, allowance, more, now_ns);
        }
    }

    fn charge_counted(&mut self, at: usize, allowance: &Allowance, more: bool, now_ns: u64) {
        let account = self.account(at);
        account.purses.iter_mut().for_each(|purse| purse.pay(allowance.spent, now_ns));
        if allowance.units == u64::MAX {
            return; // Alone.
        }
        account.at += allowance.units_spent * account.step;
        let its = account.at;
        self.greatest = self.greatest.max(its);
        // One that its limits hold back does not hold back others.
        if more && !allowance.is_throttled() {
            self.least = Some(self.least.map_or(its, |least| least.min(its)));
        }
    }

    /// Whether a session's limits let nothing through now, so that its queues need not be looked at.
    pub(super) fn is_throttled(&self, at: usize, now_ns: u64) -> bool {
        self.limited && self.accounts[at].as_ref().is_some_and(|account| now_ns < account.due_ns)
    }

    /// When the next tokens come that a session is throttled for. One whose tokens are there is not: if it has more it is
    /// looked at, and else nobody waits.
    pub(super) fn next_due_ns(&self, now_ns: u64) -> Option<u64> {
        if !self.limited {
            return None;
        }
        self.accounts.iter().flatten().map(|account| account.due_ns).filter(|&due| due > now_ns).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(length: u32) -> SubmissionEntry {
        SubmissionEntry { opcode: opcode::READ, length, ..SubmissionEntry::default() }
    }

    /// Lets sessions that always have enough take what they may, each request of its own size, and counts units.
    fn turns(shares: &mut Shares, wants: &[(usize, u32)], turns: u64) -> Vec<Vec<u64>> {
        let turn = |_| {
            shares.begin_turn();
            let take = |&(at, length): &(usize, u32)| {
                let mut allowance = shares.allowance(at, 0);
                let mut taken = 0;
                while allowance.is_left() && taken < 32 {
                    allowance.take(&read(length));
                    taken += Cost::of(&read(length)).units;
                }
                shares.charge(at, &allowance, true, 0);
                taken
            };
            wants.iter().map(take).collect()
        };
        (0..turns).map(turn).collect()
    }

    fn sum(turns: &[Vec<u64>], at: usize) -> u64 {
        turns.iter().map(|turn| turn[at]).sum()
    }

    fn with(weights: &[u32]) -> Shares {
        let mut shares = Shares::default();
        for (session, &weight) in weights.iter().enumerate() {
            let terms = Terms { weight, ..Terms::default() };
            assert_eq!(shares.join(session as u64, &terms, session), session);
        }
        shares
    }

    #[test]
    fn costs_are_by_requests_and_by_bytes() {
        let units = |entry: &SubmissionEntry| Cost::of(entry).units;
        assert_eq!([read(4096), read(16 << 10), read(1 << 20)].map(|entry| units(&entry)), [1, 2, 65]);
        assert_eq!(units(&read(u32::MAX)), 1 + 1024, "nonsense costs no more than a very large request");
        let zeroes = SubmissionEntry { opcode: opcode::WRITE_ZEROES, length: 1 << 30, ..read(0) };
        assert_eq!(Cost::of(&zeroes), Cost { units: 1, bytes: 0 }, "nothing is moved");
    }

    #[test]
    fn who_is_alone_takes_all_and_nothing_is_counted() {
        let mut shares = with(&[DEFAULT_WEIGHT, DEFAULT_WEIGHT]);
        shares.begin_turn();
        assert_eq!(shares.allowance(0, 0), Allowance::FREE);
        shares.begin_turn();
        assert!(shares.allowance(1, 0).counted, "another one: they share");
        assert!(shares.allowance(0, 0).counted);
        for _ in 0..=LATELY {
            shares.begin_turn();
            let allowance = shares.allowance(0, 0);
            shares.charge(0, &allowance, true, 0);
        }
        assert_eq!(shares.allowance(0, 0), Allowance::FREE, "the other one has not come back");
    }

    #[test]
    fn each_turn_is_shared_by_weight() {
        for weights in [[100, 100], [100, 200], [300, 100], [25, 100], [1000, 100]] {
            let mut shares = with(&weights);
            let turns = turns(&mut shares, &[(0, 4096), (1, 4096)], 100);
            let expected = weights.map(|weight| u64::from(weight) * 4 / 100);
            for (number, turn) in turns.iter().enumerate().skip(1) {
                for at in 0..2 {
                    let least = expected[at].saturating_sub(1).min(31);
                    assert!((least..=expected[at] + 1).contains(&turn[at]), "{weights:?} {number}: {turn:?}");
                }
            }
        }
    }

    #[test]
    fn over_many_turns_the_ratio_is_that_of_the_weights_whatever_the_sizes() {
        for (weights, sizes) in [
            ([100, 100], [1 << 20, 4096]),
            ([100, 300], [4096, 1 << 20]),
            ([70, 30], [4096, 4096]),
            ([1, 10], [4096, 65536]),
        ] {
            let mut shares = with(&weights);
            let turns = turns(&mut shares, &[(0, sizes[0]), (1, sizes[1])], 20_000);
            let share = [0, 1].map(|at| sum(&turns, at) as f64 / f64::from(weights[at]));
            let off = (share[0] / share[1] - 1.0).abs();
            assert!(off < 0.01, "{weights:?} {sizes:?}: {share:?}");
        }
    }

    #[test]
    fn who_waits_with_one_request_is_served_in_each_turn_beside_a_flood() {
        let mut shares = with(&[DEFAULT_WEIGHT, DEFAULT_WEIGHT]);
        for turn in 0..1000 {
            shares.begin_turn();
            let mut flood = shares.allowance(0, 0);
            let mut taken = 0;
            while flood.is_left() && taken < 32 {
                flood.take(&read(4096));
                taken += 1;
            }
            shares.charge(0, &flood, true, 0);
            assert!(turn == 0 || taken <= 4, "{taken}");
            let mut one = shares.allowance(1, 0);
            assert!(one.is_left());
            one.take(&read(4096));
            shares.charge(1, &one, false, 0);
        }
    }

    #[test]
    fn nobody_saves_up_and_nobody_pays_for_what_was_free() {
        let mut shares = with(&[DEFAULT_WEIGHT, DEFAULT_WEIGHT]);
        turns(&mut shares, &[(0, 4096)], 1000);
        let both = turns(&mut shares, &[(0, 4096), (1, 4096)], 10);
        assert_eq!(sum(&both[1..], 0), sum(&both[1..], 1), "{both:?}");
    }

    #[test]
    fn who_is_held_back_by_something_else_holds_back_nobody() {
        let mut shares = with(&[DEFAULT_WEIGHT, DEFAULT_WEIGHT]);
        turns(&mut shares, &[(0, 4096), (1, 4096)], 3);
        for _ in 0..10 {
            shares.begin_turn();
            let blocked = shares.allowance(0, 0);
            shares.charge(0, &blocked, false, 0);
            let mut other = shares.allowance(1, 0);
            assert!(other.is_left());
            let mut taken = 0;
            while other.is_left() && taken < 32 {
                other.take(&read(4096));
                taken += 1;
            }
            shares.charge(1, &other, true, 0);
        }
    }

    #[test]
    fn a_limit_holds_back_until_its_tokens_come_and_says_when() {
        use wire::control::Rate;
        let mut shares = Shares::default();
        let limiter = Limiter::new(Some(Rate { rate: 1000, burst: 1 }), None, 1);
        let terms = Terms { weight: DEFAULT_WEIGHT, limiters: limiter.into_iter().collect() };
        let at = shares.join(7, &terms, 0);
        let mut now = 1_000_000_000;
        let mut taken = 0;
        while now < 2_000_000_000 {
            shares.begin_turn();
            let mut allowance = shares.allowance(at, now);
            if allowance.is_left() {
                allowance.take(&read(4096));
                taken += 1;
            }
            shares.charge(at, &allowance, true, now);
            assert!(shares.allowance(at, now).is_left() || shares.is_throttled(at, now));
            now = shares.next_due_ns(now).unwrap_or(now + 1000);
        }
        assert!((950..=1001).contains(&taken), "{taken}");
        shares.set_terms(7, &Terms::default());
        assert_eq!((shares.next_due_ns(now), shares.is_throttled(at, now)), (None, false));
        shares.leave(at, 0);
        assert_eq!(shares.sessions(), 0);
    }
}
