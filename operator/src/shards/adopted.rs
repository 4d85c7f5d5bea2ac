//! Moves and splits that an operator before this one has begun, or that this one has begun by a session that it has lost: they go on
//! in the database, and are woken up as its own are.

use std::collections::BTreeMap;

use super::act::awake::Awake;
use super::observed::{Operation, RunningMove};
use super::sessions::Sessions;

/// Those that are woken up: each until it is seen no more, or this is dropped.
#[derive(Default)]
pub struct Adopted(BTreeMap<i32, Woken>);

struct Woken {
    application: String,
    _awake: Awake,
}

impl Adopted {
    /// Wakes from now on what of `operations` moves or cuts and is not this process' `own`, and nothing else; each by `sessions` of
    /// its own.
    pub fn look(
        &mut self,
        operations: &[Operation],
        own: impl Fn(&Operation) -> bool,
        sessions: impl Fn() -> Sessions,
    ) {
        let mut before = std::mem::take(&mut self.0);
        for operation in operations.iter().filter(|operation| listens(operation) && !own(operation)) {
            let known = before.remove(&operation.pid);
            let woken = known.filter(|woken| woken.application == operation.application);
            let woken = woken.unwrap_or_else(|| Woken {
                application: operation.application.clone(),
                _awake: Awake::new(sessions(), operation.pid),
            });
            self.0.insert(operation.pid, woken);
        }
    }
}

/// Whether `operation` listens to who wakes it: what moves or cuts shards does.
fn listens(operation: &Operation) -> bool {
    RunningMove::of(operation).is_some() || operation.split().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Group;
    use crate::pg::{APPLICATION, Endpoint, Identity};
    use crate::shards::topology::Topology;

    fn identity() -> Identity {
        let authority = testbed::certificates::Authority::new().unwrap();
        let own = authority.client("dialog_operator").unwrap();
        let pem = [&authority.certificate(), &own.certificate, &own.key].map(|text| text.as_bytes().to_vec());
        Identity::from_pem(&pem[0], &pem[1], &pem[2]).unwrap()
    }

    #[tokio::test]
    async fn what_moves_or_cuts_and_is_not_its_own_is_woken_once_and_for_as_long_as_it_is_seen() {
        let made = std::cell::Cell::new(0);
        let identity = identity();
        let nowhere: Topology = [(Group::Coordinator, Endpoint::new("localhost", 1))].into_iter().collect();
        let sessions = || {
            made.set(made.get() + 1);
            Sessions::new(nowhere.clone(), identity.clone())
        };
        let operation =
            |pid, purpose: &str| Operation { pid, application: format!("{APPLICATION}: {purpose}") };
        let moving = |pid| operation(pid, &RunningMove::purpose(102_008, Group::Worker(0), Group::Worker(1)));
        let cutting = operation(8, "split 102009 worker-0");
        let copying = operation(9, "copy the reference tables to the nodes that lack them");
        let mut adopted = Adopted::default();
        let mut look = |operations: &[Operation], own: Option<i32>| {
            adopted.look(operations, |operation| own == Some(operation.pid), sessions);
            (adopted.0.keys().copied().collect::<Vec<_>>(), made.get())
        };
        let all = [moving(7), cutting.clone(), copying.clone()];
        assert_eq!(
            look(&all, Some(7)),
            (vec![8], 1),
            "it wakes its own by itself, and a copy does not listen"
        );
        assert_eq!(look(&all, None), (vec![7, 8], 2), "the session of its own was lost");
        assert_eq!(look(&all, None), (vec![7, 8], 2));
        assert_eq!(
            look(&[operation(8, "move 102010 worker-0>worker-1")], None),
            (vec![8], 3),
            "another session"
        );
        assert_eq!(look(&[], None), (vec![], 3));
    }
}
