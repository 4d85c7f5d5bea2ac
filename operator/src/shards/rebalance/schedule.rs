//! Puts the moves in order, and those in one wave that can run at the same time.

use std::cmp::Reverse;

use super::state::{Fate, State};
use super::{Move, Policy};

/// What is not where `wanted` has it, in the order in which it is best moved: what has to move, then what evens out most.
pub(super) fn order(state: &State, wanted: &State) -> Vec<usize> {
    let mut items: Vec<usize> =
        (0..wanted.items.len()).filter(|item| wanted.at[*item] != state.at[*item]).collect();
    items.sort_by_key(|item| {
        let forced = wanted.items[*item].fate != Fate::Free;
        (!forced, Reverse(wanted.items[*item].cost), *item)
    });
    items
}

/// The moves of the items that are `waiting` to where `wanted` has them, in waves counted on from `wave`; `state` follows
/// them.
///
/// Each move leaves the balance no worse than the one before it left it. Where no order does that, the list ends early.
pub(super) fn schedule(
    state: &mut State,
    wanted: &State,
    mut waiting: Vec<usize>,
    policy: &Policy,
    mut wave: u32,
) -> Vec<Move> {
    let limit = policy.max_parallel_moves.max(1) as usize;
    let per_node = policy.moves_per_node.max(1);
    let mut moves = Vec::with_capacity(waiting.len());
    while !waiting.is_empty() {
        wave += 1;
        let mut busy = vec![0_u32; state.nodes.len()];
        let mut chosen = 0;
        waiting.retain(|&item| {
            let (Some(from), Some(to)) = (state.at[item], wanted.at[item]) else { return false };
            let balance = wanted.items[item].fate == Fate::Free;
            if chosen == limit
                || busy[from] >= per_node
                || busy[to] >= per_node
                || (balance && !state.helps(item, from, to))
            {
                return true;
            }
            chosen += 1;
            busy[from] += 1;
            busy[to] += 1;
            state.put(item, to);
            let group = &wanted.items[item].group;
            moves.push(Move {
                // The whole list is numbered once it is there.
                number: 0,
                colocation_id: group.colocation_id,
                shard_id: group.shard_id,
                range: group.range,
                from: state.nodes[from].0,
                to: state.nodes[to].0,
                bytes: group.bytes,
                cause: wanted.items[item].fate.cause(),
                wave,
            });
            false
        });
        if chosen == 0 {
            break;
        }
    }
    moves
}
