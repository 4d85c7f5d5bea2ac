//! The bench against the service on a real PostgreSQL, and its ledger against rows that are taken away and added.

#[path = "support/mod.rs"]
mod support;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::Result;
use dialog_bench::{
    chart,
    drive::Pace,
    population::Population,
    report::Report,
    run::{audit_file, run},
    stand::Stand,
    workload::Skew,
};

use crate::support::Service;

/// How long the database is away.
const OUTAGE: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_counted_to_the_last_message() -> Result<()> {
    let stand = Stand::start(0).await?;
    let service = Service::start(&stand, &[])?;
    service.wait_for("200 OK").await?;
    let population = service.load().await?;
    assert!(service.load().await.is_err(), "a population is loaded once");

    let report = run(&service.plan(population, 200.0, 3)?).await?;
    let text = report.text();
    assert_eq!(report.sends.requests + report.lists.requests + report.dropped, 600, "{text}");
    assert!(report.sends.failed.is_empty() && report.lists.failed.is_empty(), "{text}");
    assert!(report.is_whole(), "{text}");
    let audit = report.audit.clone().unwrap();
    assert_eq!((audit.sends, audit.acknowledged), (report.sends.requests, report.sends.succeeded));
    assert_eq!((audit.rows, audit.shards), (audit.acknowledged, 1));
    let sql = stand.coordinator().connect("dialog").await?;
    let stored: i64 = sql
        .query_one("SELECT count(*) FROM messages WHERE text LIKE 'bench %' AND length(text) = 100", &[])
        .await?
        .get(0);
    assert_eq!(u64::try_from(stored)?, audit.acknowledged);
    assert_eq!(report.seconds.iter().map(|second| second.sends).sum::<u64>(), audit.acknowledged);
    let [group] = &report.shard_groups[..] else { panic!("{:?}", report.shard_groups) };
    // How long they are is the machine's business.
    let (gap, wait) = (group.gap.longest_gap_ms, group.gap.longest_wait_ms);
    assert!(gap >= wait && wait > 0.0, "{group:?}");
    // The longest may have been in the warm-up.
    let [node] = &report.nodes[..] else { panic!("{:?}", report.nodes) };
    let slowest = (node.latency_ms.max, report.sends.latency_ms.max);
    assert!(node.node == group.node && slowest.0 >= slowest.1 && slowest.1 > 0.0, "{node:?}");

    let read: Report = serde_json::from_str(&serde_json::to_string(&report)?)?;
    assert_eq!(
        (read.run, &read.audit, &read.sends.failed),
        (report.run, &report.audit, &report.sends.failed)
    );
    assert_eq!(read.seconds.len(), report.seconds.len());
    assert!(chart::svg(&report).contains("<polyline"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_sees_what_is_taken_away_and_what_is_added() -> Result<()> {
    let stand = Stand::start(0).await?;
    let service = Service::start(&stand, &[])?;
    service.wait_for("200 OK").await?;
    let population = service.load().await?;
    let plan = service.plan(population, 100.0, 2)?;
    let before = run(&plan).await?.audit.unwrap();
    assert!(before.is_whole(), "{before:?}");

    let sql = stand.coordinator().connect("dialog").await?;
    let deleted = sql
        .execute(
            "DELETE FROM messages WHERE message_id =
                (SELECT message_id FROM messages WHERE text LIKE 'bench %' ORDER BY message_id DESC LIMIT 1)",
            &[],
        )
        .await?;
    assert_eq!(deleted, 1);
    let (audit, _) = audit_file(service.database(), &plan.ledger).await?;
    assert_eq!((audit.lost, audit.doubled), (1, 0), "{audit:?}");

    let inserted = sql
        .execute(
            "INSERT INTO messages (dialog_id, message_id, from_user_id, to_user_id, text, created_at)
             SELECT dialog_id, gen_random_uuid(), from_user_id, to_user_id, text, created_at FROM messages
             WHERE text LIKE 'bench %' ORDER BY message_id LIMIT 2",
            &[],
        )
        .await?;
    assert_eq!(inserted, 2);
    let (audit, _) = audit_file(service.database(), &plan.ledger).await?;
    assert_eq!((audit.lost, audit.doubled), (1, 2), "{audit:?}");
    assert!(audit.examples.iter().any(|example| example.starts_with("lost")), "{audit:?}");
    assert!(!audit.is_whole());
    Ok(())
}

/// A service that is away answers nobody, and nothing of that is hidden: the rate goes on, what fails is counted
/// by how, and the gap is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_is_a_gap() -> Result<()> {
    let mut stand = Stand::start(0).await?;
    let service = Service::start(&stand, &["--database-timeout", "400ms"])?;
    service.wait_for("200 OK").await?;
    let population = service.load().await?;
    let mut plan = service.plan(population, 50.0, 8)?;
    (plan.lists, plan.skew, plan.database) = (0.0, Skew::HotPair(0.5), None);
    let ledger = plan.ledger.clone();
    let load = tokio::spawn(async move { run(&plan).await });
    // Once the first messages are there, the database goes away; another second later it is back.
    let sql = stand.coordinator().connect("dialog").await?;
    support::wait_for_messages(&sql, 20).await?;
    drop(sql);
    stand.coordinator_mut().stop(testbed::postgres::Shutdown::Immediate)?;
    tokio::time::sleep(OUTAGE).await;
    stand.coordinator_mut().start()?;
    let report = load.await??;
    let text = report.text();
    assert!(!report.is_whole(), "nobody has looked yet");
    let (audit, places) = audit_file(service.database(), &ledger).await?;
    assert!(audit.is_whole(), "{text}{}", audit.text());
    assert!(
        report.sends.failed.keys().all(|code| code == "503") && !report.sends.failed.is_empty(),
        "{text}"
    );
    assert_eq!(audit.sends + report.dropped, 400, "{text}");
    let gap = &places.shard_groups[0].gap;
    assert!(gap.longest_gap_ms >= 1_000.0 && gap.longest_wait_ms >= 900.0, "{text}{gap:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_loop_goes_as_fast_as_the_answers() -> Result<()> {
    let stand = Stand::start(0).await?;
    let service = Service::start(&stand, &[])?;
    service.wait_for("200 OK").await?;
    let population = service.load().await?;
    let mut plan = service.plan(population, 1.0, 2)?;
    (plan.settings.pace, plan.skew) = (Pace::Closed, Skew::Zipf(1.0));
    let report = run(&plan).await?;
    assert!(report.is_whole() && report.load.rate.is_none(), "{}", report.text());
    assert!(report.sends.succeeded > 5 && report.lists.succeeded > 5, "{}", report.text());

    // Of a population that nobody loaded it says so, before any load is made.
    plan.population = Population::new(400, 600, 2)?;
    let error = format!("{:#}", run(&plan).await.unwrap_err());
    assert!(error.contains("dialog-bench load"), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_is_ended_early_is_counted_as_ever() -> Result<()> {
    let stand = Stand::start(0).await?;
    let service = Service::start(&stand, &[])?;
    service.wait_for("200 OK").await?;
    let population = service.load().await?;
    let sql = stand.coordinator().connect("dialog").await?;
    let [easy, too_fast] = [200.0, 50_000.0].map(|rate| service.plan(population, rate, 1));
    let [easy, too_fast] = [easy?.settings.pace, too_fast?.settings.pace];
    for pace in [easy, too_fast, Pace::Closed] {
        let mut plan = service.plan(population, 1.0, 3600)?;
        plan.settings.pace = pace;
        let load = async {
            support::wait_for_messages(&sql, 100).await?;
            plan.stop.store(true, Ordering::Relaxed);
            anyhow::Ok(())
        };
        let (report, ended) = tokio::join!(run(&plan), load);
        ended?;
        let report = report?;
        assert!(report.is_whole(), "{}", report.text());
        assert!(report.sends.succeeded > 0 && report.load.duration_s < 600.0, "{:?}", report.load);
        // What could not be asked in time is not asked afterwards.
        assert_eq!(report.left > 1_000, pace == too_fast, "{}", report.text());
        // The same plan again, which nobody ends.
        (plan.settings.duration, plan.stop) = (Duration::from_secs(1), Arc::default());
        for _ in 0..2 {
            let report = run(&plan).await?;
            assert!(report.sends.succeeded > 0 && report.load.duration_s >= 1.0, "{:?}", report.load);
        }
        sql.batch_execute("DELETE FROM messages").await?;
    }
    Ok(())
}
