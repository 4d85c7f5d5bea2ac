//! The chart's alert rules, and the series that they are tested with, name what the operator exports: a rule about anything
//! else would be silent for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize as _;
use serde_yaml_ng::Value;

use crate::api::{NodeState, NodeStatus, RebalanceStatus};
use crate::condition::{self, Finding, Holds};
use crate::heat::Reason;
use crate::metrics::Metrics;
use crate::shards::heat::{Heat, Refusal};

/// Types of conditions that an alert may be about.
const CONDITIONS: [&str; 9] = [
    condition::READY,
    condition::PROGRESSING,
    condition::CERTIFICATES_VALID,
    condition::CITUS_AVAILABLE,
    condition::METADATA_SYNCED,
    condition::SCHEMA_DISTRIBUTED,
    condition::BALANCED,
    condition::SCALE_IN_BLOCKED,
    condition::HOT_TENANT,
];

/// The names of exported series, each with those of its labels.
fn exported() -> BTreeMap<String, BTreeSet<String>> {
    let metrics = Metrics::new();
    let shards = &metrics.shards;
    let node = NodeStatus {
        group: "worker-0".to_owned(),
        host: String::new(),
        state: NodeState::Active,
        shards: 1,
        bytes: Some(1),
    };
    shards.nodes("ns", "chat", &[], &[node]);
    shards.moves("ns", "chat", Some(&RebalanceStatus::default()), Some(Duration::ZERO));
    shards.conditions("ns", "chat", &[Finding::new(condition::READY, Holds::True, "Serving", "it serves")]);
    let refused = vec![Refusal { reason: Reason::TooHot, message: String::new() }];
    shards.heat.show("ns", "chat", None, Some(&Heat { refused, ..Heat::default() }));
    let text = metrics.encode().unwrap();
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let series = samples.filter_map(|line| line.rsplit_once(' ')).flat_map(|(series, _)| selectors(series));
    series.map(|(name, labels)| (name, labels.into_keys().collect())).collect()
}

/// The series or selectors in `text`, each with its labels and the values that these may have.
fn selectors(text: &str) -> Vec<(String, BTreeMap<String, Vec<String>>)> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find("dialog_operator_") {
        rest = &rest[start..];
        let end = rest.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        let (name, after) = rest.split_at(end.unwrap_or(rest.len()));
        rest = after;
        let inner = after.strip_prefix('{').and_then(|after| Some(after.split_once('}')?.0));
        let labels = inner.into_iter().flat_map(|inner| inner.split(',')).filter_map(|label| {
            let (label, value) = label.split_once('=')?;
            let values = value.trim_start_matches('~').trim_matches('"').split('|').map(str::to_owned);
            Some((label.trim().to_owned(), values.collect()))
        });
        found.push((name.to_owned(), labels.collect()));
    }
    found
}

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/dialog-operator/tests").join(path);
    fs::read_to_string(&path).unwrap()
}

/// Every text under `key`, at any depth.
fn texts(value: &Value, key: &str, found: &mut Vec<String>) {
    match value {
        Value::Mapping(map) => {
            for (name, value) in map {
                match value {
                    Value::String(text) if name == key => found.push(text.clone()),
                    value => texts(value, key, found),
                }
            }
        }
        Value::Sequence(list) => list.iter().for_each(|value| texts(value, key, found)),
        _ => {}
    }
}

/// What is wrong about values of labels that have a fixed set of them.
fn unknown_values(labels: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let known = |label: &str, value: &String| match label {
        "reason" => serde_yaml_ng::from_str::<Reason>(value).is_ok_and(|reason| reason.name() == value),
        "condition" => CONDITIONS.contains(&value.as_str()),
        _ => true,
    };
    let values = labels.iter().flat_map(|(label, values)| values.iter().map(move |value| (label, value)));
    values
        .filter(|(label, value)| !known(label, value))
        .map(|(label, value)| format!("{label}=\"{value}\""))
        .collect()
}

#[test]
fn alerts_are_about_series_that_are_exported() {
    let exported = exported();
    let mut expressions = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(&read("golden/everything.yaml")) {
        texts(&Value::deserialize(document).unwrap(), "expr", &mut expressions);
    }
    assert!(expressions.len() >= 10, "these are not all: {expressions:?}");
    for expression in &expressions {
        let selectors = selectors(expression);
        assert!(!selectors.is_empty(), "{expression} is about nothing of the operator's");
        for (name, labels) in selectors {
            let known = exported.get(&name).unwrap_or_else(|| panic!("{expression}: there is no {name}"));
            let unknown: Vec<_> = labels.keys().filter(|label| !known.contains(*label)).collect();
            assert!(unknown.is_empty(), "{expression}: {name} has no labels {unknown:?}, but {known:?}");
            let unknown = unknown_values(&labels);
            assert!(unknown.is_empty(), "{expression}: there is no {unknown:?}");
        }
    }

    let mut series = Vec::new();
    texts(&serde_yaml_ng::from_str(&read("alerts.yaml")).unwrap(), "series", &mut series);
    assert!(series.len() >= expressions.len(), "these are not all: {series:?}");
    for text in &series {
        let selectors = selectors(text);
        let [(name, labels)] = selectors.as_slice() else { panic!("{text} is no series of the operator's") };
        let known = exported.get(name).unwrap_or_else(|| panic!("{text} is not exported"));
        assert_eq!(&labels.keys().cloned().collect::<BTreeSet<_>>(), known, "{text} has other labels");
        let unknown = unknown_values(labels);
        assert!(unknown.is_empty(), "{text}: there is no {unknown:?}");
    }
}
