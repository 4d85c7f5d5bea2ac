//! A simulated cluster: what its nodes do in a period, and what is seen of it.

use std::collections::{BTreeMap, HashMap};

use jiff::{SignedDuration, Timestamp};

use super::number::{count, fraction, noise};
use super::scenario::Synthetic;
use super::shards::{Id, Rate, Shards, colocation};
use super::surges::Surges;
use super::work::Job;
use crate::heat::{Counters, LargeShard, NodeLoad, Period, Policy, Relief, Tenant, TenantLoad};
use crate::names::Group;
use crate::shards::rebalance::{Pin, Role};

/// A worker.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) role: Role,
    /// What it has counted, and what was read of it last; `None` if that was not in the last period.
    counters: Counters,
    read: Option<Counters>,
    /// Until when it does not answer, in seconds from the start.
    away_until: f64,
    /// Bytes of its shards.
    bytes: f64,
    /// Its busiest tenants by what they always have, with the index of the shard group of each, and for which [`Shards::version`] that is so.
    top: (u64, Vec<(Id, f64, usize)>),
}

/// The cluster.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) scenario: Synthetic,
    pub(super) shards: Shards,
    pub(super) surges: Surges,
    pub(super) nodes: BTreeMap<Group, Node>,
    pub(super) pins: Vec<Pin>,
    /// What each shard group does, by index, as of the last period.
    pub(super) loads: Vec<Rate>,
    pub(super) job: Option<Job>,
    /// Seconds from the start.
    pub(super) time: f64,
    pub(super) copy_rate: f64,
    /// How far the clock is off.
    clock: SignedDuration,
    /// CPU seconds that a worker has in a second.
    cpus: f64,
    storage: u64,
    kinds: Vec<(f64, f64, f64)>,
}

/// What a period was like for the nodes: CPU that was asked for, as a part of what they have.
pub(super) type Demand = BTreeMap<Group, f64>;

impl World {
    pub(super) fn new(scenario: &Synthetic, policy: &Policy) -> Self {
        let shards = Shards::new(scenario);
        let workers = &scenario.workers;
        let node = |number: u32| {
            let dedicated = number < workers.dedicated;
            let node = Node {
                role: if dedicated { Role::Dedicated } else { Role::Shared },
                counters: Counters::default(),
                read: Some(Counters::default()),
                away_until: 0.0,
                bytes: 0.0,
                top: (u64::MAX, Vec::new()),
            };
            (Group::Worker(number), node)
        };
        let kind = |tables: &super::scenario::Tables| {
            let growth = fraction(tables.bytes_per_write.units().unwrap_or(0));
            (tables.writes_percent, tables.cpu_per_query.as_secs_f64(), growth)
        };
        // Two that share a hash can matter together.
        let notice = fraction(policy.min_queries) / scenario.period.as_secs_f64() / 4.0;
        Self {
            surges: Surges::new(scenario, &shards, notice),
            nodes: (0..workers.count).map(node).collect(),
            pins: Vec::new(),
            loads: Vec::new(),
            job: None,
            time: 0.0,
            copy_rate: fraction(workers.copy_rate.units().unwrap_or(1)),
            clock: SignedDuration::ZERO,
            cpus: fraction(workers.cpu.thousandths().unwrap_or(1)) / 1000.0,
            storage: workers.storage.units().unwrap_or(0),
            kinds: scenario.tables.iter().map(kind).collect(),
            shards,
            scenario: scenario.clone(),
        }
    }

    /// What the operator's clock says.
    pub(super) fn now(&self) -> Timestamp {
        let since = SignedDuration::try_from_secs_f64(self.time).unwrap_or_default();
        let now = self.scenario.start.checked_add(since).and_then(|now| now.checked_add(self.clock));
        now.unwrap_or(self.scenario.start)
    }

    /// Lets the clock jump.
    pub(super) fn jump(&mut self, by: SignedDuration) {
        self.clock = self.clock.saturating_add(by);
    }

    /// The statistics of a node begin anew.
    pub(super) fn reset(&mut self, node: Group) {
        if let Some(node) = self.nodes.get_mut(&node) {
            node.counters = Counters::default();
        }
    }

    /// A node does not answer for so many seconds.
    pub(super) fn silence(&mut self, node: Group, seconds: f64) {
        if let Some(node) = self.nodes.get_mut(&node) {
            node.away_until = self.time + seconds;
        }
    }

    /// Lets a period pass; what was asked of the nodes, and the tenants that can be noticed.
    pub(super) fn pass(&mut self) -> (Demand, BTreeMap<Id, Rate>) {
        let length = self.scenario.period.as_secs_f64();
        let time = self.time + length / 2.0;
        let wave = self.wave(time);
        let kinds = &self.kinds;
        let base = self.shards.all.iter().map(|shard| {
            let (writes, cpu, _) = kinds[shard.tables];
            Rate::of(shard.queries * wave, writes, cpu)
        });
        let mut loads: Vec<Rate> = base.collect();
        let noticed = self.surges.add(time, &self.shards, &mut loads);
        self.loads = loads;
        self.grow(&noticed, length);

        let mut sums: HashMap<Group, (Rate, f64)> = HashMap::new();
        for (shard, load) in self.shards.all.iter().zip(&self.loads) {
            let (sum, bytes) = sums.entry(shard.node).or_default();
            sum.add(*load);
            *bytes += shard.bytes;
        }
        let mut demand = Demand::new();
        for (group, node) in &mut self.nodes {
            let (sum, bytes) = sums.get(group).copied().unwrap_or_default();
            let asked = sum.cpu * waver(&self.scenario, *group, time) / self.cpus;
            // What it cannot do waits, or is given up.
            let done = sum.times(waver(&self.scenario, *group, time) * length / asked.max(1.0));
            node.bytes = bytes;
            node.counters.queries += count(done.queries);
            node.counters.writes += count(done.writes);
            node.counters.cpu += count(done.cpu * 1e6);
            demand.insert(*group, asked);
        }
        self.time += length;
        (demand, noticed)
    }

    fn wave(&self, time: f64) -> f64 {
        let Some(wave) = &self.scenario.wave else { return 1.0 };
        let midnight =
            fraction(u64::try_from(self.scenario.start.as_second().rem_euclid(86_400)).unwrap_or(0));
        let turn = (midnight + time - wave.peak.as_secs_f64()) / 86_400.0;
        1.0 + f64::from(wave.percent) / 100.0 * (turn * std::f64::consts::TAU).cos()
    }

    fn grow(&mut self, noticed: &BTreeMap<Id, Rate>, length: f64) {
        for (shard, load) in self.shards.all.iter_mut().zip(&self.loads) {
            shard.bytes += load.writes * self.kinds[shard.tables].2 * length;
        }
        for (id, rate) in noticed {
            self.shards.grow(*id, rate.writes * self.kinds[id.0].2 * length);
        }
    }

    /// What is seen of the period that has passed.
    pub(super) fn see(&mut self, demand: &Demand, noticed: &BTreeMap<Id, Rate>, policy: &Policy) -> Period {
        let period = self.scenario.period;
        let length = period.as_secs_f64();
        let listed = usize::try_from(self.scenario.workers.tracked).unwrap_or(usize::MAX);
        let tenants = self.tenants(noticed, listed);
        let mut seen = Period {
            end: self.now(),
            length: period,
            nodes: BTreeMap::new(),
            tenants: Vec::new(),
            pins: self.pins.clone(),
            held: Vec::new(),
            empty: Vec::new(),
            uses: Vec::new(),
            large: Vec::new(),
            shard_groups: self.shards.all.len(),
            underway: self.job.is_some(),
            relief: Relief::Ready,
            splits_held: false,
        };
        let mut tenants = tenants;
        for (group, node) in &mut self.nodes {
            let answers = node.away_until < self.time;
            let counted = node.read.filter(|_| answers).and_then(|read| node.counters.since(read));
            node.read = answers.then_some(node.counters);
            let mut list = tenants.remove(group).unwrap_or_default();
            let Some(counted) = counted else {
                seen.nodes.insert(*group, NodeLoad::unknown(Role::Unavailable));
                continue;
            };
            let asked = demand.get(group).copied().unwrap_or(0.0);
            let scale = waver(&self.scenario, *group, self.time - length / 2.0) * length / asked.max(1.0);
            let unseen = list.get(listed).map_or(0, |(_, rate, _)| count(rate.queries * scale));
            list.truncate(listed);
            seen.nodes.insert(
                *group,
                NodeLoad {
                    role: node.role,
                    queries: counted.queries,
                    writes: counted.writes,
                    cpu: counted.cpu,
                    cpu_limit: count(self.cpus * length * 1e6),
                    // A tenth of a volume is kept free.
                    free_bytes: Some((self.storage / 10 * 9).saturating_sub(count(node.bytes))),
                    unseen,
                    // Those that are pinned are shown in any case.
                    unlisted: 0,
                },
            );
            let shards = &self.shards;
            let mut load = |tenant: Tenant, index: usize, rate: Rate| {
                let shard = &shards.all[index];
                seen.tenants.push(TenantLoad {
                    tenant,
                    node: *group,
                    queries: count(rate.queries * scale),
                    writes: count(rate.writes * scale),
                    cpu: count(rate.cpu * scale * 1e6),
                    shard_bytes: count(shard.bytes),
                    alone: shard.range.min == shard.range.max,
                });
            };
            let pinned = self.pins.iter().map(Tenant::from);
            let mut pinned: BTreeMap<Tenant, usize> = pinned
                .filter_map(|tenant| Some((tenant, shards.holder(tenant)?)))
                .filter(|(_, index)| shards.all[*index].node == *group)
                .collect();
            for (id, rate, index) in list {
                let tenant = shards.tenant(id);
                pinned.remove(&tenant);
                load(tenant, index, rate);
            }
            // A shard of its own has its own statistics, however short the list is.
            for (tenant, index) in pinned {
                load(tenant, index, self.loads[index]);
            }
        }
        seen.large = self.large(policy);
        seen
    }

    fn large(&self, policy: &Policy) -> Vec<LargeShard> {
        let limit = policy.max_shard_bytes.map_or(f64::INFINITY, fraction);
        let large = self.shards.all.iter().filter(|shard| shard.bytes > limit);
        large
            .map(|shard| LargeShard {
                colocation_id: colocation(shard.tables),
                shard_id: shard.id,
                node: shard.node,
                bytes: count(shard.bytes),
                median: self.shards.median(shard),
                heaviest: None,
            })
            .collect()
    }

    /// What the statistics of each node list, the busiest first, and one more if there is one.
    fn tenants(
        &mut self,
        noticed: &BTreeMap<Id, Rate>,
        listed: usize,
    ) -> BTreeMap<Group, Vec<(Id, Rate, usize)>> {
        let mut extra: BTreeMap<Group, Vec<(Id, Rate, usize)>> = BTreeMap::new();
        for (id, rate) in noticed {
            if let Some(index) = self.shards.holder(self.shards.tenant(*id)) {
                extra.entry(self.shards.all[index].node).or_default().push((*id, *rate, index));
            }
        }
        self.refresh(listed + 1);
        let wave = self.wave(self.time - self.scenario.period.as_secs_f64() / 2.0);
        let base = |(tables, _): Id, queries: f64| {
            let (writes, cpu, _) = self.kinds[tables];
            Rate::of(queries * wave, writes, cpu)
        };
        let list = |(group, node): (&Group, &Node)| {
            let extra = extra.remove(group).unwrap_or_default();
            let own = node.top.1.iter().filter(|(id, ..)| !noticed.contains_key(id));
            let own = own.map(|(id, queries, index)| (*id, base(*id, *queries), *index));
            let mut list: Vec<(Id, Rate, usize)> = own.collect();
            let any = !extra.is_empty();
            list.extend(extra.into_iter().map(|(id, mut rate, index)| {
                rate.add(base(id, self.shards.queries(id)));
                (id, rate, index)
            }));
            if any {
                list.sort_by(|(id, rate, _), (other, than, _)| {
                    than.queries.total_cmp(&rate.queries).then(id.cmp(other))
                });
            }
            (*group, list)
        };
        self.nodes.iter().map(list).collect()
    }

    /// Finds the busiest tenants of each node, if shards have been split or moved.
    fn refresh(&mut self, most: usize) {
        let version = self.shards.version;
        if self.nodes.values().all(|node| node.top.0 == version) {
            return;
        }
        let mut tops: HashMap<Group, Vec<(Id, f64, usize)>> = HashMap::new();
        for (index, shard) in self.shards.all.iter().enumerate() {
            let ranks = shard.members.iter().take(most).map(|rank| (shard.tables, *rank));
            let queries = ranks.map(|id| (id, self.shards.queries(id), index));
            tops.entry(shard.node).or_default().extend(queries);
        }
        for (group, node) in &mut self.nodes {
            let mut top = tops.remove(group).unwrap_or_default();
            top.sort_unstable_by(|(id, queries, _), (other, than, _)| {
                than.total_cmp(queries).then(id.cmp(other))
            });
            top.truncate(most);
            node.top = (version, top);
        }
    }

    /// What people call a tenant: the surge that it is known by, and its tables.
    pub(super) fn name(&self, tenant: Tenant) -> String {
        let tables = self.scenario.tables.iter().enumerate();
        let found = tables
            .map(|(index, tables)| (index, &tables.name))
            .find(|(index, _)| colocation(*index) == tenant.colocation_id);
        let Some((index, table)) = found else { return tenant.hash.to_string() };
        let known = self.surges.noticeable().find(|id| id.0 == index && self.shards.tenant(*id) == tenant);
        match known.and_then(|id| self.surges.name(id)) {
            Some(name) => format!("{name} ({table} {})", tenant.hash),
            None => format!("{table} {}", tenant.hash),
        }
    }
}

/// By which factor a node's load wavers in a period.
fn waver(scenario: &Synthetic, node: Group, time: f64) -> f64 {
    let number = match node {
        Group::Coordinator => u64::from(u32::MAX),
        Group::Worker(number) => u64::from(number),
    };
    1.0 + f64::from(scenario.workers.noise_percent) / 100.0
        * noise(scenario.seed ^ (number << 32), count(time))
}
