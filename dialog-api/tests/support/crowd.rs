//! Many dialogs at once, on one server or on many.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _, future::try_join_all, stream};
use serde_json::Value;
use tokio_postgres::Client as Sql;
use uuid::Uuid;

use super::{client::User, eventually, service::Service};

/// More than are brought up to date each by itself.
const DIALOGS: usize = 80;

/// Sends in many dialogs at the same time until their inboxes have followed together at least once, and checks that
/// each inbox is at the last message: in the tables, which `sql` reaches, and for whoever looks.
pub(crate) async fn inboxes_of_many_dialogs_follow_together(service: &Service, sql: &Sql) -> Result<()> {
    let client = service.client();
    let ada = client.user("Ada").await?;
    // Few passwords are hashed at a time.
    let others: Vec<User> = stream::iter(0..DIALOGS)
        .map(|number| {
            let client = client.clone();
            async move { client.user(&format!("other {number}")).await }
        })
        .buffered(8)
        .try_collect()
        .await?;
    let together = async || -> Result<f64> {
        let metrics = client.get("/metrics").await?.text();
        let value = metrics
            .lines()
            .find_map(|line| line.strip_prefix("dialog_api_inbox_updated_together_total "))
            .context("the metric")?;
        Ok(value.parse()?)
    };
    let mut round = 0;
    eventually("inboxes that follow together", async || {
        round += 1;
        try_join_all(others.iter().enumerate().map(|(number, other)| {
            let (client, ada) = (&client, &ada);
            let (from, to) = if number.is_multiple_of(2) { (ada, other) } else { (other, ada) };
            async move {
                let answer = client.send(from, to, &format!("{round} of {number}")).await?;
                ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
                Ok(())
            }
        }))
        .await?;
        Ok((round > 1 && together().await? >= 1.0).then_some(()))
    })
    .await
    .with_context(|| service.log_text())?;
    let expected: BTreeMap<String, String> = others
        .iter()
        .enumerate()
        .map(|(number, other)| (other.id.clone(), format!("{round} of {number}")))
        .collect();
    // By dialog. An inbox shows the text of the last message wherever it is itself.
    let by_dialog = async |query: &str| -> Result<BTreeSet<(Uuid, String)>> {
        Ok(sql.query(query, &[]).await?.iter().map(|row| (row.get(0), row.get(1))).collect())
    };
    let newest =
        by_dialog("SELECT dialog_id, max(message_id::text) FROM messages GROUP BY dialog_id").await?;
    ensure!(newest.len() == DIALOGS, "{} dialogs", newest.len());
    eventually("inboxes at the last message of each", async || {
        let inboxes = by_dialog("SELECT dialog_id, last_message_id::text FROM user_dialogs").await?;
        let marks = by_dialog("SELECT dialog_id, coalesce(inbox_id::text, 'none') FROM dialogs").await?;
        Ok((inboxes == newest && marks == newest).then_some(()))
    })
    .await
    .with_context(|| service.log_text())?;
    let rows: i64 = sql.query_one("SELECT count(*) FROM user_dialogs", &[]).await?.get(0);
    ensure!(rows == 2 * i64::try_from(DIALOGS)?, "{rows} inboxes");
    let mut found = BTreeMap::new();
    eventually("an inbox with the last message of each", async || {
        let dialogs = client.get_as(&ada, "/dialogs?limit=100").await?.json()?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        found = dialogs
            .as_array()
            .context("a bare array")?
            .iter()
            .map(|dialog| (text(&dialog["user_id"]), text(&dialog["last_message"]["text"])))
            .collect();
        Ok((found == expected).then_some(()))
    })
    .await
    .with_context(|| format!("the inbox is {found:?}, not {expected:?}"))?;
    for (number, other) in others.iter().enumerate() {
        let dialogs = client.get_as(other, "/dialogs").await?.json()?;
        ensure!(dialogs[0]["last_message"]["text"] == format!("{round} of {number}"), "{dialogs}");
    }
    Ok(())
}
