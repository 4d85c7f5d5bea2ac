//! A worker that is away for as long as a switchover or a restart takes costs a wait, and nobody an answer.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use futures::future::join;
use testbed::postgres::citus_or_skip;
use tokio::time::sleep;

use crate::{
    cluster::{Cluster, metric, pairs_on, wait_for_metric},
    support::{Client, User, proxy::Way, service::attempts},
};

/// As long a switchover takes, and a restart.
const INTERRUPTION: Duration = Duration::from_millis(2500);
/// As long as one is that the limits which everybody has are made for.
const LONG_INTERRUPTION: Duration = Duration::from_secs(3);
/// Statements wait for 4 s. Within this time the service has to have a connection again for anything to be tested.
const REACHED_IN_TIME: Duration = Duration::from_millis(3600);
/// How often it is tried on a machine that is too busy for that.
const ROUNDS: usize = 3;
/// Requests that come meanwhile.
const CROWD: usize = 600;

/// Every second one a list, all in the same moment.
async fn ask_all(client: &Client, pairs: &[(User, User)], crowd: usize, what: &str) -> Result<()> {
    let ask = |number: usize| {
        let (one, other) = &pairs[number % pairs.len()];
        async move {
            if number.is_multiple_of(2) {
                client.send(one, other, &format!("{what} {number}")).await
            } else {
                client.list(other, one).await
            }
        }
    };
    for answer in futures::future::join_all((0..crowd).map(ask)).await {
        let answer = answer?;
        ensure!(answer.status == 200, "{what}: {} {}", answer.status, answer.text());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_switched_over_costs_a_wait_and_no_answer() -> Result<()> {
    if !citus_or_skip() {
        return Ok(());
    }
    let cluster = Cluster::interruptible(2).await?;
    // On a busy machine it takes its time to be there again.
    let service = cluster.serving(&["--database-timeout", "20s"]).await?;
    wait_for_metric(&service, r#"routing_mode{mode="owner"}"#, |value| value > 0.0).await?;
    let client = service.client();
    let pairs = pairs_on(&cluster, 0, &client, 4).await?;
    let way = &cluster.ways[0];
    for (interruption, what) in [(Way::Closed, "closed"), (Way::Silent, "silent")] {
        way.set(interruption);
        // The length of the interruption is what is tested.
        let end = async {
            sleep(INTERRUPTION).await;
            way.set(Way::Open);
        };
        let (asked, ()) = join(ask_all(&client, &pairs, CROWD, what), end).await;
        asked.map_err(|error| error.context(attempts(&service)))?;
    }
    let given_up = service.log_text().matches("no session within 1s").count();
    ensure!(given_up > 1, "an address that says nothing was given up by {given_up} connections");
    let waits = format!("node_waits_total{{node=\"localhost:{}\"}}", cluster.worker_port(0));
    let waited = metric(&service, &waits).await?;
    ensure!(waited >= 1.0, "nobody has waited: nothing is tested");
    // What waited was sent once.
    let sql = cluster.coordinator.connect("dialog").await?;
    let sent = "SELECT count(*), count(DISTINCT text) FROM messages WHERE text <> 'first'";
    let row = sql.query_one(sent, &[]).await?;
    let (all, distinct): (i64, i64) = (row.get(0), row.get(1));
    let expected = i64::try_from(CROWD)?;
    assert_eq!((all, distinct), (expected, expected));
    Ok(())
}

/// The same with the limits that everybody has: statements wait for 4 s.
#[tokio::test(flavor = "multi_thread")]
async fn three_seconds_without_a_worker_cost_nobody_an_answer_by_default() -> Result<()> {
    if !citus_or_skip() {
        return Ok(());
    }
    let cluster = Cluster::interruptible(2).await?;
    let service = cluster.serving(&[]).await?;
    wait_for_metric(&service, r#"routing_mode{mode="owner"}"#, |value| value > 0.0).await?;
    let client = service.client();
    let pairs = pairs_on(&cluster, 0, &client, 4).await?;
    let way = &cluster.ways[0];
    let of_worker = |name: &str| format!("{name}{{node=\"localhost:{}\"}}", cluster.worker_port(0));
    let (live, waits) = (of_worker("node_connections_live"), of_worker("node_waits_total"));
    for round in 0..ROUNDS {
        let (lost, before) = (Instant::now(), metric(&service, &waits).await?);
        way.set(Way::Closed);
        let end = async {
            // The length of the interruption is what is tested.
            sleep(LONG_INTERRUPTION).await;
            way.set(Way::Open);
            wait_for_metric(&service, &live, |live| live > 0.0).await?;
            anyhow::Ok(lost.elapsed())
        };
        let what = format!("by default, round {round}");
        let (asked, reached) = join(ask_all(&client, &pairs, CROWD / 10, &what), end).await;
        let reached = reached?;
        match asked {
            Ok(()) => {
                ensure!(metric(&service, &waits).await? > before, "nobody has waited: nothing is tested");
                return Ok(());
            }
            Err(error) if reached <= REACHED_IN_TIME => return Err(error.context(attempts(&service))),
            Err(error) => println!("{error:#}, but there was no connection for {reached:?}: once more"),
        }
    }
    bail!(
        "in none of {ROUNDS} rounds was the worker reached within {REACHED_IN_TIME:?}\n{}",
        service.log_text()
    )
}
