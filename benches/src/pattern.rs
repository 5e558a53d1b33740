//! Which of a number of places is visited next: the same for what is measured and for what stands beside it.

use std::fmt;

/// In which order places are visited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// One after another, from the first again after the last.
    Sequential,
    /// Evenly spread and independent, the same ones in every run.
    Random,
}

impl Order {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Sequential, Self::Random];
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sequential => "sequential",
            Self::Random => "random",
        })
    }
}

/// An endless walk over the places `0..count`. A step costs about a nanosecond and reads no memory, so that a list of
/// places to visit does not push what is visited out of the caches.
#[derive(Clone, Debug)]
pub struct Walk {
    order: Order,
    count: u32,
    state: u64,
}

impl Walk {
    /// A walk in that order.
    ///
    /// # Panics
    /// If there are no places.
    pub fn new(order: Order, count: u32) -> Self {
        assert!(count > 0, "a walk over no places");
        Self { order, count, state: 0 }
    }

    /// The next place.
    #[inline]
    pub fn step(&mut self) -> u32 {
        let place = match self.order {
            Order::Sequential => {
                let place = self.state;
                self.state = if place + 1 == u64::from(self.count) { 0 } else { place + 1 };
                place
            }
            Order::Random => {
                // A linear congruential generator (Knuth, MMIX); its upper half is the good one. Scaled, not divided.
                self.state = self
                    .state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                ((self.state >> 32) * u64::from(self.count)) >> 32
            }
        };
        #[expect(clippy::cast_possible_truncation, reason = "less than count")]
        let place = place as u32;
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequential_walk_comes_round() {
        let mut walk = Walk::new(Order::Sequential, 3);
        assert_eq!([0; 7].map(|_| walk.step()), [0, 1, 2, 0, 1, 2, 0]);
    }

    #[test]
    fn a_random_walk_goes_everywhere_alike() {
        let mut walk = Walk::new(Order::Random, 1000);
        let mut visits = [0u32; 1000];
        for _ in 0..100_000 {
            visits[walk.step() as usize] += 1;
        }
        assert!(visits.iter().all(|&visits| (50..200).contains(&visits)));
    }

    #[test]
    fn one_place_is_visited_for_ever() {
        for order in Order::ALL {
            let mut walk = Walk::new(order, 1);
            assert_eq!([9; 4].map(|_| walk.step()), [0; 4]);
        }
    }
}
