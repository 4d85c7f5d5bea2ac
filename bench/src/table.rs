//! The table of results: what was measured, against what, and whether that is within its limit.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use jiff::Timestamp;

/// What a ratio has to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// This or less.
    AtMost(f64),
    /// This or more.
    AtLeast(f64),
    /// Less than this.
    Below(f64),
    /// It is stated, not judged.
    None,
}

/// One result.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    what: String,
    figures: String,
    /// Absent if it could not be measured; the figures then say why.
    ratio: Option<f64>,
    limit: Limit,
}

impl Row {
    /// A ratio, and the figures that it is made from.
    #[must_use]
    pub fn ratio(what: impl Into<String>, figures: impl Into<String>, ratio: f64, limit: Limit) -> Self {
        Self { what: what.into(), figures: figures.into(), ratio: Some(ratio), limit }
    }

    /// Something that could not be measured here, and why.
    #[must_use]
    pub fn not_measured(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { what: what.into(), figures: why.into(), ratio: None, limit: Limit::None }
    }

    /// The same, and what is measured ends with these words.
    #[must_use]
    pub fn of(mut self, words: &str) -> Self {
        self.what += ", ";
        self.what += words;
        self
    }

    /// Whether it is within its limit.
    #[must_use]
    pub fn verdict(&self) -> &'static str {
        match (self.ratio, self.limit) {
            (None, _) => "not measured",
            (Some(_), Limit::None) => "stated",
            (Some(ratio), Limit::AtMost(most)) if ratio <= most => "pass",
            (Some(ratio), Limit::AtLeast(least)) if ratio >= least => "pass",
            (Some(ratio), Limit::Below(bound)) if ratio < bound => "pass",
            // Not a number is no pass either.
            _ => "FAIL",
        }
    }
}

/// The rows as a Markdown table.
#[must_use]
pub fn markdown(rows: &[Row]) -> String {
    let mut text = "| measured | figures | ratio or value | limit | |\n|---|---|---|---|---|\n".to_owned();
    for row in rows {
        let ratio = row.ratio.map_or_else(|| "-".to_owned(), number);
        let limit = match row.limit {
            Limit::AtMost(most) => format!("≤ {}", number(most)),
            Limit::AtLeast(least) => format!("≥ {}", number(least)),
            Limit::Below(bound) => format!("< {}", number(bound)),
            Limit::None => "-".to_owned(),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| {} | {} | {ratio} | {limit} | {} |", row.what, row.figures, row.verdict());
    }
    text
}

fn number(value: f64) -> String {
    if value == 0.0 || value.abs() >= 0.1 { format!("{value:.2}") } else { format!("{value:.4}") }
}

/// A file with a table of its own.
#[derive(Clone, Debug)]
pub struct Page<'a> {
    /// What it is about.
    pub title: &'a str,
    /// The command that measures it and writes the file.
    pub command: &'a str,
    /// The machine, by [`crate::machine::describe`] or [`crate::machine::describe_alone`].
    pub machine: &'a str,
    /// What was measured, and where that is explained.
    pub note: &'a str,
    /// The results.
    pub rows: &'a [Row],
}

impl Page<'_> {
    /// Prints it, and writes it to `file` in `folder` where that is given, of the repository if it is not absolute: cargo runs
    /// benches in the folder of their package, and who calls them is in the one above.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn publish(&self, folder: Option<&Path>, file: &str) -> Result<()> {
        let text = self.text(Timestamp::now());
        println!("\n{text}");
        let Some(folder) = folder else { return Ok(()) };
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder).join(file);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    fn text(&self, measured: Timestamp) -> String {
        let Self { title, command, machine, note, rows } = self;
        let (date, table) = (measured.strftime("%Y-%m-%d"), markdown(rows));
        format!(
            "# {title}\n\n`{command}` measures this table and writes this file. Last: {date}.\n\n| | |\n|---|---|\n{machine}\n\n\
             {note}\n\n{table}"
        )
    }
}

/// The middle one; of an even number, the lower of the two. Not a number if there is none.
#[must_use]
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

/// How long `work` takes, in milliseconds, when it is done so many times: the median, and the slowest.
pub fn milliseconds(runs: usize, mut work: impl FnMut()) -> (f64, f64) {
    let times = (0..runs).map(|_| {
        let began = Instant::now();
        work();
        began.elapsed().as_secs_f64() * 1e3
    });
    let times: Vec<f64> = times.collect();
    let slowest = times.iter().copied().fold(f64::NAN, f64::max);
    (median(times), slowest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_of_each_run() {
        let mut runs = 0;
        let (middle, slowest) = milliseconds(3, || {
            runs += 1;
            std::thread::sleep(std::time::Duration::from_millis(if runs == 2 { 30 } else { 1 }));
        });
        assert!(runs == 3 && middle >= 1.0 && slowest >= 30.0 && slowest >= middle, "{middle} {slowest}");
        let (middle, slowest) = milliseconds(0, || {});
        assert!(middle.is_nan() && slowest.is_nan());
    }

    #[test]
    fn verdicts_are_by_the_limit() {
        let verdict = |ratio, limit| Row::ratio("", "", ratio, limit).verdict();
        assert_eq!(verdict(0.6, Limit::AtMost(0.6)), "pass");
        assert_eq!(verdict(0.61, Limit::AtMost(0.6)), "FAIL");
        assert_eq!(verdict(1.3, Limit::AtLeast(1.3)), "pass");
        assert_eq!(verdict(1.29, Limit::AtLeast(1.3)), "FAIL");
        assert_eq!(verdict(1.0, Limit::Below(1.0)), "FAIL");
        assert_eq!(verdict(f64::NAN, Limit::AtLeast(1.3)), "FAIL");
        assert_eq!(verdict(7.0, Limit::None), "stated");
        assert_eq!(Row::not_measured("", "no Go").verdict(), "not measured");
    }

    #[test]
    fn medians_are_in_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0]).to_bits(), 2.0_f64.to_bits());
        assert_eq!(median([4.0, 1.0]).to_bits(), 1.0_f64.to_bits());
        assert!(median([]).is_nan());
    }

    #[test]
    fn a_page_says_how_to_measure_it_again() {
        let rows = [Row::ratio("gap", "3 ms", 3.0, Limit::AtMost(5.0))];
        let page =
            Page { title: "Gaps", command: "measure", machine: "| a | b |", note: "Two.", rows: &rows };
        let text = page.text(Timestamp::UNIX_EPOCH);
        let head = "# Gaps\n\n`measure` measures this table and writes this file. Last: 1970-01-01.\n\n| | |\n|---|---|\n| a | b |\n\nTwo.\n\n";
        assert_eq!(text, format!("{head}{}", markdown(&rows)));
    }

    #[test]
    fn a_table_is_markdown() {
        let text = markdown(&[
            Row::ratio("queries", "3 of 100", 0.03, Limit::AtMost(0.05)),
            Row::not_measured("streams", "no such path"),
        ]);
        assert!(text.ends_with(
            "| queries | 3 of 100 | 0.0300 | ≤ 0.0500 | pass |\n| streams | no such path | - | - | not measured |\n"
        ));
    }
}
