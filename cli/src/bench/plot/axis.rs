//! From values to pixels, and which values get a line and a number.

/// How values lie on an axis.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Scale {
    Linear,
    Log,
}

/// An axis, from one pixel to another.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    scale: Scale,
    pub(super) from: f64,
    pub(super) to: f64,
}

impl Axis {
    pub(super) fn new((low, high): (f64, f64), scale: Scale, (from, to): (f64, f64)) -> Self {
        Self { low, high, scale, from, to }
    }

    /// One that holds all values, with ends that are easy to read: a linear one begins at 0.
    pub(super) fn around(values: impl Iterator<Item = f64>, scale: Scale, pixels: (f64, f64)) -> Self {
        let (low, high) = values
            .filter(|value| value.is_finite() && *value > 0.0)
            .fold((f64::MAX, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
        let (low, high) = if low <= high { (low, high) } else { (1.0, 1.0) };
        let ends = match scale {
            Scale::Linear => (0.0, (high / step(high)).ceil() * step(high)),
            Scale::Log => {
                let low = round(low, f64::floor);
                let high = round(high, f64::ceil);
                (low, if high > low { high } else { low * 10.0 })
            }
        };
        Self::new(ends, scale, pixels)
    }

    pub(super) fn at(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Log => (value.max(1e-9) / self.low).ln() / (self.high / self.low).ln(),
        };
        self.from + share.clamp(0.0, 1.0) * (self.to - self.from)
    }

    /// Values that get a number.
    pub(super) fn ticks(&self) -> Vec<f64> {
        match self.scale {
            Scale::Linear => {
                let step = step(self.high);
                let mut ticks = Vec::new();
                let mut tick = 0.0;
                while tick <= self.high * 1.001 {
                    ticks.push(tick);
                    tick += step;
                }
                ticks
            }
            Scale::Log => {
                let decades = (self.high / self.low).log10();
                let factors: &[f64] = if decades <= 2.5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
                let mut ticks = Vec::new();
                let mut decade = power_below(self.low);
                while decade <= self.high * 1.001 {
                    ticks.extend(factors.iter().map(|factor| factor * decade));
                    decade *= 10.0;
                }
                ticks.retain(|tick| (self.low * 0.999..=self.high * 1.001).contains(tick));
                ticks
            }
        }
    }
}

/// The power of ten at or below a value.
fn power_below(value: f64) -> f64 {
    10_f64.powf((value.log10() + 1e-9).floor())
}

/// To 1, 2 or 5 of a power of ten; `direction` is to the floor or the ceiling.
fn round(value: f64, direction: fn(f64) -> f64) -> f64 {
    let power = power_below(value);
    let digits = value / power;
    let up = direction(0.5) > 0.5;
    let steps = [1.0, 2.0, 5.0, 10.0];
    let found = if up {
        steps.into_iter().find(|step| *step >= digits * 0.999)
    } else {
        steps.into_iter().rev().find(|step| *step <= digits * 1.001)
    };
    found.unwrap_or(1.0) * power
}

/// Of an axis from 0: four to nine ticks.
fn step(high: f64) -> f64 {
    let power = power_below(high.max(1e-9));
    match high / power {
        digits if digits < 2.0 => power / 4.0,
        digits if digits < 5.0 => power / 2.0,
        _ => power,
    }
}

/// `250`, `1.2k`, `3.4M`: at most three digits.
pub(super) fn count(value: f64) -> String {
    let (value, unit) = match value {
        value if value >= 999.5e6 => (value / 1e9, "G"),
        value if value >= 999.5e3 => (value / 1e6, "M"),
        value if value >= 999.5 => (value / 1e3, "k"),
        value => (value, ""),
    };
    format!("{}{unit}", digits(value))
}

/// `200 ns`, `1.5 µs`, `3 ms`.
pub(super) fn microseconds(value: f64) -> String {
    let (value, unit) = match value {
        value if value >= 999_500.0 => (value / 1e6, "s"),
        value if value >= 999.5 => (value / 1e3, "ms"),
        value if value >= 0.9995 => (value, "µs"),
        value => (value * 1e3, "ns"),
    };
    format!("{} {unit}", digits(value))
}

/// Three digits, without zeros that say nothing.
fn digits(value: f64) -> String {
    let text = match value {
        value if value >= 99.95 => format!("{value:.0}"),
        value if value >= 9.995 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-6 * b.abs().max(1.0)
    }

    #[test]
    fn values_find_their_pixels() {
        let linear = Axis::new((0.0, 10.0), Scale::Linear, (100.0, 0.0));
        assert!(near(linear.at(0.0), 100.0) && near(linear.at(5.0), 50.0) && near(linear.at(99.0), 0.0));
        let log = Axis::new((1.0, 100.0), Scale::Log, (0.0, 200.0));
        assert!(near(log.at(10.0), 100.0) && near(log.at(0.0), 0.0));
    }

    #[test]
    fn an_axis_holds_its_values_and_has_ticks() {
        for scale in [Scale::Linear, Scale::Log] {
            for values in [vec![], vec![3.0], vec![0.7, 1300.0], vec![5.0, 5.1], vec![1e6, 9.9e6]] {
                let axis = Axis::around(values.iter().copied(), scale, (0.0, 1.0));
                for value in &values {
                    assert!((axis.low..=axis.high).contains(value), "{value} in {axis:?}");
                }
                let ticks = axis.ticks();
                assert!((2..=12).contains(&ticks.len()), "{axis:?}: {ticks:?}");
                assert!(ticks.windows(2).all(|pair| pair[0] < pair[1]));
            }
        }
        let axis = Axis::around([0.7, 90.0].into_iter(), Scale::Log, (0.0, 1.0));
        assert!(near(axis.low, 0.5) && near(axis.high, 100.0), "{axis:?}");
    }

    #[test]
    fn numbers_are_short() {
        let counts = [0.0, 250.0, 999.6, 1234.0, 99_960.0, 2_500_000.0, 1e9].map(count);
        assert_eq!(counts, ["0", "250", "1k", "1.23k", "100k", "2.5M", "1G"]);
        let times = [0.2, 1.0, 1.5, 20.0, 1000.0, 1e6].map(microseconds);
        assert_eq!(times, ["200 ns", "1 µs", "1.5 µs", "20 µs", "1 ms", "1 s"]);
    }
}
