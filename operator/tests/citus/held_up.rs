//! Keeps a move from ending, so that a test can act in the middle of it.

use anyhow::Result;
use dialog_operator::names::Group;
use tokio_postgres::Client;

use crate::world::World;

/// As long as this is there, no move of the shard group comes to its end: everything is copied, and the changes meanwhile
/// are followed.
pub struct HeldUp {
    /// Its transaction has the lock that writers of the shard have.
    writer: Client,
    watcher: Client,
    pid: i32,
}

impl HeldUp {
    /// Holds up the moves of the shard group of `shard_id`.
    pub async fn new(world: &World, shard_id: i64) -> Result<Self> {
        let writer = world.ask_client(Group::Coordinator).await?;
        // Mode 5 is SHARE; the end of a move wants EXCLUSIVE.
        writer.batch_execute(&format!("BEGIN; SELECT lock_shard_metadata(5, ARRAY[{shard_id}])")).await?;
        let pid = writer.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
        Ok(Self { writer, watcher: world.ask_client(Group::Coordinator).await?, pid })
    }

    /// Whether a move waits for it to go.
    pub async fn is_waited_for(&self) -> Result<bool> {
        let waits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid)))";
        Ok(self.watcher.query_one(waits, &[&self.pid]).await?.get(0))
    }

    /// Goes.
    pub async fn end(self) -> Result<()> {
        Ok(self.writer.batch_execute("ROLLBACK").await?)
    }
}
