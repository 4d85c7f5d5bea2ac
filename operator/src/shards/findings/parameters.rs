//! Whether the parameters that the resource declares are in force.
//!
//! A parameter can get lost on the way without any program failing: Patroni leaves out what it takes to be wrong, and
//! says so in the log of the pod; PostgreSQL keeps the old value when it reads a file with a wrong one.

use crate::condition::{Finding, Holds, PARAMETERS_APPLIED, first_of};
use crate::names::Group;
use crate::shards::observed::Parameter;
use crate::shards::world::World;

/// What became of one parameter on one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    /// The server refuses the value.
    Rejected,
    /// It is not what the server reads.
    Ignored,
    /// It takes a restart.
    RestartPending,
}

pub(super) fn applied(world: &World<'_>) -> Finding {
    let finding =
        |holds: Holds, reason, message: String| Finding::new(PARAMETERS_APPLIED, holds, reason, message);
    let mut lost = Vec::new();
    let mut unknown = Vec::new();
    for group in world.groups() {
        let facts = match world.server(group) {
            Ok(facts) => facts,
            Err(why) => {
                unknown.push(why);
                continue;
            }
        };
        for (name, value) in &world.wanted.parameters {
            match facts.parameters.get(name) {
                Some(parameter) => {
                    let said = fate(group, name, value, parameter);
                    lost.extend(said.map(|(fate, message)| (fate, name.as_str(), message)));
                }
                None => unknown.push(format!("{group} does not say what became of {name}")),
            }
        }
    }
    lost.sort();
    if let Some((fate, ..)) = lost.first() {
        let (reason, remedy) = match fate {
            Fate::Rejected => ("ParametersRejected", "correct spec.postgres.parameters; the old values stay"),
            Fate::Ignored => (
                "ParametersIgnored",
                "correct spec.postgres.parameters, or wait a few seconds if it has just been changed; the log of the \
                 pod says what Patroni leaves out",
            ),
            Fate::RestartPending => ("RestartPending", "the servers are restarted one after the other"),
        };
        return finding(Holds::False, reason, format!("{}; {remedy}", first_of(&by_parameter(&lost))));
    }
    if !unknown.is_empty() {
        return finding(Holds::Unknown, "NotObserved", first_of(&unknown));
    }
    let message = format!(
        "every node has the parameters that spec.postgres declares ({})",
        world.wanted.parameters.len()
    );
    finding(Holds::True, "Applied", message)
}

/// What has become of each parameter on the first of the servers with the same to say, and how many more there are.
fn by_parameter(lost: &[(Fate, &str, String)]) -> Vec<String> {
    let same =
        |one: &(Fate, &str, String), other: &(Fate, &str, String)| (&one.0, one.1) == (&other.0, other.1);
    let text = |alike: &[(Fate, &str, String)]| match alike {
        [(.., message)] => message.clone(),
        [(.., message), more @ ..] => format!("{message} (likewise on {} more)", more.len()),
        [] => String::new(),
    };
    lost.chunk_by(same).map(text).collect()
}

/// Why the parameter `name` is not in force on `group`'s server, if it is not.
fn fate(group: Group, name: &str, value: &str, parameter: &Parameter) -> Option<(Fate, String)> {
    // An extension's parameters may be set before it is loaded; until then the server knows none of them.
    let known = parameter.known || name.contains('.');
    Some(match parameter {
        _ if !known => (Fate::Ignored, format!("{group}'s PostgreSQL has no parameter {name}")),
        Parameter { written: None, .. } => {
            (Fate::Ignored, format!("{name} is not in the configuration of {group}"))
        }
        Parameter { written: Some(written), .. } if written != value => {
            (Fate::Ignored, format!("{name} is {written} in the configuration of {group}, not {value}"))
        }
        // That a value cannot be applied is said of one that needs a restart, too.
        Parameter { restart_pending: true, .. } => {
            (Fate::RestartPending, format!("{name} takes a restart of {group}'s PostgreSQL"))
        }
        Parameter { error: Some(error), .. } => {
            (Fate::Rejected, format!("{group}'s PostgreSQL refuses {name} = {value}: {error}"))
        }
        _ => return None,
    })
}
