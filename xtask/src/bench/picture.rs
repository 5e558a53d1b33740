//! Pictures of figures: a line for each, on it a mark for each side, on a logarithmic axis.

/// The pen of `portcullis bench --plot`, so that all pictures look alike.
#[path = "../../../cli/src/bench/plot/axis.rs"]
#[allow(dead_code)] // some of it only the other pictures use
mod axis;
#[path = "../../../cli/src/bench/plot/canvas.rs"]
#[allow(dead_code)] // likewise
mod canvas;

use axis::{Axis, Scale};
use canvas::{Anchor, Canvas, Ink};

use super::figure::Spread;

/// In pixels.
const WIDTH: f64 = 1280.0;
/// Where the axis is.
const PLOT: (f64, f64) = (400.0, 1180.0);
const TOP: f64 = 150.0;
/// Between two lines of one mark, and of several.
const LINE: f64 = 30.0;
const WIDE: f64 = 46.0;

/// A picture to be.
pub(super) struct Picture<'a> {
    pub(super) title: &'a str,
    pub(super) subtitle: &'a str,
    pub(super) foot: &'a str,
    /// Where a line across the picture stands, and what it says.
    pub(super) mark: Option<(f64, &'a str)>,
    pub(super) lines: Vec<Line>,
    pub(super) unit: Unit,
}

/// How values are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unit {
    /// Nanoseconds.
    Time,
    /// So many times.
    Times,
}

impl Unit {
    fn write(self, value: f64) -> String {
        match self {
            Self::Time => axis::microseconds(value / 1e3),
            Self::Times => format!("{}x", short(value)),
        }
    }
}

fn short(value: f64) -> String {
    let text = if value < 10.0 { format!("{value:.2}") } else { format!("{value:.0}") };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// A line of a picture.
pub(super) struct Line {
    pub(super) name: String,
    /// Sides and their values.
    pub(super) marks: Vec<(String, Spread)>,
}

impl Picture<'_> {
    /// As an SVG document.
    pub(super) fn svg(&self) -> String {
        let names = self.names();
        let legend = if names.len() > 1 { LINE } else { 0.0 };
        let wide = self.lines.iter().any(|line| line.marks.len() > 1);
        let between = if wide { WIDE } else { LINE };
        let top = TOP + legend;
        #[expect(clippy::cast_precision_loss, reason = "some dozens")]
        let bottom = top + between * self.lines.len() as f64;
        let mut canvas = Canvas::new(WIDTH, bottom + 92.0);
        canvas.text((24.0, 48.0), Anchor::Start, "title", self.title);
        canvas.text((24.0, 78.0), Anchor::Start, "subtitle", self.subtitle);
        canvas.text((24.0, bottom + 72.0), Anchor::Start, "foot", self.foot);
        let mut x = 24.0;
        for (at, name) in names.iter().enumerate().filter(|_| names.len() > 1) {
            canvas.mark((x + 8.0, 116.0), Ink::number(at));
            canvas.text((x + 22.0, 121.0), Anchor::Start, "name", name);
            x += 22.0 + 8.5 * canvas::width(name) + 34.0;
        }
        let marks = self.lines.iter().flat_map(|line| &line.marks);
        let ends = marks.flat_map(|(_, spread)| [spread.low, spread.high]);
        let axis = Axis::around(ends.chain(self.mark.map(|(at, _)| at)), Scale::Log, PLOT);
        for tick in axis.ticks() {
            let at = axis.at(tick);
            canvas.grid((at, top - 6.0), (at, bottom));
            canvas.text((at, bottom + 22.0), Anchor::Middle, "tick", &self.unit.write(tick));
        }
        if let Some((value, text)) = self.mark {
            let at = axis.at(value);
            canvas.frame((at, top - 12.0), (at, bottom));
            canvas.text((at, top - 18.0), Anchor::Middle, "tick", text);
        }
        for (number, line) in self.lines.iter().enumerate() {
            #[expect(clippy::cast_precision_loss, reason = "some dozens")]
            let y = top + between * (number as f64 + 0.5);
            canvas.text((PLOT.0 - 16.0, y + 5.0), Anchor::End, "name", &line.name);
            canvas.grid((PLOT.0, y), (PLOT.1, y));
            let ink = |side: &str| Ink::number(names.iter().position(|name| *name == side).unwrap_or(0));
            for (at, (side, spread)) in line.marks.iter().enumerate() {
                // Beside one another, so that no spread hides another.
                #[expect(clippy::cast_precision_loss, reason = "a few")]
                let y = y + 5.0 * (at as f64 - (line.marks.len() as f64 - 1.0) / 2.0);
                canvas.line(&[(axis.at(spread.low), y), (axis.at(spread.high), y)], ink(side));
                canvas.mark((axis.at(spread.median), y), ink(side));
            }
            if let [(side, spread)] = &line.marks[..] {
                canvas.value((PLOT.1 + 12.0, y + 5.0), &self.unit.write(spread.median), ink(side));
            }
        }
        canvas.finish()
    }

    /// Of all sides, in the order in which they first appear.
    fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for (side, _) in self.lines.iter().flat_map(|line| &line.marks) {
            if !names.contains(&side.as_str()) {
                names.push(side);
            }
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_names_its_lines_and_sides_and_stays_inside() {
        let spread = |median: f64| Spread { low: median / 2.0, median, high: median * 2.0 };
        let line = |name: &str, sides: &[(&str, f64)]| Line {
            name: name.to_owned(),
            marks: sides.iter().map(|&(side, median)| (side.to_owned(), spread(median))).collect(),
        };
        let picture = Picture {
            title: "T",
            subtitle: "s",
            foot: "f",
            mark: Some((100.0, "here")),
            lines: vec![line("a", &[("x", 50.0), ("y", 5000.0)]), line("b", &[]), line("c", &[("y", 1.0)])],
            unit: Unit::Time,
        };
        let svg = picture.svg();
        for text in [">T<", ">a<", ">b<", ">x<", ">y<", ">here<", "ns<", "µs<"] {
            assert!(svg.contains(text), "{text} is not in {svg}");
        }
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        for x in svg.split("x=\"").skip(1).filter_map(|rest| rest.split('"').next()?.parse::<f64>().ok()) {
            assert!((0.0..=WIDTH).contains(&x), "{x}");
        }
    }

    #[test]
    fn values_are_short() {
        assert_eq!(
            [0.5, 1.0, 2.345, 12.3].map(|value| Unit::Times.write(value)),
            ["0.5x", "1x", "2.35x", "12x"]
        );
        assert_eq!(Unit::Time.write(1500.0), "1.5 µs");
    }
}
