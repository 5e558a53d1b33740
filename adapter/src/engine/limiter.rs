//! Limits: so many requests and bytes in a second, with a burst.
//!
//! A [`Limiter`] is shared by all engines and sessions that it holds for. Each of them has a [`Purse`] that takes tokens for
//! about a millisecond at a time, so that nothing shared is written for a request. It takes them *in advance*: it is told
//! when they will be there (the generic cell rate algorithm, ITU-T I.371), waits until then, and has them for sure. So
//! nobody who is slower than others to look goes away empty.
//!
//! A request is let through while there is a token of each kind, and may then owe bytes: one that is larger than the burst
//! waits for no more than its turn, and what follows it pays. In any time t no more passes than rate x t, the burst, and for
//! each purse one request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use wire::control::Rate;

const SECOND: u64 = 1_000_000_000;
/// What the burst is if nobody says: so many nanoseconds of the rate. Pollers that wake late lose nothing by it.
const USUAL_BURST: u64 = 20_000_000;
/// Leases of a second.
const LEASES: u64 = 1000;

/// Some requests and bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Tokens {
    pub(super) requests: u64,
    pub(super) bytes: u64,
}

impl Tokens {
    /// As many as one likes.
    pub(super) const MAX: Self = Self { requests: u64::MAX, bytes: u64::MAX };
}

/// One bucket: tokens are not counted, but the time from which on all that were taken are paid for.
#[derive(Debug)]
struct Bucket {
    rate: u64,
    /// Tokens for which the time may lie in the past, as nanoseconds.
    depth_ns: u64,
    /// Tokens taken at a time.
    lease: u64,
    paid_from: AtomicU64,
}

impl Bucket {
    /// For so many purses that use it at the same time.
    fn new(Rate { rate, burst }: Rate, purses: u64) -> Self {
        let rate = rate.max(1);
        let burst =
            if burst == 0 { rate.saturating_mul(USUAL_BURST / 1000) / (SECOND / 1000) } else { burst };
        let lease = (rate / LEASES).min(burst / 4 / purses.max(1)).max(1);
        // What lies in purses is a part of the burst.
        let depth = burst.max(1).saturating_sub(lease.saturating_mul(purses));
        Self { rate, depth_ns: span(depth, rate), lease, paid_from: AtomicU64::new(0) }
    }

    /// Takes tokens. Returns from when on they may be used.
    fn take(&self, tokens: u64, now_ns: u64) -> u64 {
        let (span, past) = (span(tokens, self.rate), now_ns.saturating_sub(self.depth_ns));
        let paid = |from: u64| from.max(past).saturating_add(span);
        // One word for each bucket, and nothing else depends on it. Contended at most once in a lease.
        match self.paid_from.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |from| Some(paid(from))) {
            Ok(from) | Err(from) => paid(from),
        }
    }
}

/// Nanoseconds in which so many tokens come, rounded up.
fn span(tokens: u64, rate: u64) -> u64 {
    let span = (u128::from(tokens) * u128::from(SECOND)).div_ceil(u128::from(rate));
    u64::try_from(span).unwrap_or(u64::MAX)
}

/// Limits that sessions and engines share.
#[derive(Debug)]
pub struct Limiter {
    requests: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl Limiter {
    /// Limits for requests and for bytes, which so many engines enforce. `None` if there are none.
    pub fn new(requests: Option<Rate>, bytes: Option<Rate>, engines: usize) -> Option<Arc<Self>> {
        if requests.is_none() && bytes.is_none() {
            return None;
        }
        let bucket = |rate: Rate| Bucket::new(rate, engines as u64);
        Some(Arc::new(Self { requests: requests.map(bucket), bytes: bytes.map(bucket) }))
    }
}

/// Tokens of one kind that were taken out of a bucket.
#[derive(Clone, Copy, Default, Debug)]
struct Coins(u64);

impl Coins {
    /// Takes more if there are none. Returns from when on they may be used, 0 for at once.
    fn fill(&mut self, bucket: Option<&Bucket>, now_ns: u64) -> u64 {
        let Some(bucket) = bucket else {
            self.0 = u64::MAX;
            return 0;
        };
        if self.0 > 0 {
            return 0;
        }
        self.0 = bucket.lease;
        bucket.take(bucket.lease, now_ns)
    }

    /// Uses some. What is missing is taken at once, so that nobody gets rid of what it owes: returns when that is paid.
    fn pay(&mut self, tokens: u64, bucket: Option<&Bucket>, now_ns: u64) -> u64 {
        let missing = tokens.saturating_sub(self.0);
        self.0 = self.0.saturating_sub(tokens);
        bucket.filter(|_| missing > 0).map_or(0, |bucket| bucket.take(missing, now_ns))
    }
}

/// One engine's part of a limiter.
#[derive(Debug)]
pub(super) struct Purse {
    limiter: Arc<Limiter>,
    requests: Coins,
    bytes: Coins,
    due_ns: u64,
}

impl Purse {
    pub(super) fn new(limiter: Arc<Limiter>) -> Self {
        Self { limiter, requests: Coins::default(), bytes: Coins::default(), due_ns: 0 }
    }

    /// Sees to it that there are tokens, now or at [`Purse::due_ns`]. Returns those that there are now.
    pub(super) fn fill(&mut self, now_ns: u64) -> Tokens {
        if now_ns >= self.due_ns {
            let requests = self.requests.fill(self.limiter.requests.as_ref(), now_ns);
            let bytes = self.bytes.fill(self.limiter.bytes.as_ref(), now_ns);
            self.due_ns = requests.max(bytes);
        }
        if now_ns < self.due_ns {
            return Tokens { requests: 0, bytes: 0 };
        }
        Tokens { requests: self.requests.0, bytes: self.bytes.0 }
    }

    /// When those come that it waits for; in the past if it waits for none.
    pub(super) fn due_ns(&self) -> u64 {
        self.due_ns
    }

    /// Some were used.
    pub(super) fn pay(&mut self, tokens: Tokens, now_ns: u64) {
        let requests = self.requests.pay(tokens.requests, self.limiter.requests.as_ref(), now_ns);
        let bytes = self.bytes.pay(tokens.bytes, self.limiter.bytes.as_ref(), now_ns);
        self.due_ns = self.due_ns.max(requests).max(bytes);
    }

    /// What was paid for came to nothing.
    pub(super) fn pay_back(&mut self, tokens: Tokens) {
        self.requests.0 = self.requests.0.saturating_add(tokens.requests);
        self.bytes.0 = self.bytes.0.saturating_add(tokens.bytes);
    }

    pub(super) fn is_of(&self, limiter: &Arc<Limiter>) -> bool {
        Arc::ptr_eq(&self.limiter, limiter)
    }
}

#[cfg(test)]
mod tests {
    use driver::dice::Dice;

    use super::*;

    const MILLISECOND: u64 = 1_000_000;

    fn requests(rate: u64, burst: u64, engines: usize) -> Arc<Limiter> {
        Limiter::new(Some(Rate { rate, burst }), None, engines).unwrap()
    }

    /// As many requests as a purse lets through at a time, each of so many bytes, and what they were in all.
    fn use_all(purse: &mut Purse, now_ns: u64, bytes: u64, most: u64) -> u64 {
        let mut used = 0;
        while used < most {
            let left = purse.fill(now_ns);
            if left.requests == 0 || left.bytes == 0 {
                break;
            }
            purse.pay(Tokens { requests: 1, bytes }, now_ns);
            used += 1;
        }
        used
    }

    #[test]
    fn without_limits_there_is_no_limiter() {
        assert!(Limiter::new(None, None, 1).is_none());
    }

    #[test]
    fn a_second_has_what_the_rate_says_also_for_two_engines_that_look_at_different_times() {
        for (rate, engines) in [(2000, 1), (2000, 2), (100, 2), (1_000_000, 3)] {
            let limiter = requests(rate, 0, engines);
            let mut purses: Vec<Purse> = (0..engines).map(|_| Purse::new(limiter.clone())).collect();
            let mut used = vec![0; engines];
            let begin = 5_000 * MILLISECOND;
            for step in 0..100_000 {
                let now = begin + step as u64 * 10_000;
                let at = step % engines;
                // The second one is slow: it looks only now and then.
                if at == 0 || step % 50 < 2 {
                    used[at] += use_all(&mut purses[at], now, 0, u64::MAX);
                }
            }
            let all: u64 = used.iter().sum();
            assert!(all >= rate * 95 / 100 && all <= rate * 105 / 100, "{all} at {rate} with {engines}");
            assert!(
                used.iter().all(|&used| used > rate / engines as u64 / 4),
                "{used:?}: none goes away empty"
            );
        }
    }

    #[test]
    fn a_request_larger_than_the_burst_passes_and_is_paid_for_by_what_follows() {
        let rate = Rate { rate: 10 << 20, burst: 64 << 10 };
        let limiter = Limiter::new(None, Some(rate), 1).unwrap();
        let mut purse = Purse::new(limiter);
        let mut moved = 0;
        for ms in 0..2000 {
            moved += use_all(&mut purse, (1000 + ms) * MILLISECOND, 1 << 20, u64::MAX) << 20;
        }
        assert!((19 << 20..=21 << 20).contains(&moved), "{moved} bytes in two seconds");
    }

    #[test]
    fn nobody_gets_rid_of_what_it_owes_by_beginning_anew() {
        let rate = Rate { rate: 1 << 20, burst: 0 };
        let limiter = Limiter::new(None, Some(rate), 1).unwrap();
        let now = 1_000 * MILLISECOND;
        let mut begun = 0;
        for ms in 0..1000 {
            let mut purse = Purse::new(limiter.clone());
            begun += use_all(&mut purse, now + ms * MILLISECOND, 256 << 10, u64::MAX);
        }
        assert!(begun <= 5, "{begun} times a quarter of what a second has");
    }

    #[test]
    fn who_waits_is_told_until_when_and_has_it_then() {
        let mut purse = Purse::new(requests(1000, 4, 1));
        let now = 1_000 * MILLISECOND;
        let at_once = use_all(&mut purse, now, 0, u64::MAX);
        assert!((3..=4).contains(&at_once), "{at_once}");
        let due = purse.due_ns();
        assert!(due > now && due <= now + 2 * MILLISECOND);
        assert_eq!(use_all(&mut purse, due - 1, 0, u64::MAX), 0);
        assert_eq!(purse.due_ns(), due, "to look does not make it later");
        assert!(use_all(&mut purse, due, 0, u64::MAX) >= 1);
    }

    /// Whatever comes when, no time has more than the rate, the burst and one request of each engine; and where there is
    /// always enough to do it has all but a twentieth.
    #[test]
    fn never_more_than_rate_and_burst_and_never_much_less() {
        for seed in 1..100 {
            let mut dice = Dice(seed);
            let rate = 50 + dice.below(200_000);
            let burst = (rate * (10 + dice.below(90)) / 1000).max(1);
            let engines = 1 + dice.index(3);
            let limiter = requests(rate, burst, engines);
            let mut purses: Vec<Purse> = (0..engines).map(|_| Purse::new(limiter.clone())).collect();
            let mut now = 1_000 * MILLISECOND;
            // The time, and what was used before and up to it.
            let (mut log, mut sum) = (Vec::new(), 0);
            for _ in 0..500 {
                now += dice.below(400_000);
                let most = if dice.chance(25) { u64::MAX } else { dice.below(48) };
                let used = use_all(&mut purses[dice.index(engines)], now, 0, most);
                log.push((now, sum, sum + used));
                sum += used;
            }
            for (at, &(begin, before, _)) in log.iter().enumerate() {
                for &(end, _, after) in &log[at..] {
                    let most = rate * (end - begin) / SECOND + burst + engines as u64 + 1;
                    assert!(after - before <= most, "seed {seed}: {} of at most {most}", after - before);
                }
            }
            // From here on with all that is wanted, by all engines.
            let (begin, mut used) = (now, 0);
            while now < begin + 1_000 * MILLISECOND {
                now += MILLISECOND / 2;
                used += purses.iter_mut().map(|purse| use_all(purse, now, 0, u64::MAX)).sum::<u64>();
            }
            let least = rate * 95 / 100;
            assert!(used + engines as u64 + 1 >= least, "seed {seed}: {used} of {rate}, burst {burst}");
        }
    }
}
