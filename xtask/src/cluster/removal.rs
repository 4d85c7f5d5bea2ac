//! Taking away what a cluster has in its engine.

use anyhow::Result;

use super::NETWORK;
use super::files::Files;
use crate::command::{self, Log};
use crate::engine::Engine;

/// How often the engine is asked to remove the containers before that counts as failed; about a minute.
const REMOVALS: u32 = 6;

/// Containers with their volumes, and networks.
pub(super) fn everything(engine: &Engine, log: &Log) -> Result<()> {
    let containers = || command::output(engine.docker().args(["ps", "--all", "--quiet"]));
    let remove = |names: &str| {
        command::run(engine.docker().args(["rm", "--force", "--volumes"]).args(names.lines()), log)
    };
    let mut left = containers()?;
    // The engine waits ten seconds for a killed container to end. The hundreds of processes of a node can take longer
    // on a busy machine, so it is asked again, and what counts is who is left.
    for _ in 1..REMOVALS {
        if left.is_empty() {
            break;
        }
        let _ = remove(&left);
        left = containers()?;
    }
    if !left.is_empty() {
        remove(&left)?;
    }
    command::run(engine.docker().args(["network", "prune", "--force"]), log)
}

/// The network that kind made, if it made it for this cluster and nothing else uses it.
pub(super) fn network(engine: &Engine, files: &Files, log: &Log) -> Result<()> {
    let count = ["network", "inspect", "--format", "{{len .Containers}}", NETWORK];
    let is_idle = || command::output(engine.docker().args(count)).is_ok_and(|count| count == "0");
    if files.recall("network").is_some() && is_idle() {
        command::run(engine.docker().args(["network", "rm", NETWORK]), log)?;
    }
    Ok(())
}
