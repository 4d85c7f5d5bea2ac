//! Listing a dialog by other designs of the tables, on the same data.

use anyhow::{Context as _, Result, bail};
use tokio_postgres::Client;

use super::{
    measure::Bench,
    pgbench::{Pgbench, own_list},
};
use crate::{
    stand::SHARDS,
    table::{Limit, Row},
};

/// How another system lists a dialog.
struct Design {
    what: &'static str,
    table: &'static str,
    /// Makes the table, apart from its distribution.
    schema: &'static str,
    /// What it is distributed by.
    column: &'static str,
    /// The columns of our messages that it is filled from.
    from: &'static str,
    list: &'static str,
}

const DESIGNS: [Design; 3] = [
    Design {
        what: "an OR over two users, distributed by the recipient",
        table: "design_by_recipient",
        schema: "CREATE TABLE design_by_recipient (id uuid, user_id uuid, to_user_id uuid, text text,
                     create_date timestamptz, PRIMARY KEY (id, to_user_id));
                 CREATE INDEX ON design_by_recipient (to_user_id, user_id)",
        column: "to_user_id",
        from: "message_id, from_user_id, to_user_id, text, created_at",
        list: "SELECT user_id, to_user_id, text, id, create_date FROM design_by_recipient
               WHERE (user_id = :one AND to_user_id = :other) OR (user_id = :other AND to_user_id = :one)
               ORDER BY create_date DESC LIMIT 100",
    },
    Design {
        what: "messages distributed by the sender",
        table: "design_by_sender",
        schema: "CREATE TABLE design_by_sender (dialog_id uuid, message_id uuid, from_user_id uuid, to_user_id uuid,
                     text text, created_at timestamptz, PRIMARY KEY (message_id, from_user_id));
                 CREATE INDEX ON design_by_sender (dialog_id, message_id)",
        column: "from_user_id",
        from: "dialog_id, message_id, from_user_id, to_user_id, text, created_at",
        list: "SELECT from_user_id, to_user_id, text, message_id, created_at FROM design_by_sender
               WHERE dialog_id = :dialog ORDER BY message_id DESC LIMIT 100",
    },
    Design {
        what: "distributed by the dialog, no index that begins with it",
        table: "design_without_index",
        schema: "CREATE TABLE design_without_index (dialog_id uuid, message_id uuid, from_user_id uuid,
                     to_user_id uuid, text text, created_at timestamptz, PRIMARY KEY (message_id, dialog_id))",
        column: "dialog_id",
        from: "dialog_id, message_id, from_user_id, to_user_id, text, created_at",
        list: "SELECT from_user_id, to_user_id, text, message_id, created_at FROM design_without_index
               WHERE dialog_id = :dialog ORDER BY message_id DESC LIMIT 100",
    },
];

/// Ours against each.
pub(super) async fn rows(bench: &Bench<'_>, pgbench: &Pgbench<'_>) -> Result<Vec<Row>> {
    let sql = bench.stand.coordinator().connect("dialog").await?;
    let citus = bench.stand.is_citus();
    let ours = pgbench.lists(&own_list())?;
    let our_tasks = tasks(pgbench, &sql, &own_list(), citus).await?;
    let mut rows = Vec::new();
    for design in DESIGNS {
        design.make(&sql, citus).await?;
        let theirs = pgbench.lists(design.list)?;
        let tasks = tasks(pgbench, &sql, design.list, citus).await?;
        sql.batch_execute(&format!("DROP TABLE {}", design.table)).await.context("drop a table")?;
        let (one, other) = (ours.per_second, theirs.per_second);
        let figures = format!(
            "{one:.0}/s, p99 {:.1} ms ({our_tasks}) against {other:.0}/s, p99 {:.1} ms ({tasks}), by pgbench",
            ours.p99, theirs.p99
        );
        rows.push(Row::ratio(
            format!("lists per second, our table against: {}", design.what),
            figures,
            one / other,
            Limit::None,
        ));
    }
    Ok(rows)
}

impl Design {
    async fn make(&self, sql: &Client, citus: bool) -> Result<()> {
        let Self { table, schema, column, from, .. } = self;
        let distribute = if citus {
            format!(
                "SELECT create_distributed_table('{table}', '{column}', colocate_with := 'none', shard_count := {SHARDS});"
            )
        } else {
            String::new()
        };
        for step in [
            &format!("{schema};"),
            &distribute,
            &format!("GRANT ALL ON {table} TO dialog_api"),
            &format!("INSERT INTO {table} SELECT {from} FROM messages"),
            &format!("ANALYZE {table}"),
        ] {
            sql.batch_execute(step).await.with_context(|| format!("make {table}: {step}"))?;
        }
        Ok(())
    }
}

/// In how many tasks Citus runs a list.
async fn tasks(pgbench: &Pgbench<'_>, sql: &Client, list: &str, citus: bool) -> Result<String> {
    if !citus {
        return Ok("no tasks without Citus".into());
    }
    let list = pgbench.example()?.literally(list);
    for row in sql.query(&format!("EXPLAIN {list}"), &[]).await.context("explain a list")? {
        if let Some((_, count)) = row.get::<_, &str>(0).split_once("Task Count: ") {
            return Ok(format!("Task Count {}", count.trim()));
        }
    }
    bail!("Citus does not say in how many tasks it runs {list}")
}
