//! Keeps a move from ending, so that a test can act in the middle of it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dialog_operator::names::Group;
use tokio_postgres::Client;

use crate::world::World;

/// A move that is held up at its end is there after this time at the latest.
pub const TO_COPY: Duration = Duration::from_mins(2);

const ALL: &str = "(SELECT array_agg(shardid) FROM pg_dist_shard)";

/// As long as this is there, no move of the shard groups comes to its end: everything is copied, and the changes meanwhile
/// are followed.
pub struct HeldUp {
    /// Its transaction has the lock that writers of the shards have.
    writer: Client,
    watcher: Client,
    pid: i32,
}

impl HeldUp {
    /// Holds up the moves of the shard group of `shard_id`.
    pub async fn new(world: &World, shard_id: i64) -> Result<Self> {
        Self::of(world, 5, &format!("ARRAY[{shard_id}]")).await
    }

    /// Holds up every move.
    pub async fn every(world: &World) -> Result<Self> {
        Self::of(world, 5, ALL).await
    }

    /// Holds up no move, and has the lock that holds them up in a weaker mode.
    pub async fn reading(world: &World) -> Result<Self> {
        Self::of(world, 1, ALL).await
    }

    async fn of(world: &World, mode: i32, shards: &str) -> Result<Self> {
        // Mode 5 is SHARE, 1 is ACCESS SHARE; the end of a move wants EXCLUSIVE.
        Self::by(world, &format!("SELECT lock_shard_metadata({mode}, {shards})")).await
    }

    /// Holds up every move that is begun from now on, before it keeps writers waiting: by the lock that Citus has for tests of
    /// this.
    pub async fn while_others_write(world: &World) -> Result<Self> {
        let heed = "ALTER DATABASE dialog SET citus.running_under_citus_test_suite = on";
        world.ask_client(Group::Coordinator).await?.batch_execute(heed).await?;
        Self::by(world, "SELECT pg_advisory_xact_lock(44000, 55152)").await
    }

    async fn by(world: &World, lock: &str) -> Result<Self> {
        let writer = world.ask_client(Group::Coordinator).await?;
        writer.batch_execute(&format!("BEGIN; {lock}")).await?;
        let pid = writer.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
        Ok(Self { writer, watcher: world.ask_client(Group::Coordinator).await?, pid })
    }

    /// Its session on the coordinator.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether a move waits for it to go.
    pub async fn is_waited_for(&self) -> Result<bool> {
        let waits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid)))";
        Ok(self.watcher.query_one(waits, &[&self.pid]).await?.get(0))
    }

    /// Returns when a move to `to` waits for it to go, and the changes meanwhile are followed; fails if `is_over` says that
    /// the move has ended before.
    pub async fn copied(&self, world: &World, to: Group, is_over: impl Fn() -> bool) -> Result<()> {
        let followed = "SELECT count(*) FROM pg_stat_subscription WHERE subname LIKE 'citus_shard_move_%'
                        AND latest_end_lsn IS NOT NULL AND relid IS NULL";
        let copied = async {
            while world.number(to, followed).await? == 0 || !self.is_waited_for().await? {
                ensure!(!is_over(), "the move has ended before");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ok(())
        };
        tokio::time::timeout(TO_COPY, copied).await.context("no move was held up at its end")?
    }

    /// Goes.
    pub async fn end(self) -> Result<()> {
        Ok(self.writer.batch_execute("ROLLBACK").await?)
    }

    /// Stays without a session, as the prepared transaction `gid`.
    pub async fn prepare(self, gid: &str) -> Result<()> {
        Ok(self.writer.batch_execute(&format!("PREPARE TRANSACTION '{gid}'")).await?)
    }
}

/// The shard of messages that moves together with the shard `shard_id`.
pub async fn shard_of_messages(world: &World, shard_id: i64) -> Result<Option<i64>> {
    let beside = format!(
        "SELECT messages.shardid FROM pg_dist_shard AS moved JOIN pg_dist_partition USING (logicalrelid)
         JOIN pg_dist_partition AS beside USING (colocationid)
         JOIN pg_dist_shard AS messages ON messages.logicalrelid = beside.logicalrelid
         WHERE moved.shardid = {shard_id} AND messages.shardminvalue = moved.shardminvalue
           AND messages.logicalrelid = 'public.messages'::regclass"
    );
    Ok(world.ask(Group::Coordinator, &beside).await?.first().map(|row| row.get(0)))
}
