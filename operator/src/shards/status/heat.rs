//! What was seen and done about load.

use crate::api::{ActionStatus, DialogClusterStatus, HeatStatus};
use crate::shards::heat::Heat;
use crate::shards::heat::actions::Act;
use crate::shards::observed::Observed;

/// What was seen of load, and what was done, whoever asked for it: that somebody is pinned by hand, or loses a pin of the
/// policy, is told also where nobody watches. The actions are as they were `before` if they could not be read; `None` where
/// there is nothing to tell.
pub(super) fn heat(observed: &Observed, before: Option<&DialogClusterStatus>) -> Option<HeatStatus> {
    let kept = &observed.kept;
    let actions: Vec<ActionStatus> = if kept.now.is_some() {
        kept.acts.iter().rev().map(Act::status).collect()
    } else {
        let before = before.and_then(|status| status.heat.as_ref());
        before.map(|heat| heat.actions.clone()).unwrap_or_default()
    };
    match &observed.heat {
        Some(heat) => Some(heat.status(actions)),
        None if actions.is_empty() => None,
        None => Some(Heat::default().status(actions)),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::heat::{Action, Tenant};
    use crate::shards::heat::actions::{Kept, Outcome};

    fn released() -> Act {
        let at: Timestamp = "2026-01-05T09:00:00Z".parse().unwrap();
        Act {
            id: 5,
            decided: at,
            begun: Some(at),
            ended: Some(at),
            action: Action::Release { tenant: Tenant { colocation_id: 1, hash: 7 } },
            tenant: Some("7".to_owned()),
            asked_by: "spec".to_owned(),
            why: "mode is Off".to_owned(),
            attempts: 0,
            outcome: Some(Outcome::Done),
            note: None,
            before: None,
            after: None,
        }
    }

    fn observed(heat: Option<Heat>, kept: Kept) -> Observed {
        Observed { heat, kept, ..Observed::default() }
    }

    fn ids(status: Option<&HeatStatus>) -> Option<Vec<i64>> {
        status.map(|heat| heat.actions.iter().map(|action| action.id).collect())
    }

    #[test]
    fn what_was_done_is_told_where_nobody_watches() {
        let second = Act { id: 6, ..released() };
        let kept =
            Kept { acts: vec![released(), second], now: Some(Timestamp::UNIX_EPOCH), ..Kept::default() };
        let shown = heat(&observed(None, kept), None);
        assert_eq!(ids(shown.as_ref()), Some(vec![6, 5]));
        let nothing = Kept { now: Some(Timestamp::UNIX_EPOCH), ..Kept::default() };
        assert_eq!(heat(&observed(None, nothing), None), None);
    }

    #[test]
    fn what_could_not_be_read_is_as_it_was() {
        let now = Some(Timestamp::UNIX_EPOCH);
        let kept = Kept { acts: vec![released()], now, ..Kept::default() };
        let before = DialogClusterStatus {
            heat: heat(&observed(Some(Heat::default()), kept), None),
            ..DialogClusterStatus::default()
        };
        for watched in [Some(Heat::default()), None] {
            let away = observed(watched.clone(), Kept::default());
            assert_eq!(ids(heat(&away, Some(&before)).as_ref()), Some(vec![5]));
            assert_eq!(heat(&away, None).is_some(), watched.is_some(), "nothing was ever told");
            // That there is nothing is another thing.
            let gone = observed(watched.clone(), Kept { now, ..Kept::default() });
            assert_eq!(ids(heat(&gone, Some(&before)).as_ref()), watched.map(|_| Vec::new()));
        }
    }
}
