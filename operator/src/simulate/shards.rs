//! The shard groups of a simulated cluster and the tenants in them.

use std::collections::{BTreeMap, HashMap};

use super::number::{count, fraction, scatter};
use super::scenario::{Synthetic, Tables, Workers};
use crate::heat::{Tenant, median};
use crate::names::Group;
use crate::shards::rebalance::HashRange;

/// A tenant by the place of its tables in the scenario, and its rank.
pub(super) type Id = (usize, u32);

/// Queries, the writes among them, and CPU seconds, of one second.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rate {
    pub(super) queries: f64,
    pub(super) writes: f64,
    pub(super) cpu: f64,
}

impl Rate {
    /// So many queries of a kind.
    pub(super) fn of(queries: f64, writes_percent: f64, cpu_per_query: f64) -> Self {
        Self { queries, writes: queries * writes_percent / 100.0, cpu: queries * cpu_per_query }
    }

    pub(super) fn times(self, factor: f64) -> Self {
        Self { queries: self.queries * factor, writes: self.writes * factor, cpu: self.cpu * factor }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.queries += other.queries;
        self.writes += other.writes;
        self.cpu += other.cpu;
    }
}

/// A shard group.
#[derive(Clone, Debug)]
pub(super) struct Shard {
    pub(super) id: i64,
    pub(super) tables: usize,
    pub(super) range: HashRange,
    pub(super) node: Group,
    /// Ranks of its tenants, the busiest first.
    pub(super) members: Vec<u32>,
    /// Queries per second that its tenants always have.
    pub(super) queries: f64,
    pub(super) bytes: f64,
}

/// All tenants, and the shard groups that they are in.
#[derive(Clone, Debug)]
pub(super) struct Shards {
    hashes: Vec<Vec<i32>>,
    queries: Vec<Vec<f64>>,
    pub(super) all: Vec<Shard>,
    /// Where the range begins that is at an index of `all`.
    index: BTreeMap<(usize, i32), usize>,
    /// What tenants have that was not there at the beginning and is their own, in bytes.
    grown: HashMap<Id, f64>,
    /// Ids are given once.
    next_id: i64,
    /// Changes whenever a shard group is split or moved.
    pub(super) version: u64,
}

impl Shards {
    pub(super) fn new(scenario: &Synthetic) -> Self {
        let mut shards = Self {
            hashes: Vec::new(),
            queries: Vec::new(),
            all: Vec::new(),
            index: BTreeMap::new(),
            grown: HashMap::new(),
            next_id: 102_008,
            version: 0,
        };
        let Workers { count, dedicated, .. } = scenario.workers;
        let shared: Vec<Group> = (dedicated..count).map(Group::Worker).collect();
        for (number, tables) in scenario.tables.iter().enumerate() {
            shards.create(number, tables, &shared, scenario.seed);
        }
        shards
    }

    fn create(&mut self, number: usize, tables: &Tables, workers: &[Group], seed: u64) {
        let seed = scatter(seed, as_bits(number));
        let hashes: Vec<i32> = (0..tables.tenants).map(|rank| hash(seed, rank)).collect();
        let parts: Vec<f64> =
            (0..tables.tenants).map(|rank| (f64::from(rank) + 1.0).powf(-tables.skew)).collect();
        let per_part = tables.queries_per_second / parts.iter().sum::<f64>();
        let queries: Vec<f64> = parts.into_iter().map(|part| part * per_part).collect();
        let size = fraction(tables.size.units().unwrap_or(0));

        let first = self.all.len();
        let groups = u64::from(tables.shard_groups);
        for (group, node) in (0..tables.shard_groups).zip(workers.iter().cycle()) {
            let start = (u64::from(group) << 32).div_ceil(groups);
            let end = ((u64::from(group) + 1) << 32).div_ceil(groups) - 1;
            let range = HashRange { min: from_start(start), max: from_start(end) };
            self.index.insert((number, range.min), self.all.len());
            let id = self.new_id();
            self.all.push(Shard {
                id,
                tables: number,
                range,
                node: *node,
                members: Vec::new(),
                queries: 0.0,
                bytes: 0.0,
            });
        }
        for (rank, hash) in (0..).zip(&hashes) {
            let group = usize::try_from((to_start(*hash) * groups) >> 32).unwrap_or(0);
            self.all[first + group].members.push(rank);
        }
        for shard in &mut self.all[first..] {
            shard.queries = sum(&queries, &shard.members);
            // Who asks more has written more; a little of it is the same for all.
            let tenants = fraction(u64::from(tables.tenants));
            let asked = shard.queries / tables.queries_per_second.max(1.0);
            let even = f64::from(u32::try_from(shard.members.len()).unwrap_or(u32::MAX)) / tenants;
            shard.bytes = size * (asked + even) / 2.0;
        }
        self.hashes.push(hashes);
        self.queries.push(queries);
    }

    fn new_id(&mut self) -> i64 {
        self.next_id += 1;
        self.next_id - 1
    }

    /// The queries per second that a tenant always has.
    pub(super) fn queries(&self, (tables, rank): Id) -> f64 {
        usize::try_from(rank).ok().and_then(|rank| self.queries[tables].get(rank)).copied().unwrap_or(0.0)
    }

    /// How the decision names a tenant. Colocation groups count from 1.
    pub(super) fn tenant(&self, (tables, rank): Id) -> Tenant {
        let hash = usize::try_from(rank).ok().and_then(|rank| self.hashes[tables].get(rank)).copied();
        Tenant { colocation_id: colocation(tables), hash: hash.unwrap_or(0) }
    }

    /// The index of the shard group that covers the tenant's hash.
    pub(super) fn holder(&self, tenant: Tenant) -> Option<usize> {
        let tables = usize::try_from(tenant.colocation_id).ok()?.checked_sub(1)?;
        self.index.range((tables, i32::MIN)..=(tables, tenant.hash)).next_back().map(|(_, index)| *index)
    }

    /// Adds what a tenant has written of its own.
    pub(super) fn grow(&mut self, id: Id, bytes: f64) {
        if bytes > 0.0 {
            *self.grown.entry(id).or_default() += bytes;
        }
    }

    /// What each tenant of the shard group has, in bytes, as far as can be told.
    fn weights(&self, shard: &Shard) -> Vec<f64> {
        let grown = |rank: &u32| self.grown.get(&(shard.tables, *rank)).copied().unwrap_or(0.0);
        let even = (shard.bytes - shard.members.iter().map(grown).sum::<f64>()).max(0.0);
        let members = f64::from(u32::try_from(shard.members.len()).unwrap_or(u32::MAX)).max(1.0);
        let part = |rank: &u32| {
            let asked =
                if shard.queries > 0.0 { self.queries((shard.tables, *rank)) / shard.queries } else { 0.0 };
            even * f64::midpoint(asked, 1.0 / members) + grown(rank)
        };
        shard.members.iter().map(part).collect()
    }

    /// The hash in the middle of the shard group's bytes.
    pub(super) fn median(&self, shard: &Shard) -> Option<i32> {
        let hash = |rank: &u32| self.tenant((shard.tables, *rank)).hash;
        let weights =
            shard.members.iter().map(hash).zip(self.weights(shard).into_iter().map(count)).collect();
        median(weights)
    }

    /// Puts a shard group somewhere else.
    pub(super) fn place(&mut self, index: usize, node: Group) {
        self.all[index].node = node;
        self.version += 1;
    }

    /// Cuts a shard group after the hash `at`; the indices of the lower and of the upper part, if both have hashes.
    pub(super) fn cut(&mut self, index: usize, at: i32) -> Option<(usize, usize)> {
        let whole = self.all[index].clone();
        let min = at.checked_add(1)?;
        if at < whole.range.min || min > whole.range.max {
            return None;
        }
        let weights = self.weights(&whole);
        let total = weights.iter().sum::<f64>().max(1.0);
        let mut upper = Shard {
            id: self.new_id(),
            range: HashRange { min, max: whole.range.max },
            members: Vec::new(),
            bytes: 0.0,
            ..whole.clone()
        };
        let mut lower = Shard {
            // Every part is a new shard.
            id: self.new_id(),
            range: HashRange { min: whole.range.min, max: at },
            members: Vec::new(),
            bytes: 0.0,
            ..whole.clone()
        };
        for (rank, weight) in whole.members.iter().copied().zip(weights) {
            let part = if self.tenant((upper.tables, rank)).hash <= at { &mut lower } else { &mut upper };
            part.members.push(rank);
            part.bytes += whole.bytes * weight / total;
        }
        for part in [&mut lower, &mut upper] {
            part.queries = sum(&self.queries[part.tables], &part.members);
        }
        let second = self.all.len();
        self.index.insert((upper.tables, upper.range.min), second);
        self.all[index] = lower;
        self.all.push(upper);
        self.version += 1;
        Some((index, second))
    }
}

/// How a colocation group is numbered in the decision.
pub(super) fn colocation(tables: usize) -> i32 {
    i32::try_from(tables).map_or(i32::MAX, |tables| tables.saturating_add(1))
}

fn as_bits(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

fn sum(queries: &[f64], ranks: &[u32]) -> f64 {
    ranks.iter().filter_map(|rank| queries.get(usize::try_from(*rank).ok()?)).sum()
}

/// The upper half of 64 scattered bits.
fn hash(seed: u64, rank: u32) -> i32 {
    from_start(scatter(seed, u64::from(rank)) >> 32)
}

/// The hash that is so far from the lowest.
fn from_start(distance: u64) -> i32 {
    let distance = i64::try_from(distance).unwrap_or(i64::MAX).min(i64::from(u32::MAX));
    i32::try_from(i64::from(i32::MIN) + distance).unwrap_or(i32::MAX)
}

/// How far a hash is from the lowest.
fn to_start(hash: i32) -> u64 {
    u64::from(hash.abs_diff(i32::MIN))
}
