//! Looks for a better place for every shard group.
//!
//! First what has to move goes where it is missed most. Then, pool by pool, the fullest node gives to the emptiest the
//! largest shard group that makes the two more even, until all are within the threshold or nothing helps. Where two nodes
//! are alike within a pool, the one that carries less as a whole comes first.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::state::{Fate, State};
use super::{Goal, Obstacle, Policy, Strategy};

/// A move has to even out at least half of what it carries: a gap of less than three halves of its cost is left alone.
/// Otherwise a large shard group would be copied for a small gain, and back when it has grown a little.
fn worth(gap: u64) -> u64 {
    gap / 3 * 2 + gap % 3 * 2 / 3
}

/// Puts every shard group where it is best. What has to move and cannot is marked [`Fate::Stuck`].
pub(super) fn search(state: &mut State, policy: &Policy) {
    force(state);
    if policy.goal == Goal::Settle {
        return;
    }
    let shared = state.shared();
    if shared.len() < 2 {
        return;
    }
    // The number of shard groups does not waver as sizes and loads do: nothing speaks against the exact answer.
    let within = if policy.strategy == Strategy::ByCount { 0 } else { policy.threshold };
    // The one makes the pools more even, the other leaves them no less so and fewer move: there is an end.
    loop {
        for pool in 0..state.pools.len() {
            even_out(state, pool, &shared, within);
        }
        if !take_back(state) {
            return;
        }
    }
}

/// Moves what has to move: what is pinned first, because it has no choice.
fn force(state: &mut State) {
    let shared = state.shared();
    let mut leaving = Vec::new();
    for item in 0..state.items.len() {
        match state.items[item].fate {
            Fate::Home(home) if state.at[item] == Some(home) => {}
            Fate::Home(home) if state.fits(item, home) => state.put(item, home),
            Fate::Home(home) => {
                let largest = state.room[home];
                state.items[item].fate = Fate::Stuck(Obstacle::NoRoom { largest });
            }
            Fate::Leave if state.at[item] == state.items[item].origin => leaving.push(item),
            _ => {}
        }
    }
    // The costly first: the others fill the gaps.
    leaving.sort_by_key(|item| (Reverse(state.items[*item].cost), *item));
    let before = state.clone();
    if drain(state, &leaving, &shared, |state, item, node| {
        (state.spread[state.items[item].pool][node], state.totals[node])
    }) {
        return;
    }
    // Even is of no use if not everything finds room: the large ones first, each where most room is left.
    let mut tight = before;
    leaving.sort_by_key(|item| (Reverse(state.items[*item].group.bytes), *item));
    drain(&mut tight, &leaving, &shared, |state, _, node| (u64::MAX - state.room[node], state.totals[node]));
    let stuck = |state: &State| leaving.iter().filter(|item| !state.is_displaced(**item)).count();
    if stuck(&tight) < stuck(state) {
        *state = tight;
    }
}

/// Moves each of `leaving` to the shared node with room that comes first; whether all found one.
fn drain<K: Ord>(
    state: &mut State,
    leaving: &[usize],
    shared: &[usize],
    key: impl Fn(&State, usize, usize) -> K,
) -> bool {
    let mut all = true;
    for &item in leaving {
        let target = shared
            .iter()
            .copied()
            .filter(|node| state.fits(item, *node))
            .min_by_key(|node| (key(state, item, *node), *node));
        if let Some(node) = target {
            state.put(item, node);
            continue;
        }
        all = false;
        let largest = shared.iter().map(|node| state.room[*node]).max();
        let obstacle = largest.map_or(Obstacle::NoTarget, |largest| Obstacle::NoRoom { largest });
        state.items[item].fate = Fate::Stuck(obstacle);
    }
    all
}

/// Nodes further from the average than the threshold allows.
struct Band {
    low: u128,
    high: u128,
    scale: u128,
}

impl Band {
    fn new(carried: impl ExactSizeIterator<Item = u64>, threshold: u32) -> Self {
        let nodes = carried.len() as u128;
        let total: u128 = carried.map(u128::from).sum();
        let threshold = u128::from(threshold.min(1000));
        Self { low: total * (1000 - threshold), high: total * (1000 + threshold), scale: nodes * 1000 }
    }

    fn is_low(&self, carried: u64) -> bool {
        u128::from(carried) * self.scale < self.low
    }

    fn is_high(&self, carried: u64) -> bool {
        u128::from(carried) * self.scale > self.high
    }

    /// Whether a node that carries so much should give to one that carries so much.
    fn allows(&self, source: u64, target: u64) -> bool {
        let (low, high) = (u128::from(target) * self.scale, u128::from(source) * self.scale);
        low < self.high && high > self.low && (self.is_low(target) || self.is_high(source))
    }
}

/// The shard groups of a node that may move, by cost; of equal ones those last that are cheapest to move.
type Held = BTreeSet<(u64, Reverse<u64>, Reverse<usize>)>;

fn entry(state: &State, item: usize) -> (u64, Reverse<u64>, Reverse<usize>) {
    // What moves anyway costs nothing more if it goes elsewhere.
    let bytes = if state.is_displaced(item) { 0 } else { state.items[item].group.bytes };
    (state.items[item].cost, Reverse(bytes), Reverse(item))
}

fn may_move(state: &State, item: usize) -> bool {
    matches!(state.items[item].fate, Fate::Free)
        || (state.items[item].fate == Fate::Leave && state.is_displaced(item))
}

/// The movable shard groups of a pool on each node.
fn hold(state: &State, pool: usize) -> Vec<Held> {
    let mut held = vec![Held::new(); state.nodes.len()];
    for &item in state.pools[pool].iter().filter(|item| may_move(state, **item)) {
        if let Some(node) = state.at[item] {
            held[node].insert(entry(state, item));
        }
    }
    held
}

/// Evens out one pool.
fn even_out(state: &mut State, pool: usize, shared: &[usize], threshold: u32) {
    // What cannot be divided cannot be spread.
    if state.pools[pool].len() < 2 {
        return;
    }
    let mut held = hold(state, pool);
    let band = Band::new(shared.iter().map(|node| state.spread[pool][*node]), threshold);
    let rank = |state: &State, node: usize| (state.spread[pool][node], state.totals[node], node);
    let mut order: BTreeSet<(u64, u64, usize)> = shared.iter().map(|node| rank(state, *node)).collect();
    while let Some((item, from, to)) = next(state, &order, &held, &band) {
        order.remove(&rank(state, from));
        order.remove(&rank(state, to));
        held[from].remove(&entry(state, item));
        state.put(item, to);
        held[to].insert(entry(state, item));
        order.insert(rank(state, from));
        order.insert(rank(state, to));
    }
}

/// The next move within a pool: from the fullest node that can give to the emptiest that can take.
fn next(
    state: &State,
    order: &BTreeSet<(u64, u64, usize)>,
    held: &[Held],
    band: &Band,
) -> Option<(usize, usize, usize)> {
    for &(source, _, from) in order.iter().rev() {
        for &(target, _, to) in order {
            // The next targets carry more than this one.
            if target >= source || !band.allows(source, target) {
                break;
            }
            let most = worth(source - target);
            if held[from].first().is_none_or(|(least, ..)| *least > most) {
                break;
            }
            let candidates = held[from].range(..=(most, Reverse(0), Reverse(0))).rev();
            let found = candidates.map(|(_, _, Reverse(item))| *item).find(|item| state.fits(*item, to));
            if let Some(item) = found {
                return Some((item, from, to));
            }
        }
    }
    None
}

/// Leaves where it was what would be no worse there after all; whether there was any.
fn take_back(state: &mut State) -> bool {
    let mut any = false;
    for item in 0..state.items.len() {
        let (Some(at), Some(origin)) = (state.at[item], state.items[item].origin) else { continue };
        if at != origin && state.items[item].fate == Fate::Free && state.helps(item, at, origin) {
            state.put(item, origin);
            any = true;
        }
    }
    any
}
