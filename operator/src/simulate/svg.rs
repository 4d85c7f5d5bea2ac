//! The load of each node over time with what was done, as an SVG.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::number::fraction;
use super::outcome::{Outcome, stamp};
use crate::heat::Action;
use crate::names::Group;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 280.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 110.0;
const TOP: f64 = 64.0;
/// Of longer runs a point is the mean of several periods.
const POINTS: usize = 240;
/// Nodes with a line of their own; the others are a band.
const LINES: usize = 8;
/// Actions that are described below the chart.
const NOTES: usize = 12;
const LINE: f64 = 16.0;
/// Told apart by everybody: the colours of Okabe and Ito.
const COLOURS: [&str; LINES] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b4c9a", "#7f7f00"];

/// Where values go.
struct Frame {
    /// The highest value.
    high: f64,
    points: usize,
    seconds: f64,
}

impl Frame {
    fn x(&self, point: usize) -> f64 {
        let last = self.points.saturating_sub(1).max(1);
        LEFT + (WIDTH - LEFT - RIGHT) * float(point) / float(last)
    }

    fn at(&self, seconds: u64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * (fraction(seconds) / self.seconds.max(1.0)).min(1.0)
    }

    fn y(&self, value: f64) -> f64 {
        TOP + HEIGHT * (1.0 - (value / self.high).clamp(0.0, 1.0))
    }
}

impl Outcome {
    /// The chart.
    #[must_use]
    pub fn svg(&self) -> String {
        let longest = self.demand.values().map(Vec::len).max().unwrap_or(0);
        let each = longest.div_ceil(POINTS).max(1);
        let means = |line: &Vec<f64>| -> Vec<f64> {
            line.chunks(each).map(|chunk| chunk.iter().sum::<f64>() / float(chunk.len())).collect()
        };
        let lines: Vec<(Group, Vec<f64>)> =
            self.demand.iter().map(|(group, line)| (*group, means(line))).collect();
        let largest = lines.iter().flat_map(|(_, line)| line).copied().fold(1.0, f64::max);
        let frame = Frame {
            high: (largest * 5.0).ceil() / 5.0,
            points: longest.div_ceil(each),
            seconds: fraction(self.seconds),
        };
        let shown = self.shown();

        let notes = self.actions.len().min(NOTES) + usize::from(self.actions.len() > NOTES);
        let height = TOP + HEIGHT + 44.0 + LINE * float(notes);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
             font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
        );
        svg += &text(LEFT, 20.0, "start", self.description.lines().next().unwrap_or_default());
        svg += &text(LEFT, 38.0, "start", "CPU that is asked of each worker, in percent of what it has");
        svg += &axes(&frame);
        if shown.len() < lines.len() {
            svg += &band(&frame, &lines);
        }
        for (number, group) in shown.iter().enumerate() {
            let Some((_, line)) = lines.iter().find(|(other, _)| other == group) else { continue };
            svg += &polyline(&frame, line, COLOURS[number % LINES]);
            let y = TOP + 8.0 + 18.0 * float(number);
            svg += &key(y, COLOURS[number % LINES], 3.0, &group.to_string());
        }
        if shown.len() < lines.len() {
            svg += &key(TOP + 8.0 + 18.0 * float(shown.len()), "#dddddd", 8.0, "all workers");
        }
        svg + &self.marks(&frame) + "</svg>\n"
    }

    /// The nodes that have lines: all if they are few, otherwise those that something was done about, and the busiest.
    fn shown(&self) -> BTreeSet<Group> {
        if self.demand.len() <= LINES {
            return self.demand.keys().copied().collect();
        }
        let involved = self.actions.iter().flat_map(|acted| match acted.action {
            Action::Isolate { from, to, .. }
            | Action::Spread { from, to }
            | Action::Retarget { from, to, .. } => {
                vec![from, to]
            }
            Action::Split { from, to: [first, second], .. } => vec![from, first, second],
            Action::Release { .. } => Vec::new(),
        });
        let mut shown = BTreeSet::new();
        for group in self.busiest.worker.into_iter().chain(involved) {
            if shown.len() < LINES {
                shown.insert(group);
            }
        }
        shown
    }

    /// What was done: a line in the chart with a number, and below it what it was.
    fn marks(&self, frame: &Frame) -> String {
        let mut svg = String::new();
        for (number, acted) in self.actions.iter().enumerate() {
            let x = frame.at(acted.at);
            // Writing to a string cannot fail.
            let _ = writeln!(
                svg,
                "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{}\" stroke=\"#333333\" stroke-dasharray=\"2 3\"/>",
                TOP + HEIGHT
            );
            if number < NOTES {
                svg += &text(x, TOP - 6.0, "middle", &(number + 1).to_string());
                let note = format!("{}  {}  {acted}", number + 1, stamp(acted.at));
                svg += &text(LEFT, TOP + HEIGHT + 44.0 + LINE * float(number), "start", &note);
            }
        }
        if self.actions.len() > NOTES {
            let note = format!("and {} more", self.actions.len() - NOTES);
            svg += &text(LEFT, TOP + HEIGHT + 44.0 + LINE * float(NOTES), "start", &note);
        }
        svg
    }
}

fn axes(frame: &Frame) -> String {
    let mut svg = String::new();
    for tick in 0..=4 {
        let value = frame.high * f64::from(tick) / 4.0;
        let y = frame.y(value);
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{}\" y2=\"{y:.1}\" stroke=\"#eeeeee\"/>",
            WIDTH - RIGHT
        );
        svg += &text(LEFT - 6.0, y + 4.0, "end", &format!("{:.0}", value * 100.0));
    }
    let full = frame.y(1.0);
    let _ = writeln!(
        svg,
        "<line x1=\"{LEFT}\" y1=\"{full:.1}\" x2=\"{}\" y2=\"{full:.1}\" stroke=\"#c0392b\"/>",
        WIDTH - RIGHT
    );
    for quarter in 0..=4_u64 {
        let seconds = super::number::count(frame.seconds) * quarter / 4;
        svg += &text(frame.at(seconds), TOP + HEIGHT + 18.0, "middle", &stamp(seconds / 60 * 60));
    }
    svg
}

/// From the least to the most loaded node at each time.
fn band(frame: &Frame, lines: &[(Group, Vec<f64>)]) -> String {
    let extreme = |point: usize, pick: fn(f64, f64) -> f64, start: f64| {
        lines.iter().filter_map(|(_, line)| line.get(point)).copied().fold(start, pick)
    };
    let mut points = String::new();
    for point in 0..frame.points {
        let _ = write!(points, "{:.1},{:.1} ", frame.x(point), frame.y(extreme(point, f64::max, 0.0)));
    }
    for point in (0..frame.points).rev() {
        let _ = write!(points, "{:.1},{:.1} ", frame.x(point), frame.y(extreme(point, f64::min, f64::MAX)));
    }
    format!("<polygon points=\"{}\" fill=\"#dddddd\"/>\n", points.trim_end())
}

fn polyline(frame: &Frame, line: &[f64], colour: &str) -> String {
    let mut points = String::new();
    for (point, value) in line.iter().enumerate() {
        let _ = write!(points, "{:.1},{:.1} ", frame.x(point), frame.y(*value));
    }
    format!(
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.2\"/>\n",
        points.trim_end()
    )
}

/// A sample of a line or an area, and what it is.
fn key(y: f64, colour: &str, height: f64, name: &str) -> String {
    let x = WIDTH - RIGHT + 10.0;
    let sample = y - 4.0 - height / 2.0;
    format!("<rect x=\"{x}\" y=\"{sample:.1}\" width=\"12\" height=\"{height}\" fill=\"{colour}\"/>\n")
        + &text(x + 18.0, y, "start", name)
}

fn text(x: f64, y: f64, anchor: &str, text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"#333333\">{text}</text>\n")
}

fn float(count: usize) -> f64 {
    fraction(u64::try_from(count).unwrap_or(u64::MAX))
}
