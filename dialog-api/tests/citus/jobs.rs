//! What the service does for itself, where its tables are distributed.

use anyhow::{Context as _, Result};
use http::Method;
use serde_json::json;
use testbed::postgres::citus_or_skip;
use uuid::Uuid;

use crate::{
    cluster::{Cluster, serving},
    support::{
        erasure::{export, exported_texts, let_time_pass, only_places_are_left},
        eventually,
        history::{ARCHIVING, read, wait_for_archive, write_long_ago},
    },
};

/// More than one transaction of the job moves.
const OLD: u64 = 1_200;

#[tokio::test(flavor = "multi_thread")]
async fn old_messages_are_archived_on_their_shard_and_read_as_before() -> Result<()> {
    if !citus_or_skip() {
        return Ok(());
    }
    let (cluster, service) = serving(2, &[]).await?;
    let client = service.client();
    let sql = cluster.coordinator.connect("dialog").await?;
    let ada = client.user("Ada").await?;
    let mut peers = Vec::new();
    // On several shards, on both workers.
    for number in 0..6 {
        let peer = client.user(&format!("peer {number}")).await?;
        write_long_ago(&sql, &ada, &peer, if number == 0 { OLD } else { 3 }, 72).await?;
        assert_eq!(client.send(&peer, &ada, "new").await?.status, 200);
        peers.push(peer);
    }
    let archiver = cluster.service(&ARCHIVING)?;
    archiver.wait_until_ready().await?;
    let old = i64::try_from(OLD)? + 5 * 3;
    wait_for_archive(&sql, old, 6).await.with_context(|| archiver.log_text())?;

    let mut expected: Vec<String> = (0..OLD).map(|number| number.to_string()).collect();
    expected.push("new".to_owned());
    for limit in [100, 7] {
        assert_eq!(read(&client, &ada, &peers[0], limit, true).await?, expected, "{limit} at a time");
    }
    for peer in &peers[1..] {
        assert_eq!(client.texts(&ada, peer).await?, ["new", "2", "1", "0"]);
    }
    // A dialog and its archive lie on one node.
    let apart = "SELECT count(*) FROM pg_dist_partition AS one, pg_dist_partition AS other
                 WHERE one.logicalrelid = 'messages'::regclass AND other.logicalrelid = 'messages_archive'::regclass
                 AND one.colocationid <> other.colocationid";
    assert_eq!(sql.query_one(apart, &[]).await?.get::<_, i64>(0), 0);

    // What is archived can be changed and deleted.
    let list = client.list(&ada, &peers[1]).await?.json()?;
    let path = |index: usize| {
        let id = list[index]["id"].as_str().unwrap_or_default();
        format!("/dialog/{}/messages/{id}", peers[1].id)
    };
    let change = json!({"text": "changed"});
    assert_eq!(client.call_as(&ada, Method::PATCH, &path(3), Some(&change)).await?.status, 200);
    assert_eq!(client.call_as(&ada, Method::DELETE, &path(2), None).await?.status, 204);
    assert_eq!(client.texts(&peers[1], &ada).await?, ["new", "2", "", "changed"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_on_many_shards_is_exported_and_erased() -> Result<()> {
    if !citus_or_skip() {
        return Ok(());
    }
    let cluster = Cluster::new(2).await?;
    let service = cluster.serving(&ARCHIVING).await?;
    let client = service.client();
    let sql = cluster.coordinator.connect("dialog").await?;
    let ada = client.user("Ada").await?;
    let (mut peers, mut said) = (Vec::new(), Vec::new());
    for number in 0..8 {
        let peer = client.user(&format!("peer {number}")).await?;
        let (hers, theirs) = (format!("secret {number}"), format!("answer {number}"));
        let key = [("idempotency-key", "my private number")];
        assert_eq!(client.send_with(&ada, &peer, &key, &json!({"text": hers})).await?.status, 200);
        assert_eq!(client.send(&peer, &ada, &theirs).await?.status, 200);
        client.post_as(&ada, &format!("/dialog/{}/read", peer.id), &json!({})).await?;
        said.extend([hers, theirs]);
        peers.push(peer);
    }
    // As after years: what she said first to somebody is archived.
    sql.batch_execute("BEGIN").await?;
    let (ada_id, peer_id): (Uuid, Uuid) = (ada.id.parse()?, peers[0].id.parse()?);
    let dialog = dialog_api::dialogs::pair::Pair::new(ada_id, peer_id).dialog_id();
    sql.execute(
        "INSERT INTO messages_archive SELECT dialog_id, message_id, from_user_id, to_user_id, text, client_msg_id,
             created_at FROM messages WHERE dialog_id = $1 AND from_user_id = $2",
        &[&dialog, &ada_id],
    )
    .await?;
    sql.execute("DELETE FROM messages WHERE dialog_id = $1 AND from_user_id = $2", &[&dialog, &ada_id])
        .await?;
    sql.execute("UPDATE messages SET older_archived = true WHERE dialog_id = $1", &[&dialog]).await?;
    sql.batch_execute("COMMIT").await?;
    eventually("an inbox with all dialogs", async || {
        let dialogs = client.get_as(&ada, "/dialogs").await?.json()?;
        Ok((dialogs.as_array().map(Vec::len) == Some(peers.len())).then_some(()))
    })
    .await?;

    let lines = export(&client, &ada).await?;
    let mut exported = exported_texts(&lines);
    exported.sort_unstable();
    said.sort_unstable();
    assert_eq!(exported, said);

    let erased = client.post_as(&ada, "/user/erase", &json!({"password": ada.password})).await?;
    assert_eq!(erased.status, 202, "{}", erased.text());
    for (number, peer) in peers.iter().enumerate() {
        eventually("a dialog without what was erased", async || {
            Ok((client.texts(peer, &ada).await? == [format!("answer {number}"), String::new()]).then_some(()))
        })
        .await
        .with_context(|| service.log_text())?;
        client.send(peer, &ada, "are you there?").await?.assert_error(400);
    }
    let_time_pass(&sql).await.with_context(|| service.log_text())?;
    only_places_are_left(&sql, &ada).await
}

/// The message is on its shard, no inbox knows, and the process that should have told them is killed.
#[tokio::test(flavor = "multi_thread")]
async fn inboxes_that_a_crash_left_behind_follow() -> Result<()> {
    if !citus_or_skip() {
        return Ok(());
    }
    let (cluster, victim) = serving(2, &["--jobs-interval", "1h"]).await?;
    let client = victim.client();
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);
    // Who updates an inbox waits, for as long as this transaction has locked the shards.
    let locker = cluster.coordinator.connect("dialog").await?;
    locker.batch_execute("BEGIN; LOCK TABLE user_dialogs IN ACCESS EXCLUSIVE MODE").await?;
    assert_eq!(client.send(&ada, &bob, "last words").await?.status, 200);
    victim.signal("KILL")?;
    drop(victim);
    // What it had asked already would be done although nobody is there to hear of it.
    for node in std::iter::once(&cluster.coordinator).chain(&cluster.workers) {
        let sql = node.connect("dialog").await?;
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'dialog_api'";
        eventually("the end of the sessions of who was killed", async || {
            Ok(sql.query(end, &[]).await?.is_empty().then_some(()))
        })
        .await?;
    }
    locker.batch_execute("COMMIT").await?;
    let known: i64 = locker.query_one("SELECT count(*) FROM user_dialogs", &[]).await?.get(0);
    assert_eq!(known, 0, "the inboxes have followed before the process was killed: nothing is tested");

    let survivor = cluster.service(&["--jobs-interval", "100ms"])?;
    survivor.wait_until_ready().await?;
    for (reader, peer) in [(&bob, &ada), (&ada, &bob)] {
        eventually("an inbox with the message", async || {
            let dialogs = survivor.client().get_as(reader, "/dialogs").await?.json()?;
            let found = dialogs[0]["user_id"] == peer.id.as_str()
                && dialogs[0]["last_message"]["text"] == "last words";
            Ok(found.then_some(()))
        })
        .await
        .with_context(|| survivor.log_text())?;
    }
    Ok(())
}
