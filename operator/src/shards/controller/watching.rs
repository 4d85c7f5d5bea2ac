//! When load is looked at, and how what is found is made known beside the status.

use k8s_openapi::jiff::Timestamp;
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

impl Controller {
    /// Looks at what tenants do if a period has passed; what is known of it.
    ///
    /// It goes by what the last round has seen: where shards are is still the same a moment later, or soon shows.
    pub(super) async fn watch(
        &self,
        key: &ObjectRef<DialogCluster>,
        wanted: &Wanted,
        paused: bool,
        sessions: &Sessions,
    ) -> Option<Heat> {
        let known = self.memory(key, |memory| memory.heat.clone());
        let Some(watch) = &wanted.watch else {
            self.show_heat(key, None);
            return None;
        };
        let now = Timestamp::now();
        let last = self.memory(key, |memory| memory.last.clone());
        let due = !paused && known.as_ref().is_none_or(|heat| heat.is_due(watch, now));
        let Some(observed) = last.filter(|_| due) else {
            return match known {
                // An operator that has just started goes on from what is known.
                None => heat::recall(sessions).await,
                known => known,
            };
        };
        let world = World { wanted, topology: sessions.topology(), observed: &observed };
        let heat = match heat::look(sessions, &world, watch, now).await {
            Ok(None) => return known,
            Ok(Some(heat)) => heat,
            Err(error) => {
                warn!(cluster = %key, %error, "could not look at the load");
                Heat { failure: Some(error.to_string()), ..known.unwrap_or_default() }
            }
        };
        if let Some(decided) = heat.last.as_ref().filter(|_| heat.is_decided_now()) {
            info!(cluster = %key, kind = decided.kind, message = decided.message, "decided");
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
