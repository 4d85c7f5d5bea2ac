//! Which moves of a plan may begin now. Waves say what a plan looks like where all moves of one take the same time, and
//! none fails; a place that becomes empty does not wait for the others of its wave.

use std::collections::BTreeMap;

use super::schedule::schedule;
use super::state::{Fate, State};
use super::{Layout, Move, MovePlan, Policy};
use crate::names::Group;

/// How often at least it is looked whether what is left can still be made: each takes as long as to plan it.
const LOOKS: usize = 4;

impl MovePlan {
    /// The moves that may begin now, in the order of the plan and within the limits of `policy`, beside those that are `under_way`
    /// (from where to where); `layout` has these where they go. `may` is asked of each that could begin otherwise.
    ///
    /// A move that cannot begin, since its nodes are taken or `may` says no, does not keep those behind it that help without it,
    /// and after which what is left can still be made so that each move helps. Only where nothing else can be done, and unless
    /// the plan is `binding`, that last is not asked for: the plan may then have to be made anew.
    #[must_use]
    pub fn ready(
        &self,
        layout: &Layout,
        policy: &Policy,
        under_way: &[(Group, Group)],
        binding: bool,
        mut may: impl FnMut(&Move) -> bool,
    ) -> Vec<Move> {
        let limit = policy.max_parallel_moves.max(1) as usize;
        let mut state = State::new(layout, policy.strategy);
        let Some((wanted, items)) = self.goal(&state) else { return Vec::new() };
        let mut busy: BTreeMap<Group, u32> = BTreeMap::new();
        for node in under_way.iter().flat_map(|(from, to)| [from, to]) {
            *busy.entry(*node).or_default() += 1;
        }
        let (mut ready, mut passed, mut last) = (Vec::new(), Vec::new(), None);
        let mut looks = limit.max(LOOKS);
        for (number, (next, item)) in self.moves.iter().zip(&items).enumerate() {
            // A plan that is binding has no last resort: then nobody is left out.
            let enough = looks == 0 && !(binding && ready.is_empty() && under_way.is_empty());
            if under_way.len() + ready.len() >= limit || enough {
                break;
            }
            let (Some(from), Some(to)) = (state.at[*item], wanted.at[*item]) else { continue };
            let free = |group| busy.get(&group).copied().unwrap_or(0) < policy.moves_per_node.max(1);
            // Who has nobody before him helps, as the plan says.
            let helps =
                passed.is_empty() || state.items[*item].fate != Fate::Free || state.helps(*item, from, to);
            if !(free(next.from) && free(next.to) && helps && may(next)) {
                passed.push(*item);
                continue;
            }
            if !passed.is_empty() {
                let left: Vec<usize> = passed.iter().chain(&items[number + 1..]).copied().collect();
                let count = left.len();
                let mut then = state.clone();
                then.put(*item, to);
                if schedule(&mut then, &wanted, left, policy, 0).len() < count {
                    looks = looks.saturating_sub(1);
                    last = last.or(Some(*next));
                    passed.push(*item);
                    continue;
                }
            }
            state.put(*item, to);
            for node in [next.from, next.to] {
                *busy.entry(node).or_default() += 1;
            }
            ready.push(*next);
        }
        if ready.is_empty() && under_way.is_empty() && !binding {
            ready.extend(last);
        }
        ready
    }

    /// Where everything is once all moves were made, and the number of each move's item; `None` if the plan is of another layout.
    fn goal(&self, state: &State) -> Option<(State, Vec<usize>)> {
        let numbers = state.numbers();
        let mut wanted = state.clone();
        let mut items = Vec::with_capacity(self.moves.len());
        for step in &self.moves {
            let item = *numbers.get(&(step.colocation_id, step.range, step.shard_id))?;
            wanted.put(item, state.node(step.to)?);
            items.push(item);
        }
        Some((wanted, items))
    }
}
