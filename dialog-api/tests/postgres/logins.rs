//! A flood of logins, with hashes as expensive as in production.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::{Load, Service, database, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn logins_do_not_starve_messages() -> Result<()> {
    let server = database().await?;
    let flags = [
        "--password-memory",
        "19456",
        "--password-concurrency",
        "1",
        "--password-queue",
        "4",
        "--log-level",
        "info",
    ];
    let service = Service::start(&server, &flags).await?;
    let load = Load::start(&service, 2).await?;
    let ada = service.client().user("Ada").await?;

    let stop = CancellationToken::new();
    let mut flood = JoinSet::new();
    for _ in 0..48 {
        let (client, stop, ada) = (service.client(), stop.clone(), ada.clone());
        flood.spawn(async move {
            let mut answers = BTreeMap::<u16, usize>::new();
            while !stop.is_cancelled() {
                let response =
                    client.post("/login", &json!({"id": ada.id, "password": ada.password})).await?;
                *answers.entry(response.status).or_default() += 1;
                if response.status == 503 {
                    response.assert_error(503);
                    // A client that does not honour Retry-After, but is no busy loop either.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            anyhow::Ok(answers)
        });
    }
    load.acknowledge(400).await?;
    stop.cancel();
    let mut answers = BTreeMap::<u16, usize>::new();
    while let Some(done) = flood.join_next().await {
        for (status, count) in done?? {
            *answers.entry(status).or_default() += count;
        }
    }
    let ledger = load.stop().await?;
    println!(
        "logins answered {answers:?}; sends p50 {:?} p99 {:?} max {:?}",
        ledger.latency(0.5),
        ledger.latency(0.99),
        ledger.latency(1.0)
    );
    assert_eq!(answers.keys().copied().collect::<Vec<_>>(), [200, 503], "{answers:?}");
    assert!(ledger.refused.is_empty(), "{:?}", ledger.refused);
    assert!(ledger.latency(0.5) < Duration::from_millis(100), "p50 {:?}", ledger.latency(0.5));
    assert!(ledger.latency(0.99) < Duration::from_millis(500), "p99 {:?}", ledger.latency(0.99));
    Ok(())
}

/// Each hash takes 19 MiB; when the flood is over they are the system's again.
#[tokio::test(flavor = "multi_thread")]
async fn the_memory_of_logins_is_given_back() -> Result<()> {
    let server = database().await?;
    let service =
        Service::start(&server, &["--password-memory", "19456", "--password-concurrency", "4"]).await?;
    let client = service.client();
    let ada = client.user("Ada").await?;
    let before = service.resident_kib()?;
    let mut logins = JoinSet::new();
    for _ in 0..24 {
        let (client, ada) = (client.clone(), ada.clone());
        logins.spawn(
            async move { client.post("/login", &json!({"id": ada.id, "password": ada.password})).await },
        );
    }
    while let Some(response) = logins.join_next().await {
        assert_eq!(response??.status, 200);
    }
    eventually("the memory of the logins is given back", async || {
        let grown = service.resident_kib()?.saturating_sub(before);
        Ok((grown < 8 * 1024).then_some(()))
    })
    .await
}

/// What takes the time is the hash: somebody unknown costs as much as a wrong password. Counted in processor
/// time, which a busy machine does not change.
#[tokio::test]
async fn the_time_does_not_tell_who_exists() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &["--password-memory", "65536"]).await?;
    let client = service.client();
    let ada = client.user("Ada").await?;
    let stranger = uuid::Uuid::now_v7().to_string();
    let mut ticks = [0; 2];
    for _ in 0..8 {
        for (sum, id) in ticks.iter_mut().zip([&ada.id, &stranger]) {
            let before = processor_ticks(service.pid())?;
            let response = client.post("/login", &json!({"id": id, "password": "wrong"})).await?;
            *sum += processor_ticks(service.pid())? - before;
            assert_eq!(response.status, if *id == ada.id { 400 } else { 404 });
        }
    }
    let [known, unknown] = ticks;
    assert!(known >= 16, "too little to compare: {known} ticks of 10 ms");
    assert!(unknown * 2 > known && unknown < known * 2, "known {known}, unknown {unknown} ticks");
    Ok(())
}

/// Processor time the process has used, in clock ticks of 10 ms.
fn processor_ticks(pid: u32) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Behind the name, which may contain anything, in parentheses.
    let fields = stat.rsplit_once(')').context("a name in parentheses")?.1;
    let mut times = fields.split_whitespace().skip(11);
    let mut next = || -> Result<u64> { Ok(times.next().context("a time")?.parse()?) };
    Ok(next()? + next()?)
}
