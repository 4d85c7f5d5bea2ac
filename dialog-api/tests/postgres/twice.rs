//! What retrying relies on: a statement that ran twice has left what it left when it ran once.

use anyhow::{Context as _, Result};
use dialog_api::{database::statements::Sql, migrations::TABLES};
use jiff::Timestamp;
use tokio_postgres::{Client, types::ToSql};
use uuid::Uuid;

use crate::support::{Service, database};

const DIALOG: Uuid = Uuid::from_u128(1);
const MESSAGE: Uuid = Uuid::from_u128(2);
const ADA: Uuid = Uuid::from_u128(3);
const BOB: Uuid = Uuid::from_u128(4);
/// Of nothing that is there.
const NEW: Uuid = Uuid::from_u128(5);

/// One row in each table that a statement changes or deletes.
async fn seed(sql: &Client) -> Result<()> {
    let empty = TABLES.map(|table| format!("TRUNCATE {table};")).concat();
    sql.batch_execute(&format!(
        "{empty}
         INSERT INTO users (user_id, first_name, second_name, created_at) VALUES ('{ADA}', 'A', 'L', now());
         INSERT INTO credentials (user_id, password_hash, updated_at) VALUES ('{ADA}', 'hash', now());
         INSERT INTO dialogs (dialog_id, user_lo, user_hi, created_at) VALUES ('{DIALOG}', '{ADA}', '{BOB}', now());
         INSERT INTO messages (dialog_id, message_id, from_user_id, to_user_id, text, created_at)
             VALUES ('{DIALOG}', '{MESSAGE}', '{ADA}', '{BOB}', 'before', now());
         INSERT INTO messages_archive (dialog_id, message_id, from_user_id, to_user_id, text, created_at)
             VALUES ('{DIALOG}', '{MESSAGE}', '{ADA}', '{BOB}', 'before', now())"
    ))
    .await
    .context("rows to begin with")
}

/// Everything that is in the tables.
async fn all(sql: &Client) -> Result<Vec<String>> {
    let mut rows = Vec::new();
    for table in TABLES {
        let text = format!("SELECT '{table} ' || rows::text FROM {table} AS rows ORDER BY 1");
        rows.extend(sql.query(&text, &[]).await?.iter().map(|row| row.get::<_, String>(0)));
    }
    Ok(rows)
}

#[tokio::test]
async fn every_write_is_harmless_when_run_twice() -> Result<()> {
    let server = database().await?;
    drop(Service::start(&server, &[]).await?);
    let sql = server.connect("dialog").await?;
    let (now, text, none) = (Timestamp::now(), "text", None::<String>);
    for statement in Sql::ALL.into_iter().filter(|statement| !statement.is_read()) {
        let parameters: &[&(dyn ToSql + Sync)] = match statement {
            Sql::InsertMessage => &[&DIALOG, &NEW, &ADA, &BOB, &text, &now],
            Sql::InsertKeyedMessage => &[&DIALOG, &NEW, &ADA, &BOB, &text, &now, &NEW],
            Sql::InsertDialog => &[&NEW, &ADA, &BOB, &now],
            Sql::InsertUser => &[&NEW, &text, &text, &None::<jiff::civil::Date>, &none, &none, &now],
            Sql::InsertCredentials => &[&NEW, &text, &now],
            Sql::EditMessage | Sql::EditArchived => &[&DIALOG, &MESSAGE, &ADA, &text, &now],
            Sql::DeleteMessage | Sql::DeleteArchived => &[&DIALOG, &MESSAGE, &ADA, &now],
            Sql::MarkRead => &[&DIALOG, &ADA, &MESSAGE],
            Sql::MarkInboxes => &[&DIALOG, &MESSAGE],
            Sql::MergeUserDialog => &[&ADA, &DIALOG, &BOB, &MESSAGE],
            Sql::InsertErasure => &[&ADA, &now],
            Sql::DeleteCredentials | Sql::DeleteUser => &[&ADA],
            read => panic!("{} writes, and is not known here", read.name()),
        };
        seed(&sql).await?;
        let before = all(&sql).await?;
        sql.query(statement.text(), parameters).await.context(statement.name())?;
        let once = all(&sql).await?;
        assert_ne!(before, once, "{} has done nothing: nothing is tested", statement.name());
        sql.query(statement.text(), parameters).await.context(statement.name())?;
        assert_eq!(once, all(&sql).await?, "{}", statement.name());
    }
    Ok(())
}
