//! What docs/http-api.md tells to type works.

use std::process::Command;

use anyhow::{Context as _, Result};

use crate::support::{Service, database};

const DOCUMENT: &str = include_str!("../../../docs/http-api.md");

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_conversation_takes_place() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let (_, rest) = DOCUMENT.split_once("```sh\n").context("an example")?;
    let (example, _) = rest.split_once("```").context("the end of the example")?;
    let documented = "http://127.0.0.1:8080";
    assert!(example.contains(documented));
    let example = example.replace(documented, &format!("http://{}", service.address()));
    let output = Command::new("sh").args(["-eu", "-c", &example]).output().context("run sh")?;
    let (said, complaint) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{complaint}");
    let list: serde_json::Value =
        serde_json::from_str(&said).with_context(|| format!("{said}{complaint}"))?;
    let texts: Vec<_> = list.as_array().context("an array")?.iter().map(|message| &message["text"]).collect();
    assert_eq!(texts, ["Hello"]);
    Ok(())
}
