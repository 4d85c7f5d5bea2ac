//! The runbook explains every reason that the code can give, and none that it cannot.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Files with other people's words: what Kubernetes, servers and objects are called there is no reason of ours.
const OTHERS: [&str; 8] = ["api", "build", "applied", "cli", "context", "instance", "observe", "step"];
/// Words of other kinds in the files that remain.
const NO_REASONS: [&str; 4] = ["Delete", "DialogCluster", "Pair", "Unknown"];

/// Whether `text` is written as reasons are: `StepFailed`, but neither `COMMIT` nor `GiB`.
fn is_camel_case(text: &str) -> bool {
    let mut letters = text.chars();
    let begins = letters.next().is_some_and(|first| first.is_ascii_uppercase())
        && letters.next().is_some_and(|second| second.is_ascii_lowercase());
    begins && text.len() > 3 && text.chars().all(|letter| letter.is_ascii_alphabetic())
}

/// The string literals of the code that are written as reasons are; what only tests say does not count.
fn said_by(folder: &Path, said: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        if OTHERS.contains(&name) || name == "tests" {
            continue;
        }
        if path.is_dir() {
            said_by(&path, said);
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        // A test module that is a file of its own is declared behind the same attribute.
        let (code, _) = text.split_once("#[cfg(test)]").unwrap_or((&text, ""));
        if path != Path::new(env!("CARGO_MANIFEST_DIR")).join("src/condition/runbook.rs") {
            said.extend(code.split('"').filter(|word| is_camel_case(word)).map(str::to_owned));
        }
    }
}

/// What `text` has between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn every_reason_is_in_the_runbook_and_no_other() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut said = BTreeSet::new();
    said_by(&root.join("src"), &mut said);
    let said: BTreeSet<&str> =
        said.iter().map(String::as_str).filter(|word| !NO_REASONS.contains(word)).collect();
    for reason in ["StepFailed", "PodsNotCreated", "KubernetesError", "ParametersIgnored"] {
        assert!(said.contains(reason), "the search for reasons does not find {reason}");
    }

    let runbook = fs::read_to_string(root.join("../docs/operations/runbook.md")).unwrap();
    let headings = runbook.lines().filter_map(|line| line.strip_prefix("## "));
    let explained: BTreeSet<&str> = headings.chain(runbook.lines().flat_map(quoted)).collect();
    let missing: Vec<_> = said.difference(&explained).collect();
    assert!(missing.is_empty(), "docs/operations/runbook.md does not explain {missing:?}");

    let rows = runbook.lines().filter_map(|line| line.strip_prefix("| `")?.split(" |").next());
    let listed = rows.flat_map(|row| row.split(['`', ',', ' '])).filter(|word| is_camel_case(word));
    let stale: Vec<_> = listed.filter(|word| !said.contains(word)).collect();
    assert!(stale.is_empty(), "docs/operations/runbook.md lists reasons that nothing gives: {stale:?}");
}
