//! Load that comes on top of what tenants always have.

use std::collections::{BTreeMap, HashMap};

use super::scenario::{Surge, Synthetic};
use super::shards::{Id, Rate, Shards};
use crate::names::Group;

/// The surges of a scenario with the tenants that take part.
#[derive(Clone, Debug)]
pub(super) struct Surges(Vec<Active>);

#[derive(Clone, Debug)]
struct Active {
    name: String,
    shape: Surge,
    tables: usize,
    /// What all of its tenants ask for at its height.
    height: Rate,
    ranks: Vec<u32>,
    /// Whether one of its tenants alone can matter to a decision.
    noticeable: bool,
    /// How many of its tenants are in which shard group, and for which [`Shards::version`] that is so.
    spread: (u64, Vec<(usize, f64)>),
}

impl Surges {
    /// `notice` queries per second make a tenant worth to be listed.
    pub(super) fn new(scenario: &Synthetic, shards: &Shards, notice: f64) -> Self {
        let active = |surge: &Surge| {
            let tables = scenario.tables.iter().position(|tables| tables.name == surge.tables)?;
            let kind = &scenario.tables[tables];
            let here = |rank: &u32| match surge.worker {
                Some(worker) => {
                    let holder = shards.holder(shards.tenant((tables, *rank)));
                    holder.is_some_and(|index| shards.all[index].node == Group::Worker(worker))
                }
                None => true,
            };
            let wanted = usize::try_from(surge.tenants).unwrap_or(usize::MAX);
            let ranks: Vec<u32> = (surge.first..kind.tenants).filter(here).take(wanted).collect();
            let cpu = surge.cpu_per_query.unwrap_or(kind.cpu_per_query).as_secs_f64();
            let writes = surge.writes_percent.unwrap_or(kind.writes_percent);
            Some(Active {
                name: surge.name.clone(),
                shape: surge.clone(),
                tables,
                height: Rate::of(surge.queries_per_second, writes, cpu),
                noticeable: surge.queries_per_second / f64::from(surge.tenants) >= notice,
                ranks,
                spread: (u64::MAX, Vec::new()),
            })
        };
        Self(scenario.surges.iter().filter_map(active).collect())
    }

    /// What to call a tenant that a surge is known by.
    pub(super) fn name(&self, id: Id) -> Option<&str> {
        let known =
            |active: &&Active| active.noticeable && active.tables == id.0 && active.ranks.contains(&id.1);
        self.0.iter().find(known).map(|active| active.name.as_str())
    }

    /// Tenants that can be noticed.
    pub(super) fn noticeable(&self) -> impl Iterator<Item = Id> {
        let noticeable = self.0.iter().filter(|active| active.noticeable);
        noticeable.flat_map(|active| active.ranks.iter().map(|rank| (active.tables, *rank)))
    }

    /// Adds what the surges ask for at `time` (seconds from the start) to `loads`, which has an entry for each shard
    /// group; the tenants that can be noticed, each with what it asks for.
    pub(super) fn add(&mut self, time: f64, shards: &Shards, loads: &mut [Rate]) -> BTreeMap<Id, Rate> {
        let mut noticed: BTreeMap<Id, Rate> = BTreeMap::new();
        for active in &mut self.0 {
            let strength = strength(&active.shape, time);
            if strength <= 0.0 || active.ranks.is_empty() {
                continue;
            }
            let tenants = f64::from(u32::try_from(active.ranks.len()).unwrap_or(u32::MAX));
            let each = active.height.times(strength / tenants);
            if active.spread.0 != shards.version {
                active.spread = (shards.version, spread(active, shards));
            }
            for (index, count) in &active.spread.1 {
                loads[*index].add(each.times(*count));
            }
            if active.noticeable {
                for rank in &active.ranks {
                    noticed.entry((active.tables, *rank)).or_default().add(each);
                }
            }
        }
        noticed
    }
}

fn spread(active: &Active, shards: &Shards) -> Vec<(usize, f64)> {
    let mut counts: HashMap<usize, f64> = HashMap::new();
    for rank in &active.ranks {
        if let Some(index) = shards.holder(shards.tenant((active.tables, *rank))) {
            *counts.entry(index).or_default() += 1.0;
        }
    }
    let mut counts: Vec<(usize, f64)> = counts.into_iter().collect();
    // Sums of fractions depend on their order.
    counts.sort_unstable_by_key(|(index, _)| *index);
    counts
}

/// How much of its height a surge has at a time, from 0 to 1.
fn strength(surge: &Surge, time: f64) -> f64 {
    let mut since = time - surge.from.as_secs_f64();
    if since < 0.0 {
        return 0.0;
    }
    if let Some(every) = surge.every {
        since %= every.as_secs_f64();
    }
    if surge.lasting.is_some_and(|lasting| since >= lasting.as_secs_f64()) {
        return 0.0;
    }
    let ramp = surge.ramp.as_secs_f64();
    if since < ramp { since / ramp } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_surge_begins_grows_ends_and_comes_again() {
        let surge = "{name: a, tables: b, queriesPerSecond: 1, from: 1h, lasting: 30m, ramp: 10m, every: 2h}";
        let surge: Surge = serde_yaml_ng::from_str(surge).unwrap();
        let minutes = |minute: f64| strength(&surge, minute * 60.0);
        for (minute, expected) in [
            (59.0, 0.0),
            (60.0, 0.0),
            (65.0, 0.5),
            (71.0, 1.0),
            (89.9, 1.0),
            (90.0, 0.0),
            (185.0, 0.5),
            (215.0, 0.0),
        ] {
            assert!((minutes(minute) - expected).abs() < 1e-9, "{minute}: {}", minutes(minute));
        }
    }
}
