//! What came of a tier, from what its tests printed.

use std::collections::BTreeSet;
use std::time::Duration;

/// Tests by how they ended.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) passed: usize,
    pub(super) failed: usize,
    pub(super) skipped: usize,
}

impl Count {
    /// Both together.
    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            skipped: self.skipped + other.skipped,
        }
    }
}

/// One tier.
#[derive(Debug)]
pub(super) struct Report {
    tier: &'static str,
    count: Count,
    /// Tests that skipped themselves, and that their test programs count as passed.
    returned: usize,
    /// Why tests were skipped, or why the tier could not run.
    reasons: BTreeSet<String>,
    took: Duration,
}

impl Report {
    /// Nothing has run yet.
    pub(super) fn new(tier: &'static str) -> Self {
        Self { tier, count: Count::default(), returned: 0, reasons: BTreeSet::new(), took: Duration::ZERO }
    }

    /// Takes in a line that the test programs printed.
    ///
    /// A test that finds something missing prints `SKIPPED <tier>: <reason>` and returns, which its test program then
    /// counts as passed.
    pub(super) fn read(&mut self, line: &str) {
        if let Some((_, skipped)) = line.split_once("SKIPPED ") {
            let reason = skipped.split_once(": ").map_or(skipped, |(_, reason)| reason);
            self.returned += 1;
            self.reasons.insert(reason.trim().to_owned());
        }
        if let Some(result) = line.strip_prefix("test result: ") {
            self.count.passed += number_before(result, " passed");
            self.count.failed += number_before(result, " failed");
            self.count.skipped += number_before(result, " ignored");
        }
    }

    /// The tier could not be run to its end.
    pub(super) fn fail(&mut self, error: &anyhow::Error) {
        self.count.failed += 1;
        let text = format!("{error:#}");
        self.reasons.insert(text.lines().next().unwrap_or_default().to_owned());
    }

    /// How long it took.
    pub(super) fn took(&mut self, time: Duration) {
        self.took = time;
    }

    /// Tests so far; the skipped are not among the passed.
    pub(super) fn count(&self) -> Count {
        Count {
            passed: self.count.passed.saturating_sub(self.returned),
            skipped: self.count.skipped + self.returned,
            ..self.count
        }
    }

    fn verdict(&self) -> &'static str {
        match self.count() {
            Count { failed: 1.., .. } => "FAILED",
            Count { passed: 0, skipped: 1.., .. } => "skipped",
            Count { passed: 0, .. } => "no tests",
            _ => "passed",
        }
    }
}

/// The table of all tiers.
pub(super) fn rows(reports: &[Report]) -> Vec<[String; 7]> {
    let head = ["TIER", "", "PASSED", "FAILED", "SKIPPED", "TIME", "WHY"].map(str::to_owned);
    let row = |report: &Report| {
        let count = report.count();
        let reasons: Vec<_> = report.reasons.iter().map(String::as_str).collect();
        [
            report.tier.to_owned(),
            report.verdict().to_owned(),
            count.passed.to_string(),
            count.failed.to_string(),
            count.skipped.to_string(),
            format!("{} s", report.took.as_secs()),
            reasons.join("; "),
        ]
    };
    std::iter::once(head).chain(reports.iter().map(row)).collect()
}

fn number_before(text: &str, word: &str) -> usize {
    let before = text.split_once(word).map_or("", |(before, _)| before);
    before.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(lines: &[&str]) -> Report {
        let mut report = Report::new("citus");
        for line in lines {
            report.read(line);
        }
        report
    }

    #[test]
    fn results_of_several_programs_add_up() {
        let report = after(&[
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "test result: FAILED. 12 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s",
        ]);
        assert_eq!(report.count(), Count { passed: 15, failed: 2, skipped: 1 });
        assert_eq!(report.verdict(), "FAILED");
    }

    #[test]
    fn what_skipped_itself_has_not_passed() {
        let report = after(&[
            "test moves::a_move ... SKIPPED citus: the extension is not installed",
            "SKIPPED citus: the extension is not installed",
            "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s",
        ]);
        assert_eq!(report.count(), Count { passed: 0, failed: 0, skipped: 2 });
        assert_eq!(report.verdict(), "skipped");
        assert_eq!(rows(&[report])[1][6], "the extension is not installed");
    }

    #[test]
    fn nothing_run_is_not_success() {
        assert_eq!(after(&[]).verdict(), "no tests");
        let mut report = after(&[]);
        report.fail(&anyhow::anyhow!("first\nsecond"));
        assert_eq!((report.verdict(), report.count().failed), ("FAILED", 1));
    }
}
