//! What is exported of a user, and what is left of one who was erased.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tokio_postgres::Client as Sql;

use super::{
    client::{Client, User},
    eventually,
};

/// Each line of a user's export.
pub(crate) async fn export(client: &Client, user: &User) -> Result<Vec<Value>> {
    let response = client.get_as(user, "/user/export").await?;
    assert_eq!((response.status, response.header("content-type")), (200, Some("application/x-ndjson")));
    response.text().lines().map(|line| serde_json::from_str(line).context("a line")).collect()
}

/// The texts of the messages in an export.
pub(crate) fn exported_texts(lines: &[Value]) -> Vec<&str> {
    lines.iter().filter_map(|line| line["message"]["text"].as_str()).collect()
}

/// Has users asked to be erased an hour ago, and then before the last token, and waits for what is done by then.
pub(crate) async fn let_time_pass(sql: &Sql) -> Result<()> {
    for (time, what, left) in [
        ("1 hour", "the last pass of the erasure", "finished_at IS NULL"),
        ("2 days", "the end of the erasure's entry", "true"),
    ] {
        let earlier = format!("UPDATE erasures SET requested_at = now() - interval '{time}'");
        sql.execute(&earlier, &[]).await?;
        eventually(what, async || {
            let left = sql.query(&format!("SELECT FROM erasures WHERE {left}"), &[]).await?;
            Ok(left.is_empty().then_some(()))
        })
        .await?;
    }
    Ok(())
}

/// Everything in the database that says something of a user: tables, and rows as JSON.
async fn traces(sql: &Sql, user: &User) -> Result<Vec<(String, Value)>> {
    let tables = "SELECT table_name::text FROM information_schema.tables
                  WHERE table_schema = 'public' AND table_type = 'BASE TABLE' ORDER BY 1";
    let mut traces = Vec::new();
    for row in sql.query(tables, &[]).await? {
        let table: String = row.get(0);
        let rows = format!("SELECT to_jsonb(t) FROM \"{table}\" AS t WHERE to_jsonb(t)::text LIKE $1");
        for row in sql.query(&rows, &[&format!("%{}%", user.id)]).await? {
            traces.push((table.clone(), row.get(0)));
        }
    }
    Ok(traces)
}

/// Checks that a user who was erased left places in others' dialogs and nothing else.
pub(crate) async fn only_places_are_left(sql: &Sql, user: &User) -> Result<()> {
    for (table, row) in traces(sql, user).await? {
        match table.as_str() {
            "messages" | "messages_archive" => {
                let by_user = row["from_user_id"] == user.id.as_str();
                ensure!(by_user == (row["text"] == "" && !row["deleted_at"].is_null()), "{table}: {row}");
                ensure!(row["client_msg_id"].is_null(), "{table}: {row}");
            }
            "dialogs" => {}
            "user_dialogs" => ensure!(row["peer_id"] == user.id.as_str(), "{row}"),
            _ => anyhow::bail!("left over in {table}: {row}"),
        }
    }
    Ok(())
}
