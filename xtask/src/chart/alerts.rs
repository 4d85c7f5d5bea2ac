//! The chart's alert rules, evaluated by promtool over the series of their tests.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::cache::{Cache, Key};
use crate::command::{self, Log};
use crate::debian::{self, Release};

/// The template of the rules.
pub(super) const TEMPLATE: &str = "templates/prometheusrule.yaml";

/// What is read of a `PrometheusRule`.
#[derive(Debug, Deserialize)]
struct Resource {
    spec: Rules,
}

/// A file of rules, as Prometheus reads it.
#[derive(Debug, Serialize, Deserialize)]
struct Rules {
    groups: Vec<Group>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Group {
    name: String,
    rules: Vec<Rule>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    alert: String,
    expr: String,
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    lasting: Option<String>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

/// What is read of a file of tests.
#[derive(Debug, Deserialize)]
struct Tests {
    tests: Vec<Test>,
}

#[derive(Debug, Deserialize)]
struct Test {
    alert_rule_test: Vec<Expectation>,
}

#[derive(Debug, Deserialize)]
struct Expectation {
    alertname: String,
    exp_alerts: Vec<serde_yaml_ng::Value>,
}

/// Evaluates the rules of `render`, a `PrometheusRule`, by the tests of the file `tests`, which have to speak of each of them.
pub(super) fn check(cache: &Cache, render: &str, tests: &Path, log: &Log) -> Result<()> {
    let resource: Resource = serde_yaml_ng::from_str(render).context("the render is no PrometheusRule")?;
    let mut rules = resource.spec;
    let text = fs::read_to_string(tests).with_context(|| format!("cannot read {}", tests.display()))?;
    let parsed: Tests =
        serde_yaml_ng::from_str(&text).with_context(|| format!("{} has no tests", tests.display()))?;
    let forgotten = forgotten(&rules, &parsed);
    ensure!(forgotten.is_empty(), "{}: {}", tests.display(), forgotten.join("; "));
    // Fixed text would have to be repeated in every test; the golden renders hold it.
    for rule in rules.groups.iter_mut().flat_map(|group| &mut group.rules) {
        rule.annotations.retain(|_, text| text.contains("{{"));
    }
    let folder = cache.scratch()?;
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok::<_, anyhow::Error>(path)
    };
    write("rules.yaml", &serde_yaml_ng::to_string(&rules).context("cannot write the rules")?)?;
    let tests = write("alerts.yaml", &text)?;
    command::run(Command::new(promtool(cache, log)?).args(["test", "rules"]).arg(tests), log)
}

/// What the tests leave out: an alert that none raises, or that none holds back; and what they say of no alert, which always
/// holds.
fn forgotten(rules: &Rules, tests: &Tests) -> Vec<String> {
    let alerts: Vec<&str> =
        rules.groups.iter().flat_map(|group| &group.rules).map(|rule| rule.alert.as_str()).collect();
    let expectations: Vec<&Expectation> = tests.tests.iter().flat_map(|test| &test.alert_rule_test).collect();
    let said = |alert: &str, raised: bool| {
        expectations
            .iter()
            .any(|expected| expected.alertname == alert && expected.exp_alerts.is_empty() != raised)
    };
    let mut forgotten = Vec::new();
    for alert in &alerts {
        if !said(alert, true) {
            forgotten.push(format!("nothing raises {alert}"));
        }
        if !said(alert, false) {
            forgotten.push(format!("nothing says when {alert} is not raised"));
        }
    }
    for expected in expectations.iter().filter(|expected| !alerts.contains(&expected.alertname.as_str())) {
        forgotten.push(format!("there is no alert {}", expected.alertname));
    }
    forgotten
}

/// This machine's, or else the one of Debian's package, in the cache: installed, that would bring a server which starts with
/// the machine.
fn promtool(cache: &Cache, log: &Log) -> Result<PathBuf> {
    if command::is_found("promtool") {
        return Ok("promtool".into());
    }
    let release =
        Release::here().context("there is no promtool, Prometheus' tool, on this machine: install it")?;
    let key = Key::of().text(&release.codename).text(std::env::consts::ARCH).finish();
    let folder = cache.entry("promtool", &key);
    let program = folder.join("promtool");
    let _lock = cache.lock("promtool")?;
    if !program.is_file() {
        let package = cache.scratch()?;
        debian::unpack(cache, &["prometheus"], package.path(), log)?;
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        fs::rename(package.path().join("usr/bin/promtool"), &program)
            .context("Debian's package prometheus has no promtool")?;
    }
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_without_tests_is_noticed_and_a_test_without_an_alert() {
        let rule =
            |alert: &str| format!("{{alert: {alert}, expr: up == 0, labels: {{}}, annotations: {{}}}}");
        let rules = format!("groups: [{{name: all, rules: [{}, {}]}}]", rule("Known"), rule("New"));
        let rules: Rules = serde_yaml_ng::from_str(&rules).unwrap();
        let tests = |expectations: &str| -> Tests {
            serde_yaml_ng::from_str(&format!("tests: [{{alert_rule_test: [{expectations}]}}]")).unwrap()
        };
        let known =
            "{alertname: Known, exp_alerts: []}, {alertname: Known, exp_alerts: [{exp_labels: {a: b}}]}";
        assert_eq!(
            forgotten(&rules, &tests(known)),
            ["nothing raises New", "nothing says when New is not raised"]
        );
        let both = format!("{known}, {}", known.replace("Known", "New"));
        assert!(forgotten(&rules, &tests(&both)).is_empty());
        let old = format!("{both}, {{alertname: Old, exp_alerts: []}}");
        assert_eq!(forgotten(&rules, &tests(&old)), ["there is no alert Old"]);
    }
}
