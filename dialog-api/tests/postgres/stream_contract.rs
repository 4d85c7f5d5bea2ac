//! The stream's answers are those that are described. Schemathesis sees none that is given: it waits for the end of an
//! answer, which a stream does not have.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use http::Method;
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use serde_json::Value;
use uuid::Uuid;

use crate::support::{Service, User, client::Response, database, eventually};

/// The responses that are described, each status with its content type and the names of its headers.
struct Described(Value);

impl Described {
    fn statuses(&self) -> BTreeSet<u16> {
        self.0.as_object().into_iter().flatten().filter_map(|(status, _)| status.parse().ok()).collect()
    }

    /// Checks that an answer is one of them, and returns its status.
    fn check(&self, response: &Response) -> Result<u16> {
        let described = &self.0[response.status.to_string()];
        ensure!(described.is_object(), "{} is not described", response.status);
        let kind = response.header("content-type").context("content-type")?;
        ensure!(described["content"][kind].is_object(), "{} as {kind} is not described", response.status);
        for (name, _) in described["headers"].as_object().into_iter().flatten() {
            ensure!(response.header(name).is_some(), "{} has no {name}", response.status);
        }
        response.assert_error(response.status);
        Ok(response.status)
    }
}

#[tokio::test]
async fn every_answer_of_a_stream_is_described_and_every_described_one_is_given() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &["--max-streams", "2", "--user-streams", "1"]).await?;
    let client = service.client();
    let document = client.get("/openapi.json").await?.json()?;
    let described = Described(document["paths"]["/dialog/{user_id}/stream"]["get"]["responses"].clone());
    let (ada, bob, carol) =
        (client.user("Ada").await?, client.user("Bob").await?, client.user("Carol").await?);
    let mut seen = BTreeSet::new();

    let stream = client.stream(&ada, &bob, None).await?;
    ensure!(described.0["200"]["content"][&stream.content_type].is_object(), "{}", stream.content_type);
    seen.insert(200);
    // One is all that a user may have, and two are all that there may be.
    let path = format!("/dialog/{}/stream", bob.id);
    seen.insert(described.check(&client.get_as(&ada, &path).await?)?);
    let other = client.stream(&bob, &ada, None).await?;
    seen.insert(described.check(&client.get_as(&carol, &path).await?)?);
    drop((stream, other));
    eventually("the end of the stream", async || {
        Ok(client.get("/metrics").await?.text().contains("dialog_api_streams_open 0").then_some(()))
    })
    .await?;

    let future = Uuid::from_u128(u128::MAX >> 1).to_string();
    let long = "7".repeat(1_000);
    let nonsense = [
        "",
        " ",
        "x",
        "null",
        "-1",
        "1.2.3",
        "'; DROP TABLE messages; --",
        "\u{e9}",
        "00000000-0000-0000",
        &future,
        &long,
    ];
    for text in nonsense {
        let encoded = percent_encode(text.as_bytes(), NON_ALPHANUMERIC).to_string();
        let user = format!("/dialog/{encoded}/stream");
        // No user at all is another path.
        if !encoded.is_empty() {
            seen.insert(described.check(&client.get_as(&ada, &user).await?)?);
        }
        let query = format!("{path}?last_event_id={encoded}");
        seen.insert(described.check(&client.get_as(&ada, &query).await?)?);
        let authorization = format!("Bearer {}", ada.token);
        for headers in [
            [("last-event-id", text), ("authorization", authorization.as_str())],
            [("last-event-id", "x"), ("authorization", text)],
        ] {
            let answer = client.send_raw(Method::GET, &path, &headers, "").await?;
            seen.insert(described.check(&answer).with_context(|| format!("{headers:?}"))?);
        }
    }
    let stranger = format!("/dialog/{}/stream", User::unknown().id);
    seen.insert(described.check(&client.get_as(&ada, &stranger).await?)?);
    seen.insert(described.check(&client.get(&path).await?)?);

    // All but a bug.
    seen.insert(500);
    assert_eq!(seen, described.statuses());
    Ok(())
}
