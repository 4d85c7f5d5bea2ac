//! What is wanted and what is there, side by side: the questions that more than one part of the plan asks.

use std::collections::{BTreeMap, BTreeSet};

use super::observed::{Catalog, Facts, Member, Node, Observed, Placement, StoredShards};
use super::rebalance::Role;
use super::strategy::Seen;
use super::topology::Topology;
use super::wanted::Wanted;
use crate::names::Group;

mod decided;

pub use decided::{Decided, Decisions};

/// Everything a decision is made from.
#[derive(Clone, Copy, Debug)]
pub struct World<'a> {
    /// What the resource asks for.
    pub wanted: &'a Wanted,
    /// Where the groups listen.
    pub topology: &'a Topology,
    /// What the servers said.
    pub observed: &'a Observed,
}

/// Whether this cluster can have shards at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// The coordinator has Citus, or can have it at once.
    Citus,
    /// The coordinator's image has no Citus.
    NotInImage,
    /// The image has Citus, and the server did not load it at its start.
    NotPreloaded,
    /// The coordinator does not answer.
    Unknown,
}

impl<'a> World<'a> {
    /// Whether this cluster can have shards at all.
    #[must_use]
    pub fn support(&self) -> Support {
        match self.observed.facts(Group::Coordinator).map(|facts| &facts.citus) {
            None => Support::Unknown,
            Some(citus) if citus.available.is_none() => Support::NotInImage,
            Some(citus) if !citus.preloaded => Support::NotPreloaded,
            Some(_) => Support::Citus,
        }
    }

    /// Citus' catalogs; empty ones where the extension is still to be created; `None` when they could not be read.
    #[must_use]
    pub fn catalog(&self) -> Option<&'a Catalog> {
        static EMPTY: Catalog = Catalog {
            members: Vec::new(),
            placements: Vec::new(),
            operations: Vec::new(),
            blocking: BTreeSet::new(),
            foreign: Vec::new(),
            cleanup: Vec::new(),
            owners: BTreeMap::new(),
            unfollowable: BTreeMap::new(),
            copies: BTreeMap::new(),
            uncopyable: BTreeSet::new(),
            immovable: BTreeMap::new(),
            progress: Vec::new(),
            building: BTreeSet::new(),
            rooms: Vec::new(),
            lost_slots: Vec::new(),
            splits: Vec::new(),
            spreads: Vec::new(),
            strategies: Seen { default: None, own: None },
        };
        let fresh = || {
            let facts = self.observed.facts(Group::Coordinator)?;
            let known = facts.inside || facts.database_owner.is_none();
            (known && facts.citus.installed.is_none()).then_some(&EMPTY)
        };
        self.observed.catalog.as_ref().or_else(fresh)
    }

    /// The groups that are wanted or registered, coordinator first.
    #[must_use]
    pub fn groups(&self) -> BTreeSet<Group> {
        members(self.wanted, self.topology, self.observed.catalog.as_ref())
    }

    /// The workers among [`World::groups`].
    pub fn workers(&self) -> impl Iterator<Item = Group> {
        self.groups().into_iter().filter(|group| *group != Group::Coordinator)
    }

    /// Workers beyond the count that is wanted: they are registered, or have servers all the same.
    #[must_use]
    pub fn surplus(&self) -> BTreeSet<Group> {
        let beyond = |group: &Group| matches!(group, Group::Worker(number) if *number >= self.wanted.workers);
        self.groups().into_iter().chain(self.observed.existing.iter().copied()).filter(beyond).collect()
    }

    /// Workers beyond the count that have servers and are not registered.
    #[must_use]
    pub fn leftover_servers(&self) -> Vec<Group> {
        self.surplus().into_iter().filter(|group| self.member(*group).is_none()).collect()
    }

    /// The row of `group` in `pg_dist_node`.
    #[must_use]
    pub fn member(&self, group: Group) -> Option<&'a Member> {
        self.catalog()?.member(group, self.topology)
    }

    /// What `group`'s server said, or why it said nothing.
    ///
    /// # Errors
    /// The sentence that says why nothing is known.
    pub fn server(&self, group: Group) -> Result<&'a Facts, String> {
        match self.observed.nodes.get(&group) {
            Some(Node::Up(facts)) => Ok(facts),
            Some(Node::Down(reason)) => Err(format!("{group} does not answer: {reason}")),
            None => Err(format!("{group} was not asked")),
        }
    }

    /// Whether shards belong on `group`: on the workers that are asked for, and on the coordinator where none is.
    #[must_use]
    pub fn holds_shards(&self, group: Group) -> bool {
        match group {
            Group::Coordinator => self.wanted.workers == 0,
            Group::Worker(number) => number < self.wanted.workers,
        }
    }

    /// What `group` is for, if it can take part.
    #[must_use]
    pub fn role(&self, group: Group) -> Role {
        match group {
            Group::Worker(number) if number < self.wanted.dedicated => Role::Dedicated,
            _ if self.holds_shards(group) => Role::Shared,
            _ => Role::Draining,
        }
    }

    /// The nodes that hold pinned shards only.
    pub fn dedicated(&self) -> impl Iterator<Item = Group> {
        (0..self.wanted.dedicated).map(Group::Worker)
    }

    /// Tables on `group` that no move takes away from there.
    #[must_use]
    pub fn immovable_on(&self, group: Group) -> &'a [String] {
        let (Some(member), Some(catalog)) = (self.member(group), self.catalog()) else { return &[] };
        catalog.immovable.get(&member.group_id).map_or(&[], Vec::as_slice)
    }

    /// Whether `group` is registered, holds nothing by the catalogs, and nothing comes to it: then it may be taken out of them
    /// if its own server says the same.
    #[must_use]
    pub fn may_be_removed(&self, group: Group) -> bool {
        let (Some(member), Some(catalog)) = (self.member(group), self.catalog()) else { return false };
        // New shards may come at any moment to one that may hold them, unless it is away.
        (!member.should_have_shards || self.server(group).is_err())
            && self.shards_on(group) == 0
            && self.immovable_on(group).is_empty()
            && catalog.cleanup_of(member.group_id) == 0
    }

    /// The workers that are to leave and that nothing keeps but their own servers: these store tables that are named like
    /// shards, of which the catalogs know nothing.
    pub fn kept_by_tables(&self) -> impl Iterator<Item = (Group, &'a StoredShards)> {
        let stored = |group: Group| {
            let stored = self.observed.facts(group)?.resources.as_ref()?.stored_shards.as_ref()?;
            (stored.count > 0 && self.may_be_removed(group)).then_some((group, stored))
        };
        self.surplus().into_iter().filter_map(stored)
    }

    /// Shards of distributed tables that the catalogs place on nodes that are not registered.
    #[must_use]
    pub fn shards_out_of_reach(&self) -> i64 {
        let Some(catalog) = self.catalog() else { return 0 };
        let lost = |at: &&Placement| catalog.members.iter().all(|member| member.group_id != at.group_id);
        catalog.placements.iter().filter(lost).map(|at| at.shards).sum()
    }

    /// The groups that hold a shard group of unknown size: nothing can be said of how evenly shards are spread.
    #[must_use]
    pub fn unmeasured(&self) -> BTreeSet<Group> {
        let sizes = self.observed.sizes();
        let Some(catalog) = self.catalog() else { return BTreeSet::new() };
        let unknown = |group: &Group| {
            let Some(member) = self.member(*group) else { return false };
            let mut here = catalog.placements.iter().filter(|at| at.group_id == member.group_id);
            here.any(|at| !sizes.contains_key(&at.shard_id))
        };
        self.groups().into_iter().filter(unknown).collect()
    }

    /// Shards of distributed tables that the catalogs place on `group`.
    #[must_use]
    pub fn shards_on(&self, group: Group) -> i64 {
        let (Some(member), Some(catalog)) = (self.member(group), self.catalog()) else { return 0 };
        let here = catalog.placements.iter().filter(|at| at.group_id == member.group_id);
        here.map(|at| at.shards).sum()
    }
}

/// The groups that are wanted or registered, coordinator first.
#[must_use]
pub fn members(wanted: &Wanted, topology: &Topology, catalog: Option<&Catalog>) -> BTreeSet<Group> {
    let registered = catalog.into_iter().flat_map(|catalog| catalog.groups(topology));
    (0..wanted.workers).map(Group::Worker).chain([Group::Coordinator]).chain(registered).collect()
}
