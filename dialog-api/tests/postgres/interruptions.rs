//! Who waits while the database is away for a moment, and what becomes of them when it is back.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::{
    future::{join_all, try_join_all},
    stream::{FuturesUnordered, StreamExt as _},
};
use testbed::postgres::Server;
use tokio::time::sleep;

use crate::support::{
    Client, Load, Service, User, database, eventually,
    proxy::{Proxy, Way},
    service::attempts,
};

/// A database behind a way that can be interrupted, and the service in front of it.
async fn interruptible(flags: &[&str]) -> Result<(Server, Proxy, Service)> {
    let server = database().await?;
    let way = Proxy::to(server.port()).await?;
    let port = way.port().to_string();
    let service = Service::spawn_with(
        &[&["--database-host", "localhost", "--database-port", &port, "--jobs-interval", "1h"], flags]
            .concat(),
    )?;
    service.wait_until_ready().await?;
    Ok((server, way, service))
}

/// Dialogs in which a message was sent: one more takes a single statement.
async fn dialogs(client: &Client, count: usize) -> Result<Vec<(User, User)>> {
    try_join_all((0..count).map(|number| async move {
        let (one, other) =
            (client.user(&format!("one {number}")).await?, client.user(&format!("other {number}")).await?);
        assert_eq!(client.send(&one, &other, "first").await?.status, 200);
        Ok((one, other))
    }))
    .await
}

/// The present value of a metric of the service that there is once; without the prefix of all its metrics.
async fn metric(service: &Service, name: &str) -> Result<f64> {
    let text = service.client().get("/metrics").await?.text();
    let line = text.lines().find_map(|line| line.strip_prefix("dialog_api_")?.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().last()).context("the metric")?.parse().context("a number")
}

/// Waits until so many statements have waited for the database.
async fn wait_for_waits(service: &Service, count: f64) -> Result<()> {
    eventually("statements that wait", async || {
        Ok((metric(service, "node_waits_total{").await? >= count).then_some(()))
    })
    .await
    .with_context(|| service.log_text())
}

/// The first connection that is back has not to work off all alone what has gathered meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_waited_is_spread_over_the_connections_that_come() -> Result<()> {
    const CROWD: u16 = 300;
    let (server, way, service) = interruptible(&["--database-timeout", "20s"]).await?;
    let client = service.client();
    let pairs = dialogs(&client, 4).await?;
    let sql = server.connect("dialog").await?;
    // Each message says on which connection it was written, and takes the time of a slow disk.
    sql.batch_execute(
        "CREATE FUNCTION written_by() RETURNS int LANGUAGE sql VOLATILE
             AS 'SELECT pg_backend_pid() FROM pg_sleep(0.01)';
         ALTER TABLE messages ADD COLUMN written_by int;
         ALTER TABLE messages ALTER COLUMN written_by SET DEFAULT written_by()",
    )
    .await?;
    way.set(Way::Closed);
    let sends = join_all((0..usize::from(CROWD)).map(|number| {
        let (client, (one, other)) = (&client, &pairs[number % pairs.len()]);
        async move { client.send(one, other, &format!("meanwhile {number}")).await }
    }));
    let open = async {
        wait_for_waits(&service, f64::from(CROWD)).await?;
        way.set(Way::Open);
        anyhow::Ok(())
    };
    let (answers, opened) = futures::future::join(sends, open).await;
    opened?;
    for answer in answers {
        let answer = answer?;
        ensure!(answer.status == 200, "{} {}\n{}", answer.status, answer.text(), attempts(&service));
    }
    let shares =
        "SELECT count(*) FROM messages WHERE text LIKE 'meanwhile %' GROUP BY written_by ORDER BY 1 DESC";
    let shares: Vec<i64> = sql.query(shares, &[]).await?.iter().map(|row| row.get(0)).collect();
    assert_eq!(shares.iter().sum::<i64>(), i64::from(CROWD));
    assert!(shares[0] < i64::from(CROWD) / 2, "one connection has carried most of it: {shares:?}");
    Ok(())
}

/// A request that waits keeps its client's connection. Not all of them may.
#[tokio::test(flavor = "multi_thread")]
async fn those_who_wait_leave_room_for_others() -> Result<()> {
    let flags = ["--max-connections", "16", "--database-timeout", "20s"];
    let (server, way, service) = interruptible(&flags).await?;
    let client = service.client();
    let pairs = dialogs(&client, 4).await?;
    // What is still to be done for the inboxes would wait as well.
    inboxes_follow(&server, 4).await?;
    way.set(Way::Closed);
    eventually("a lost database", async || {
        Ok((metric(&service, "node_connections_live{").await? < 1.0).then_some(()))
    })
    .await?;
    // As many as there are connections: if all waited, nobody else would be heard. Of the four who may wait, one would have
    // to wait for another server.
    let mut sends: FuturesUnordered<_> = (0..16)
        .map(|number| {
            let (client, (one, other)) = (&client, &pairs[number % pairs.len()]);
            async move { client.send(one, other, &format!("meanwhile {number}")).await }
        })
        .collect();
    for _ in 0..13 {
        sends.next().await.context("an answer")??.assert_error(503);
    }
    assert_eq!(service.client().get("/health").await?.status, 200);
    wait_for_waits(&service, 3.0).await?;
    way.set(Way::Open);
    while let Some(answer) = sends.next().await {
        let answer = answer?;
        assert_eq!(answer.status, 200, "{} {}", answer.text(), attempts(&service));
    }
    Ok(())
}

/// Waits until the inboxes have the messages of so many dialogs.
async fn inboxes_follow(server: &Server, dialogs: i64) -> Result<()> {
    let sql = server.connect("dialog").await?;
    let followed = "SELECT true FROM dialogs WHERE inbox_id IS NOT NULL HAVING count(*) = $1";
    eventually("inboxes that follow", async || Ok(sql.query_opt(followed, &[&dialogs]).await?))
        .await
        .map(drop)
}

/// A server that has only just started needs its time to take a connection, and is waited for all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_successor_that_takes_its_time_is_reached() -> Result<()> {
    let flags = ["--database-connections", "1", "--database-timeout", "12s"];
    let (_server, way, service) = interruptible(&flags).await?;
    let client = service.client();
    let pairs = dialogs(&client, 4).await?;
    way.set(Way::Closed);
    let sends =
        join_all(pairs.iter().map(|(one, other)| async { client.send(one, other, "meanwhile").await }));
    let slow = async {
        wait_for_waits(&service, 4.0).await?;
        way.set(Way::Slow(Duration::from_millis(1200)));
        anyhow::Ok(())
    };
    let (answers, slowed) = futures::future::join(sends, slow).await;
    slowed?;
    for answer in answers {
        let answer = answer?;
        ensure!(answer.status == 200, "{} {}\n{}", answer.status, answer.text(), service.log_text());
    }
    Ok(())
}

/// An address that takes connections and says nothing, not later either, uses up all of an attempt, however long. Those who
/// are patient with a slow server keep nobody from one that is there meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn patience_with_a_silent_address_is_not_for_all_connections() -> Result<()> {
    let (_server, way, service) = interruptible(&["--database-timeout", "14s"]).await?;
    let client = service.client();
    let pairs = dialogs(&client, 4).await?;
    way.set(Way::Silent);
    let sends =
        join_all(pairs.iter().map(|(one, other)| async { client.send(one, other, "meanwhile").await }));
    let successor = async {
        eventually("patient attempts", async || {
            Ok(service.log_text().contains("no session within 4s").then_some(()))
        })
        .await?;
        // By then their next attempts are under way, which last for longer than the statements have left.
        sleep(Duration::from_secs(1)).await;
        way.set(Way::Open);
        anyhow::Ok(())
    };
    let (answers, opened) = futures::future::join(sends, successor).await;
    opened?;
    for answer in answers {
        let answer = answer?;
        ensure!(answer.status == 200, "{} {}\n{}", answer.status, answer.text(), service.log_text());
    }
    Ok(())
}

/// Who comes when the server is there again has not waited for it. However many go on asking, the queue ends, and a server
/// that is there refuses nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_back_refuses_nobody_and_its_queue_ends() -> Result<()> {
    // Places for 7 who wait, and 4 turns: for fewer than there are senders.
    let flags = ["--database-connections", "1", "--max-connections", "40", "--database-timeout", "20s"];
    let (server, way, service) = interruptible(&flags).await?;
    let client = service.client();
    let pairs = dialogs(&client, 1).await?;
    let (one, other) = &pairs[0];
    inboxes_follow(&server, 1).await?;
    let load = Load::start(&service, 24).await?;
    load.acknowledge(200).await?;
    way.set(Way::Closed);
    eventually("a full queue", async || Ok((metric(&service, "node_queue{").await? > 6.0).then_some(())))
        .await
        .with_context(|| service.log_text())?;
    client.send(one, other, "in vain").await?.assert_error(503);
    way.set(Way::Open);
    eventually("a server that is back", async || {
        Ok((metric(&service, "node_connections_live{").await? > 0.0).then_some(()))
    })
    .await?;
    for number in 0..50 {
        let answer = client.send(one, other, &format!("back {number}")).await?;
        ensure!(answer.status == 200, "{number}: {} {}", answer.status, answer.text());
    }
    load.acknowledge(200).await?;
    eventually("an end of the queue", async || {
        Ok((metric(&service, "node_queue{").await? < 1.0).then_some(()))
    })
    .await?;
    // Under the same load as before.
    load.acknowledge(200).await?;
    assert!(metric(&service, "node_queue{").await? < 1.0, "it has begun again");
    let ledger = load.stop().await?;
    ledger.check(&server.connect("dialog").await?).await
}

/// A server that comes back again and again, and ends whenever it is to do anything, is as good as away.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_keeps_crashing_is_waited_for_once() -> Result<()> {
    let flags = ["--database-connections", "1", "--database-timeout", "4s"];
    let (server, _way, service) = interruptible(&flags).await?;
    let client = service.client();
    let pairs = dialogs(&client, 1).await?;
    let (one, other) = &pairs[0];
    let sql = server.connect("dialog").await?;
    inboxes_follow(&server, 1).await?;
    sql.batch_execute(
        "CREATE FUNCTION crash() RETURNS bool LANGUAGE sql VOLATILE
             AS 'SELECT pg_terminate_backend(pg_backend_pid())';
         ALTER TABLE messages ADD COLUMN crash bool;
         ALTER TABLE messages ALTER COLUMN crash SET DEFAULT crash()",
    )
    .await?;
    let waits = async || metric(&service, "node_waits_total{").await;
    client.send(one, other, "in vain").await?.assert_error(503);
    assert!(waits().await? > 0.0, "nobody has waited: nothing is tested");
    eventually("a send that does not wait", async || {
        let before = waits().await?;
        client.send(one, other, "in vain").await?.assert_error(503);
        Ok((waits().await? - before < 1.0).then_some(()))
    })
    .await
    .with_context(|| attempts(&service))?;
    let before = waits().await?;
    // It lives each time for as long as it takes to send it something.
    for _ in 0..5 {
        eventually("a server that is back", async || {
            Ok((metric(&service, "node_connections_live{").await? > 0.0).then_some(()))
        })
        .await?;
        client.send(one, other, "in vain").await?.assert_error(503);
    }
    let waited = waits().await? - before;
    assert!(waited < 1.0, "{waited} statements have waited\n{}", service.log_text());

    sql.batch_execute("ALTER TABLE messages ALTER COLUMN crash DROP DEFAULT").await?;
    eventually("a send that is answered", async || {
        Ok((client.send(one, other, "at last").await?.status == 200).then_some(()))
    })
    .await
}
