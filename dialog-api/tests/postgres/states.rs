//! What real errors of a server are taken for. Their words are the server's language; their states and names are not.

use anyhow::{Context as _, Result};
use dialog_api::database::{
    error::{Verdict, verdict},
    wire::{
        Company,
        error::{ServerError, StatementError},
    },
};
use testbed::postgres::Server;

use crate::{
    support::database,
    wire::{Connected, connect},
};

/// The error with which the server refuses to prepare a statement.
async fn refused(server: &Server, statement: &str) -> Result<ServerError> {
    let error = connect(server, &[statement]).await.err().context("it was prepared")?;
    error.downcast_ref::<ServerError>().cloned().with_context(|| format!("no error of the server: {error:#}"))
}

#[tokio::test]
async fn a_plan_from_before_a_migration_is_left_and_what_is_not_supported_is_refused() -> Result<()> {
    let server = database().await?;
    let sql = server.connect("dialog").await?;
    sql.batch_execute("CREATE TABLE things (id int); GRANT SELECT, UPDATE ON things TO dialog_api").await?;
    let Connected { client, .. } = connect(&server, &["SELECT * FROM things"]).await?;
    client.execute(0, &[], Company::Alone).await?;
    sql.batch_execute("ALTER TABLE things ADD COLUMN name text").await?;
    let error = client.execute(0, &[], Company::Alone).await.err().context("it ran")?;
    assert!(matches!(&error, StatementError::Server(error) if error.code == "0A000"), "{error:?}");
    assert_eq!(verdict(&error), Verdict::TryElsewhere);

    let unsupported = "DECLARE c CURSOR WITH HOLD FOR SELECT * FROM things FOR UPDATE";
    let error = refused(&server, unsupported).await?;
    assert_eq!(error.code, "0A000", "{error:?}");
    assert_eq!(verdict(&error.into()), Verdict::Refused);
    Ok(())
}

#[tokio::test]
async fn a_shard_that_is_gone_passes_and_a_table_that_is_missing_does_not() -> Result<()> {
    let server = database().await?;
    for (name, expected) in [
        ("messages_102008", Verdict::TryAgain),
        ("public.dialog_state_102008", Verdict::TryAgain),
        ("messages", Verdict::Refused),
        ("others_102008", Verdict::Refused),
    ] {
        let error = refused(&server, &format!("SELECT FROM {name}")).await?;
        assert_eq!(error.code, "42P01", "{error:?}");
        assert_eq!(verdict(&error.into()), expected, "{name}");
    }
    Ok(())
}
