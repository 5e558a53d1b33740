//! From figures to judgements.

use std::fmt;

use serde::Serialize;

use super::figure::{Figure, Spread, State};

/// What of two sides is judged.
#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Measure {
    /// Our value divided by the peer's: of times, less is better.
    Ratio,
    /// The peer's value divided by ours: of times, how many times faster we are.
    Speed,
    /// Our value less the peer's.
    Excess,
    /// Our value.
    Ours,
}

/// Where it has to be.
#[derive(Serialize, Clone, Copy, PartialEq, Debug)]
pub(crate) enum Bound {
    AtMost(f64),
    AtLeast(f64),
    /// Strictly less.
    Below(f64),
    /// From the first to the second.
    Within(f64, f64),
}

impl Bound {
    pub(crate) fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
            Self::Below(limit) => value < limit,
            Self::Within(low, high) => (low..=high).contains(&value),
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(limit) => write!(f, "≤ {limit}"),
            Self::AtLeast(limit) => write!(f, "≥ {limit}"),
            Self::Below(limit) => write!(f, "< {limit}"),
            Self::Within(low, high) => write!(f, "{low} to {high}"),
        }
    }
}

/// In which rounds the two sides may be compared.
#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum When {
    /// In all: nothing crosses a core, or the machine has no such states.
    Always,
    /// Those in which the state is known: both sides had the same.
    Known,
    /// Those in which the cores were near.
    Near,
    /// Those in which they were far.
    Far,
}

impl When {
    fn takes(self, state: State) -> bool {
        match self {
            Self::Always => true,
            Self::Known => state != State::Unknown,
            Self::Near => state == State::Near,
            Self::Far => state == State::Far,
        }
    }
}

/// One thing that is promised.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Criterion {
    /// Of the table: 1 to 16.
    pub(crate) row: u32,
    /// In words.
    pub(crate) what: &'static str,
    /// Where its values are: the name of a [`Figure`] and two of its sides.
    pub(crate) figure: &'static str,
    pub(crate) ours: &'static str,
    /// `None` if only our value counts.
    pub(crate) peer: Option<&'static str>,
    pub(crate) when: When,
    pub(crate) measure: Measure,
    /// Has to hold; `None` for what is only told.
    pub(crate) gate: Option<Bound>,
    /// Is what we are after.
    pub(crate) goal: Option<(Measure, Bound)>,
}

/// What came of a criterion.
#[derive(Serialize, Clone, PartialEq, Debug)]
pub(crate) enum Verdict {
    Held,
    Missed,
    /// There is no gate.
    Told,
    /// The two sides were never measured in the state that is asked for.
    NotCompared(String),
    NotMeasured(String),
}

/// A criterion with its values.
#[derive(Clone, Debug)]
pub(crate) struct Judgement {
    pub(crate) criterion: Criterion,
    pub(crate) unit: String,
    pub(crate) ours: Option<Spread>,
    pub(crate) peer: Option<Spread>,
    /// What is judged, round by round.
    pub(crate) value: Option<Spread>,
    /// Rounds that count, and all.
    pub(crate) rounds: (usize, usize),
    pub(crate) ping: Option<Spread>,
    pub(crate) verdict: Verdict,
    /// Whether the goal is reached; `None` if there is none, or no value.
    pub(crate) goal_reached: Option<bool>,
}

/// Judges a criterion by its figure, or tells why there is none.
pub(crate) fn judge(criterion: &Criterion, figure: Result<&Figure, String>) -> Judgement {
    let mut judgement = Judgement {
        criterion: *criterion,
        unit: String::new(),
        ours: None,
        peer: None,
        value: None,
        rounds: (0, 0),
        ping: None,
        verdict: Verdict::NotMeasured(String::new()),
        goal_reached: None,
    };
    if let Err(why) = figure.and_then(|figure| judgement.weigh(figure)) {
        judgement.verdict = Verdict::NotMeasured(why);
    }
    judgement
}

impl Judgement {
    fn weigh(&mut self, figure: &Figure) -> Result<(), String> {
        let criterion = self.criterion;
        let side = |name: &str| {
            figure.side(name).map(|side| &side.rounds).ok_or_else(|| {
                let why = figure.notes.iter().find(|note| note.starts_with(name));
                why.cloned().unwrap_or_else(|| format!("`{name}` was not measured"))
            })
        };
        let ours = side(criterion.ours)?;
        // What has no peer is beside itself.
        let peer = criterion.peer.map_or(Ok(ours), side)?;
        let all = ours.len().min(peer.len());
        let rounds: Vec<usize> = (0..all).filter(|&n| criterion.when.takes(figure.state(n))).collect();
        self.unit.clone_from(&figure.unit);
        self.ping = figure.ping();
        self.rounds = (rounds.len(), all);
        if rounds.is_empty() {
            let ping = self.ping.map_or("was not measured".to_owned(), |ping| {
                format!("took {:.0} to {:.0} ns", ping.low, ping.high)
            });
            let wanted = match criterion.when {
                When::Near => "near",
                When::Far => "far",
                When::Known | When::Always => "known",
            };
            self.verdict =
                Verdict::NotCompared(format!("in no round were the cores {wanted}: the ping-pong {ping}"));
            return Ok(());
        }
        self.ours = Spread::of(rounds.iter().map(|&n| ours[n]));
        self.peer = criterion.peer.and_then(|_| Spread::of(rounds.iter().map(|&n| peer[n])));
        let values = |measure: Measure| {
            Spread::of(rounds.iter().map(|&n| match measure {
                Measure::Ratio => ours[n] / peer[n],
                Measure::Speed => peer[n] / ours[n],
                Measure::Excess => ours[n] - peer[n],
                Measure::Ours => ours[n],
            }))
        };
        self.value = values(criterion.measure);
        let Some(value) = self.value else {
            return Err("the values are no numbers".to_owned());
        };
        self.verdict = match criterion.gate {
            None => Verdict::Told,
            Some(gate) if gate.holds(value.median) => Verdict::Held,
            Some(_) => Verdict::Missed,
        };
        self.goal_reached =
            criterion.goal.and_then(|(measure, goal)| Some(goal.holds(values(measure)?.median)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::figure::Side;
    use super::*;

    const FASTER: Criterion = Criterion {
        row: 4,
        what: "w",
        figure: "f",
        ours: "a",
        peer: Some("b"),
        when: When::Near,
        measure: Measure::Speed,
        gate: Some(Bound::AtLeast(2.0)),
        goal: Some((Measure::Speed, Bound::AtLeast(3.0))),
    };

    fn figure(ours: &[f64], peer: &[f64], pings: &[f64]) -> Figure {
        let side = |name: &str, rounds: &[f64]| Side { name: name.to_owned(), rounds: rounds.to_vec() };
        Figure {
            name: "f".into(),
            unit: "ns".into(),
            sides: vec![side("a", ours), side("b", peer)],
            pings: pings.iter().map(|&ns| [ns, ns]).collect(),
            notes: vec![],
        }
    }

    #[test]
    fn only_rounds_in_the_wanted_state_count() {
        let figure = figure(&[10.0, 100.0, 10.0], &[25.0, 25.0, 26.0], &[95.0, 550.0, 100.0]);
        let near = judge(&FASTER, Ok(&figure));
        assert_eq!((near.verdict, near.rounds, near.goal_reached), (Verdict::Held, (2, 3), Some(false)));
        assert_eq!(near.value, Some(Spread { low: 2.5, median: 2.55, high: 2.6 }));
        let far = judge(&Criterion { when: When::Far, ..FASTER }, Ok(&figure));
        assert_eq!((far.verdict, far.value.unwrap().median), (Verdict::Missed, 0.25));
        let always = judge(&Criterion { when: When::Always, ..FASTER }, Ok(&figure));
        assert_eq!((always.verdict, always.rounds), (Verdict::Held, (3, 3)));
    }

    #[test]
    fn what_was_in_another_state_is_not_compared() {
        let judgement = judge(&FASTER, Ok(&figure(&[10.0], &[30.0], &[550.0])));
        let Verdict::NotCompared(why) = judgement.verdict else { panic!("{:?}", judgement.verdict) };
        assert!(why.contains("near") && why.contains("550"), "{why}");
        assert_eq!(judgement.goal_reached, None);
    }

    #[test]
    fn what_is_missing_is_not_measured_and_says_why() {
        let missing = judge(&FASTER, Err("no QEMU".to_owned()));
        assert_eq!(missing.verdict, Verdict::NotMeasured("no QEMU".to_owned()));
        let mut one_sided = figure(&[1.0], &[2.0], &[95.0]);
        one_sided.sides.pop();
        let judgement = judge(&FASTER, Ok(&one_sided));
        assert_eq!(judgement.verdict, Verdict::NotMeasured("`b` was not measured".to_owned()));
        one_sided.notes.push("b: the kernel has none".to_owned());
        let judgement = judge(&FASTER, Ok(&one_sided));
        assert_eq!(judgement.verdict, Verdict::NotMeasured("b: the kernel has none".to_owned()));
    }

    #[test]
    fn a_difference_a_value_and_a_ratio_are_judged_alike() {
        let figure = figure(&[30.0], &[10.0], &[95.0]);
        let verdict =
            |measure, gate| judge(&Criterion { measure, gate: Some(gate), ..FASTER }, Ok(&figure)).verdict;
        assert_eq!(verdict(Measure::Excess, Bound::AtMost(20.0)), Verdict::Held);
        assert_eq!(verdict(Measure::Ours, Bound::Below(30.0)), Verdict::Missed);
        assert_eq!(verdict(Measure::Ratio, Bound::AtMost(2.9)), Verdict::Missed);
        assert_eq!(verdict(Measure::Ratio, Bound::Within(2.9, 3.1)), Verdict::Held);
        assert_eq!(verdict(Measure::Ratio, Bound::Within(0.9, 1.1)), Verdict::Missed);
        let told = judge(&Criterion { gate: None, ..FASTER }, Ok(&figure));
        assert_eq!(told.verdict, Verdict::Told);
    }
}
