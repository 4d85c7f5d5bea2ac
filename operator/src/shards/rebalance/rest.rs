//! What is left of a plan that was made earlier. Sizes waver, and a plan made anew after each move might take another way
//! to the same end; a plan that was approved must not.

use super::state::{Fate, State};
use super::{Layout, Move, MovePlan, Policy, Role, Spread, schedule, shared};
use crate::condition::first_of;
use crate::names::Group;

/// Why a plan cannot be continued: the world is not the one that it was made for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Overtaken {
    /// The resource asks for another spread.
    #[error("the plan is for {planned}, and the resource asks for {now} now")]
    Policy {
        /// What the plan is for.
        planned: Spread,
        /// What is asked for now.
        now: Spread,
    },
    /// The set of nodes that shard groups are spread over is another.
    #[error("the plan spreads shards over {}, and now there are {}", list(planned), list(now))]
    Nodes {
        /// The nodes of the plan.
        planned: Vec<Group>,
        /// The nodes now.
        now: Vec<Group>,
    },
    /// A shard group is neither where it was nor where it should go.
    #[error("shard {shard_id} is on {node} now, neither where the plan found it nor where it sends it")]
    Elsewhere {
        /// The shard of the plan.
        shard_id: i64,
        /// Where it is.
        node: Group,
    },
    /// A shard group is no more: its table was dropped, or it was split.
    #[error("shard {shard_id} is gone: its table was dropped, or it was split")]
    Gone {
        /// The shard of the plan.
        shard_id: i64,
    },
    /// A node cannot take all that is to go there.
    #[error("{node} has no room any more for what the plan sends there")]
    NoRoom {
        /// The target.
        node: Group,
    },
    /// A move is not allowed any more, or would make the spread worse.
    #[error("to move shard {shard_id} as planned would not help any more")]
    Harmful {
        /// The shard of the plan.
        shard_id: i64,
    },
    /// Something else has to move by now.
    #[error("shard {shard_id} has to move by now, and the plan does not say where")]
    Incomplete {
        /// The shard that has to move.
        shard_id: i64,
    },
}

fn list(groups: &[Group]) -> String {
    first_of(&groups.iter().map(ToString::to_string).collect::<Vec<_>>())
}

impl MovePlan {
    /// What is left to do of this plan in `layout`, under its own name; a plan without moves if all was done.
    ///
    /// # Errors
    /// If the plan does not fit `layout` any more.
    pub fn rest(&self, layout: &Layout, policy: &Policy) -> Result<Self, Overtaken> {
        let now = policy.spread();
        if !now.is_same(self.spread) {
            return Err(Overtaken::Policy { planned: self.spread, now });
        }
        let now = shared(layout);
        if now != self.over {
            return Err(Overtaken::Nodes { planned: self.over.clone(), now });
        }
        let mut state = State::new(layout, policy.strategy);
        let mut wanted = state.clone();
        let numbers = state.numbers();
        let mut waiting = Vec::new();
        for step in &self.moves {
            let shard_id = step.shard_id;
            let gone = Overtaken::Gone { shard_id };
            let item = *numbers.get(&(step.colocation_id, step.range, shard_id)).ok_or(gone)?;
            let node = wanted.items[item].group.node;
            if node == step.to {
                continue;
            }
            if node != step.from {
                return Err(Overtaken::Elsewhere { shard_id, node });
            }
            let to = state.node(step.to);
            let to = to.filter(|to| allowed(&state, item, *to)).ok_or(Overtaken::Harmful { shard_id })?;
            if !wanted.fits(item, to) {
                return Err(Overtaken::NoRoom { node: step.to });
            }
            wanted.put(item, to);
            waiting.push(item);
        }
        self.serves_all(&wanted)?;
        let left = waiting.len();
        let mut moves = schedule::schedule(&mut state, &wanted, waiting, policy, 0);
        if moves.len() < left {
            let behind = (0..state.items.len()).find(|item| state.at[*item] != wanted.at[*item]);
            let shard_id = behind.map_or(0, |item| state.items[item].group.shard_id);
            return Err(Overtaken::Harmful { shard_id });
        }
        for step in &mut moves {
            step.number = self.number_of(step.shard_id, step.from, step.to).unwrap_or_default();
        }
        let bytes = moves.iter().map(|step| step.bytes).fold(0, u64::saturating_add);
        Ok(Self { moves, bytes, ..self.clone() })
    }
}

impl MovePlan {
    /// Whether all that has to move does so where everything is as `wanted`, but for what found no place when the plan was made:
    /// whether it finds one by now is asked when the rest was moved.
    fn serves_all(&self, wanted: &State) -> Result<(), Overtaken> {
        let known = |shard_id| self.stuck.iter().any(|stuck| stuck.shard_id == shard_id);
        let missing = wanted.items.iter().enumerate().find(|(index, item)| {
            matches!(item.fate, Fate::Leave | Fate::Home(_))
                && !wanted.is_displaced(*index)
                && !known(item.group.shard_id)
        });
        missing.map_or(Ok(()), |(_, item)| Err(Overtaken::Incomplete { shard_id: item.group.shard_id }))
    }

    /// The number of this move, if it is one of the plan.
    #[must_use]
    pub fn number_of(&self, shard_id: i64, from: Group, to: Group) -> Option<u32> {
        let is_it = |step: &&Move| (step.shard_id, step.from, step.to) == (shard_id, from, to);
        self.moves.iter().find(is_it).map(|step| step.number)
    }
}

/// Whether a shard group may go to this node at all.
fn allowed(state: &State, item: usize, to: usize) -> bool {
    match state.items[item].fate {
        Fate::Home(home) => home == to,
        Fate::Free | Fate::Leave => state.nodes[to].1.role == Role::Shared,
        Fate::Fixed | Fate::Stuck(_) => false,
    }
}
