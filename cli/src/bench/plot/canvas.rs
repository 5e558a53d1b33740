//! Lines, marks and texts as an SVG document.

use std::fmt::Write;

/// How one path is drawn everywhere. The colours are told apart by people who see few, too (Okabe and Ito, "Color Universal
/// Design", 2008), and the marks and dashes without any.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Ink {
    colour: &'static str,
    width: &'static str,
    dashes: &'static str,
    mark: Mark,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mark {
    Circle,
    Square,
    Triangle,
    Diamond,
    Cross,
    Spike,
}

const INKS: [Ink; 6] = [
    Ink { colour: "#0072B2", width: "3.5", dashes: "", mark: Mark::Circle },
    Ink { colour: "#D55E00", width: "2.5", dashes: "", mark: Mark::Square },
    Ink { colour: "#B8860B", width: "2.5", dashes: "8 4", mark: Mark::Triangle },
    Ink { colour: "#777777", width: "2", dashes: "2 4", mark: Mark::Cross },
    Ink { colour: "#009E73", width: "2.5", dashes: "10 3 2 3", mark: Mark::Diamond },
    Ink { colour: "#CC79A7", width: "2.5", dashes: "14 4", mark: Mark::Spike },
];

impl Ink {
    pub(super) fn number(number: usize) -> Self {
        INKS[number % INKS.len()]
    }
}

/// Which point of a text stands at its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// A document that is being drawn.
pub(super) struct Canvas(String);

const STYLE: &str = "text{font-family:Inter,'Helvetica Neue',Arial,'DejaVu Sans',sans-serif;fill:#222}\
    .title{font-size:27px;font-weight:bold}.subtitle{font-size:17px;fill:#555}.heading{font-size:17px;font-weight:bold}\
    .name{font-size:16px}.tick{font-size:14px;fill:#555}.foot{font-size:13px;fill:#777}.value{font-size:15px;font-weight:bold}";

impl Canvas {
    pub(super) fn new(width: f64, height: f64) -> Self {
        let mut text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
             height=\"{height}\">\n<style>{STYLE}</style>\n"
        );
        text.push_str("<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n");
        Self(text)
    }

    pub(super) fn finish(mut self) -> String {
        self.0.push_str("</svg>\n");
        self.0
    }

    fn add(&mut self, element: std::fmt::Arguments<'_>) {
        // A String takes everything.
        let _ = self.0.write_fmt(element);
        self.0.push('\n');
    }

    pub(super) fn text(&mut self, (x, y): (f64, f64), anchor: Anchor, class: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let text = escape(text);
        self.add(format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" class=\"{class}\">{text}</text>"
        ));
    }

    /// A number in the colour of what it belongs to.
    pub(super) fn value(&mut self, (x, y): (f64, f64), text: &str, ink: Ink) {
        let (text, colour) = (escape(text), ink.colour);
        self.add(format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"value\" style=\"fill:{colour}\">{text}</text>"
        ));
    }

    pub(super) fn line(&mut self, points: &[(f64, f64)], ink: Ink) {
        if points.len() < 2 {
            return;
        }
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let Ink { colour, width, dashes, .. } = ink;
        self.add(format_args!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" \
             stroke-dasharray=\"{dashes}\" stroke-linejoin=\"round\" stroke-linecap=\"round\"/>",
            points.join(" ")
        ));
    }

    pub(super) fn grid(&mut self, from: (f64, f64), to: (f64, f64)) {
        self.straight(from, to, "#e4e4e4", "1");
    }

    pub(super) fn frame(&mut self, from: (f64, f64), to: (f64, f64)) {
        self.straight(from, to, "#888888", "1.5");
    }

    /// From the least to the greatest.
    pub(super) fn bar(&mut self, from: (f64, f64), to: (f64, f64), ink: Ink) {
        self.straight(from, to, ink.colour, "1.5");
        for (x, y) in [from, to] {
            self.straight((x - 4.0, y), (x + 4.0, y), ink.colour, "1.5");
        }
    }

    fn straight(&mut self, from: (f64, f64), to: (f64, f64), colour: &str, width: &str) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.add(format_args!(
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\" \
             stroke-width=\"{width}\"/>"
        ));
    }

    pub(super) fn mark(&mut self, (x, y): (f64, f64), ink: Ink) {
        let colour = ink.colour;
        let corners: &[(f64, f64)] = match ink.mark {
            Mark::Circle => {
                self.add(format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\" fill=\"{colour}\"/>"));
                return;
            }
            Mark::Square => &[(-4.5, -4.5), (4.5, -4.5), (4.5, 4.5), (-4.5, 4.5)],
            Mark::Triangle => &[(0.0, -6.0), (5.5, 4.0), (-5.5, 4.0)],
            Mark::Diamond => &[(0.0, -6.5), (6.5, 0.0), (0.0, 6.5), (-6.5, 0.0)],
            Mark::Spike => &[(0.0, 6.0), (5.5, -4.0), (-5.5, -4.0)],
            Mark::Cross => {
                self.straight((x - 4.0, y - 4.0), (x + 4.0, y + 4.0), colour, "2");
                self.straight((x - 4.0, y + 4.0), (x + 4.0, y - 4.0), colour, "2");
                return;
            }
        };
        let corners: Vec<String> =
            corners.iter().map(|(dx, dy)| format!("{:.1},{:.1}", x + dx, y + dy)).collect();
        self.add(format_args!("<polygon points=\"{}\" fill=\"{colour}\"/>", corners.join(" ")));
    }
}

/// Characters of a text, as a number for layout.
pub(super) fn width(text: &str) -> f64 {
    f64::from(u32::try_from(text.chars().count()).unwrap_or(u32::MAX))
}

/// What XML would take for its own; control characters have no place in it at all.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c if c.is_control() => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text() {
        assert_eq!(escape("a<b>&\"c\"\u{1b}"), "a&lt;b&gt;&amp;&quot;c&quot;\u{fffd}");
    }

    #[test]
    fn every_path_is_told_apart_without_colour() {
        for (at, ink) in INKS.iter().enumerate() {
            assert!(INKS[..at].iter().all(|other| other.mark != ink.mark && other.colour != ink.colour));
        }
        assert_eq!(Ink::number(0), Ink::number(INKS.len()));
    }
}
