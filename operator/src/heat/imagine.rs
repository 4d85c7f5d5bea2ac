//! The world as it would be if what was only written down had been done, so that observing goes on as isolating would.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::{Action, Imagined, NodeLoad, Period, Tenant, TenantLoad};
use crate::names::Group;
use crate::shards::rebalance::Pin;

impl Imagined {
    /// What the period would have shown.
    #[must_use]
    pub fn apply<'a>(&self, period: &'a Period) -> Cow<'a, Period> {
        if *self == (Self { acted: self.acted, ..Self::default() }) {
            return Cow::Borrowed(period);
        }
        let nodes = self.nodes(period).into_owned();
        let mut period = Period { nodes, ..period.clone() };
        for load in &mut period.tenants {
            if let Some(to) = self.pins.get(&load.tenant) {
                load.node = *to;
                load.alone = true;
            }
            load.alone |= self.released.contains(&load.tenant);
        }
        let moved = |tenant: &Tenant| self.released.contains(tenant) || self.pins.contains_key(tenant);
        period.pins.retain(|pin| !moved(&pin.into()));
        let pin = |(tenant, node): (&Tenant, &_)| tenant.pin(*node);
        period.pins.extend(self.pins.iter().map(pin));
        period.large.retain(|large| !self.split.contains(&large.shard_id));
        period.shard_groups = period.shard_groups.saturating_add(self.groups);
        Cow::Owned(period)
    }

    /// What the nodes would have done.
    pub(super) fn nodes<'a>(&self, period: &'a Period) -> Cow<'a, BTreeMap<Group, NodeLoad>> {
        if self.pins.is_empty() {
            return Cow::Borrowed(&period.nodes);
        }
        let mut nodes = period.nodes.clone();
        // All of it is added before any of it is taken off, since figures do not always add up: the order of the tenants
        // must not matter.
        let to = |load: &'a TenantLoad| Some((load, *self.pins.get(&load.tenant)?));
        let moved: Vec<(&TenantLoad, Group)> = period.tenants.iter().filter_map(to).collect();
        for (load, to) in &moved {
            if let Some(target) = nodes.get_mut(to) {
                target.queries = target.queries.saturating_add(load.queries);
                target.writes = target.writes.saturating_add(load.writes);
                target.cpu = target.cpu.saturating_add(load.cpu);
            }
        }
        for (load, _) in &moved {
            if let Some(from) = nodes.get_mut(&load.node) {
                from.queries = from.queries.saturating_sub(load.queries);
                from.writes = from.writes.saturating_sub(load.writes);
                from.cpu = from.cpu.saturating_sub(load.cpu);
            }
        }
        Cow::Owned(nodes)
    }

    /// Notes what would have been done. What happens to load that is spread, nobody can tell.
    pub(super) fn note(&mut self, action: Action) {
        match action {
            Action::Isolate { tenant, to, .. } | Action::Retarget { tenant, to, .. } => {
                self.pins.insert(tenant, to);
            }
            Action::Split { shard_id, .. } => {
                self.split.insert(shard_id);
            }
            Action::Release { tenant } => {
                self.pins.remove(&tenant);
                self.released.insert(tenant);
            }
            Action::Spread { .. } => {}
        }
    }

    /// Takes the pins that are only imagined out of `retargeted`, with their new nodes.
    pub(super) fn retarget(&mut self, retargeted: &mut Vec<Pin>) {
        retargeted.retain(|pin| match self.pins.get_mut(&pin.into()) {
            Some(node) => {
                *node = pin.node;
                false
            }
            None => true,
        });
    }
}
