//! The conversation in docs/http-api.md takes place as it is printed there.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::support::{Service, database};

const DOCUMENT: &str = include_str!("../../../docs/http-api.md");
/// Between the outputs of two examples.
const BORDER: &str = "--- the next example ---";

/// An example, and what it prints.
struct Example {
    script: String,
    printed: String,
}

/// Each block of shell commands with the block of text that follows it.
fn examples() -> Result<Vec<Example>> {
    let mut found = Vec::new();
    for part in DOCUMENT.split("```sh\n").skip(1) {
        let (script, rest) = part.split_once("```\n").context("the end of an example")?;
        let printed = rest.strip_prefix("\n```text\n").and_then(|rest| rest.split_once("```\n"));
        let (printed, _) = printed.with_context(|| format!("what is printed by {script}"))?;
        found.push(Example { script: script.to_owned(), printed: printed.trim().to_owned() });
    }
    Ok(found)
}

/// Whether a text is this, where `…` stands for anything.
fn fits(text: &str, pattern: &str) -> bool {
    let Some((first, pattern)) = pattern.split_once('…') else { return text == pattern };
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let (middle, last) = pattern.rsplit_once('…').unwrap_or(("", pattern));
    for part in middle.split('…') {
        let Some(place) = rest.find(part) else { return false };
        rest = &rest[place + part.len()..];
    }
    rest.ends_with(last)
}

#[test]
fn gaps_stand_for_anything() {
    for (text, pattern) in [
        ("", ""),
        ("a", "a"),
        ("abc", "a…c"),
        ("abcbc", "a…bc"),
        ("abc", "…"),
        ("ac", "a…c…"),
        ("abcd", "a…c…d"),
    ] {
        assert!(fits(text, pattern), "{text} {pattern}");
    }
    for (text, pattern) in [
        ("a", ""),
        ("ab", "a"),
        ("ba", "a"),
        ("abc", "a…d"),
        ("abcd", "a…c"),
        ("acb", "a…b…c"),
        ("aba", "ab…ba"),
    ] {
        assert!(!fits(text, pattern), "{text} {pattern}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_conversation_takes_place() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let examples = examples()?;
    ensure!(examples.len() >= 8, "{} examples", examples.len());
    let scripts: Vec<&str> = examples.iter().map(|example| example.script.as_str()).collect();
    let script = scripts.join(&format!("\necho; echo '{BORDER}'\n"));
    let documented = "http://127.0.0.1:8080";
    assert!(script.contains(documented));
    let script = script.replace(documented, &format!("http://{}", service.address()));
    let output = Command::new("sh").args(["-eu", "-c", &script]).output().context("run sh")?;
    let (said, complaint) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{said}{complaint}");
    let said = said.replace('\r', "");
    let printed: Vec<&str> = said.split(BORDER).map(str::trim).collect();
    ensure!(printed.len() == examples.len(), "{said}{complaint}");
    for (example, printed) in examples.iter().zip(printed) {
        ensure!(
            fits(printed, &example.printed),
            "{}\nprints\n{printed}\ninstead of\n{}",
            example.script,
            example.printed
        );
    }
    Ok(())
}
