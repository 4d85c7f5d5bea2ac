//! Sessions that write without a pause, and the cluster in which they do.

use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dialog_operator::api::{ActionStatus, DialogCluster};
use dialog_operator::names::{DATABASE, Group};
use serde_json::json;

use crate::bed::{Bed, kubectl_command};

/// Sessions that flood at the same time.
pub(super) const SESSIONS: usize = 4;

/// How long the servers count.
pub(super) const PERIOD: Duration = Duration::from_secs(10);
/// Periods that somebody has to be hot.
pub(super) const PERIODS: u32 = 2;

/// Creates the cluster: workers that are easily too much for those who flood one, and one of them that is kept for such, so that it
/// can bear whoever the machine lets write as much as that.
pub(super) async fn create(bed: &Bed) -> Result<()> {
    bed.create(3, |spec| {
        spec["workers"]["resources"]["limits"] = json!({"cpu": "300m"});
        spec["sharding"] = json!({"hotTenants": {
            "mode": "Isolate",
            "sharePercent": 40,
            "minQueries": 200,
            "consecutivePeriods": PERIODS,
            "dedicatedWorkers": 1,
            "statistics": {"period": format!("{}s", PERIOD.as_secs())},
        }});
    })
    .await
}

/// Sessions on the coordinator that write without a pause. dialog-api would let nobody do that: it takes 50 messages a second from
/// one user to another, and 100 to all.
pub(super) struct Flood(Vec<Child>);

impl Flood {
    /// Begins it. `body` is what a session does, by its number: statements of PL/pgSQL that find the variables `number`, which is
    /// to count what is written, and `refused`, and that do not end.
    pub(super) async fn begin(bed: &Bed, body: impl Fn(usize) -> String) -> Result<Self> {
        let pod = bed.primary(Group::Coordinator).await?;
        let sessions = (0..SESSIONS).map(|session| {
            let flood = format!(
                "DO $flood$ DECLARE number bigint := 1; refused bigint := 0; BEGIN LOOP {} END LOOP; END $flood$",
                body(session)
            );
            kubectl_command()
                .args(["--namespace", bed.names.namespace(), "exec", &pod, "--"])
                .args(["psql", "-XAtq", "-U", "postgres", "-d", DATABASE, "-c", &flood])
                .stdout(Stdio::null())
                // Who cannot write any more says why.
                .stderr(Stdio::inherit())
                .spawn()
                .context("cannot run kubectl")
        });
        Ok(Self(sessions.collect::<Result<_>>()?))
    }

    /// Ends it, unless a session has ended by itself, which is an error.
    pub(super) async fn end(mut self, bed: &Bed) -> Result<()> {
        let end =
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE 'DO $flood$%'";
        let ended = bed.sql(Group::Coordinator, end).await?;
        ensure!(ended == SESSIONS.to_string(), "{ended} of {SESSIONS} sessions still wrote");
        for session in &mut self.0 {
            session.wait()?;
        }
        Ok(())
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        for session in &mut self.0 {
            // They may have ended.
            let _ = session.kill();
        }
    }
}

/// What was done to isolate this tenant, once it is done.
pub(super) fn isolation(cluster: &DialogCluster, tenant: &str) -> Option<ActionStatus> {
    let actions = &cluster.status.as_ref()?.heat.as_ref()?.actions;
    let is_done = |action: &&ActionStatus| {
        action.kind == "Isolate"
            && action.tenant.as_deref() == Some(tenant)
            && action.outcome.as_deref() == Some("Done")
    };
    actions.iter().find(is_done).cloned()
}
