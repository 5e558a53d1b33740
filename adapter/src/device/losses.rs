//! Writes that ended and were not durable yet are gone when a device with a volatile cache was without power. Whoever waits for
//! what it wrote to become durable has to be told once that some of it may not be there: nobody else can know.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How often what a device had in its cache may have been lost.
#[derive(Clone, Default, Debug)]
pub struct Losses(Arc<AtomicU64>);

impl Losses {
    /// One more. Noted before the device takes anything again.
    pub(super) fn note(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }

    fn count(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// What one part of a session, as a queue, was told of losses. What a session began after is none of its business; what one part
/// of it was told the parts that come later need not be told again.
#[derive(Clone, Default, Debug)]
pub struct Witness {
    losses: Losses,
    told: u64,
    /// The most that any part was told.
    session: Arc<AtomicU64>,
}

impl Witness {
    /// The first part of a session that begins now.
    pub fn new(losses: &Losses) -> Self {
        let told = losses.count();
        Self { losses: losses.clone(), told, session: Arc::new(AtomicU64::new(told)) }
    }

    /// One more part of the session.
    #[must_use]
    pub fn another(&self) -> Self {
        Self { told: self.session.load(Ordering::Relaxed), ..self.clone() }
    }

    /// Whether there was a loss of which this part does not know. Now it does.
    pub fn is_news(&mut self) -> bool {
        let count = self.losses.count();
        if count == self.told {
            return false;
        }
        self.told = count;
        self.session.fetch_max(count, Ordering::Relaxed);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_that_was_there_is_told_once() {
        let losses = Losses::default();
        let mut first = Witness::new(&losses);
        let mut second = first.another();
        assert!(!first.is_news() && !second.is_news());
        losses.note();
        let mut third = first.another();
        assert!(first.is_news() && !first.is_news());
        assert!(!first.another().is_news(), "the session was told");
        assert!(second.is_news() && third.is_news(), "they were there");
        assert!(!Witness::new(&losses).is_news(), "a session that begins later has lost nothing");
        losses.note();
        losses.note();
        assert!(first.is_news() && !first.is_news());
    }
}
