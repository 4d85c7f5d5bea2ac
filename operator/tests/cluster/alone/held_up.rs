//! Moves that cannot end, so that something can happen in their middle.

use std::cell::RefCell;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dialog_operator::names::Group;

use crate::bed::{Bed, kubectl_command};

/// How long a move may take to be begun anew, put off as it is after each failure, and to be copied.
pub(super) const TO_COPY: Duration = Duration::from_mins(4);
/// How the sessions that keep moves from ending are called.
const HOLDER: &str = "held-up";

/// Keeps moves from ending: everything is copied, and the changes meanwhile are followed.
pub(super) struct HeldUp {
    name: String,
    process: Child,
}

impl HeldUp {
    /// Begins to; behind others that do, this takes until these have ended.
    pub(super) async fn begin(bed: &Bed, number: u32) -> Result<Self> {
        // The lock that Citus has for tests of this: nobody who writes waits for it. A move that keeps writers waiting would
        // be cancelled. The sessions that move shards are all on the coordinator, so it alone has to be told to ask for it; a
        // worker that has just been restarted may not answer yet, and sent to it the statement would fail.
        let heed = "SET citus.enable_ddl_propagation = off; ALTER DATABASE dialog SET citus.running_under_citus_test_suite = on";
        bed.sql(Group::Coordinator, heed).await?;
        let hold = "SELECT pg_advisory_lock(44000, 55152); SELECT pg_sleep(3600)";
        let pod = bed.primary(Group::Coordinator).await?;
        let name = format!("{HOLDER}-{number}");
        let process = kubectl_command()
            .args([
                "--namespace",
                bed.names.namespace(),
                "exec",
                &pod,
                "--",
                "env",
                &format!("PGAPPNAME={name}"),
            ])
            .args(["psql", "-XAtq", "-U", "postgres", "-d", "dialog", "-c", hold])
            .stdout(Stdio::null())
            .spawn()
            .context("cannot run kubectl exec")?;
        let held_up = Self { name, process };
        held_up.until(bed, "wait_event_type = 'Lock' OR wait_event = 'PgSleep'").await?;
        Ok(held_up)
    }

    /// Returns when no move can end any more.
    pub(super) async fn until_held(&self, bed: &Bed) -> Result<()> {
        self.until(bed, "wait_event = 'PgSleep'").await
    }

    async fn until(&self, bed: &Bed, waits: &str) -> Result<()> {
        let asked = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = '{}' AND ({waits})",
            self.name
        );
        bed.eventually("moves are held up", TO_COPY, || async {
            let found = bed.sql(Group::Coordinator, &asked).await?;
            Ok((found != "1").then_some(found))
        })
        .await
    }

    /// The process of the move that waits for this to go; empty while none does.
    pub(super) async fn mover(&self, bed: &Bed) -> Result<String> {
        let waits = format!(
            "SELECT waiting.pid FROM pg_stat_activity AS waiting JOIN pg_stat_activity AS holder
             ON holder.pid = ANY (pg_blocking_pids(waiting.pid))
             WHERE holder.application_name = '{}' AND waiting.application_name LIKE 'dialog-operator: move %'",
            self.name
        );
        bed.sql(Group::Coordinator, &waits).await
    }

    /// Returns when a move waits for this to go that is not `before`: its process.
    pub(super) async fn until_copied(&self, bed: &Bed, before: &str) -> Result<String> {
        let found = RefCell::new(String::new());
        bed.eventually("a move has copied everything", TO_COPY, || async {
            let mover = self.mover(bed).await?;
            let missing = (mover.is_empty() || mover == before).then(|| format!("held up: {mover:?}"));
            found.replace(mover);
            Ok(missing)
        })
        .await?;
        Ok(found.into_inner())
    }

    /// Lets the moves end.
    pub(super) async fn end(mut self, bed: &Bed) -> Result<()> {
        let end = format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = '{}'",
            self.name
        );
        let ended = bed.sql(Group::Coordinator, &end).await?;
        ensure!(ended == "1", "moves were held up by {ended} sessions");
        self.process.wait()?;
        Ok(())
    }
}

impl Drop for HeldUp {
    fn drop(&mut self) {
        // It has ended with its session, or the test has failed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
