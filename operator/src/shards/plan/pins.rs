//! Where shard groups of one hash belong, by the pins that are written down.

use std::collections::BTreeMap;

use crate::heat::{self, Action, NodeLoad, Period, Relief, Tenant, TenantLoad};
use crate::shards::heat::actions::{Act, Author, KeptPin};
use crate::shards::rebalance::{HashRange, Layout, Pin, Role, ShardGroup};
use crate::shards::world::World;

/// Where shard groups of one hash belong: the pins that are written down, on other nodes where theirs leave or have left.
/// One whose shard group covers other hashes as well has no meaning: its tables were distributed anew.
pub(super) fn pins(world: &World<'_>, layout: &Layout) -> Vec<Pin> {
    let mut pins = written(world);
    // What is on its way is not to be taken for something to be spread.
    if let Some(Act { action: Action::Isolate { tenant, to, .. }, .. }) = world.observed.kept.open()
        && layout.nodes.get(to).is_some_and(|node| node.role != Role::Draining)
        && !pins.iter().any(|pin| Tenant::from(pin) == *tenant)
    {
        pins.push(tenant.pin(*to));
    }
    // So they count before they are written anew: that waits for what is being done.
    for (pin, _) in astray(world, layout) {
        if !pins.iter().any(|known| Tenant::from(known) == Tenant::from(&pin)) {
            pins.push(pin);
        }
    }
    if pins.is_empty() {
        return pins;
    }
    let alone: BTreeMap<Tenant, &ShardGroup> = layout
        .groups
        .iter()
        .filter(|group| group.range.min == group.range.max)
        .map(|group| (Tenant { colocation_id: group.colocation_id, hash: group.range.min }, group))
        .collect();
    pins.retain(|pin| alone.contains_key(&pin.into()));
    let heat = world.observed.heat.as_ref();
    let nodes = layout.nodes.iter().map(|(group, node)| {
        let known = heat.and_then(|heat| heat.nodes.get(group)).copied();
        let load = known.unwrap_or_else(|| NodeLoad::unknown(node.role));
        (*group, NodeLoad { role: node.role, free_bytes: node.free_bytes, ..load })
    });
    let spent: BTreeMap<Tenant, u64> = heat.iter().flat_map(|heat| heat.pinned.iter().copied()).collect();
    let tenants = alone.iter().map(|(tenant, group)| TenantLoad {
        tenant: *tenant,
        node: group.node,
        queries: 0,
        writes: 0,
        cpu: spent.get(tenant).copied().unwrap_or(0),
        shard_bytes: group.bytes,
        alone: true,
    });
    let period = Period {
        end: jiff::Timestamp::UNIX_EPOCH,
        length: jiff::SignedDuration::ZERO,
        nodes: nodes.collect(),
        tenants: tenants.collect(),
        pins: pins.clone(),
        held: Vec::new(),
        empty: Vec::new(),
        uses: Vec::new(),
        large: Vec::new(),
        shard_groups: layout.groups.len(),
        underway: false,
        relief: Relief::Ready,
        splits_held: false,
    };
    // Who finds no place stays pinned to where it is, and the moves say so.
    for retargeted in heat::retarget(&period, &mut Vec::new()) {
        for pin in pins.iter_mut().filter(|pin| Tenant::from(&**pin) == Tenant::from(&retargeted)) {
            pin.node = retargeted.node;
        }
    }
    pins
}

/// The pins that are written down.
pub(super) fn written(world: &World<'_>) -> Vec<Pin> {
    let pin = |kept: &KeptPin| Some(kept.tenant.pin(world.topology.group(&kept.endpoint)?));
    world.observed.kept.pins.iter().filter_map(pin).collect()
}

/// The pins at addresses that no group of this cluster has, as in the copy of one of another name: they mean the nodes that their
/// shards are on.
pub(super) fn astray(world: &World<'_>, layout: &Layout) -> Vec<(Pin, Author)> {
    let unknown = |kept: &&KeptPin| world.topology.group(&kept.endpoint).is_none();
    let at_home = |kept: &KeptPin| {
        let its = |group: &&ShardGroup| {
            let hash = kept.tenant.hash;
            group.colocation_id == kept.tenant.colocation_id
                && group.range == HashRange { min: hash, max: hash }
        };
        Some((kept.tenant.pin(layout.groups.iter().find(its)?.node), kept.author))
    };
    world.observed.kept.pins.iter().filter(unknown).filter_map(at_home).collect()
}
