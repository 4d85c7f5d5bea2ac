//! Load with a ledger: what was acknowledged, to be compared with what is in the tables.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hyper_util::client::legacy;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{
    client::{Client, User},
    service::{SOON, Service},
};

/// Pause after a request that was refused, or not even accepted. Trying again at once would only burn the processor.
const REFUSED_PAUSE: Duration = Duration::from_millis(10);

/// What happened to the messages of a load.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Texts that were answered with 200.
    pub(crate) acknowledged: Vec<String>,
    /// How long each of these took.
    pub(crate) latencies: Vec<Duration>,
    /// Other answers, by status.
    pub(crate) refused: BTreeMap<u16, usize>,
    /// Connections that were not accepted.
    pub(crate) not_accepted: usize,
    /// Requests that were accepted and not answered.
    pub(crate) broken: Vec<String>,
}

/// Senders that send one message after the other until told to stop.
pub(crate) struct Load {
    stop: CancellationToken,
    acknowledged: Arc<watch::Sender<usize>>,
    senders: Vec<JoinHandle<Ledger>>,
}

impl Load {
    /// Starts this many senders, each with a pair of users and a connection of its own.
    pub(crate) async fn start(service: &Service, senders: usize) -> Result<Self> {
        let stop = CancellationToken::new();
        let acknowledged = Arc::new(watch::Sender::new(0));
        let mut tasks = Vec::new();
        for sender in 0..senders {
            let client = service.client();
            let from = client.user(&format!("sender {sender}")).await?;
            let to = client.user(&format!("recipient {sender}")).await?;
            let (stop, acknowledged) = (stop.clone(), Arc::clone(&acknowledged));
            tasks.push(tokio::spawn(async move {
                send_until(sender, &client, &from, &to, &stop, &acknowledged).await
            }));
        }
        Ok(Self { stop, acknowledged, senders: tasks })
    }

    /// Waits until this many more messages are acknowledged.
    pub(crate) async fn acknowledge(&self, more: usize) -> Result<()> {
        let mut count = self.acknowledged.subscribe();
        let goal = *count.borrow() + more;
        tokio::time::timeout(SOON, count.wait_for(|count| *count >= goal))
            .await
            .context("messages are not acknowledged any more")??;
        Ok(())
    }

    /// Stops the senders; each finishes the request it is in.
    pub(crate) async fn stop(self) -> Result<Ledger> {
        self.stop.cancel();
        let mut whole = Ledger::default();
        for sender in self.senders {
            let Ledger { acknowledged, latencies, refused, not_accepted, broken } = sender.await?;
            whole.acknowledged.extend(acknowledged);
            whole.latencies.extend(latencies);
            for (status, count) in refused {
                *whole.refused.entry(status).or_default() += count;
            }
            whole.not_accepted += not_accepted;
            whole.broken.extend(broken);
        }
        whole.latencies.sort_unstable();
        Ok(whole)
    }
}

async fn send_until(
    sender: usize,
    client: &Client,
    from: &User,
    to: &User,
    stop: &CancellationToken,
    acknowledged: &watch::Sender<usize>,
) -> Ledger {
    let mut ledger = Ledger::default();
    let mut number = 0;
    while !stop.is_cancelled() {
        number += 1;
        let text = format!("{sender}-{number}");
        let started = Instant::now();
        match client.send(from, to, &text).await {
            Ok(response) if response.status == 200 => {
                ledger.acknowledged.push(text);
                ledger.latencies.push(started.elapsed());
                acknowledged.send_modify(|count| *count += 1);
            }
            Ok(response) => {
                *ledger.refused.entry(response.status).or_default() += 1;
                tokio::time::sleep(REFUSED_PAUSE).await;
            }
            Err(error) if error.downcast_ref().is_some_and(legacy::Error::is_connect) => {
                ledger.not_accepted += 1;
                tokio::time::sleep(REFUSED_PAUSE).await;
            }
            Err(error) => ledger.broken.push(format!("{text}: {error:#} {:?}", error.root_cause())),
        }
    }
    ledger
}

impl Ledger {
    /// Checks with SQL that every acknowledged message is there, once.
    pub(crate) async fn check(&self, database: &tokio_postgres::Client) -> Result<()> {
        let rows = database
            .query(
                "SELECT expected, count(messages.text) FROM unnest($1::text[]) AS expected
                 LEFT JOIN messages ON messages.text = expected
                 GROUP BY expected HAVING count(messages.text) <> 1",
                &[&self.acknowledged],
            )
            .await?;
        let wrong: Vec<(String, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        ensure!(wrong.is_empty(), "acknowledged messages that are lost or doubled: {wrong:?}");
        ensure!(self.broken.is_empty(), "accepted and not answered: {:?}", self.broken);
        Ok(())
    }

    /// The time within which this share (0 to 1) of the acknowledged messages were answered.
    pub(crate) fn latency(&self, share: f64) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index into a list that fits in memory"
        )]
        self.latencies.get((last as f64 * share) as usize).copied().unwrap_or_default()
    }
}
