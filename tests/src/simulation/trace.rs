//! What happened: the last events to print, and a hash over all of them to compare runs by.

/// Up to four named numbers.
#[derive(Clone, Copy)]
pub(super) struct Event {
    pub(super) number: u64,
    pub(super) what: &'static str,
    pub(super) names: &'static [&'static str],
    pub(super) values: [u64; 4],
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:6} {}", self.number, self.what)?;
        for (name, value) in self.names.iter().zip(self.values) {
            if value > 0xffff { write!(f, " {name}={value:#x}")? } else { write!(f, " {name}={value}")? }
        }
        Ok(())
    }
}

/// See the module.
pub(super) struct Trace {
    /// So many events are kept for a finding.
    kept: usize,
    events: Vec<Event>,
    next: usize,
    pub(super) count: u64,
    hash: u64,
}

impl Trace {
    pub(super) fn new(kept: usize) -> Self {
        Self { kept, events: Vec::new(), next: 0, count: 0, hash: 0xcbf2_9ce4_8422_2325 }
    }

    #[inline]
    pub(super) fn record(&mut self, what: &'static str, names: &'static [&'static str], values: [u64; 4]) {
        self.count += 1;
        let mut hash = self.hash ^ what.len() as u64;
        for value in values {
            hash = (hash ^ value).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
        }
        self.hash = hash;
        let event = Event { number: self.count, what, names, values };
        if self.events.len() < self.kept {
            self.events.push(event);
        } else {
            self.events[self.next] = event;
        }
        self.next = if self.next + 1 == self.kept { 0 } else { self.next + 1 };
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash ^ self.count.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// The last events, oldest first.
    pub(super) fn last(&self) -> Vec<String> {
        let (newer, older) = self.events.split_at(self.next.min(self.events.len()));
        older.iter().chain(newer).map(Event::to_string).collect()
    }
}

/// Records an event: its name, and up to four numbers.
macro_rules! event {
    ($outside:expr, $what:literal $(, $name:ident = $value:expr)*) => {{
        #[allow(unused_mut, unused_assignments)]
        let values = {
            let mut values = [0u64; 4];
            let mut at = 0;
            $( #[allow(clippy::unnecessary_cast)] { values[at] = $value as u64; } at += 1; )*
            let _ = at;
            values
        };
        $outside.trace.record($what, &[$(stringify!($name)),*], values);
    }};
}
pub(super) use event;
