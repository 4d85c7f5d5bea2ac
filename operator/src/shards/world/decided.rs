//! What somebody has decided about tenants, in the place of the policy.

use std::collections::BTreeSet;

use super::World;
use crate::api::PinSpec;
use crate::heat::Tenant;
use crate::names::Group;
use crate::shards::heat::actions::{Act, Called};
use crate::shards::heat::group_name;
use crate::shards::observed::{Name, Spread};

/// What the resource says of tenants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decisions<'a> {
    /// About whom it is known whom they mean.
    pub known: Vec<Decided<'a>>,
    /// Why others mean nobody, and what to do.
    pub problems: Vec<String>,
    /// The colocation groups of entries of which nobody knows the hash yet.
    unhashed: BTreeSet<i32>,
    /// The colocation groups that are known to be of other groups of tables, if nobody knows which is that of some entry.
    not_theirs: Option<BTreeSet<i32>>,
}

/// What the resource says of one tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decided<'a> {
    /// The entry.
    pub entry: &'a PinSpec,
    /// Who is meant.
    pub tenant: Tenant,
    /// Where its shard group belongs; `None` if it is one like the others.
    pub to: Option<Group>,
}

impl<'a> Decisions<'a> {
    /// What was decided about a tenant.
    #[must_use]
    pub fn about(&self, tenant: Tenant) -> Option<&Decided<'a>> {
        self.known.iter().find(|decided| decided.tenant == tenant)
    }

    /// Whether one of the entries that are not known to mean somebody may mean a tenant.
    #[must_use]
    pub fn may_mean(&self, tenant: Tenant) -> bool {
        let id = tenant.colocation_id;
        self.unhashed.contains(&id) || self.not_theirs.as_ref().is_some_and(|others| !others.contains(&id))
    }
}

impl<'a> World<'a> {
    /// What somebody has decided about tenants.
    #[must_use]
    pub fn decisions(&self) -> Decisions<'a> {
        let mut decisions = Decisions::default();
        for entry in &self.wanted.pins {
            let PinSpec { group, tenant, worker } = entry;
            let Some((colocation_id, type_name)) = self.colocation(group) else {
                decisions.not_theirs.get_or_insert_with(|| self.colocations());
                decisions.problems.push(format!(
                    "spec.sharding.pins: no table of the group {group} is distributed yet, or there is none"
                ));
                continue;
            };
            let name = Name { type_name: type_name.to_owned(), tenant: tenant.clone() };
            match self.observed.hashes.get(&name) {
                Some(Ok(hash)) => {
                    let to = worker.and_then(|worker| u32::try_from(worker).ok()).map(Group::Worker);
                    let tenant = Tenant { colocation_id, hash: *hash };
                    match decisions.about(tenant).copied() {
                        None => decisions.known.push(Decided { entry, tenant, to }),
                        Some(first) if first.to == to => {}
                        Some(Decided { entry: first, .. }) => decisions.problems.push(format!(
                            "spec.sharding.pins: {group} {} and {group} {} have one hash, and so one shard for ever: what the \
                             first entry says is done; give both the same worker, or none",
                            first.tenant, entry.tenant
                        )),
                    }
                }
                Some(Err(why)) => {
                    decisions.problems.push(format!("spec.sharding.pins: {group} {tenant} is nobody: {why}"));
                }
                None => {
                    decisions.unhashed.insert(colocation_id);
                }
            }
        }
        decisions
    }

    /// What a tenant is called: as the resource has it, or who has pinned it, or who is about to.
    #[must_use]
    pub fn called(&self, tenant: Tenant) -> Called {
        let kept = &self.observed.kept;
        let decisions = self.decisions();
        let decided = || decisions.about(tenant).map(|decided| decided.entry.tenant.clone());
        let pinned = || kept.pins.iter().find(|pin| pin.tenant == tenant)?.key.clone();
        let about = |act: &&Act| act.action.tenant() == Some(tenant);
        let acted = || kept.acts.iter().rev().filter(about).find_map(|act| act.tenant.clone());
        Called {
            group: group_name(self, tenant.colocation_id),
            key: decided().or_else(pinned).or_else(acted),
            hash: tenant.hash,
        }
    }

    /// The colocation groups of the groups of tables, as far as they are known.
    fn colocations(&self) -> BTreeSet<i32> {
        let groups: BTreeSet<&str> =
            self.wanted.tables.iter().filter_map(|table| table.group.as_deref()).collect();
        groups.into_iter().filter_map(|group| Some(self.colocation(group)?.0)).collect()
    }

    /// The colocation group of a group of tables, and the type of its distribution column.
    fn colocation(&self, group: &str) -> Option<(i32, &'a str)> {
        let tables = self.wanted.tables.iter().filter(|table| table.group.as_deref() == Some(group));
        let mut known = tables.filter_map(|policy| {
            let table = self.observed.tables.get(&policy.name)?;
            let Spread::Hash { colocation_id, .. } = table.spread else { return None };
            Some((colocation_id, table.column_type.as_deref()?))
        });
        known.next()
    }
}
