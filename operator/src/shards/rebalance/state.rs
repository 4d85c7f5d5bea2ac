//! The layout as numbers: every node and shard group by its index, and what each node carries.

use std::collections::BTreeMap;

use super::{Cause, HashRange, Layout, Node, Obstacle, Role, ShardGroup, Strategy};
use crate::names::Group;

/// What a shard group counts for besides its bytes with [`Strategy::BySize`]: it has connections, catalogs and the rows
/// to come, however small it is now.
pub const BASE_BYTES: u64 = 10 << 20;
/// With [`Strategy::ByLoad`], an idle shard group counts as this part of an average one.
const IDLE_PART: u64 = 20;
/// No cost is higher, so that sums over a hundred thousand shard groups fit: 64 TiB.
const COST_LIMIT: u64 = 1 << 46;

/// A shard group.
#[derive(Clone, Debug)]
pub(super) struct Item {
    /// As it was given.
    pub(super) group: ShardGroup,
    /// Index of its pool.
    pub(super) pool: usize,
    /// Index of the node where it was; `None` if that node is unknown.
    pub(super) origin: Option<usize>,
    /// What it counts for in the balance.
    pub(super) cost: u64,
    /// What may become of it.
    pub(super) fate: Fate,
}

/// What may become of a shard group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It may go to any shared node.
    Free,
    /// It has to leave, for any shared node.
    Leave,
    /// It has to go to this node.
    Home(usize),
    /// It stays.
    Fixed,
    /// It has to leave and cannot.
    Stuck(Obstacle),
}

impl Fate {
    /// What a move of such a shard group is for.
    pub(super) fn cause(self) -> Cause {
        match self {
            Self::Leave => Cause::Drain,
            Self::Home(_) => Cause::Pin,
            Self::Free | Self::Fixed | Self::Stuck(_) => Cause::Balance,
        }
    }
}

/// Where everything is, and what each node carries then.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) nodes: Vec<(Group, Node)>,
    pub(super) items: Vec<Item>,
    /// Indices of the items of each pool: what is spread evenly by itself. A colocation group is one if every node can have
    /// some of it; those that are too small for that are one together.
    pub(super) pools: Vec<Vec<usize>>,
    /// Node of each item, `None` where it is unknown.
    pub(super) at: Vec<Option<usize>>,
    /// Cost by pool and node.
    pub(super) spread: Vec<Vec<u64>>,
    /// Cost by node.
    pub(super) totals: Vec<u64>,
    /// Bytes that each node can still take.
    pub(super) room: Vec<u64>,
}

impl State {
    /// Everything where it is now.
    pub(super) fn new(layout: &Layout, strategy: Strategy) -> Self {
        let nodes: Vec<(Group, Node)> = layout.nodes.iter().map(|(group, node)| (*group, *node)).collect();
        let index: BTreeMap<Group, usize> =
            nodes.iter().enumerate().map(|(index, (group, _))| (*group, index)).collect();
        // Nothing may depend on the order in which the shard groups were read.
        let mut groups = layout.groups.clone();
        groups.sort_by_key(|group| (group.colocation_id, group.range, group.shard_id, group.node));
        let homes = homes(layout);

        let idle = groups.iter().map(|group| group.load.min(COST_LIMIT)).sum::<u64>()
            / (IDLE_PART * (groups.len() as u64).max(1))
            + 1;
        let numbers = pool_numbers(&nodes, &groups);
        let mut pools: Vec<Vec<usize>> = vec![Vec::new(); numbers.len() + 1];
        let mut items = Vec::with_capacity(groups.len());
        for group in groups {
            let pool = numbers.get(&group.colocation_id).copied().unwrap_or(numbers.len());
            pools[pool].push(items.len());
            let cost = match strategy {
                Strategy::ByCount => 1,
                Strategy::BySize => group.bytes.saturating_add(BASE_BYTES),
                Strategy::ByLoad => group.load.saturating_add(idle),
            };
            let origin = index.get(&group.node).copied();
            let home = home(&homes, &group);
            let fate = fate(&nodes, origin, home.map(|node| (node, index.get(&node).copied())));
            items.push(Item { group, pool, origin, cost: cost.min(COST_LIMIT), fate });
        }

        let mut state = Self {
            room: nodes.iter().map(|(_, node)| node.free_bytes.unwrap_or(u64::MAX)).collect(),
            at: items.iter().map(|item| item.origin).collect(),
            spread: vec![vec![0; nodes.len()]; pools.len()],
            totals: vec![0; nodes.len()],
            nodes,
            items,
            pools,
        };
        for (item, node) in state.items.iter().zip(&state.at) {
            if let Some(node) = *node {
                state.spread[item.pool][node] += item.cost;
                state.totals[node] += item.cost;
            }
        }
        state
    }

    /// Takes where everything is by now for where it was.
    pub(super) fn settle(&mut self) {
        for (item, node) in self.items.iter_mut().zip(&self.at) {
            item.origin = *node;
            let kept = match (item.fate, node) {
                (Fate::Leave, Some(node)) if self.nodes[*node].1.role == Role::Shared => Fate::Free,
                (Fate::Home(home), Some(node)) if home == *node => Fate::Fixed,
                (fate, _) => fate,
            };
            item.fate = kept;
        }
    }

    /// The number of each item, by what a plan calls it: colocation group, hashes and shard.
    pub(super) fn numbers(&self) -> BTreeMap<(i32, HashRange, i64), usize> {
        let name = |group: &ShardGroup| (group.colocation_id, group.range, group.shard_id);
        self.items.iter().zip(0..).map(|(item, number)| (name(&item.group), number)).collect()
    }

    /// The number of a node.
    pub(super) fn node(&self, group: Group) -> Option<usize> {
        self.nodes.iter().position(|(known, _)| *known == group)
    }

    /// The nodes that hold their share.
    pub(super) fn shared(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].1.role == Role::Shared).collect()
    }

    /// Bytes that `item` needs on `node`: none where it was, because it has them there.
    fn needs(&self, item: usize, node: usize) -> u64 {
        let item = &self.items[item];
        if item.origin == Some(node) { 0 } else { item.group.bytes }
    }

    /// Whether `item` has enough room on `node`.
    pub(super) fn fits(&self, item: usize, node: usize) -> bool {
        self.needs(item, node) <= self.room[node]
    }

    /// Puts `item` on `node`. What leaves a node gives no room back: Citus drops it later.
    pub(super) fn put(&mut self, item: usize, node: usize) {
        let Item { pool, cost, .. } = self.items[item];
        if let Some(before) = self.at[item] {
            self.spread[pool][before] -= cost;
            self.totals[before] -= cost;
            if self.room[before] != u64::MAX {
                self.room[before] += self.needs(item, before);
            }
        }
        self.spread[pool][node] += cost;
        self.totals[node] += cost;
        if self.room[node] != u64::MAX {
            self.room[node] = self.room[node].saturating_sub(self.needs(item, node));
        }
        self.at[item] = Some(node);
    }

    /// Whether `item` is not where it was.
    pub(super) fn is_displaced(&self, item: usize) -> bool {
        self.at[item] != self.items[item].origin
    }

    /// Whether taking `item` from one node to another leaves the balance no worse: that of its pool first, the
    /// nodes' own where that is the same.
    pub(super) fn helps(&self, item: usize, from: usize, to: usize) -> bool {
        let Item { pool, cost, .. } = self.items[item];
        let spread = &self.spread[pool];
        // The sum of squares falls by 2 * cost * (gap - cost).
        let gap = |carried: &[u64]| i128::from(carried[from]) - i128::from(carried[to]);
        let cost = i128::from(cost);
        gap(spread) > cost || (gap(spread) == cost && gap(&self.totals) >= cost)
    }
}

/// The colocation groups that are a pool by themselves, numbered.
fn pool_numbers(nodes: &[(Group, Node)], groups: &[ShardGroup]) -> BTreeMap<i32, usize> {
    let shared = nodes.iter().filter(|(_, node)| node.role == Role::Shared).count();
    let mut sizes: BTreeMap<i32, usize> = BTreeMap::new();
    for group in groups {
        *sizes.entry(group.colocation_id).or_default() += 1;
    }
    sizes.into_iter().filter(|(_, size)| *size >= shared).map(|(id, _)| id).zip(0..).collect()
}

/// The pins of each colocation group, by hash.
type Homes = BTreeMap<i32, BTreeMap<i32, Group>>;

fn homes(layout: &Layout) -> Homes {
    let mut homes = Homes::new();
    for pin in &layout.pins {
        let home = homes.entry(pin.colocation_id).or_default().entry(pin.hash).or_insert(pin.node);
        // Of two pins of one hash the lower node counts, whatever their order.
        *home = pin.node.min(*home);
    }
    homes
}

/// The node that `group` is pinned to: of several pins in its range the one of the lowest hash counts.
fn home(homes: &Homes, group: &ShardGroup) -> Option<Group> {
    let (min, max) = (group.range.min, group.range.max);
    let pins = homes.get(&group.colocation_id)?;
    if min > max {
        return None;
    }
    pins.range(min..=max).next().map(|(_, node)| *node)
}

/// What may become of a shard group on `origin` that belongs to `home`.
fn fate(nodes: &[(Group, Node)], origin: Option<usize>, home: Option<(Group, Option<usize>)>) -> Fate {
    let role = |node: usize| nodes[node].1.role;
    let Some(origin) = origin else { return Fate::Fixed };
    match (role(origin), home) {
        (Role::Unavailable, _) => Fate::Fixed,
        (Role::Shared | Role::Dedicated, Some((_, Some(home)))) if home == origin => Fate::Fixed,
        (_, Some((_, Some(home)))) if matches!(role(home), Role::Shared | Role::Dedicated) => {
            Fate::Home(home)
        }
        (_, Some((node, _))) => Fate::Stuck(Obstacle::PinnedTo { node }),
        (Role::Shared, None) => Fate::Free,
        (Role::Dedicated | Role::Draining, None) => Fate::Leave,
    }
}
