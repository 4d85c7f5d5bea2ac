//! When load is looked at, and how what is found is made known beside the status.

use k8s_openapi::jiff::Timestamp;
use kube::runtime::events::EventType;
use kube::runtime::reflector::ObjectRef;
use tracing::{info, warn};

use super::Controller;
use crate::api::DialogCluster;
use crate::shards::heat::{self, Heat};
use crate::shards::metrics::heat::Budget;
use crate::shards::observed::Observed;
use crate::shards::sessions::Sessions;
use crate::shards::wanted::Wanted;
use crate::shards::world::World;

/// Something that an Event tells.
#[derive(Clone, Debug, PartialEq, Eq)]
struct News {
    type_: EventType,
    reason: &'static str,
    note: String,
}

/// What a period brought that was not so before: who became hot, who has cooled down, and what was decided.
fn news(heat: &Heat) -> Vec<News> {
    let turned = heat.turned.iter().map(|turn| News {
        type_: if turn.hot { EventType::Warning } else { EventType::Normal },
        reason: if turn.hot { "TenantHot" } else { "TenantCooledDown" },
        note: turn.message.clone(),
    });
    let decided = heat.last.as_ref().filter(|_| heat.is_decided_now()).map(|decided| News {
        type_: EventType::Normal,
        reason: "Decided",
        note: format!("{}: {}", decided.kind, decided.message),
    });
    turned.chain(decided).collect()
}

impl Controller {
    /// Looks at what tenants do if a period has passed; what is known of it.
    ///
    /// It goes by what the last round has seen: where shards are is still the same a moment later, or soon shows.
    pub(super) async fn watch(
        &self,
        cluster: &DialogCluster,
        key: &ObjectRef<DialogCluster>,
        wanted: &Wanted,
        sessions: &Sessions,
    ) -> Option<Heat> {
        let known = self.memory(key, |memory| memory.heat.clone());
        let Some(watch) = &wanted.watch else {
            self.show_heat(key, None);
            return None;
        };
        let now = Timestamp::now();
        let last = self.memory(key, |memory| memory.last.clone());
        let due = !cluster.spec.paused && known.as_ref().is_none_or(|heat| heat.is_due(watch, now));
        let Some(observed) = last.filter(|_| due) else {
            return match known {
                // An operator that has just started goes on from what is known.
                None => heat::recall(sessions).await,
                known => known,
            };
        };
        let world = World { wanted, topology: sessions.topology(), observed: &observed };
        let seen = known.as_ref().and_then(|heat| heat.end);
        let heat = match heat::look(sessions, &world, watch, now).await {
            Ok(None) => return known,
            Ok(Some(heat)) => heat,
            Err(error) => {
                warn!(cluster = %key, %error, "could not look at the load");
                Heat { failure: Some(error.to_string()), ..known.unwrap_or_default() }
            }
        };
        if heat.end != seen {
            for News { type_, reason, note } in news(&heat) {
                info!(cluster = %key, reason, note, "found");
                self.publish(cluster, type_, reason, &note, "").await;
            }
        }
        self.show_heat(key, Some(&heat));
        Some(heat)
    }

    /// Shows what is known of load in the metrics, and remembers it.
    pub(super) fn show_heat(&self, key: &ObjectRef<DialogCluster>, heat: Option<&Heat>) {
        let before = self.memory(key, |memory| std::mem::replace(&mut memory.heat, heat.cloned()));
        let namespace = key.namespace.as_deref().unwrap_or_default();
        self.context.metrics.shards.heat.show(namespace, &key.name, before.as_ref(), heat);
    }

    /// Shows in the metrics what is done about load, and what of the budgets is left.
    pub(super) fn show_actions(&self, key: &ObjectRef<DialogCluster>, wanted: &Wanted, observed: &Observed) {
        let namespace = key.namespace.as_deref().unwrap_or_default();
        let metrics = &self.context.metrics.shards.heat;
        metrics.budget(namespace, &key.name, Budget::of(wanted, observed));
        // What could not be read is no news.
        if observed.kept.now.is_none() {
            return;
        }
        metrics.isolated(namespace, &key.name, Some(observed.kept.pins.len()));
        let now = &observed.kept.acts;
        if let Some(before) = self.memory(key, |memory| memory.acts.replace(now.clone())) {
            metrics.actions(namespace, &key.name, &before, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::api::DecisionStatus;
    use crate::shards::heat::Turn;

    #[test]
    fn a_period_tells_who_became_hot_who_has_cooled_down_and_what_was_decided() {
        let end: Timestamp = "2026-01-05T09:01:00Z".parse().unwrap();
        let turn = |hot, message: &str| Turn { hot, message: message.to_owned() };
        let decided = |at: &str| DecisionStatus {
            at: Time(at.parse().unwrap()),
            kind: "Spread".to_owned(),
            message: "worker-0 should share".to_owned(),
        };
        let heat = |at: &str| Heat {
            end: Some(end),
            turned: vec![turn(true, "a takes 52 %"), turn(false, "b does not")],
            last: Some(decided(at)),
            ..Heat::default()
        };
        let say = |type_, reason, note: &str| News { type_, reason, note: note.to_owned() };
        let turned = || {
            vec![
                say(EventType::Warning, "TenantHot", "a takes 52 %"),
                say(EventType::Normal, "TenantCooledDown", "b does not"),
            ]
        };
        assert_eq!(news(&heat("2026-01-05T09:00:00Z")), turned(), "what was decided earlier is no news");
        let all =
            [turned(), vec![say(EventType::Normal, "Decided", "Spread: worker-0 should share")]].concat();
        assert_eq!(news(&heat("2026-01-05T09:01:00Z")), all);
    }
}
