//! Who sends too much is told to wait, and nobody else is.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::support::{Client, Service, User, client::Response, database};

/// Sends until refused; returns how many were sent, and the refusal.
async fn flood(client: &Client, from: &User, to: &User, most: usize) -> Result<(usize, Option<Response>)> {
    for sent in 0..most {
        let response = client.send(from, to, "x").await?;
        if response.status != 200 {
            return Ok((sent, Some(response)));
        }
    }
    Ok((most, None))
}

fn wait(refusal: &Response) -> Result<u64> {
    refusal.assert_error(429);
    Ok(refusal.header("retry-after").context("retry-after")?.parse()?)
}

#[tokio::test]
async fn one_pair_and_one_sender_have_their_limits() -> Result<()> {
    let server = database().await?;
    let limits = ["--pair-rate", "1", "--pair-burst", "5", "--sender-rate", "1", "--sender-burst", "8"];
    let service = Service::start(&server, &limits).await?;
    let client = service.client();
    let (ada, bob, carol) =
        (client.user("Ada").await?, client.user("Bob").await?, client.user("Carol").await?);
    let started = Instant::now();
    let (sent, refusal) = flood(&client, &ada, &bob, 50).await?;
    let grace = |since: Instant| usize::try_from(since.elapsed().as_secs()).map(|seconds| seconds + 1);
    assert!((5..=5 + grace(started)?).contains(&sent), "{sent} to one");
    let seconds = wait(&refusal.context("no limit for the pair")?)?;
    assert!((1..=2).contains(&seconds), "{seconds}");
    let (more, refusal) = flood(&client, &ada, &carol, 50).await?;
    assert!((8..=8 + grace(started)?).contains(&(sent + more)), "{sent} and {more} to others");
    wait(&refusal.context("no limit for the sender")?)?;
    assert_eq!(client.send(&bob, &ada, "not concerned").await?.status, 200);
    assert_eq!(client.list(&ada, &bob).await?.status, 200, "reading is not sending");

    tokio::time::sleep(Duration::from_secs(seconds)).await;
    assert_eq!(client.send(&ada, &bob, "patience is enough").await?.status, 200);
    let listed = client.texts(&bob, &ada).await?;
    assert_eq!(listed.iter().filter(|text| *text == "x").count(), sent, "what was refused was not sent");
    Ok(())
}

#[tokio::test]
async fn a_rate_of_zero_is_no_limit() -> Result<()> {
    let server = database().await?;
    let service =
        Service::start(&server, &["--pair-rate", "0", "--sender-rate", "0", "--pair-burst", "1"]).await?;
    let client = service.client();
    let ada = client.user("Ada").await?;
    assert_eq!(flood(&client, &ada, &ada, 100).await?.0, 100);
    Ok(())
}
