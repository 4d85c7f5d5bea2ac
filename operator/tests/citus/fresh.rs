//! From empty servers to a cluster at rest.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use dialog_api::database::statements::Sql;
use dialog_operator::api::NodeState;
use dialog_operator::condition::{
    BALANCED, CITUS_AVAILABLE, METADATA_SYNCED, SCALE_IN_BLOCKED, SCHEMA_DISTRIBUTED, WAL_LEVEL_LOGICAL,
};
use dialog_operator::names::{DATABASE, Group};
use dialog_operator::pg::{self, Limits, Login};
use dialog_operator::shards::status::status;
use dialog_operator::shards::step::Step;
use k8s_openapi::jiff::Timestamp;
use tokio_postgres::types::Type;

use crate::needs_citus;
use crate::steady::{self, Steady};
use crate::world::{World, condition, eventually, placements, shards_of_each_worker, wanted};

#[tokio::test]
async fn empty_servers_become_a_cluster_and_stay_one() -> Result<()> {
    needs_citus!();
    let world = World::start(2)?;
    let wanted = wanted(2);

    let first = world.round(&wanted).await?;
    assert!(first.failed.is_empty(), "{:?}", first.failed);
    assert_eq!(condition(&first, SCHEMA_DISTRIBUTED).1, "TablesMissing");
    world.migrate().await?;
    let steps = world.settle(&wanted).await?;
    assert_eq!(steps.len(), wanted.tables.len(), "one step per table: {steps:?}");

    let placements = placements(&world).await?;
    assert_eq!(placements.len(), 2 * wanted.tables.len(), "{placements:?}");
    assert!(placements.iter().all(|(_, group_id, shards)| *group_id > 0 && *shards == 24), "{placements:?}");

    let round = world.round(&wanted).await?;
    assert_eq!((&round.performed, &round.plan.steps), (&vec![], &vec![]), "a cluster at rest is left alone");
    for (kind, status, reason) in [
        (CITUS_AVAILABLE, "True", "Installed"),
        (METADATA_SYNCED, "True", "Synced"),
        (WAL_LEVEL_LOGICAL, "True", "Logical"),
        (SCHEMA_DISTRIBUTED, "True", "Distributed"),
        (BALANCED, "True", "Balanced"),
        (SCALE_IN_BLOCKED, "False", "NothingToRemove"),
    ] {
        let found = condition(&round, kind);
        assert_eq!((found.0, found.1), (status, reason), "{kind}: {}", found.2);
    }

    let each = shards_of_each_worker(&wanted);
    let status = status(&wanted, &world.topology(), &round, None, Timestamp::now());
    assert_eq!(status.shards, Some(2 * each));
    let shown: Vec<(&str, NodeState, i64, bool)> = status
        .nodes
        .iter()
        .map(|node| (node.group.as_str(), node.state, node.shards, node.bytes.is_some_and(|bytes| bytes > 0)))
        .collect();
    assert_eq!(
        shown,
        [
            ("coordinator", NodeState::Active, 0, false),
            ("worker-0", NodeState::Active, each, true),
            ("worker-1", NodeState::Active, each, true),
        ]
    );
    let release: String =
        world.ask(Group::Coordinator, "SELECT split_part(citus_version(), ' ', 2)").await?[0].get(0);
    assert_eq!(status.citus_version, Some(release));
    Ok(())
}

#[tokio::test]
async fn the_default_policy_is_dialog_apis_tables() -> Result<()> {
    needs_citus!();
    let world = World::start(0)?;
    world.round(&wanted(0)).await?;
    world.migrate().await?;
    let made: BTreeSet<String> = world
        .ask(
            Group::Coordinator,
            "SELECT tablename::text FROM pg_tables
             WHERE schemaname = 'public' AND tablename NOT IN ('schema_migrations', 'sweeps')",
        )
        .await?
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(made, wanted(0).tables.into_iter().map(|table| table.name).collect());
    Ok(())
}

#[tokio::test]
async fn dialog_api_reaches_every_node_over_verified_tls() -> Result<()> {
    needs_citus!();
    let world = World::start(2)?;
    let wanted = wanted(2);
    world.serve(&wanted).await?;

    // Between nodes a query runs as the application's role with the node's certificate.
    for group in [Group::Coordinator, Group::Worker(0), Group::Worker(1)] {
        let api = world.api(group).await?;
        api.run(
            "INSERT INTO users (user_id, first_name, second_name, created_at)
             SELECT gen_random_uuid(), 'a', 'b', now() FROM generate_series(1, 100)",
        )
        .await?;
    }
    let api = world.api(Group::Worker(1)).await?;
    assert_eq!(api.query_one("SELECT count(*) FROM users", &[]).await?.get::<_, i64>(0), 300);

    let list =
        [("$1", "'0199aaaa-0000-7000-8000-000000000001'"), ("$2", "'ffffffff-ffff-ffff-ffff-ffffffffffff'")]
            .iter()
            .fold(Sql::ListMessages.text().replace("$3", "50"), |text, (parameter, value)| {
                text.replace(parameter, value)
            });
    let list = format!("EXPLAIN {list}");
    let api = world.api(Group::Coordinator).await?;
    let explained: Vec<String> = api.query(&list, &[]).await?.iter().map(|row| row.get(0)).collect();
    assert!(explained.iter().any(|line| line.contains("Task Count: 1")), "{explained:#?}");

    let links = world
        .ask(
            Group::Coordinator,
            "SELECT success, result FROM run_command_on_all_nodes(
                 'SELECT version || '' '' || client_dn FROM pg_stat_ssl WHERE pid = pg_backend_pid()')",
        )
        .await?;
    assert_eq!(links.len(), 3);
    for link in links {
        let (success, result): (bool, String) = (link.get(0), link.get(1));
        assert!(success && result == "TLSv1.3 /CN=dialog-node", "{result}");
    }
    Ok(())
}

#[tokio::test]
async fn a_certificate_is_good_for_its_own_roles_only() -> Result<()> {
    needs_citus!();
    let world = World::start(0)?;
    world.round(&wanted(0)).await?;
    let endpoint = world.topology().endpoint(Group::Coordinator).unwrap().clone();
    let login = |role: &str| Login {
        endpoint: endpoint.clone(),
        database: DATABASE.to_owned(),
        role: role.to_owned(),
    };
    let api = world.identity("dialog-api")?;
    for role in ["dialog_operator", "postgres"] {
        let refused = pg::connect(&api, &login(role), &Limits::short()).await.err().unwrap();
        let message = refused.to_string();
        assert!(message.contains(&format!("database dialog as {role}")), "{message}");
        assert!(message.contains("SQLSTATE 28000") && message.contains("ident map"), "{message}");
    }
    let stranger = World::empty()?.identity("dialog-operator")?;
    let refused = pg::connect(&stranger, &login("dialog_operator"), &Limits::short()).await.err().unwrap();
    assert!(refused.to_string().contains("does not accept the other's certificate"), "{refused}");

    let operator = world.identity("dialog-operator")?;
    let session = pg::connect(&operator, &login("dialog_operator"), &Limits::short()).await?;
    let row = session
        .query_one(
            "SELECT current_setting('search_path'), current_setting('application_name'),
                    current_setting('statement_timeout'), $1::text",
            &[(&"a parameter", Type::TEXT)],
        )
        .await?;
    let found: [&str; 4] = [row.get(0), row.get(1), row.get(2), row.get(3)];
    ensure!(found == ["pg_catalog", "dialog-operator", "15s", "a parameter"], "{found:?}");
    Ok(())
}

#[tokio::test]
async fn shards_are_measured_once_per_round_and_where_they_are_made() -> Result<()> {
    needs_citus!();
    let mut world = World::start(1)?;
    world.add_with(Group::Worker(1), |builder| builder.parameter("track_functions", "all"))?;
    let wanted = wanted(2);
    world.round(&wanted).await?;
    world.migrate().await?;
    let round = world.round(&wanted).await?;
    ensure!(round.performed.iter().any(Step::makes_shards) && round.is_settled(), "{round:?}");
    let shown = status(&wanted, &world.topology(), &round, None, Timestamp::now());
    assert!(shown.nodes[1..].iter().all(|node| node.bytes > Some(0)), "{:?}", shown.nodes);

    // More than one thing to mend, so that the round looks again and again.
    for group in [Group::Worker(0), Group::Worker(1)] {
        world.ask(group, "ALTER ROLE dialog_api NOLOGIN").await?;
    }
    let operator_is_gone = async || -> Result<()> {
        let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dialog-operator'";
        eventually("no session of it", async || Ok(world.number(Group::Worker(1), sessions).await? == 0))
            .await
    };
    // A session reports what it called when it ends. The name of each shard is made to measure it.
    let calls =
        "SELECT coalesce(sum(calls), 0)::int8 FROM pg_stat_user_functions WHERE funcname = 'shard_name'";
    operator_is_gone().await?;
    let before = world.number(Group::Worker(1), calls).await?;
    let round = world.round(&wanted).await?;
    assert!(round.performed.len() >= 2, "{:?}", round.performed);
    operator_is_gone().await?;
    assert_eq!(world.number(Group::Worker(1), calls).await? - before, shards_of_each_worker(&wanted));

    let shown = status(&wanted, &world.topology(), &round, None, Timestamp::now());
    assert!(shown.nodes[2].bytes > Some(0), "what was measured is kept through the round: {:?}", shown.nodes);
    Ok(())
}

#[tokio::test]
async fn a_steady_cluster_costs_its_coordinator_a_statement_per_second_at_most() -> Result<()> {
    needs_citus!();
    let Steady { look, measured, watching, per_second } = Box::pin(steady::measure()).await?;
    println!("{look} statements per look, {measured} with sizes, {watching} per period");
    ensure!(look > 0 && measured == look + 1, "{look} statements, {measured} with sizes");
    ensure!(watching > 1, "{watching} statements per period");
    ensure!(per_second <= steady::MOST, "{per_second:.2} statements per second");
    Ok(())
}
