//! Reads how far steps that spread tables are, and finds out what one waits for that does not get on.

use super::splits::{self, Begun, NOTHING_KNOWN, begun, kept};
use super::stall::{self, Cause};
use crate::names::Group;
use crate::shards::observed::{Catalog, RunningSpread, Stall, StallKind};
use crate::shards::sessions::Sessions;
use crate::shards::supervise::StalledSpread;

/// The steps that spread tables and are under way, each with how far it is. The servers are asked only while there is one.
pub(super) async fn running(sessions: &Sessions, catalog: &Catalog) -> Vec<RunningSpread> {
    let mut running = Vec::new();
    for operation in catalog.operations.iter().filter(|operation| operation.spreads()) {
        // It may have ended meanwhile.
        let Ok(Some(Begun { since, operations, .. })) = begun(sessions, operation.pid).await else {
            continue;
        };
        let nodes: Vec<Group> = catalog.groups(sessions.topology()).collect();
        let mut shown = Vec::new();
        for group in &nodes {
            // A server that does not answer has no progress to show.
            shown.extend(splits::of(sessions, *group, operation.pid, &operations).await.ok());
        }
        running.push(RunningSpread {
            operation: operation.clone(),
            since,
            nodes,
            waits: shown.iter().any(|shown| shown.waits),
            progress: shown.into_iter().map(|shown| shown.progress).collect(),
        });
    }
    running
}

/// What keeps `stalled`, with the process to look at; `None` if it is at work all the same.
pub async fn diagnose(sessions: &Sessions, stalled: &StalledSpread) -> Option<Stall> {
    let RunningSpread { operation, nodes, .. } = &stalled.running;
    let (kind, cause) = match kept(sessions, nodes, operation.pid).await? {
        Some(cause) => cause,
        None => replication(sessions, nodes).await,
    };
    Some(Stall {
        pid: operation.pid,
        application: operation.application.clone(),
        seconds: stalled.idle.as_secs(),
        blocks_writers: false,
        kind,
        cause,
        end: stalled.end,
    })
}

/// What is wrong where nobody keeps it: a disk that is full, or a subscription that does not follow.
async fn replication(sessions: &Sessions, nodes: &[Group]) -> Cause {
    let mut unasked = None;
    for group in nodes {
        let found = match stall::full(sessions, *group).await {
            Ok(None) => stall::subscription(sessions, *group).await,
            found => found,
        };
        match found {
            Ok(Some(cause)) => return cause,
            Ok(None) => {}
            Err(error) => unasked = unasked.or(Some(stall::unasked(*group, &error))),
        }
    }
    unasked.unwrap_or_else(|| (StallKind::Unknown, NOTHING_KNOWN.to_owned()))
}
