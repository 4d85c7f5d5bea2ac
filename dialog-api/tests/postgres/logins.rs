//! A flood of logins, with hashes as expensive as in production.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::{Load, Service, database};

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

/// What takes the time is the hash: somebody unknown costs as much as a wrong password.
#[tokio::test]
async fn the_time_does_not_tell_who_exists() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &["--password-memory", "65536"]).await?;
    let client = service.client();
    let ada = client.user("Ada").await?;
    let stranger = uuid::Uuid::now_v7().to_string();
    let mut times = [Duration::MAX; 2];
    for _ in 0..5 {
        for (best, id) in times.iter_mut().zip([&ada.id, &stranger]) {
            let started = std::time::Instant::now();
            let response = client.post("/login", &json!({"id": id, "password": "wrong"})).await?;
            *best = started.elapsed().min(*best);
            assert_eq!(response.status, if *id == ada.id { 400 } else { 404 });
        }
    }
    let [known, unknown] = times;
    assert!(unknown > known / 2 && unknown < known * 2, "known {known:?}, unknown {unknown:?}");
    Ok(())
}
