//! What becomes of a simulated cluster by what is decided: shards are split and moved, which takes time, and pins are set.

use std::collections::BTreeSet;

use super::number::{count, fraction};
use super::shards::colocation;
use super::world::World;
use crate::heat::{Action, Tenant};
use crate::names::Group;
use crate::shards::rebalance::{Goal, Layout, Move, Node, Pin, Policy, Role, ShardGroup, Strategy, plan};

/// Work under way.
#[derive(Clone, Debug)]
pub(super) struct Job {
    /// When it is done, in seconds from the start.
    ends: f64,
    work: Work,
}

#[derive(Clone, Debug)]
enum Work {
    Isolate { tenant: Tenant, to: Group, rest: Option<Group> },
    Split { shard_id: i64, at: i32, to: [Group; 2] },
    Move(Vec<Move>),
}

/// What an action costs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cost {
    /// Bytes that are copied.
    pub(super) bytes: u64,
    /// Shard groups that are moved or split.
    pub(super) shards: usize,
    /// How long it takes.
    pub(super) seconds: u64,
}

impl World {
    /// Begins what was decided.
    pub(super) fn begin(&mut self, action: Action) -> Cost {
        match action {
            Action::Isolate { tenant, to, rest, .. } => {
                let index = self.shards.holder(tenant);
                let bytes = index.map_or(0.0, |index| self.shards.all[index].bytes);
                self.start(Work::Isolate { tenant, to, rest }, bytes, 1)
            }
            Action::Split { shard_id, at, to, .. } => {
                let shard = self.shards.all.iter().find(|shard| shard.id == shard_id);
                let bytes = shard.map_or(0.0, |shard| shard.bytes);
                self.start(Work::Split { shard_id, at, to }, bytes, 1)
            }
            Action::Spread { from, to } => {
                let moves = self.plan(|group| group == from || group == to, Strategy::ByLoad, Goal::Balance);
                self.start_moves(moves)
            }
            Action::Release { tenant } => {
                self.pins.retain(|pin| Tenant::from(pin) != tenant);
                Cost::default()
            }
            Action::Retarget { tenant, to, .. } => {
                self.retarget(&[tenant.pin(to)]);
                Cost::default()
            }
        }
    }

    fn start_moves(&mut self, moves: Vec<Move>) -> Cost {
        if moves.is_empty() {
            return Cost::default();
        }
        let bytes = moves.iter().map(|step| step.bytes).fold(0, u64::saturating_add);
        let shards = moves.len();
        self.start(Work::Move(moves), fraction(bytes), shards)
    }

    fn start(&mut self, work: Work, bytes: f64, shards: usize) -> Cost {
        let seconds = (bytes / self.copy_rate).max(1.0).ceil();
        self.job = Some(Job { ends: self.time + seconds, work });
        Cost { bytes: count(bytes), shards, seconds: count(seconds) }
    }

    /// Pins to nodes that leave are for other nodes now.
    pub(super) fn retarget(&mut self, retargeted: &[Pin]) {
        for new in retargeted {
            self.pins.retain(|pin| Tenant::from(pin) != Tenant::from(new));
            self.pins.push(*new);
        }
    }

    /// The node is to be emptied.
    pub(super) fn drain(&mut self, node: Group) {
        if let Some(node) = self.nodes.get_mut(&node) {
            node.role = Role::Draining;
        }
    }

    /// Completes what is done by now; then empties the nodes that are to leave, lets the empty ones go, and takes off the
    /// dedicated ones what is not pinned to them.
    pub(super) fn progress(&mut self) {
        if let Some(job) = self.job.take_if(|job| job.ends <= self.time) {
            self.complete(job.work);
        }
        if self.job.is_some() {
            return;
        }
        if self.nodes.values().any(|node| node.role == Role::Draining) {
            let used: BTreeSet<Group> = self.shards.all.iter().map(|shard| shard.node).collect();
            self.nodes.retain(|group, node| node.role != Role::Draining || used.contains(group));
        }
        if self.nodes.values().any(|node| node.role == Role::Draining) || self.has_guests() {
            let moves = self.plan(|_| true, Strategy::BySize, Goal::Settle);
            self.start_moves(moves);
        }
    }

    /// Whether a dedicated node holds what is not pinned to it.
    fn has_guests(&self) -> bool {
        let is_dedicated =
            |group: &Group| self.nodes.get(group).is_some_and(|node| node.role == Role::Dedicated);
        let holder = |pin: &Pin| Some((self.shards.holder(pin.into())?, pin.node));
        let pinned: BTreeSet<(usize, Group)> = self.pins.iter().filter_map(holder).collect();
        let mut shards = self.shards.all.iter().enumerate();
        shards.any(|(index, shard)| is_dedicated(&shard.node) && !pinned.contains(&(index, shard.node)))
    }

    fn complete(&mut self, work: Work) {
        match work {
            Work::Isolate { tenant, to, rest } => self.isolate(tenant, to, rest),
            Work::Split { shard_id, at, to } => {
                let index = self.shards.all.iter().position(|shard| shard.id == shard_id);
                let halves = index.and_then(|index| self.shards.cut(index, at));
                if let Some((lower, upper)) = halves {
                    self.put(lower, to[0]);
                    self.put(upper, to[1]);
                }
            }
            Work::Move(moves) => {
                for step in moves {
                    let index = self.shards.all.iter().position(|shard| shard.id == step.shard_id);
                    if let Some(index) = index {
                        self.put(index, step.to);
                    }
                }
            }
        }
    }

    /// Puts a shard group on a node that may have left meanwhile: then it stays.
    fn put(&mut self, index: usize, node: Group) {
        if self.nodes.contains_key(&node) {
            self.shards.place(index, node);
        }
    }

    /// Cuts the tenant out of its shard group and pins it. Without a place for the rest, it stays where it is.
    fn isolate(&mut self, tenant: Tenant, to: Group, rest: Option<Group>) {
        let Some(mut own) = self.shards.holder(tenant) else { return };
        let mut flanks = Vec::new();
        if let Some((below, above)) = tenant.hash.checked_sub(1).and_then(|last| self.shards.cut(own, last)) {
            flanks.push(below);
            own = above;
        }
        if let Some((exact, above)) = self.shards.cut(own, tenant.hash) {
            flanks.push(above);
            own = exact;
        }
        for flank in flanks {
            if let Some(rest) = rest {
                self.put(flank, rest);
            }
        }
        self.put(own, to);
        self.pins.push(tenant.pin(to));
    }

    /// The moves between some nodes.
    fn plan(&self, among: impl Fn(Group) -> bool, strategy: Strategy, goal: Goal) -> Vec<Move> {
        let node = |(group, node): (&Group, &super::world::Node)| {
            (*group, Node { role: node.role, free_bytes: None })
        };
        let groups = self.shards.all.iter().zip(&self.loads).filter(|(shard, _)| among(shard.node));
        let groups = groups.map(|(shard, load)| ShardGroup {
            colocation_id: colocation(shard.tables),
            shard_id: shard.id,
            range: shard.range,
            node: shard.node,
            bytes: count(shard.bytes),
            // CPU milliseconds of a minute.
            load: count(load.cpu * 60_000.0),
        });
        let layout = Layout {
            nodes: self.nodes.iter().filter(|(group, _)| among(**group)).map(node).collect(),
            groups: groups.collect(),
            pins: self.pins.clone(),
        };
        let policy = Policy { strategy, threshold: 100, max_parallel_moves: 1, moves_per_node: 1, goal };
        plan(&layout, &policy).moves
    }
}
