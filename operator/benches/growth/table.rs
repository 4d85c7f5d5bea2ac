//! The table of results.

use std::fmt::Write as _;

/// What a value has to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    AtMost(f64),
    /// It is stated, not judged.
    None,
}

/// Rows, as Markdown.
#[derive(Clone, Debug, Default)]
pub struct Table {
    rows: String,
}

impl Table {
    /// Adds a value and the figures that it is made from.
    pub fn row(&mut self, what: &str, figures: &str, value: f64, limit: Limit) {
        let (limit, verdict) = match limit {
            Limit::AtMost(most) if value <= most => (format!("≤ {most}"), "pass"),
            // Not a number is no pass either.
            Limit::AtMost(most) => (format!("≤ {most}"), "FAIL"),
            Limit::None => ("-".to_owned(), "stated"),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(self.rows, "| {what} | {figures} | {value:.4} | {limit} | {verdict} |");
    }

    /// All of it.
    pub fn markdown(&self) -> String {
        format!("| measured | figures | ratio or value | limit | |\n|---|---|---|---|---|\n{}", self.rows)
    }
}
