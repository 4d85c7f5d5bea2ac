//! Servers that are away, not as they should be, or in somebody else's hands.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use dialog_api::migrations::TOPOLOGY_LOCK;
use dialog_operator::api::NodeState;
use dialog_operator::cluster::patroni::config::DEFAULTS;
use dialog_operator::condition::{
    BALANCED, CITUS_AVAILABLE, METADATA_SYNCED, PARAMETERS_APPLIED, SCHEMA_DISTRIBUTED, WAL_LEVEL_LOGICAL,
};
use dialog_operator::names::Group;
use dialog_operator::shards::sessions::Door;
use dialog_operator::shards::status::status;
use dialog_operator::shards::step::Step;
use dialog_operator::shards::wanted::Wanted;
use k8s_openapi::jiff::Timestamp;
use testbed::postgres::Shutdown;

use crate::needs_citus;
use crate::operator::Operator;
use crate::world::{
    World, condition, eventually, few_shards, shards_of_each_worker, wanted, with_an_empty_worker,
};

/// How long a rebalance of a few empty shards may take.
const LIMIT: Duration = Duration::from_mins(2);

#[tokio::test]
async fn a_worker_that_is_away_is_named_and_the_rest_is_left_alone() -> Result<()> {
    needs_citus!();
    let mut world = World::start(2)?;
    let wanted = wanted(2);
    world.serve(&wanted).await?;

    world.server(Group::Worker(1)).stop(Shutdown::Immediate)?;
    let round = world.round(&wanted).await?;
    assert!(round.performed.is_empty() && round.failed.is_empty(), "{round:?}");
    assert!(
        round.plan.waits.iter().any(|wait| wait.starts_with("worker-1 does not answer")),
        "{:?}",
        round.plan
    );
    for (kind, expected) in [
        (CITUS_AVAILABLE, ("Unknown", "NotObserved")),
        (METADATA_SYNCED, ("False", "NodeUnreachable")),
        (WAL_LEVEL_LOGICAL, ("Unknown", "NotObserved")),
        (SCHEMA_DISTRIBUTED, ("True", "Distributed")),
        // This operator has never measured what the worker stores, and does not take it for nothing.
        (BALANCED, ("Unknown", "NotMeasured")),
    ] {
        let found = condition(&round, kind);
        assert_eq!((found.0, found.1), expected, "{kind}: {}", found.2);
    }
    let shown = status(&wanted, &world.topology(), &round, None, Timestamp::now());
    let states: Vec<NodeState> = shown.nodes.iter().map(|node| node.state).collect();
    assert_eq!(states, [NodeState::Active, NodeState::Active, NodeState::Unreachable]);
    assert_eq!(shown.nodes[2].shards, shards_of_each_worker(&wanted), "its shards are still its own");

    world.server(Group::Worker(1)).start()?;
    assert_eq!(world.settle(&wanted).await?, vec![]);
    Ok(())
}

#[tokio::test]
async fn a_coordinator_that_is_away_stops_every_change() -> Result<()> {
    needs_citus!();
    let mut world = World::start(1)?;
    let wanted = wanted(1);
    world.server(Group::Coordinator).stop(Shutdown::Immediate)?;
    let round = world.round(&wanted).await?;
    assert!(round.performed.is_empty() && round.plan.steps.is_empty(), "{round:?}");
    for finding in round.findings().iter().filter(|finding| finding.kind != "ScaleInBlocked") {
        assert_eq!(finding.holds.as_str(), "Unknown", "{finding:?}");
    }
    world.server(Group::Coordinator).start()?;
    let round = world.round(&wanted).await?;
    assert!(round.failed.is_empty() && round.is_settled(), "{round:?}");
    Ok(())
}

/// A call of `function` with the keys that dialog-api locks.
fn topology_lock(function: &str) -> String {
    format!("SELECT {function}({}, {})", TOPOLOGY_LOCK.0, TOPOLOGY_LOCK.1)
}

#[tokio::test]
async fn a_change_waits_for_who_holds_the_topology_lock() -> Result<()> {
    needs_citus!();
    let world = World::start(1)?;
    let wanted = wanted(1);
    world.round_of(&wanted, 3).await?;

    // dialog-api migrates.
    let other = world.ask_client(Group::Coordinator).await?;
    let pid: i32 = other.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
    other
        .batch_execute(&format!("SET application_name = 'dialog-api'; {}", topology_lock("pg_advisory_lock")))
        .await?;
    let round = world.round(&wanted).await?;
    assert!(round.performed.is_empty(), "{:?}", round.performed);
    let (step, holder) = round.held.as_ref().unwrap();
    assert_eq!(*step, Step::CreateExtension { group: Group::Coordinator });
    assert_eq!((holder.application.as_str(), holder.pid), ("dialog-api", pid));
    let idle = holder.idle.as_ref().map(|idle| idle.seconds);
    assert!(idle.is_some_and(|seconds| (0..600).contains(&seconds)), "{idle:?}");
    let (status, reason, message) = condition(&round, CITUS_AVAILABLE);
    assert_eq!((status, reason), ("False", "TopologyLocked"));
    assert!(message.contains(&format!("held by dialog-api (pid {pid}")), "{message}");
    assert!(message.contains("which has been idle since 2"), "{message}");
    assert!(message.contains(&format!("SELECT pg_terminate_backend({pid}) there")), "{message}");

    other.batch_execute(&topology_lock("pg_advisory_unlock")).await?;
    let round = world.round(&wanted).await?;
    assert!(round.held.is_none() && round.is_settled(), "{round:?}");
    // Nor does a session of the operator's keep it whose client is gone without a word: the server finds that out by itself.
    let step = Step::MoveShard { shard_id: 1, from: Group::Worker(0), to: Group::Coordinator };
    let session = world.long_sessions(&step)?.session(Group::Coordinator, Door::Dialog).await?;
    for (name, expected) in [
        ("tcp_keepalives_idle", "15"),
        ("tcp_keepalives_interval", "5"),
        ("tcp_keepalives_count", "3"),
        ("tcp_user_timeout", "30000"),
    ] {
        let found: String = session.query_one(&format!("SHOW {name}"), &[]).await?.get(0);
        assert_eq!(found, expected, "{name}");
    }
    drop(session);
    // And the operator has given it back.
    let locks = format!(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = {}",
        TOPOLOGY_LOCK.0
    );
    assert_eq!(world.number(Group::Coordinator, &locks).await?, 0);
    Ok(())
}

/// Moves take the lock together, each when it begins, and no round has it for them.
#[tokio::test]
async fn a_move_that_waits_for_who_holds_the_topology_lock_is_not_begun() -> Result<()> {
    needs_citus!();
    let world = with_an_empty_worker().await?;
    let open = few_shards(2);
    let other = world.ask_client(Group::Coordinator).await?;
    other
        .batch_execute(&format!("SET application_name = 'psql'; {}", topology_lock("pg_advisory_lock")))
        .await?;
    let mut operator = Operator::default();
    let mut waits = Vec::new();
    eventually("a move waits for the lock", async || {
        let round = operator.round(&world, &open).await?;
        waits.extend(round.held.clone().map(|_| condition(&round, BALANCED)));
        let shown = status(&open, &world.topology(), &round, None, Timestamp::now()).rebalance;
        let current = shown.map_or(0, |shown| shown.current.len());
        ensure!(round.held.is_none() || current == 0, "it is shown as if it had begun");
        // Also where the last try has not ended yet.
        Ok(waits.len() == 5)
    })
    .await?;
    for (status, reason, message) in waits {
        assert_eq!((status, reason), ("False", "TopologyLocked"), "{message}");
        assert!(
            message.contains("waiting to move shard") && message.contains("held by psql (pid"),
            "{message}"
        );
    }
    assert!(operator.begun.is_empty(), "{:?}", operator.begun);

    other.batch_execute(&topology_lock("pg_advisory_unlock")).await?;
    operator.settle(&world, &open, LIMIT).await?;
    assert_eq!(condition(&world.round(&open).await?, BALANCED).0, "True");
    // Each has begun once, and as what it was announced.
    let begun: Vec<&Step> = operator.begun.iter().map(|(step, _)| step).collect();
    let moves = operator.done.iter().filter(|step| matches!(step, Step::MoveShard { .. }));
    assert_eq!(begun, moves.collect::<Vec<_>>());
    for (number, (step, place)) in (1..).zip(&operator.begun) {
        assert_eq!(place.as_ref().map(|place| place.number), Some(number), "{step}");
    }
    Ok(())
}

#[tokio::test]
async fn a_node_that_cannot_decode_its_log_is_named() -> Result<()> {
    needs_citus!();
    let mut world = World::start(1)?;
    world.add_with(Group::Worker(1), |builder| builder.parameter("wal_level", "replica"))?;
    let wanted = wanted(2);
    world.serve(&wanted).await?;
    let round = world.round(&wanted).await?;
    let (status, reason, message) = condition(&round, WAL_LEVEL_LOGICAL);
    assert_eq!((status, reason), ("False", "NotLogical"));
    assert!(message.contains("replica on worker-1") && !message.contains("worker-0"), "{message}");
    assert_eq!(condition(&round, SCHEMA_DISTRIBUTED).0, "True", "cutting empty tables needs no decoding");
    Ok(())
}

#[tokio::test]
async fn a_server_that_did_not_load_citus_serves_alone() -> Result<()> {
    needs_citus!();
    let mut world = World::empty()?;
    world.add_plain(Group::Coordinator)?;
    world.add_plain(Group::Worker(0))?;
    let wanted = wanted(1);
    let steps = world.settle(&wanted).await?;
    assert!(!steps.iter().any(|step| matches!(step, Step::CreateExtension { .. })), "{steps:?}");
    world.migrate().await?;
    let api = world.api(Group::Coordinator).await?;
    api.run("INSERT INTO users (user_id, first_name, second_name, created_at) VALUES (gen_random_uuid(), 'a', 'b', now())")
        .await?;
    let round = world.round(&wanted).await?;
    assert!(round.performed.is_empty() && round.is_settled(), "{round:?}");
    let (status, reason, message) = condition(&round, CITUS_AVAILABLE);
    assert_eq!((status, reason), ("False", "NotPreloaded"));
    assert!(message.contains("without the workers asked for (1)"), "{message}");
    assert_eq!(condition(&round, SCHEMA_DISTRIBUTED).1, "CitusUnavailable");
    assert_eq!(condition(&round, WAL_LEVEL_LOGICAL).0, "True");
    Ok(())
}

#[tokio::test]
async fn what_was_changed_by_hand_is_changed_back() -> Result<()> {
    needs_citus!();
    let world = World::start(2)?;
    let wanted = wanted(2);
    world.serve(&wanted).await?;

    let flip = "SELECT citus_set_node_property(nodename, nodeport, 'shouldhaveshards', NOT shouldhaveshards)
                FROM pg_dist_node";
    world.ask(Group::Coordinator, flip).await?;
    let by_hand = ["wal_retrieve_retry_interval = '5s'", "citus.max_background_task_executors = 1"];
    for setting in by_hand {
        world.ask(Group::Worker(0), &format!("ALTER SYSTEM SET {setting}")).await?;
    }
    world.ask(Group::Worker(0), "SELECT pg_reload_conf()").await?;
    world.ask(Group::Worker(0), "ALTER ROLE dialog_api NOLOGIN").await?;
    // Last: Citus tells all nodes, and does little for a role that is none any more.
    world.ask(Group::Worker(1), "ALTER ROLE dialog_operator NOSUPERUSER").await?;
    let steps = world.settle(&wanted).await?;
    for step in [
        Step::SetShouldHaveShards { group: Group::Coordinator, value: false },
        Step::SetShouldHaveShards { group: Group::Worker(0), value: true },
        Step::SetShouldHaveShards { group: Group::Worker(1), value: true },
        Step::AllowLogin { group: Group::Worker(0) },
        Step::CreateOperatorRole { group: Group::Worker(1) },
        Step::ResetSetting { group: Group::Worker(0), name: "wal_retrieve_retry_interval".to_owned() },
        Step::ResetSetting {
            group: Group::Worker(0),
            name: "citus.max_background_task_executors".to_owned(),
        },
    ] {
        assert!(steps.contains(&step), "{step} is not among {steps:?}");
    }
    for (name, declared) in DEFAULTS {
        let found = format!(
            "SELECT count(*) FROM pg_settings WHERE name = '{name}' AND setting || coalesce(unit, '') = '{declared}'"
        );
        let found = async || Ok(world.number(Group::Worker(0), &found).await? == 1);
        eventually(&format!("{name} is {declared}"), found).await?;
    }
    assert_eq!(condition(&world.round(&wanted).await?, BALANCED).0, "True");
    Ok(())
}

#[tokio::test]
async fn an_operation_that_outlived_its_operator_is_waited_for() -> Result<()> {
    needs_citus!();
    let world = World::start(2)?;
    let wanted = wanted(2);
    world.round(&wanted).await?;
    world.migrate().await?;
    // A session as the operator leaves it behind, in the middle of its statement, with the lock.
    let left = world.ask_client(Group::Coordinator).await?;
    let pid: i32 = left.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
    left.batch_execute(&format!(
        "SET application_name = 'dialog-operator: distribute messages'; {}",
        topology_lock("pg_advisory_lock")
    ))
    .await?;
    let blocker = world.ask_client(Group::Coordinator).await?;
    blocker.batch_execute("SELECT pg_advisory_lock(42)").await?;
    let running = tokio::spawn(async move { left.batch_execute("SELECT pg_advisory_lock(42)").await });

    let under_way = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'dialog-operator: %' AND state = 'active'";
    eventually("the operation", async || Ok(world.number(Group::Coordinator, under_way).await? > 0)).await?;
    let round = world.round(&wanted).await?;
    assert!(round.performed.is_empty() && round.plan.steps.is_empty(), "{round:?}");
    let (status, reason, message) = condition(&round, SCHEMA_DISTRIBUTED);
    assert_eq!((status, reason), ("False", "Distributing"));
    assert!(message.contains("distribute messages") && message.contains(&pid.to_string()), "{message}");

    blocker.batch_execute("SELECT pg_advisory_unlock(42)").await?;
    running.await??;
    let steps = world.settle(&wanted).await?;
    assert_eq!(steps.len(), wanted.tables.len(), "{steps:?}");
    Ok(())
}

#[tokio::test]
async fn parameters_that_do_not_take_effect_are_named() -> Result<()> {
    needs_citus!();
    let mut world = World::start(1)?;
    let mut wanted = wanted(1);
    world.settle(&wanted).await?;
    assert_eq!(condition(&world.round(&wanted).await?, PARAMETERS_APPLIED).1, "Applied");
    let declare = |parameters: &[(&str, &str)]| {
        parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };

    // What reaches no file is what Patroni left out.
    wanted.parameters = declare(&[("wrok_mem", "64MB"), ("work_mem", "64MB"), ("my.own", "1")]);
    let (status, reason, message) = condition(&world.round(&wanted).await?, PARAMETERS_APPLIED);
    assert_eq!((status, reason), ("False", "ParametersIgnored"));
    assert!(
        message.contains("coordinator's PostgreSQL has no parameter wrok_mem (likewise on 1 more)"),
        "{message}"
    );
    assert!(message.contains("work_mem is not in the configuration of coordinator"), "{message}");

    let groups = [Group::Coordinator, Group::Worker(0)];
    let write = |world: &mut World, name: &str, value: &str| {
        groups.into_iter().try_for_each(|group| world.server(group).set_parameter(name, value))
    };
    wanted.parameters = declare(&[("work_mem", "64MB"), ("my.own", "1"), ("datestyle", "ISO, DMY")]);
    for (name, value) in &wanted.parameters {
        write(&mut world, name, value)?;
    }
    let (status, reason, message) = condition(&world.round(&wanted).await?, PARAMETERS_APPLIED);
    assert_eq!((status, reason), ("True", "Applied"), "{message}");

    // A value that PostgreSQL refuses: it keeps the old one, and only its log would say so.
    wanted.parameters = declare(&[("work_mem", "1kB")]);
    write(&mut world, "work_mem", "1kB")?;
    let (status, reason, message) = condition(&world.round(&wanted).await?, PARAMETERS_APPLIED);
    assert_eq!((status, reason), ("False", "ParametersRejected"));
    assert!(message.contains("coordinator's PostgreSQL refuses work_mem = 1kB: "), "{message}");

    // Somebody's ALTER SYSTEM outranks what is declared.
    wanted.parameters = declare(&[("work_mem", "64MB")]);
    write(&mut world, "work_mem", "64MB")?;
    world.ask(Group::Worker(0), "ALTER SYSTEM SET work_mem = '8MB'").await?;
    let (_, reason, message) = condition(&world.round(&wanted).await?, PARAMETERS_APPLIED);
    assert_eq!(reason, "ParametersIgnored");
    assert!(message.starts_with("work_mem is 8MB in the configuration of worker-0, not 64MB"), "{message}");
    world.ask(Group::Worker(0), "ALTER SYSTEM RESET work_mem").await?;

    // One that takes a restart is waited for, and is there after it.
    wanted.parameters = declare(&[("work_mem", "64MB"), ("max_connections", "120")]);
    write(&mut world, "max_connections", "120")?;
    let (status, reason, message) = eventually_not(&world, &wanted, "ParametersRejected").await?;
    assert_eq!((status, reason), ("False", "RestartPending"), "{message}");
    for group in groups {
        world.server(group).restart(Shutdown::Fast)?;
    }
    let (status, reason, message) = condition(&world.round(&wanted).await?, PARAMETERS_APPLIED);
    assert_eq!((status, reason), ("True", "Applied"), "{message}");
    Ok(())
}

/// The condition of the parameters once its reason is another than `reason`.
async fn eventually_not(
    world: &World,
    wanted: &Wanted,
    reason: &str,
) -> Result<(&'static str, &'static str, String)> {
    for _ in 0..20 {
        let found = condition(&world.round(wanted).await?, PARAMETERS_APPLIED);
        if found.1 != reason {
            return Ok(found);
        }
    }
    bail!("it stays {reason}")
}
