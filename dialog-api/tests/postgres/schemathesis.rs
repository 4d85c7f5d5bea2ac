//! Requests that Schemathesis makes up from the description, good and bad: no answer is a 5xx, or of a status or a form
//! that is not described.
//!
//! `cargo xtask test` names the program in `SCHEMATHESIS`.

use std::process::{Command, Output};

use anyhow::{Context as _, Result};

use crate::support::{Service, User, database};

/// What every answer is held against. A value that fits the description may be refused all the same, since a recipient
/// has to exist; so that good values are taken is not among them.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
    response_headers_conformance,response_schema_conformance,negative_data_rejection,unsupported_method,\
    missing_required_header,ignored_auth";

/// A stream does not end, which a client that waits for the end of an answer takes for a failure. So it is asked for by
/// itself, by somebody who has as many as are allowed: then every answer ends. Streams that are given are held against
/// the description in `stream_contract`.
const ENDLESS: &str = "streamMessages";

/// Which operations are asked for.
#[derive(Clone, Copy, Debug)]
enum Which {
    /// Those whose answers end.
    Ordinary,
    /// The stream alone.
    Stream,
}

fn run(program: &str, service: &Service, caller: &User, which: Which, configuration: &str) -> Result<Output> {
    let selection = match which {
        Which::Ordinary => "--exclude-operation-id",
        Which::Stream => "--include-operation-id",
    };
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("schemathesis.toml");
    std::fs::write(&file, configuration)?;
    let (url, token) =
        (format!("http://{}", service.address()), format!("Authorization:Bearer {}", caller.token));
    Command::new(program)
        .arg("--config-file")
        .arg(&file)
        .args(["run", &format!("{url}/openapi.json"), "--url", &url, "--header", &token])
        .args(["--checks", CHECKS, selection, ENDLESS])
        .args(["--max-examples", "40", "--generation-deterministic", "--no-color", "--workers", "1"])
        .args(["--continue-on-failure", "--request-timeout", "30"])
        .current_dir(directory.path())
        .output()
        .context("run schemathesis")
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_made_up_from_the_description_is_answered_otherwise_than_described() -> Result<()> {
    let Ok(program) = std::env::var("SCHEMATHESIS") else {
        println!("SKIPPED postgres: SCHEMATHESIS is not set: `cargo xtask test --tier postgres` installs it");
        return Ok(());
    };
    let server = database().await?;
    let service = Service::start(&server, &["--user-streams", "1"]).await?;
    let client = service.client();
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);
    client.send(&ada, &bob, "Hello").await?;
    // Among made-up users, and in a dialog that there is.
    let dialog = format!("[parameters]\n\"path.user_id\" = \"{}\"\n\"path.id\" = \"{}\"\n", bob.id, bob.id);
    // The only one that Ada may have, for as long as nobody has changed anything.
    let stream = client.stream(&ada, &bob, None).await?;
    for which in [Which::Stream, Which::Ordinary] {
        for configuration in ["", &dialog] {
            let output = tokio::task::block_in_place(|| run(&program, &service, &ada, which, configuration))?;
            let said = String::from_utf8_lossy(&output.stdout);
            let complained = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{which:?} with {configuration:?}\n{said}\n{complained}");
            println!("{}", said.lines().rev().take(6).collect::<Vec<_>>().join("\n"));
        }
    }
    drop(stream);
    // It makes up changes and deletions as well; a new message is as good as ever.
    assert_eq!(client.send(&ada, &bob, "Still there?").await?.status, 200);
    assert_eq!(client.texts(&bob, &ada).await?.first().map(String::as_str), Some("Still there?"));
    Ok(())
}
