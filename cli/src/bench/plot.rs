//! A picture of what was measured, to be looked at or put into a slide: latency on the left, throughput on the right.

mod axis;
mod canvas;

use std::collections::BTreeSet;

use hdrhistogram::Histogram;

use super::sample::Row;
use axis::{Axis, Scale};
use canvas::{Anchor, Canvas, Ink};

/// The picture, in pixels.
const SIZE: (f64, f64) = (1280.0, 640.0);

/// Where the curves are: left, right.
const LEFT: (f64, f64) = (84.0, 600.0);
const RIGHT: (f64, f64) = (724.0, 1176.0);
/// Top and bottom of both.
const HIGH: (f64, f64) = (196.0, 548.0);

/// Latencies are shown up to 99.99 %.
const NINES: f64 = 4.0;

/// What stands above the picture.
pub(super) struct Titles {
    pub(super) title: String,
    pub(super) subtitle: String,
    /// Below it.
    pub(super) foot: String,
}

/// Of this machine and moment.
pub(super) fn titles(subtitle: &str, rounds: u32) -> Titles {
    let system = rustix::system::uname();
    let processor = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Titles {
        title: "Latency and throughput, path by path".to_owned(),
        subtitle: subtitle.to_owned(),
        foot: format!(
            "{}, {cores} cores, Linux {}; median of {rounds} interleaved rounds, bars from the least to the greatest",
            processor.unwrap_or_else(|| system.machine().to_string_lossy().into_owned()),
            system.release().to_string_lossy()
        ),
    }
}

/// Draws the rows as an SVG document.
pub(super) fn svg(titles: &Titles, rows: &[Row]) -> String {
    let mut canvas = Canvas::new(SIZE.0, SIZE.1);
    canvas.text((LEFT.0 - 60.0, 48.0), Anchor::Start, "title", &titles.title);
    canvas.text((LEFT.0 - 60.0, 78.0), Anchor::Start, "subtitle", &titles.subtitle);
    canvas.text((LEFT.0 - 60.0, SIZE.1 - 20.0), Anchor::Start, "foot", &titles.foot);
    legend(&mut canvas, rows);
    latency(&mut canvas, rows);
    throughput(&mut canvas, rows);
    canvas.finish()
}

/// Paths in the order of the rows, each with the ink it is drawn with.
fn paths(rows: &[Row]) -> Vec<(&'static str, Ink)> {
    let mut paths: Vec<(&'static str, Ink)> = Vec::new();
    for row in rows {
        if !paths.iter().any(|(path, _)| *path == row.path) {
            paths.push((row.path, Ink::number(paths.len())));
        }
    }
    paths
}

fn legend(canvas: &mut Canvas, rows: &[Row]) {
    let mut x = LEFT.0 - 60.0;
    for (path, ink) in paths(rows) {
        canvas.line(&[(x, 112.0), (x + 34.0, 112.0)], ink);
        canvas.mark((x + 17.0, 112.0), ink);
        canvas.text((x + 42.0, 117.0), Anchor::Start, "name", path);
        x += 42.0 + 8.5 * canvas::width(path) + 34.0;
    }
}

/// A panel with its grid: `x` and `y` and the texts of their ticks.
fn panel(canvas: &mut Canvas, heading: &str, x: (&Axis, &[(f64, String)]), y: (&Axis, &[(f64, String)])) {
    let ((x, x_ticks), (y, y_ticks)) = (x, y);
    let (left, right) = (x.from, x.to);
    canvas.text((left, HIGH.0 - 24.0), Anchor::Start, "heading", heading);
    for (value, text) in y_ticks {
        let at = y.at(*value);
        canvas.grid((left, at), (right, at));
        canvas.text((left - 10.0, at + 5.0), Anchor::End, "tick", text);
    }
    for (value, text) in x_ticks {
        let at = x.at(*value);
        canvas.grid((at, HIGH.0), (at, HIGH.1));
        canvas.text((at, HIGH.1 + 24.0), Anchor::Middle, "tick", text);
    }
    canvas.frame((left, HIGH.1), (right, HIGH.1));
}

/// The share of requests that were done within a time, at the least depth.
fn latency(canvas: &mut Canvas, rows: &[Row]) {
    let Some(depth) = rows.iter().map(|row| row.depth).min() else { return };
    let shown: Vec<&Row> =
        rows.iter().filter(|row| row.depth == depth && !row.latencies.is_empty()).collect();
    let ends = shown.iter().flat_map(|row| [row.microseconds(0.001), row.microseconds(0.9999)]);
    let x = Axis::around(ends, Scale::Log, LEFT);
    let y = Axis::new((0.0, NINES), Scale::Linear, (HIGH.1, HIGH.0));
    let share = [(0.0, "0 %"), (0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %")];
    let mut y_ticks: Vec<(f64, String)> =
        share.iter().map(|(quantile, text)| (nines(*quantile), (*text).to_owned())).collect();
    y_ticks.push((NINES, "99.99 %".to_owned()));
    let x_ticks: Vec<(f64, String)> =
        x.ticks().into_iter().map(|value| (value, axis::microseconds(value))).collect();
    let plural = if depth == 1 { "request" } else { "requests" };
    let heading = format!("Latency with {depth} {plural} in flight: share done within");
    panel(canvas, &heading, (&x, &x_ticks), (&y, &y_ticks));
    let inks = paths(rows);
    for row in shown {
        let points = curve(&row.latencies).into_iter().map(|(value, done)| (x.at(value), y.at(done)));
        let ink = inks.iter().find(|(path, _)| *path == row.path).map_or(Ink::number(0), |(_, ink)| *ink);
        canvas.line(&thin(points), ink);
    }
}

/// 0.9 is 1, 0.99 is 2, 0.999 is 3.
fn nines(quantile: f64) -> f64 {
    -(1.0 - quantile.min(1.0)).max(1e-12).log10()
}

/// Microseconds, and the nines of what was done by then.
fn curve(latencies: &Histogram<u64>) -> Vec<(f64, f64)> {
    #[allow(clippy::cast_precision_loss)] // at most a minute in nanoseconds
    let micros = |nanoseconds: u64| nanoseconds as f64 / 1e3;
    let mut points = vec![(micros(latencies.min()), 0.0)];
    for step in latencies.iter_recorded() {
        let done = nines(step.quantile());
        points.push((micros(step.value_iterated_to()), done.min(NINES)));
        if done >= NINES {
            break;
        }
    }
    points
}

/// Leaves out points that lie on the one before.
fn thin(points: impl Iterator<Item = (f64, f64)>) -> Vec<(f64, f64)> {
    let mut kept: Vec<(f64, f64)> = Vec::new();
    let mut left_out = None;
    for point in points {
        let near = |last: &(f64, f64)| (last.0 - point.0).abs() < 0.7 && (last.1 - point.1).abs() < 0.7;
        if kept.last().is_some_and(near) {
            left_out = Some(point);
        } else {
            kept.push(point);
            left_out = None;
        }
    }
    // It ends where it ends.
    kept.extend(left_out);
    kept
}

/// The median of IOPS by depth.
fn throughput(canvas: &mut Canvas, rows: &[Row]) {
    let depths: BTreeSet<u32> = rows.iter().map(|row| row.depth).collect();
    let ends = rows.iter().flat_map(|row| [row.iops()[0], row.iops()[2]]).filter(|iops| *iops > 0.0);
    let ends: Vec<f64> = ends.collect();
    if ends.is_empty() {
        return;
    }
    let (least, most) = ends.iter().fold((f64::MAX, 0.0_f64), |(a, b), v| (a.min(*v), b.max(*v)));
    // What is many times slower than another would lie on the ground.
    let scale = if most > 12.0 * least { Scale::Log } else { Scale::Linear };
    let y = Axis::around(ends.into_iter(), scale, (HIGH.1, HIGH.0));
    let depth_ends = depths.iter().map(|depth| f64::from(*depth));
    let inset = (RIGHT.0 + 20.0, RIGHT.1 - 20.0);
    let span = depth_ends.clone().fold((f64::MAX, 0.0_f64), |(a, b), v| (a.min(v), b.max(v)));
    let span = if span.0 < span.1 { span } else { (span.0 / 2.0, span.1 * 2.0) };
    let inner = Axis::new(span, Scale::Log, inset);
    let x_ticks: Vec<(f64, String)> = depth_ends.map(|depth| (depth, format!("{depth:.0}"))).collect();
    let y_ticks: Vec<(f64, String)> =
        y.ticks().into_iter().map(|value| (value, axis::count(value))).collect();
    let heading = match scale {
        Scale::Log => "Requests per second by requests in flight (logarithmic)",
        Scale::Linear => "Requests per second by requests in flight",
    };
    let outer = Axis::new(span, Scale::Log, RIGHT);
    panel(canvas, heading, (&outer, &[]), (&y, &y_ticks));
    for (value, text) in &x_ticks {
        canvas.text((inner.at(*value), HIGH.1 + 24.0), Anchor::Middle, "tick", text);
    }
    let mut ends = Vec::new();
    for (path, ink) in paths(rows) {
        let mut points = Vec::new();
        for row in rows.iter().filter(|row| row.path == path) {
            let [low, median, high] = row.iops();
            if median > 0.0 {
                let x = inner.at(f64::from(row.depth));
                canvas.bar((x, y.at(low)), (x, y.at(high)), ink);
                points.push((x, y.at(median), median));
            }
        }
        canvas.line(&points.iter().map(|(x, y, _)| (*x, *y)).collect::<Vec<_>>(), ink);
        points.iter().for_each(|(x, y, _)| canvas.mark((*x, *y), ink));
        ends.extend(points.last().map(|(_, y, median)| (*y, axis::count(*median), ink)));
    }
    for (at, text, ink) in apart(ends) {
        canvas.value((RIGHT.1 + 8.0, at + 5.0), &text, ink);
    }
}

/// Texts beside one another's places, moved so that none covers another.
fn apart<T>(mut texts: Vec<(f64, String, T)>) -> Vec<(f64, String, T)> {
    const ROOM: f64 = 19.0;
    texts.sort_by(|a, b| a.0.total_cmp(&b.0));
    for at in 1..texts.len() {
        texts[at].0 = texts[at].0.max(texts[at - 1].0 + ROOM);
    }
    // What was pushed out below goes back up.
    let mut bottom = HIGH.1;
    for text in texts.iter_mut().rev() {
        text.0 = text.0.min(bottom);
        bottom = text.0 - ROOM;
    }
    texts
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::sample::{Sample, histogram};
    use super::*;

    fn row(path: &'static str, depth: u32, nanoseconds: &[u64]) -> Row {
        let mut row = Row::new(path, depth, true).unwrap();
        for round in 1..=3 {
            let mut latencies = histogram().unwrap();
            nanoseconds.iter().for_each(|value| latencies.record(*value).unwrap());
            row.add(&Sample {
                latencies,
                took: Duration::from_millis(round),
                cpu: Duration::ZERO,
                counted: None,
            })
            .unwrap();
        }
        row
    }

    fn picture(rows: &[Row]) -> String {
        let text = |text: &str| text.to_owned();
        svg(&Titles { title: text("T"), subtitle: text("a <b> & \"c\""), foot: text("F") }, rows)
    }

    /// Elements open and close in order; the names of all.
    fn elements(svg: &str) -> Vec<String> {
        let mut open = Vec::new();
        let mut all = Vec::new();
        for tag in svg.split('<').skip(1) {
            let (tag, _) = tag.split_once('>').expect("a tag ends");
            let name = tag.split([' ', '/']).find(|word| !word.is_empty()).unwrap().to_owned();
            match tag.strip_prefix('/') {
                Some(_) => assert_eq!(open.pop(), Some(name)),
                None => {
                    assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
                    if !tag.ends_with('/') {
                        open.push(name.clone());
                    }
                    all.push(name);
                }
            }
        }
        assert!(open.is_empty(), "{open:?}");
        all
    }

    /// Every coordinate of a line.
    fn coordinates(svg: &str) -> Vec<(f64, f64)> {
        let lines = svg.split("points=\"").skip(1).map(|rest| rest.split('"').next().unwrap());
        let pair = |pair: &str| {
            let (x, y) = pair.split_once(',').unwrap();
            (x.parse().unwrap(), y.parse().unwrap())
        };
        lines.flat_map(|line| line.split(' ').map(pair).collect::<Vec<_>>()).collect()
    }

    #[test]
    fn a_picture_is_a_document_and_stays_inside() {
        let times = [900, 1000, 1100, 5000, 1_000_000];
        let rows = [row("portcullis", 1, &times), row("portcullis", 32, &times), row("kernel", 1, &[70_000])];
        let svg = picture(&rows);
        let elements = elements(&svg);
        assert_eq!(elements[0], "svg");
        assert!(elements.iter().filter(|name| *name == "polyline").count() >= 4, "{elements:?}");
        assert!(svg.contains("a &lt;b&gt; &amp; &quot;c&quot;") && svg.contains(">kernel<"));
        let points = coordinates(&svg);
        assert!(points.len() > 10);
        for (x, y) in points {
            assert!((0.0..=SIZE.0).contains(&x) && (0.0..=SIZE.1).contains(&y), "{x},{y}");
        }
    }

    #[test]
    fn a_picture_of_little_is_one_too() {
        for rows in [vec![], vec![row("portcullis", 1, &[])], vec![row("portcullis", 4, &[1000])]] {
            let svg = picture(&rows);
            elements(&svg);
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn a_curve_rises_to_its_end() {
        let mut latencies = histogram().unwrap();
        (1..=100_000_u64).for_each(|value| latencies.record(value * 10).unwrap());
        let points = curve(&latencies);
        assert!(points.windows(2).all(|pair| pair[0].0 <= pair[1].0 && pair[0].1 <= pair[1].1));
        assert!(points[0].1.abs() < 1e-9 && (points.last().unwrap().1 - NINES).abs() < 1e-9);
        let half = points.iter().find(|(_, done)| *done >= nines(0.5)).unwrap().0;
        assert!((495.0..=505.0).contains(&half), "{half}");
        let thinned = thin(points.iter().copied().map(|(value, done)| (value.log10(), done)));
        assert!(thinned.len() < points.len() && thinned.len() > 3);
    }

    #[test]
    fn texts_do_not_cover_one_another() {
        let texts = |places: &[f64]| apart(places.iter().map(|at| (*at, String::new(), ())).collect());
        for places in [&[300.0, 301.0, 302.0][..], &[547.0, 548.0, 548.0], &[200.0]] {
            let moved = texts(places);
            assert!(moved.windows(2).all(|pair| pair[1].0 - pair[0].0 >= 18.9));
            assert!(moved.iter().all(|(at, ..)| *at <= HIGH.1));
        }
    }
}
