//! Parameters that PostgreSQL does not take: named, survived, and taken back.

use anyhow::{Result, ensure};
use dialog_operator::condition::PARAMETERS_APPLIED;
use dialog_operator::names::Group;
use serde_json::{Value, json};

use crate::bed::{Bed, TO_NOTICE};

async fn set(bed: &Bed, name: &str, value: Value) -> Result<()> {
    bed.patch(json!({"postgres": {"parameters": {name: value}}})).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_is_not_taken_is_named_and_can_be_taken_back() -> Result<()> {
    let bed = Bed::new("parameters").await?;
    bed.create(0, |_| {}).await?;
    bed.ready().await?;
    let (ada, grace, message) = bed.talk()?;

    // Patroni leaves out the one that is no number; PostgreSQL keeps the old value of the one that it does not know.
    for (name, value, reason) in
        [("work_mem", "lots", "ParametersIgnored"), ("log_timezone", "Nowhere/City", "ParametersRejected")]
    {
        let before = bed.sql(Group::Coordinator, &format!("SHOW {name}")).await?;
        set(&bed, name, json!(value)).await?;
        let is_named = |condition: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition| {
            condition.status == "False" && condition.reason == reason && condition.message.contains(name)
        };
        let what = format!("{name} named as {reason}");
        let condition = bed.condition(PARAMETERS_APPLIED, &what, TO_NOTICE, is_named).await?;
        bed.say(&condition.message);
        ensure!(condition.message.contains("correct spec.postgres.parameters"), "{}", condition.message);
        bed.still_listed(&ada, &grace, &message)?;
        set(&bed, name, Value::Null).await?;
        bed.condition(PARAMETERS_APPLIED, "applied", TO_NOTICE, |condition| condition.status == "True")
            .await?;
        let after = bed.sql(Group::Coordinator, &format!("SHOW {name}")).await?;
        ensure!(after == before, "{name} was {before} and is {after}");
    }

    // PostgreSQL takes notice at its next start, and does not survive it: no group of that name may own its socket.
    set(&bed, "unix_socket_group", json!("nobody-has-this-group")).await?;
    let condition = bed.refused("DatabaseUnreachable", TO_NOTICE).await?;
    bed.say(&condition.message);
    ensure!(condition.message.contains(&bed.names.pod(Group::Coordinator, 0)), "{}", condition.message);
    set(&bed, "unix_socket_group", Value::Null).await?;
    bed.ready().await?;
    bed.still_listed(&ada, &grace, &message)?;
    bed.done();
    Ok(())
}
