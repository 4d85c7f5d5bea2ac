//! What is made known of plans and steps, in the log and by Events.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::runtime::events::{Event, EventType};
use kube::runtime::reflector::ObjectRef;
use kube::{Resource as _, ResourceExt as _};
use tracing::{debug, info, warn};

use super::Controller;
use crate::api::{DialogCluster, PlanStatus, RebalanceStatus};
use crate::reconcile::{ACTION, NOTE, shorten};
use crate::shards::act;
use crate::shards::memory::Place;
use crate::shards::rebalance::MovePlan;
use crate::shards::round::Round;
use crate::shards::status::{HowFar, in_phase};
use crate::shards::step::Step;

/// What the status said of the rebalance before this round.
fn before(cluster: &DialogCluster) -> Option<&RebalanceStatus> {
    cluster.status.as_ref().and_then(|status| status.rebalance.as_ref())
}

impl Controller {
    /// Makes known, in the log and by an Event, that a step was `begun` or `done` or what it is doing, which of which plan it is,
    /// and the `figures` of one that takes long.
    async fn tell(
        &self,
        cluster: &DialogCluster,
        what: &str,
        step: &Step,
        place: Option<Place>,
        figures: Option<String>,
    ) {
        let (plan, number) = place.map(|Place { hash, number }| (hash, number)).unzip();
        info!(
            cluster = %cluster.name_any(), namespace = cluster.namespace(), kind = step.kind(), %step, plan, number, figures,
            "{what}"
        );
        let place = plan.zip(number).map(|(plan, number)| format!(" (move {number} of plan {plan})"));
        let figures = figures.map(|figures| format!(": {figures}")).unwrap_or_default();
        let more = place.unwrap_or_default() + &figures;
        self.publish(cluster, EventType::Normal, step.kind(), &format!("{what}: {step}"), &more).await;
    }

    /// Makes known what was begun of `plan`, and how far it was then, where these were `done` since the last round.
    pub(super) async fn tell_begun(
        &self,
        cluster: &DialogCluster,
        key: &ObjectRef<DialogCluster>,
        begun: &[Step],
        done: &[Step],
        plan: Option<&MovePlan>,
    ) {
        let sizes = self.memory(key, |memory| memory.last.as_ref().map(|last| last.sizes()));
        let sizes = sizes.unwrap_or_default();
        for step in begun {
            let place = self.memory(key, |memory| memory.begin(step, plan));
            let far = HowFar::at_begin(before(cluster), step, begun, done, &sizes);
            self.tell(cluster, "begun", step, place, far.map(|far| far.to_string())).await;
        }
    }

    /// Makes known what moves of `plans` are doing that take long, each phase once, as the status says it `now`.
    pub(super) async fn tell_phases(
        &self,
        cluster: &DialogCluster,
        key: &ObjectRef<DialogCluster>,
        plans: &[&MovePlan],
        rebalance: Option<&RebalanceStatus>,
        now: Timestamp,
    ) {
        let Some(rebalance) = rebalance else { return };
        for entered in self.memory(key, |memory| memory.watch.entered()) {
            let step = entered.running.step();
            let place = self.memory(key, |memory| memory.place(&step, plans));
            let figures = in_phase(&entered, rebalance, now);
            self.tell(cluster, &entered.phase, &step, place, Some(figures)).await;
        }
    }

    /// Publishes an Event about a plan that was not shown before: who approves by Events hears of it, whatever the conditions
    /// said meanwhile.
    pub(super) async fn tell_of(&self, cluster: &DialogCluster, plan: Option<&PlanStatus>) {
        let shown = cluster.status.as_ref().and_then(|status| status.plan.as_ref());
        if let Some(PlanStatus { hash, moves, bytes, over, .. }) = plan
            && shown.is_none_or(|shown| shown.hash != *hash)
        {
            let what = format!("plan {hash}");
            let more = format!(": {moves} moves, {bytes} bytes, over {}", over.join(", "));
            self.publish(cluster, EventType::Normal, "MovesPlanned", &what, &more).await;
        }
    }

    /// Makes known that a long step failed, and how often it has by now.
    pub(super) async fn complain(
        &self,
        cluster: &DialogCluster,
        key: &ObjectRef<DialogCluster>,
        step: &Step,
        error: &act::Error,
        failures: u32,
    ) {
        self.memory(key, |memory| memory.end(step, &[]));
        self.context.metrics.shards.step(step, false);
        warn!(cluster = %key, kind = step.kind(), %step, failures, %error, "failed");
        let what = format!("could not {step}");
        self.publish(cluster, EventType::Warning, "StepFailed", &what, &format!(": {error}")).await;
    }

    /// Says in log, Events and metrics what a round has done of `plans`, how long what was long has `lasted`, how far the
    /// `rebalance` is with it, and what was not done.
    pub(super) async fn account(
        &self,
        cluster: &DialogCluster,
        key: &ObjectRef<DialogCluster>,
        round: &Round,
        plans: &[&MovePlan],
        lasted: &BTreeMap<Step, Duration>,
        rebalance: Option<&RebalanceStatus>,
    ) {
        let sizes = round.observed.sizes();
        let ends = HowFar::at_ends(before(cluster), rebalance, &round.performed, &sizes);
        for step in &round.performed {
            self.context.metrics.shards.step(step, true);
            let place = self.memory(key, |memory| memory.end(step, plans));
            let figures = lasted.get(step).map(|lasted| step.figures(&sizes, *lasted));
            let far = ends.get(step).map(ToString::to_string);
            let figures: Vec<String> = figures.into_iter().chain(far).collect();
            let figures = (!figures.is_empty()).then(|| figures.join("; "));
            self.tell(cluster, "done", step, place, figures).await;
        }
        for (step, error) in &round.partly {
            self.postpone(key, step, error);
        }
        for (step, _) in &round.failed {
            // Log and Event are made of the error that is returned.
            self.context.metrics.shards.step(step, false);
        }
    }

    /// Puts off a step that could be done in part only.
    fn postpone(&self, key: &ObjectRef<DialogCluster>, step: &Step, error: &act::Error) {
        if !self.memory(key, |memory| memory.postpone(step, error)) {
            debug!(cluster = %key, kind = step.kind(), %step, %error, "put off");
            return;
        }
        self.context.metrics.shards.step(step, false);
        info!(cluster = %key, kind = step.kind(), %step, %error, "done in part, and put off");
    }

    /// Publishes an Event about a cluster. Those of the same action are one within six minutes, with the first note: `what`
    /// has to say which move is meant.
    pub(super) async fn publish(
        &self,
        cluster: &DialogCluster,
        type_: EventType,
        reason: &str,
        what: &str,
        more: &str,
    ) {
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(shorten(&format!("{what}{more}"), NOTE)),
            action: shorten(what, ACTION),
            secondary: None,
        };
        if let Err(error) = self.context.recorder.publish(&event, &cluster.object_ref(&())).await {
            debug!(cluster = %cluster.name_any(), %error, "could not publish an Event");
        }
    }
}
