//! Random numbers from a seed: the only source of chance in a simulation.

use driver::dice::Dice;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Random(Dice);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(Dice(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x9e37_79b9_7f4a_7c15))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0.number()
    }

    /// Less than `n`, which is not 0.
    #[inline]
    pub(super) fn below(&mut self, n: u64) -> u64 {
        // The high half of a product: fair enough for small n, and no division.
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    #[inline]
    pub(super) fn index(&mut self, n: usize) -> usize {
        self.below(n as u64) as usize
    }

    #[inline]
    pub(super) fn index32(&mut self, n: u32) -> u32 {
        self.below(u64::from(n)) as u32
    }

    /// From `low` to `high`, both possible.
    pub(super) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True once in `n` times; never with 0.
    #[inline]
    pub(super) fn once_in(&mut self, n: u64) -> bool {
        n > 0 && self.below(n) == 0
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.index(from.len())]
    }
}
