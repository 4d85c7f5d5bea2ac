//! When a cluster is looked at again.

use std::time::Duration;

use crate::api::DialogCluster;
use crate::error::Error;
use crate::reconcile::{Outcome, Reconciler as _};
use crate::shards::controller::Controller;
use crate::shards::round::Round;

/// While something happens by itself.
pub(super) const SOON: Duration = Duration::from_secs(5);

/// Who has had nothing to do for this long waits for somebody, and not for something that happens by itself.
const LONG: Duration = Duration::from_mins(1);

/// When to look again, if nothing was done for as long as `idle` and nothing has gone on; where load is watched, there is more of it
/// to look at after `period`.
pub(super) fn outcome(
    cluster: &DialogCluster,
    mut round: Round,
    idle: Duration,
    period: Option<Duration>,
) -> Result<Outcome, Error> {
    let catalog = round.observed.catalog.as_ref();
    let underway = catalog.is_some_and(|catalog| !catalog.operations.is_empty());
    let blocking = catalog.is_some_and(|catalog| !catalog.blocking.is_empty());
    if cluster.spec.paused && !underway {
        return Ok(Outcome::Done);
    }
    if !round.failed.is_empty() {
        let (step, source) = round.failed.swap_remove(0);
        return Err(Error::Database { step: step.to_string(), source: Box::new(source) });
    }
    let waits = round.plan.waits.join("; ");
    if blocking {
        // A move is given a few seconds for this, and it is looks that count them.
        return Ok(Outcome::Urgent(format!("writers wait for what is under way: {waits}")));
    }
    if cluster.spec.paused {
        return Ok(Outcome::Wait(SOON, "paused: what is under way is still looked after".to_owned()));
    }
    if let Some((step, holder)) = &round.held {
        return Ok(Outcome::Wait(SOON, format!("waiting to {step}: {holder}")));
    }
    if !waits.is_empty() {
        // That may be for days, and each look costs as much as one at rest. What changes Kubernetes is noticed at once.
        let again = if idle < LONG { SOON } else { period.unwrap_or(Controller::REST).min(Controller::REST) };
        return Ok(Outcome::Wait(again, waits));
    }
    if !round.plan.steps.is_empty() {
        return Ok(Outcome::Wait(SOON, "the next steps follow".to_owned()));
    }
    if !round.deferred.is_empty() {
        return Ok(Outcome::Wait(SOON, "a step that failed is tried again later".to_owned()));
    }
    // Migrations tell nobody when they have run. A single table of the policy that never comes is no reason to hurry.
    if round.observed.catalog.is_some() && round.observed.tables.is_empty() {
        return Ok(Outcome::Wait(SOON, "the tables are not there yet".to_owned()));
    }
    Ok(period.map_or(Outcome::Done, Outcome::Rest))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::json;

    use super::*;
    use crate::names::Group;
    use crate::reconcile::Pace;
    use crate::shards::findings::tests::{at_rest, catalog, wanted};
    use crate::shards::observed::{Node, Observed, Operation};
    use crate::shards::round::tests::{of, uneven};
    use crate::shards::supervise::{WRITERS_WAIT, Watch};

    fn cluster(paused: bool) -> DialogCluster {
        serde_json::from_value(json!({
            "apiVersion": "dialogcluster.io/v1alpha1",
            "kind": "DialogCluster",
            "metadata": {"name": "chat", "namespace": "ns"},
            "spec": {"workers": {"count": 1}, "paused": paused},
        }))
        .unwrap()
    }

    /// A move is under way, and at its end if writers wait for it.
    fn moving(blocks_writers: bool) -> Observed {
        let mut observed = at_rest();
        let application = Operation::name_of(102_008, Group::Worker(0), Group::Coordinator);
        catalog(&mut observed).operations = vec![Operation { pid: 7, application }];
        catalog(&mut observed).blocking = blocks_writers.then_some(7).into_iter().collect();
        observed
    }

    #[test]
    fn in_a_paused_cluster_what_is_under_way_is_looked_at_as_often_as_ever() {
        let outcome =
            |observed| outcome(&cluster(true), of(&wanted(), &observed), Duration::ZERO, None).unwrap();
        assert_eq!(outcome(at_rest()), Outcome::Done);
        assert!(matches!(outcome(moving(false)), Outcome::Wait(SOON, _)));
        assert!(matches!(outcome(moving(true)), Outcome::Urgent(_)));
    }

    #[test]
    fn what_waits_for_somebody_is_looked_at_no_more_often_than_what_rests() {
        // Moves wait for a worker that does not answer.
        let mut away = uneven();
        away.nodes.insert(Group::Worker(0), Node::Down("connection refused".to_owned()));
        let outcome = |idle, period| outcome(&cluster(false), of(&wanted(), &away), idle, period).unwrap();
        assert!(matches!(outcome(Duration::ZERO, None), Outcome::Wait(SOON, _)));
        assert!(matches!(outcome(LONG, None), Outcome::Wait(Controller::REST, _)));
        let period = Duration::from_secs(7);
        assert!(matches!(outcome(LONG, Some(period)), Outcome::Wait(again, _) if again == period));
    }

    #[test]
    fn a_move_for_which_writers_wait_is_cancelled_a_look_or_two_after_their_time_is_over() {
        // A round takes its time, and so does what comes between what is due and its beginning.
        let (length, debounce) = (Duration::from_millis(500), Duration::from_millis(200));
        let start = Instant::now() + Duration::from_hours(1);
        for begins in 0..60 {
            // The burst is used up by then.
            let blocked = start + Duration::from_mins(1) + Duration::from_millis(begins * 100);
            let (mut pace, mut watch, mut now) = (Pace::default(), Watch::default(), start);
            let mut seen = None;
            let cancelled = loop {
                if let Some(early) = pace.begin(now) {
                    now += early + debounce;
                    continue;
                }
                if !watch.stalled(Duration::from_mins(10)).is_empty() {
                    break now;
                }
                let observed = moving(now >= blocked);
                watch.look(observed.catalog.as_ref(), now);
                if now >= blocked {
                    seen.get_or_insert(now);
                }
                now += length;
                let outcome =
                    outcome(&cluster(false), of(&wanted(), &observed), Duration::ZERO, None).unwrap();
                now += pace.end(&outcome, Controller::REST, now) + debounce;
            };
            let (seen, waited) = (seen.unwrap() - blocked, cancelled - blocked);
            assert!(waited > WRITERS_WAIT, "{waited:?}");
            assert!(seen <= SOON + length + debounce, "seen after {seen:?}");
            let looks = 2 * (Duration::from_secs(1) + length + debounce);
            assert!(waited <= seen + WRITERS_WAIT + looks, "seen after {seen:?}, cancelled after {waited:?}");
        }
    }
}
