//! A move that stops in the middle: what keeps it is named, it is cancelled, and it is made when nothing keeps it any more.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dialog_operator::condition::BALANCED;
use dialog_operator::names::Group;
use dialog_operator::shards::step::Step;
use dialog_operator::shards::wanted::Wanted;
use testbed::postgres::volumes_available;

use crate::crashes::assert_nothing_is_left;
use crate::detour::{Cut, Detour};
use crate::held_up::{HeldUp, shard_of_messages};
use crate::needs_citus;
use crate::operator::Operator;
use crate::world::{World, closed, condition, eventually, few_shards, gated, store_messages};

/// How long a move may make no progress here.
const STALL: Duration = Duration::from_secs(2);
/// Until a cause is named, and until a move is made again.
const LIMIT: Duration = Duration::from_mins(2);
/// Until all moves are made, one after the other.
const TO_REST: Duration = Duration::from_mins(10);
/// Bytes of the target's volume.
const VOLUME: u64 = 600 << 20;
/// Messages at first.
const ROWS: i64 = 5_000;
/// Messages that the target has no room for.
const MANY: i64 = 4_000;
const SOURCE: Group = Group::Worker(0);
const TARGET: Group = Group::Worker(1);

/// One move that is begun again and again.
struct Scene {
    world: World,
    operator: Operator,
    wanted: Wanted,
    step: Step,
    /// The shard of messages that it moves.
    table: String,
}

/// What is done about a move that does not get on, whether writers wait for it or not.
const CANCELLED: &str = "it is cancelled and planned again";

#[tokio::test]
async fn what_keeps_a_move_is_named_and_the_move_is_made_when_it_is_gone() -> Result<()> {
    needs_citus!();
    let full = volumes_available();
    let mut scene = Box::pin(Scene::new(World::start(1)?, full.is_ok())).await?;
    let mut held_up = HeldUp::every(&scene.world).await?;
    held_up = scene.no_worker_is_free(held_up).await?;
    held_up = scene.a_row_is_there_already(held_up).await?;
    held_up = scene.nobody_can_be_asked(held_up).await?;
    match full {
        Ok(()) => held_up = scene.the_disk_is_full(held_up).await?,
        Err(reason) => println!("SKIPPED a full volume: {reason}"),
    }
    held_up.end().await?;
    Box::pin(scene.comes_to_rest(&[ROWS + 2, ROWS + 2 + MANY])).await
}

/// A volume that has become nearly full is no matter of time: its server would stop.
#[tokio::test]
async fn a_move_is_cancelled_before_it_fills_a_volume() -> Result<()> {
    needs_citus!();
    if let Err(reason) = volumes_available() {
        println!("SKIPPED a nearly full volume: {reason}");
        return Ok(());
    }
    let mut scene = Box::pin(Scene::new(World::start(1)?, true)).await?;
    scene.wanted.rebalance.stall_timeout = Duration::from_mins(10);
    let held_up = HeldUp::every(&scene.world).await?;
    scene.begin(&held_up).await?;
    // It is seen to have room.
    scene.operator.round(&scene.world, &scene.wanted).await?;
    scene.world.server(TARGET).leave_free(VOLUME / 40)?;
    let message = scene.until_said("DiskFull", "cannot go on: the disk of worker-1 is nearly full").await?;
    assert!(message.contains("bytes are free") && message.contains("make room there"), "{message}");
    scene.until_cancelled().await?;
    scene.world.server(TARGET).leave_free(VOLUME)?;
    held_up.end().await?;
    Box::pin(scene.comes_to_rest(&[ROWS])).await
}

#[tokio::test]
async fn a_prepared_transaction_that_keeps_a_move_is_named_with_what_ends_it() -> Result<()> {
    needs_citus!();
    let mut scene = Box::pin(Scene::new(World::start(1)?, false)).await?;
    let held_up = HeldUp::every(&scene.world).await?;
    scene.a_prepared_transaction_is_forgotten(held_up).await
}

/// Who pauses a cluster has nobody else look after what is under way.
#[tokio::test]
async fn in_a_paused_cluster_a_move_that_does_not_get_on_is_cancelled_and_none_begins() -> Result<()> {
    needs_citus!();
    let mut scene = Box::pin(Scene::new(World::start(1)?, false)).await?;
    let held_up = HeldUp::every(&scene.world).await?;
    scene.begin(&held_up).await?;
    scene.operator.paused = true;
    scene.until_said("MoveBlocked", CANCELLED).await?;
    scene.until_cancelled().await?;
    held_up.end().await?;
    let performed = scene.operator.done.len();
    eventually("a move could begin", async || {
        let round = scene.operator.round(&scene.world, &scene.wanted).await?;
        assert_eq!((round.long, &scene.operator.done[performed..]), (vec![], &[][..]));
        assert!(scene.operator.jobs.is_idle());
        let put_off = |step: &Step| round.deferred.iter().any(|(one, _)| one == step);
        Ok(round.plan.steps.iter().any(|step| matches!(step, Step::MoveShard { .. }) && !put_off(step)))
    })
    .await?;
    scene.operator.paused = false;
    Box::pin(scene.comes_to_rest(&[ROWS])).await
}

/// Under traffic that Citus commits in two phases there is a prepared transaction at nearly every moment.
#[tokio::test]
async fn who_keeps_a_move_for_longest_is_named_and_not_a_transaction_that_is_prepared_beside_it() -> Result<()>
{
    needs_citus!();
    let mut scene = Box::pin(Scene::new(World::start(1)?, false)).await?;
    let (younger, held_up) = (HeldUp::every(&scene.world).await?, HeldUp::every(&scene.world).await?);
    scene.begin(&held_up).await?;
    younger.prepare("younger").await?;
    let message = scene.until_said("MoveBlocked", CANCELLED).await?;
    let who = format!("(pid {}, open for", held_up.pid());
    assert!(message.contains("on coordinator its process") && message.contains(&who), "{message}");
    scene.until_cancelled().await?;
    held_up.end().await?;
    let coordinator = scene.world.ask_client(Group::Coordinator).await?;
    coordinator.batch_execute("ROLLBACK PREPARED 'younger'").await?;

    // Another has the lock for longer, in a mode that nobody waits for.
    let (harmless, held_up) = (HeldUp::reading(&scene.world).await?, HeldUp::every(&scene.world).await?);
    scene.begin(&held_up).await?;
    harmless.prepare("harmless").await?;
    held_up.prepare("culprit").await?;
    let message = scene.until_said("MoveBlocked", "prepared transaction 'culprit'").await?;
    assert!(!message.contains("harmless"), "{message}");
    scene.until_cancelled().await?;
    for gid in ["harmless", "culprit"] {
        coordinator.batch_execute(&format!("ROLLBACK PREPARED '{gid}'")).await?;
    }
    eventually("the move is made", async || {
        scene.operator.round(&scene.world, &scene.wanted).await?;
        Ok(scene.operator.done.contains(&scene.step))
    })
    .await
}

#[tokio::test]
async fn a_way_that_is_cut_in_the_middle_of_a_move_is_named_and_the_coordinator_is_not() -> Result<()> {
    needs_citus!();
    let mut world = World::start(1)?;
    let detour = Detour::to(world.server(SOURCE).port()).await?;
    world.lead_by(SOURCE, detour.port());
    let mut scene = Box::pin(Scene::new(world, false)).await?;
    let held_up = HeldUp::every(&scene.world).await?;
    let held_up = scene.the_target_is_cut_off(held_up, &detour).await?;
    scene.the_source_is_cut_off(held_up, &detour).await?;
    Box::pin(scene.comes_to_rest(&[ROWS + 1])).await
}

impl Scene {
    /// A worker with messages, and one that is to get some.
    async fn new(mut world: World, volume: bool) -> Result<Self> {
        world.serve(&few_shards(1)).await?;
        world.add_with(TARGET, |builder| {
            let parameters = [
                ("max_logical_replication_workers", "2"),
                ("max_wal_size", "64MB"),
                ("min_wal_size", "32MB"),
            ];
            let builder =
                parameters.iter().fold(builder, |builder, (name, value)| builder.parameter(name, value));
            if volume { builder.volume(VOLUME) } else { builder }
        })?;
        world.settle(&gated(2, closed())).await?;
        store_messages(&world, ROWS, "'text'").await?;
        let mut wanted = few_shards(2);
        wanted.rebalance.stall_timeout = STALL;
        let planned = world.round_of(&wanted, 0).await?.plan;
        let step = planned.steps.into_iter().find(|step| matches!(step, Step::MoveShard { .. }));
        let Some(Step::MoveShard { shard_id, from, to }) = step else { bail!("no move is planned") };
        ensure!((from, to) == (SOURCE, TARGET), "from {from} to {to}");
        let table = shard_of_messages(&world, shard_id).await?.context("it moves no messages")?;
        Ok(Self {
            world,
            operator: Operator::default(),
            wanted,
            step: Step::MoveShard { shard_id, from, to },
            table: format!("public.messages_{table}"),
        })
    }

    /// Nothing keeps moves any more: all are made, and as many messages are there as one of `rows`.
    async fn comes_to_rest(self, rows: &[i64]) -> Result<()> {
        let Self { mut operator, world, wanted, .. } = self;
        operator.settle(&world, &wanted, TO_REST).await?;
        assert_eq!(condition(&world.round(&wanted).await?, BALANCED).0, "True");
        let found = world.number(Group::Coordinator, "SELECT count(*) FROM public.messages").await?;
        assert!(rows.contains(&found), "{found} messages");
        assert_nothing_is_left(&world).await
    }

    /// Begins the move; returns when everything is copied and the changes meanwhile are followed.
    async fn begin(&mut self, held_up: &HeldUp) -> Result<()> {
        let started = Instant::now();
        while !self.operator.jobs.has(&self.step) {
            let round = self.operator.round(&self.world, &self.wanted).await?;
            ensure!(started.elapsed() < LIMIT, "it is not begun: {:?}", condition(&round, BALANCED));
        }
        let Self { world, operator, step, .. } = self;
        held_up.copied(world, TARGET, || operator.jobs.is_idle() && operator.jobs.has(step)).await
    }

    /// Makes rounds until the condition has this reason, and its message this part; what it says then.
    async fn until_said(&mut self, reason: &str, part: &str) -> Result<String> {
        let (started, mut last) = (Instant::now(), String::new());
        loop {
            let round = self.operator.round(&self.world, &self.wanted).await?;
            ensure!(
                round.observed.facts(Group::Coordinator).is_some() && round.observed.catalog.is_some(),
                "the coordinator answers, and is said not to: {:?}",
                round.observed.nodes
            );
            let (_, found, message) = condition(&round, BALANCED);
            if found == reason && message.contains(part) {
                return Ok(message);
            }
            if last != found {
                println!("not {reason} yet, but {found}: {message}");
                found.clone_into(&mut last);
            }
            ensure!(!self.operator.done.contains(&self.step), "the move was made");
            ensure!(started.elapsed() < LIMIT, "not {reason} with {part:?}, but {found}: {message}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Makes rounds until the move has ended without success, because it was cancelled, and what kept it is said of that.
    async fn until_cancelled(&mut self) -> Result<()> {
        let (started, before) = (Instant::now(), self.operator.failed.len());
        while self.operator.failed.len() == before {
            self.operator.round(&self.world, &self.wanted).await?;
            ensure!(started.elapsed() < LIMIT, "it does not end: {:?}", self.operator.done);
        }
        let is_end = |step: &Step| matches!(step, Step::CancelMove { .. });
        ensure!(self.operator.done.iter().any(is_end), "{:?}", self.operator.done);
        let (reason, message) = self.operator.failure.clone().context("nothing is said of it")?;
        ensure!(
            reason != "StepFailed" && message.ends_with("it was cancelled, and is tried again"),
            "{message}"
        );
        Ok(())
    }

    async fn no_worker_is_free(&mut self, held_up: HeldUp) -> Result<HeldUp> {
        let Self { world, .. } = self;
        let tls: String = world.ask(TARGET, "SHOW citus.node_conninfo").await?[0].get(0);
        let port = world.server(SOURCE).port();
        for name in ["idle_1", "idle_2"] {
            let slot = format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')");
            world.ask(SOURCE, &slot).await?;
        }
        let publication = "SET citus.enable_ddl_propagation = off; CREATE PUBLICATION idle";
        world.ask_client(SOURCE).await?.batch_execute(publication).await?;
        let target = world.ask_client(TARGET).await?;
        for name in ["idle_1", "idle_2"] {
            let create = format!(
                "CREATE SUBSCRIPTION {name} CONNECTION 'host=localhost port={port} user=postgres dbname=dialog {tls}'
                 PUBLICATION idle WITH (connect = false, slot_name = '{name}')"
            );
            target.batch_execute(&create).await?;
        }
        self.begin(&held_up).await?;

        for name in ["idle_1", "idle_2"] {
            target.batch_execute(&format!("ALTER SUBSCRIPTION {name} ENABLE")).await?;
        }
        let workers = "pg_stat_subscription WHERE pid IS NOT NULL AND subname";
        eventually("the workers are taken", async || {
            let end = format!("SELECT pg_terminate_backend(pid) FROM {workers} LIKE 'citus_shard_move_%'");
            self.world.ask(TARGET, &end).await?;
            let taken = format!("SELECT count(*) FROM {workers} LIKE 'idle_%'");
            Ok(self.world.number(TARGET, &taken).await? == 2)
        })
        .await?;
        held_up.end().await?;
        let message = self.until_said("NoReplicationWorker", CANCELLED).await?;
        assert!(message.contains("on worker-1 has no background worker"), "{message}");
        assert!(
            message.contains("all 2 logical replication workers there are taken, by idle_1, idle_2"),
            "{message}"
        );
        self.until_cancelled().await?;
        let message = self.until_said("NoReplicationWorker", "worker-1 has 0 logical").await?;
        assert!(message.contains("drop subscriptions that are not needed"), "{message}");

        let held_up = HeldUp::every(&self.world).await?;
        for name in ["idle_1", "idle_2"] {
            target.batch_execute(&format!("DROP SUBSCRIPTION {name}")).await?;
        }
        Ok(held_up)
    }

    async fn a_row_is_there_already(&mut self, held_up: HeldUp) -> Result<HeldUp> {
        self.begin(&held_up).await?;
        self.conflict(1).await?;
        held_up.end().await?;
        let message = self.until_said("ReplicationFailed", CANCELLED).await?;
        assert!(message.contains("the subscription citus_shard_move_subscription"), "{message}");
        assert!(message.contains("the log of worker-1 says why"), "{message}");
        let held_up = HeldUp::every(&self.world).await?;
        self.until_cancelled().await?;
        Ok(held_up)
    }

    /// The server that knows answers, and one of the statements fails.
    async fn nobody_can_be_asked(&mut self, held_up: HeldUp) -> Result<HeldUp> {
        self.begin(&held_up).await?;
        self.conflict(2).await?;
        let target = self.world.ask_client(TARGET).await?;
        target.batch_execute("SET allow_system_table_mods = on").await?;
        let rename = "ALTER VIEW pg_catalog.pg_stat_subscription_stats RENAME TO hidden";
        target.batch_execute(rename).await?;
        held_up.end().await?;
        let message = self.until_said("DiagnosisFailed", CANCELLED).await?;
        assert!(message.contains("worker-1 answers and refuses the question"), "{message}");
        assert!(message.contains("\"pg_stat_subscription_stats\" does not exist"), "{message}");
        let rename = "ALTER VIEW pg_catalog.hidden RENAME TO pg_stat_subscription_stats";
        target.batch_execute(rename).await?;
        let held_up = HeldUp::every(&self.world).await?;
        self.until_cancelled().await?;
        Ok(held_up)
    }

    /// It has the lock that the end of the move waits for, and no process that anybody could be told of.
    async fn a_prepared_transaction_is_forgotten(&mut self, held_up: HeldUp) -> Result<()> {
        self.begin(&held_up).await?;
        held_up.prepare("forgotten").await?;
        let message = self.until_said("MoveBlocked", CANCELLED).await?;
        for part in [
            "on coordinator its process",
            "waits for a lock of the prepared transaction 'forgotten' of postgres in database dialog (since 2",
            "ROLLBACK PREPARED 'forgotten' there",
        ] {
            assert!(message.contains(part), "{message}");
        }
        self.until_cancelled().await?;
        // While it waits to be tried again, the condition is about what kept it, and not about a statement that was cancelled.
        let message = self.until_said("MoveBlocked", "it was cancelled, and is tried again").await?;
        assert!(message.contains("ROLLBACK PREPARED 'forgotten' there"), "{message}");
        let coordinator = self.world.ask_client(Group::Coordinator).await?;
        coordinator.batch_execute("ROLLBACK PREPARED 'forgotten'").await?;
        eventually("the move is made", async || {
            self.operator.round(&self.world, &self.wanted).await?;
            Ok(self.operator.done.contains(&self.step))
        })
        .await
    }

    /// Writes a message on the source, with this number, that the target has already; returns when that has failed there.
    async fn conflict(&self, number: u8) -> Result<()> {
        let row = self.message(&format!("'00000000-0000-4000-8000-0000000000{number:02}'"));
        for group in [TARGET, SOURCE] {
            self.by_hand(group, &row).await?;
        }
        self.until_apply_fails().await
    }

    /// A statement that writes a message with this id, an expression of SQL, into the shard that moves.
    fn message(&self, id: &str) -> String {
        format!(
            "INSERT INTO {0} (dialog_id, message_id, from_user_id, to_user_id, text, created_at)
             SELECT dialog_id, {id}, from_user_id, to_user_id, 'by hand', now() FROM {0} ORDER BY dialog_id LIMIT 1",
            self.table
        )
    }

    async fn the_disk_is_full(&mut self, held_up: HeldUp) -> Result<HeldUp> {
        self.begin(&held_up).await?;
        // The log has a file to go on in; what has none is the table.
        self.world.ask_client(TARGET).await?.batch_execute("CHECKPOINT; SELECT pg_switch_wal()").await?;
        self.world.server(TARGET).leave_free(1 << 20)?;
        let rows = format!(
            "INSERT INTO {0} (dialog_id, message_id, from_user_id, to_user_id, text, created_at)
             SELECT dialog_id, gen_random_uuid(), from_user_id, to_user_id, repeat('text', 450), now()
             FROM (SELECT * FROM {0} ORDER BY dialog_id LIMIT 1) AS one, generate_series(1, {MANY})",
            self.table
        );
        self.by_hand(SOURCE, &rows).await?;
        self.until_apply_fails().await?;
        held_up.end().await?;
        // Writers may wait for it by then, and that is found sooner.
        let message = self.until_said("DiskFull", "the disk of worker-1 is full").await?;
        assert!(message.contains("make room there"), "{message}");
        self.until_cancelled().await?;
        let message = self.until_said("NoPlace", "worker-1").await?;
        assert!(message.contains("delete what takes the room there"), "{message}");
        let held_up = HeldUp::every(&self.world).await?;
        self.world.server(TARGET).leave_free(VOLUME)?;
        Ok(held_up)
    }

    /// The target hears nothing of the source any more, and everybody else does.
    async fn the_target_is_cut_off(&mut self, held_up: HeldUp, detour: &Detour) -> Result<HeldUp> {
        self.begin(&held_up).await?;
        let process = self.world.server(TARGET).pid().context("the target does not run")?;
        detour.set(Cut::Server(process));
        // Without anything left to follow the move would end.
        self.by_hand(SOURCE, &self.message("gen_random_uuid()")).await?;
        held_up.end().await?;
        let message = self.until_said("NodeUnreachable", CANCELLED).await?;
        assert!(message.contains("worker-1 cannot connect to worker-0 at localhost:"), "{message}");
        assert!(message.contains("NetworkPolicy"), "{message}");
        self.until_cancelled().await?;
        // Others are tried meanwhile, and fail as well.
        let failed = format!("could not {}: worker-1 cannot connect to worker-0", self.step);
        self.until_said("NodeUnreachable", &failed).await?;
        let held_up = HeldUp::every(&self.world).await?;
        detour.set(Cut::Nobody);
        Ok(held_up)
    }

    /// Nobody hears anything of the source any more.
    async fn the_source_is_cut_off(&mut self, held_up: HeldUp, detour: &Detour) -> Result<()> {
        self.begin(&held_up).await?;
        detour.set(Cut::Everybody);
        held_up.end().await?;
        let message = self.until_said("NodeUnreachable", CANCELLED).await?;
        assert!(message.contains("worker-0 does not answer"), "{message}");
        detour.set(Cut::Nobody);
        Ok(())
    }

    /// Somebody's statement on the shard itself.
    async fn by_hand(&self, group: Group, statement: &str) -> Result<()> {
        let client = self.world.ask_client(group).await?;
        client.batch_execute("SET citus.enable_manual_changes_to_shards = on").await?;
        client.batch_execute(statement).await.with_context(|| format!("on {group}: {statement}"))
    }

    /// Waits until the target could not apply what came.
    async fn until_apply_fails(&self) -> Result<()> {
        let failed = "SELECT coalesce(sum(apply_error_count), 0)::int8 FROM pg_stat_subscription_stats
                      WHERE subname LIKE 'citus_shard_move_%'";
        eventually("an error of the subscription", async || Ok(self.world.number(TARGET, failed).await? > 0))
            .await
    }
}
