//! What real errors of a server are taken for. Their words are the server's language; their states and names are not.

use anyhow::{Context as _, Result};
use dialog_api::database::error::{Verdict, verdict};
use tokio_postgres::error::SqlState;

use crate::support::database;

#[tokio::test]
async fn a_plan_from_before_a_migration_is_left_and_what_is_not_supported_is_refused() -> Result<()> {
    let server = database().await?;
    let sql = server.connect("dialog").await?;
    sql.batch_execute("CREATE TABLE things (id int)").await?;
    let all = sql.prepare("SELECT * FROM things").await?;
    sql.query(&all, &[]).await?;
    sql.batch_execute("ALTER TABLE things ADD COLUMN name text").await?;
    let error = sql.query(&all, &[]).await.err().context("it ran")?;
    assert_eq!(error.code().map(SqlState::code), Some("0A000"), "{error:?}");
    assert_eq!(verdict(&error), Verdict::TryElsewhere);

    let unsupported =
        sql.batch_execute("DECLARE c CURSOR WITH HOLD FOR SELECT * FROM things FOR UPDATE").await;
    let error = unsupported.err().context("it ran")?;
    assert_eq!(error.code().map(SqlState::code), Some("0A000"), "{error:?}");
    assert_eq!(verdict(&error), Verdict::Refused);
    Ok(())
}

#[tokio::test]
async fn a_shard_that_is_gone_passes_and_a_table_that_is_missing_does_not() -> Result<()> {
    let server = database().await?;
    let sql = server.connect("dialog").await?;
    for (name, expected) in [
        ("messages_102008", Verdict::TryAgain),
        ("public.dialog_state_102008", Verdict::TryAgain),
        ("messages", Verdict::Refused),
        ("others_102008", Verdict::Refused),
    ] {
        let error = sql.query(&format!("SELECT FROM {name}"), &[]).await.err().context("it ran")?;
        assert_eq!(error.code().map(SqlState::code), Some("42P01"), "{error:?}");
        assert_eq!(verdict(&error), expected, "{name}");
    }
    Ok(())
}
