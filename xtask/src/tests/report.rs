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
    /// Tests that ended early and said so, and that their test programs count as passed.
    returned: usize,
    /// What this machine does not have and nobody can bring, so that tests which need it may skip themselves.
    absent: Option<&'static str>,
    /// Why tests were skipped, or why the tier failed.
    reasons: BTreeSet<String>,
    took: Duration,
}

impl Report {
    /// Nothing has run yet.
    pub(super) fn new(tier: &'static str) -> Self {
        Self {
            tier,
            count: Count::default(),
            returned: 0,
            absent: None,
            reasons: BTreeSet::new(),
            took: Duration::ZERO,
        }
    }

    /// From here on tests may skip themselves for want of `what`, and of nothing else.
    pub(super) fn lacks(&mut self, what: &'static str) {
        self.absent = Some(what);
    }

    /// Takes in a line that the test programs printed.
    ///
    /// A test that finds something missing prints `SKIPPED <what>: <reason>` and returns, which its test program then
    /// counts as passed. What a tier needs was brought for it, so missing that is a failure: a wrong path must not look
    /// like a machine that cannot do better.
    pub(super) fn read(&mut self, line: &str) {
        if let Some((what, reason)) = line.split_once("SKIPPED ").and_then(|(_, rest)| rest.split_once(": "))
        {
            self.returned += 1;
            if self.absent == Some(what) {
                self.count.skipped += 1;
                self.reasons.insert(reason.trim().to_owned());
            } else {
                self.count.failed += 1;
                self.reasons.insert(format!("not to be skipped here: {what}: {}", reason.trim()));
            }
        }
        if let Some(result) = line.strip_prefix("test result: ") {
            self.count.passed += number_before(result, " passed");
            self.count.failed += number_before(result, " failed");
            // Nothing here is marked so; whoever marks a test has to give a reason that can be printed.
            let ignored = number_before(result, " ignored");
            if ignored > 0 {
                self.count.failed += ignored;
                self.reasons.insert(format!("{ignored} marked #[ignore]"));
            }
        }
    }

    /// The tier could not be run to its end.
    pub(super) fn fail(&mut self, error: &anyhow::Error) {
        self.count.failed += 1;
        let text = format!("{error:#}");
        self.reasons.insert(text.lines().next().unwrap_or_default().to_owned());
    }

    /// The tier has ended after `time`. One in which nothing ran has not passed.
    pub(super) fn finish(&mut self, time: Duration) {
        self.took = time;
        if self.count() == Count::default() {
            self.count.failed += 1;
            self.reasons.insert("no test ran".to_owned());
        }
    }

    /// Tests so far; the skipped are not among the passed.
    pub(super) fn count(&self) -> Count {
        Count { passed: self.count.passed.saturating_sub(self.returned), ..self.count }
    }

    fn verdict(&self) -> &'static str {
        match self.count() {
            Count { failed: 1.., .. } => "FAILED",
            Count { passed: 0, .. } => "skipped",
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

    const TWO_PASSED: &str =
        "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s";
    const NO_CITUS: &str = "SKIPPED citus: the extension is not installed";

    fn after(mut report: Report, lines: &[&str]) -> Report {
        for line in lines {
            report.read(line);
        }
        report.finish(Duration::from_secs(3));
        report
    }

    fn without_citus(tier: &'static str) -> Report {
        let mut report = Report::new(tier);
        report.lacks("citus");
        report
    }

    fn why(report: &Report) -> String {
        rows(std::slice::from_ref(report)).swap_remove(1).last().cloned().unwrap_or_default()
    }

    #[test]
    fn results_of_several_programs_add_up() {
        let report = after(
            Report::new("unit"),
            &[
                "running 3 tests",
                TWO_PASSED,
                "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            ],
        );
        assert_eq!(report.count(), Count { passed: 14, failed: 3, skipped: 0 });
        assert_eq!(report.verdict(), "FAILED");
    }

    #[test]
    fn what_skipped_itself_has_not_passed() {
        let harness = format!("test moves::a_move ... {NO_CITUS}");
        let report = after(without_citus("citus"), &[&harness, NO_CITUS, TWO_PASSED]);
        assert_eq!(report.count(), Count { passed: 0, failed: 0, skipped: 2 });
        assert_eq!((report.verdict(), why(&report).as_str()), ("skipped", "the extension is not installed"));
    }

    #[test]
    fn a_tier_of_which_some_tests_ran_has_passed_and_says_what_did_not() {
        let report = after(without_citus("cluster"), &[NO_CITUS, TWO_PASSED]);
        assert_eq!(report.count(), Count { passed: 1, failed: 0, skipped: 1 });
        assert_eq!((report.verdict(), why(&report).as_str()), ("passed", "the extension is not installed"));
    }

    #[test]
    fn a_tier_cannot_skip_what_it_was_given() {
        let lines = ["SKIPPED apiserver: ETCD is not set", TWO_PASSED];
        for report in [Report::new("apiserver"), without_citus("apiserver")] {
            let report = after(report, &lines);
            assert_eq!(report.count(), Count { passed: 1, failed: 1, skipped: 0 });
            assert_eq!(report.verdict(), "FAILED");
            assert_eq!(why(&report), "not to be skipped here: apiserver: ETCD is not set");
        }
        assert_eq!(after(Report::new("citus"), &[NO_CITUS, TWO_PASSED]).verdict(), "FAILED");
    }

    #[test]
    fn an_ignored_test_is_a_failure() {
        let report =
            after(Report::new("unit"), &["test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured"]);
        assert_eq!((report.count().failed, why(&report).as_str()), (1, "1 marked #[ignore]"));
    }

    #[test]
    fn nothing_run_is_not_success() {
        let empty = "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 7 filtered out";
        let report = after(Report::new("unit"), &[empty]);
        assert_eq!((report.count().failed, report.verdict()), (1, "FAILED"));
        assert_eq!(why(&report), "no test ran");
    }

    #[test]
    fn a_tier_that_could_not_be_run_says_why_in_one_line() {
        let mut report = Report::new("cluster");
        report.fail(&anyhow::anyhow!("first\nsecond"));
        let report = after(report, &[]);
        assert_eq!((report.count().failed, report.verdict()), (1, "FAILED"));
        assert_eq!(why(&report), "first");
        assert_eq!(rows(&[report])[1][5], "3 s");
    }
}
