//! People who write while shards move, and a ledger of what was acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail, ensure};
use dialog_operator::names::Group;
use dialog_operator::pg::{Parameter, Session};
use tokio::task::JoinHandle;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

use crate::world::World;

const WRITERS: usize = 2;

/// Writers at work.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<Result<i64>>>,
}

impl Traffic {
    /// Starts writers that insert messages into many dialogs, one after the other, and edit each once.
    pub async fn start(world: &World) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut writers = Vec::new();
        for writer in 0..WRITERS {
            let session = world.api(Group::Coordinator).await?;
            writers.push(tokio::spawn(write(session, writer, Arc::clone(&stop))));
        }
        Ok(Self { stop, writers })
    }

    /// Stops the writers, and makes sure that every acknowledged message is there once and as it was edited last.
    pub async fn verify(self, world: &World) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let api = world.api(Group::Coordinator).await?;
        for (writer, task) in self.writers.into_iter().enumerate() {
            let acknowledged = task.await??;
            ensure!(acknowledged > 0, "writer {writer} wrote nothing");
            let row = api
                .query_one(
                    "SELECT count(*), count(DISTINCT text), count(*) FILTER (WHERE edited_at IS NULL)
                     FROM messages WHERE text LIKE $1",
                    &[(&format!("writer {writer} %"), Type::TEXT)],
                )
                .await?;
            let found: (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
            ensure!(found == (acknowledged, acknowledged, 0), "acknowledged {acknowledged}, found {found:?}");
        }
        Ok(())
    }
}

/// One statement, again when it did nothing because a split has just replaced its shard, or because a change held the
/// table for longer than a session waits: people try again then, too.
pub async fn persist(session: &Session, statement: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Row>> {
    let passing = [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::LOCK_NOT_AVAILABLE];
    loop {
        match session.query(statement, parameters).await {
            Err(error) if error.sqlstate().is_some_and(|state| passing.contains(state)) => {}
            answer => return Ok(answer?),
        }
    }
}

async fn write(session: Session, writer: usize, stop: Arc<AtomicBool>) -> Result<i64> {
    let mut acknowledged = 0_i64;
    while !stop.load(Ordering::Relaxed) {
        let text = format!("writer {writer} {acknowledged}");
        let rows = persist(
            &session,
            "INSERT INTO messages (dialog_id, message_id, from_user_id, to_user_id, text, created_at)
             VALUES (gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), $1, now())
             RETURNING dialog_id::text, message_id::text",
            &[(&text, Type::TEXT)],
        )
        .await?;
        acknowledged += 1;
        let (dialog, message): (String, String) = (rows[0].get(0), rows[0].get(1));
        edit(&session, &dialog, &message).await?;
    }
    Ok(acknowledged)
}

/// Edits a message that is there. Its shard may just have come to the coordinator: a statement that waited there for the
/// end of the move goes by what the coordinator stored before it began to wait, changes nothing and says so. Asked again,
/// it finds the message.
async fn edit(session: &Session, dialog: &str, message: &str) -> Result<()> {
    for _ in 0..2 {
        let rows = persist(
            session,
            "UPDATE messages SET edited_at = now()
             WHERE dialog_id = $1::text::uuid AND message_id = $2::text::uuid RETURNING 1",
            &[(&dialog, Type::TEXT), (&message, Type::TEXT)],
        )
        .await?;
        if !rows.is_empty() {
            return Ok(());
        }
        println!("the message {message} of the dialog {dialog} was not found at first");
    }
    bail!("the message {message} of the dialog {dialog} was acknowledged and is gone")
}
