//! Throughput and latency over time, as an SVG.

use std::fmt::Write as _;

use crate::{report::Report, stats::Second};

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 130.0;
const TOP: f64 = 50.0;
const GAP: f64 = 60.0;

/// A line of a panel.
struct Series {
    name: &'static str,
    colour: &'static str,
    value: fn(&Second) -> f64,
}

#[allow(clippy::cast_precision_loss, reason = "counts of one second")]
const THROUGHPUT: [Series; 4] = [
    Series { name: "sends", colour: "#0b6e4f", value: |second| second.sends as f64 },
    Series { name: "lists", colour: "#2563a8", value: |second| second.lists as f64 },
    Series { name: "failed", colour: "#c0392b", value: |second| second.failed as f64 },
    Series { name: "dropped", colour: "#e08e0b", value: |second| second.dropped as f64 },
];

const LATENCY: [Series; 5] = [
    Series { name: "send p50", colour: "#7fbfa7", value: |second| second.send_ms.p50 },
    Series { name: "send p99", colour: "#0b6e4f", value: |second| second.send_ms.p99 },
    Series { name: "send p999", colour: "#c0392b", value: |second| second.send_ms.p999 },
    Series { name: "list p50", colour: "#9dbbe0", value: |second| second.list_ms.p50 },
    Series { name: "list p99", colour: "#2563a8", value: |second| second.list_ms.p99 },
];

/// Where values are drawn.
struct Axis {
    low: f64,
    high: f64,
    logarithmic: bool,
}

impl Axis {
    /// From 0 to something round above the largest value.
    fn linear(largest: f64) -> Self {
        let step = 10_f64.powf(largest.max(1.0).log10().floor());
        let high = (largest.max(1.0) / step).ceil() * step;
        Self { low: 0.0, high, logarithmic: false }
    }

    /// Powers of ten around the values.
    fn logarithmic(smallest: f64, largest: f64) -> Self {
        let low = 10_f64.powf(smallest.max(1e-3).log10().floor());
        let high = 10_f64.powf(largest.max(low * 10.0).log10().ceil());
        Self { low, high, logarithmic: true }
    }

    /// 0 at the bottom, 1 at the top. Below the scale there is nothing to draw.
    fn place(&self, value: f64) -> Option<f64> {
        let place = if self.logarithmic {
            (value > 0.0).then(|| (value / self.low).log10() / (self.high / self.low).log10())?
        } else {
            (value - self.low) / (self.high - self.low)
        };
        Some(place.clamp(0.0, 1.0))
    }

    fn ticks(&self) -> Vec<f64> {
        if self.logarithmic {
            let mut ticks = vec![self.low];
            while let Some(last) = ticks.last().filter(|last| **last < self.high * 0.99) {
                ticks.push(last * 10.0);
            }
            ticks
        } else {
            (0..=4).map(|tick| self.high * f64::from(tick) / 4.0).collect()
        }
    }
}

/// The chart of a run: throughput above, latencies below, on a logarithmic scale.
#[must_use]
pub fn svg(report: &Report) -> String {
    let seconds = &report.seconds;
    let largest = values(&THROUGHPUT, seconds).fold(1.0, f64::max);
    let latencies = || values(&LATENCY, seconds).filter(|value| *value > 0.0);
    let axis = Axis::logarithmic(latencies().fold(1.0, f64::min), latencies().fold(1.0, f64::max));
    let height = TOP + 2.0 * HEIGHT + GAP + 50.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    svg += &label(LEFT, 22.0, "start", &title(report));
    svg += &panel(TOP, "requests per second", &Axis::linear(largest), &THROUGHPUT, seconds);
    svg += &panel(TOP + HEIGHT + GAP, "latency in ms", &axis, &LATENCY, seconds);
    svg + "</svg>\n"
}

fn title(report: &Report) -> String {
    let load = &report.load;
    let pace = load.rate.map_or_else(|| "closed loop".to_owned(), |rate| format!("{rate} arrivals/s"));
    format!("{pace}, {:.0} % lists, {}, {} connections", load.lists * 100.0, load.skew, load.connections)
}

fn values<'a>(series: &'a [Series], seconds: &'a [Second]) -> impl Iterator<Item = f64> + 'a {
    series.iter().flat_map(move |series| seconds.iter().map(series.value))
}

fn panel(top: f64, name: &str, axis: &Axis, series: &[Series], seconds: &[Second]) -> String {
    let (bottom, right) = (top + HEIGHT, WIDTH - RIGHT);
    let mut svg = label(LEFT, top - 8.0, "start", name);
    for tick in axis.ticks() {
        let y = bottom - axis.place(tick).unwrap_or_default() * HEIGHT;
        let text = if tick >= 10.0 || tick == 0.0 { format!("{tick:.0}") } else { format!("{tick}") };
        svg += &rule(y, right);
        svg += &label(LEFT - 6.0, y + 4.0, "end", &text);
    }
    #[allow(clippy::cast_precision_loss, reason = "seconds of a run")]
    let last = seconds.last().map_or(1.0, |second| second.second.max(1) as f64);
    #[allow(clippy::cast_precision_loss, reason = "seconds of a run")]
    let x = |second: &Second| LEFT + (right - LEFT) * second.second as f64 / last;
    for fraction in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let place = LEFT + (right - LEFT) * fraction;
        svg += &label(place, bottom + 16.0, "middle", &format!("{:.0} s", last * fraction));
    }
    let mut key = top + 10.0;
    for Series { name, colour, value } in series {
        if seconds.iter().all(|second| value(second) == 0.0) {
            continue;
        }
        let mut points = String::new();
        for second in seconds {
            if let Some(place) = axis.place(value(second)) {
                // Writing to a string cannot fail.
                let _ = write!(points, "{:.1},{:.1} ", x(second), bottom - place * HEIGHT);
            }
        }
        svg += &line(points.trim_end(), colour, right + 10.0, key - 5.0);
        svg += &label(right + 28.0, key, "start", name);
        key += 18.0;
    }
    svg
}

fn rule(y: f64, right: f64) -> String {
    format!("<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" stroke=\"#dddddd\"/>\n")
}

/// A line, and its sample in the key.
fn line(points: &str, colour: &str, x: f64, y: f64) -> String {
    format!(
        "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>\n\
         <rect x=\"{x}\" y=\"{y}\" width=\"12\" height=\"3\" fill=\"{colour}\"/>\n"
    )
}

fn label(x: f64, y: f64, anchor: &str, text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"#333333\">{text}</text>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_hold_what_is_drawn_on_them() {
        let axis = Axis::linear(4_321.0);
        assert_eq!((axis.high, axis.ticks().len()), (5_000.0, 5));
        assert_eq!(axis.place(2_500.0), Some(0.5));
        let axis = Axis::logarithmic(0.4, 250.0);
        assert_eq!(axis.ticks(), [0.1, 1.0, 10.0, 100.0, 1_000.0]);
        assert_eq!((axis.place(0.0), axis.place(10.0)), (None, Some(0.5)));
        assert_eq!(axis.place(1e9), Some(1.0));
        assert!(Axis::linear(0.0).high >= 1.0);
    }
}
