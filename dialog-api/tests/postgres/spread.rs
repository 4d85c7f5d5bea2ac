//! How statements are spread over the connections to a server.

use std::collections::HashSet;

use anyhow::{Result, ensure};
use futures::future::{try_join, try_join_all};

use crate::support::{Service, User, database, eventually};

/// Connections to a server, if nothing is said.
const CONNECTIONS: usize = 8;
/// Requests at a time.
const REQUESTS: usize = 16;
/// Connections that reads fill which come at a time, eight to each.
const FILLED: usize = 2;

/// The sessions with a statement that waits for the table, and since when. The service gives none of them up before two
/// seconds are over.
const WAITING: &str = "SELECT waitstart::text, pid FROM pg_locks WHERE NOT granted ORDER BY waitstart";

/// Writes at a time go over all connections, so that their commits share a flush of the log; reads, which have nothing to
/// flush, travel together over a few, unless the server has just been slow to answer.
#[tokio::test]
async fn writes_at_a_time_have_a_connection_each_and_reads_of_a_prompt_server_share_a_few() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &["--database-timeout", "20s"]).await?;
    let client = service.client();
    let ada = client.user("Ada").await?;
    let mut peers = Vec::new();
    for number in 0..REQUESTS {
        let peer = client.user(&format!("peer {number}")).await?;
        client.send(&ada, &peer, "first").await?;
        peers.push(peer);
    }
    let (locker, observer) = (server.connect("dialog").await?, server.connect("dialog").await?);
    let behind = "SELECT FROM messages m JOIN dialogs d USING (dialog_id) WHERE d.inbox_id IS DISTINCT FROM m.message_id";
    eventually("inboxes at the last message", async || {
        Ok(observer.query(behind, &[]).await?.is_empty().then_some(()))
    })
    .await?;
    // Connections that were slow to answer are not filled again, until there are no others.
    let rounds = [(false, FILLED); CONNECTIONS / FILLED].into_iter();
    let mut slow = HashSet::new();
    for (write, expected) in rounds.chain([(false, CONNECTIONS), (true, CONNECTIONS)]) {
        locker.batch_execute("BEGIN; LOCK TABLE messages IN ACCESS EXCLUSIVE MODE").await?;
        let requests = try_join_all(peers.iter().map(async |peer: &User| {
            let answer = if write {
                client.send(&ada, peer, "second").await?
            } else {
                client.list(&ada, peer).await?
            };
            ensure!(answer.status == 200, "{}", answer.text());
            Ok(())
        }));
        let look = async {
            let mut first = None;
            eventually(&format!("statements on {expected} connections"), async || {
                let rows = observer.query(WAITING, &[]).await?;
                ensure!(rows.len() <= expected, "{} connections for {REQUESTS} requests", rows.len());
                let longest: Option<String> = rows.first().and_then(|row| row.get(0));
                let Some(longest) = longest else { return Ok(None) };
                ensure!(*first.get_or_insert_with(|| longest.clone()) == longest, "those who waited gave up");
                if rows.len() == expected && expected < CONNECTIONS {
                    for row in &rows {
                        ensure!(slow.insert(row.get::<_, i32>(1)), "a slow connection is filled again");
                    }
                }
                Ok((rows.len() == expected).then_some(()))
            })
            .await?;
            // Longer than a prompt server takes.
            Ok(locker.batch_execute("SELECT pg_sleep(0.2); COMMIT").await?)
        };
        try_join(requests, look).await?;
    }
    Ok(())
}
