//! Whether a tenant takes a large part of its worker.

use crate::condition::{Finding, HOT_TENANT, Holds};
use crate::shards::world::{Support, World};

/// The condition `HotTenant`: true is what is to be looked at.
pub(super) fn hot_tenant(world: &World<'_>) -> Finding {
    let finding = |holds: Holds, reason, message: String| Finding::new(HOT_TENANT, holds, reason, message);
    let Some(watch) = &world.wanted.watch else {
        let message = "nobody looks: spec.sharding.hotTenants.mode is Off".to_owned();
        return finding(Holds::Unknown, "NotWatched", message);
    };
    match world.support() {
        Support::NotInImage | Support::NotPreloaded => {
            return finding(Holds::Unknown, "CitusUnavailable", super::NO_CITUS.to_owned());
        }
        Support::Unknown | Support::Citus => {}
    }
    let Some(heat) = &world.observed.heat else {
        let message = "no period has passed yet since the servers count".to_owned();
        return finding(Holds::Unknown, "NotObserved", message);
    };
    if let Some(failure) = &heat.failure {
        return finding(Holds::Unknown, "NotObserved", failure.clone());
    }
    let names: Vec<String> = heat
        .hot
        .iter()
        .map(|hot| format!("{} {} ({} % of {})", hot.group, hot.tenant, hot.share_percent, hot.node))
        .collect();
    let decided = heat.last.as_ref().filter(|_| heat.is_decided_now());
    let lasting = i32::try_from(watch.policy.consecutive_periods).unwrap_or(i32::MAX);
    let who = format!("hot: {}", names.join(", "));
    if let Some(refusal) = heat.refused.first() {
        let who = if names.is_empty() { String::new() } else { format!("{who}; ") };
        return finding(Holds::True, "NothingHelps", format!("{who}{}", refusal.message));
    }
    if let Some(decided) = decided {
        return finding(Holds::True, "WouldAct", decided.message.clone());
    }
    if names.is_empty() {
        return finding(Holds::False, "NoneHot", "no tenant takes a large part of its worker".to_owned());
    }
    if heat.hot.iter().all(|hot| hot.periods < lasting) {
        let message = format!("{who}; something follows after {lasting} periods in a row");
        return finding(Holds::True, "Noticed", message);
    }
    match (heat.cooling_until, &heat.last) {
        (Some(until), _) => {
            finding(Holds::True, "CoolingDown", format!("{who}; nothing more is done before {until}"))
        }
        (None, Some(last)) => finding(Holds::True, "WouldHaveActed", format!("{who}; {}", last.message)),
        (None, None) => finding(Holds::True, "Noticed", who),
    }
}
