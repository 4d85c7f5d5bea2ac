//! What is said of hot tenants.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;
use crate::api::{DecisionStatus, HotTenant, LargeShardStatus, ShareOf};
use crate::condition::HOT_TENANT;
use crate::heat::{NodeLoad, Reason};
use crate::shards::heat::Refusal;
use crate::shards::observed::Foreign;
use crate::shards::rebalance::Role;
use crate::shards::step::Step;

fn at(minute: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + 60 * minute).unwrap()
}

fn hot(periods: i32) -> Heat {
    let tenant = HotTenant {
        tenant: "7".to_owned(),
        group: "dialog".to_owned(),
        node: "worker-0".to_owned(),
        share_percent: 52,
        share_of: ShareOf::Writes,
        queries_per_second: 610,
        writes_per_second: 540,
        cpu_millicores: 310,
        periods,
        pinned: false,
        left_alone: false,
    };
    Heat { end: Some(at(10)), hot: vec![tenant], ..Heat::default() }
}

/// One that is pinned, and as hot as it was.
fn isolated() -> HotTenant {
    HotTenant { tenant: "8".to_owned(), share_percent: 99, pinned: true, ..hot(50).hot.remove(0) }
}

fn large(shard: i64) -> LargeShardStatus {
    LargeShardStatus {
        shard,
        group: "dialog".to_owned(),
        node: "worker-0".to_owned(),
        bytes: 30,
        tenant: None,
        tenant_percent: None,
    }
}

fn decided(minute: i64) -> DecisionStatus {
    let message = "dialog 7 would go".to_owned();
    DecisionStatus { at: Time(at(minute)), kind: "Isolate".to_owned(), message }
}

#[test]
fn a_hot_tenant_is_named_with_what_follows() {
    let who = "hot: dialog 7 (52 % of the writes of worker-0)";
    let lasting = || Heat { last: Some(decided(8)), ..hot(5) };
    let too_hot = || vec![Refusal { reason: Reason::TooHot, message: "it stays".to_owned() }];
    let filled = || vec![Refusal { reason: Reason::Indivisible, message: "full".to_owned() }];
    let busy = || vec![Refusal { reason: Reason::NotByLoad, message: "too much".to_owned() }];
    for (heat, expected) in [
        (Heat::default(), ("False", "NoneHot", String::from("no tenant takes a large part of its worker"))),
        (hot(2), ("True", "Noticed", format!("{who}; something follows after 3 periods in a row"))),
        (Heat { last: Some(decided(10)), ..hot(3) }, ("True", "WouldAct", "dialog 7 would go".to_owned())),
        (lasting(), ("True", "WouldHaveActed", format!("{who}; decided {}: dialog 7 would go", at(8)))),
        (
            Heat { cooling_until: Some(at(70)), ..lasting() },
            ("True", "CoolingDown", format!("{who}; nothing more is done before {}", at(70))),
        ),
        (Heat { refused: too_hot(), ..hot(3) }, ("True", "NothingHelps", format!("{who}; it stays"))),
        (
            Heat { refused: filled(), cooling_until: Some(at(70)), ..lasting() },
            ("True", "CoolingDown", format!("{who}; nothing more is done before {}", at(70))),
        ),
        (Heat { hot: Vec::new(), refused: filled(), ..hot(3) }, ("True", "NothingHelps", "full".to_owned())),
        (Heat { hot: Vec::new(), refused: busy(), ..hot(3) }, ("True", "WorkerBusy", "too much".to_owned())),
        (Heat { refused: busy(), ..hot(2) }, ("True", "WorkerBusy", format!("{who}; too much"))),
        (
            Heat { refused: busy(), last: Some(decided(10)), ..hot(3) },
            ("True", "WouldAct", "dialog 7 would go".to_owned()),
        ),
        (
            Heat { hot: vec![isolated()], large: vec![large(7), large(8)], last: Some(decided(8)), ..hot(3) },
            (
                "True",
                "WouldHaveActed",
                "too large: shard 7 of dialog on worker-0 (30 bytes) and 1 more; with the mode Isolate what is above \
                 spec.sharding.maxShardSize is split, one at a time"
                    .to_owned(),
            ),
        ),
        (
            Heat { hot: vec![isolated()], cooling_until: Some(at(70)), last: Some(decided(8)), ..hot(3) },
            (
                "False",
                "Isolated",
                "pinned, with a shard of its own each: dialog 8 (99 % of the writes of worker-0)".to_owned(),
            ),
        ),
        (
            Heat { hot: vec![isolated(), hot(2).hot.remove(0)], ..hot(2) },
            ("True", "Noticed", format!("{who}; something follows after 3 periods in a row")),
        ),
        (
            Heat { hot: vec![isolated()], refused: too_hot(), ..hot(3) },
            ("True", "NothingHelps", "it stays".to_owned()),
        ),
        (
            Heat { failure: Some("no answer".to_owned()), ..hot(3) },
            ("Unknown", "NotObserved", "no answer".to_owned()),
        ),
    ] {
        assert_eq!(say(HOT_TENANT, |observed| observed.heat = Some(heat)), expected);
    }
    let found = say(HOT_TENANT, |observed| observed.heat = None);
    assert_eq!((found.0, found.1), ("Unknown", "NotObserved"));
}

#[test]
fn who_told_nothing_is_not_said_to_have_nobody_hot() {
    let seen = |number, role| Heat {
        nodes: [(Group::Worker(number), NodeLoad::unknown(role))].into(),
        ..Heat::default()
    };
    let say = |heat| say(HOT_TENANT, |observed| observed.heat = Some(heat));
    let (holds, reason, message) = say(seen(0, Role::Unavailable));
    assert_eq!((holds, reason), ("Unknown", "NotObserved"));
    assert!(message.contains("the tenants of worker-0 did"), "{message}");
    assert_eq!(say(seen(0, Role::Shared)).1, "NoneHot");
    assert_eq!(say(seen(1, Role::Unavailable)).1, "NoneHot", "it has no shards");
    // Who is known to be hot is told whatever others do not tell.
    let heat = Heat { hot: hot(2).hot, ..seen(0, Role::Unavailable) };
    assert_eq!(say(heat).1, "Noticed");
}

#[test]
fn whom_somebody_leaves_alone_waits_for_nothing() {
    let say = |heat: Heat| say(HOT_TENANT, |observed| observed.heat = Some(heat));
    let left = |periods| {
        let mut heat = hot(periods);
        heat.hot[0].left_alone = true;
        heat
    };
    // What was decided about others is not about it, for however long it is hot.
    for heat in [Heat { last: Some(decided(8)), ..left(3) }, left(2)] {
        let (holds, reason, message) = say(heat);
        assert_eq!((holds, reason), ("True", "LeftAlone"));
        assert!(message.contains("dialog 7") && message.contains("spec.sharding.pins"), "{message}");
    }
    // What follows is said of the other alone.
    let mut two = left(5);
    two.hot.push(HotTenant { tenant: "9".to_owned(), left_alone: false, periods: 2, ..two.hot[0].clone() });
    let (_, reason, message) = say(two);
    assert!(reason == "Noticed" && message.starts_with("hot: dialog 9 "), "{message}");
    let mut refused = left(5);
    refused.refused = vec![Refusal { reason: Reason::TooHot, message: "it stays".to_owned() }];
    assert_eq!(say(refused).1, "NothingHelps", "it is too much for any worker");
}

#[test]
fn who_does_not_watch_keeps_nothing() {
    let mut observed = at_rest();
    facts(&mut observed, Group::Coordinator).own_tables = false;
    assert_eq!(plan(&wanted(), &topology(), &observed).steps, vec![Step::CreateOwnTables]);
    let off = json!({"workers": {"count": 1}, "sharding": {"hotTenants": {"mode": "Off"}}});
    let off = Wanted::from(&serde_json::from_value::<DialogClusterSpec>(off).unwrap());
    let plan = plan(&off, &topology(), &observed);
    assert_eq!(plan.steps, vec![]);
    let found = plan.findings.into_iter().find(|finding| finding.kind == HOT_TENANT).unwrap();
    assert_eq!((found.holds.as_str(), found.reason), ("Unknown", "NotWatched"));
}

#[test]
fn nothing_is_begun_for_who_is_hot_while_somebody_moves_shards() {
    let spec = json!({"workers": {"count": 1}, "sharding": {"hotTenants": {"mode": "Isolate"}}});
    let wanted = Wanted::from(&serde_json::from_value::<DialogClusterSpec>(spec).unwrap());
    let found = |periods, foreign: Vec<Foreign>| {
        let mut observed = Observed { heat: Some(hot(periods)), ..at_rest() };
        catalog(&mut observed).foreign = foreign;
        let findings = plan(&wanted, &topology(), &observed).findings;
        let finding = findings.into_iter().find(|finding| finding.kind == HOT_TENANT).unwrap();
        (finding.reason, finding.message)
    };
    let job = || vec![Foreign::Job { id: 4, description: "Rebalance all".to_owned() }];
    assert_eq!(found(3, Vec::new()).0, "Noticed");
    assert_eq!(found(2, job()).0, "Noticed");
    let (reason, message) = found(3, job());
    assert_eq!(reason, "ShardsMoving");
    assert!(message.starts_with("hot: dialog 7 ") && message.contains("background job 4"), "{message}");
}

#[test]
fn a_pin_that_is_not_possible_hides_nobody_who_harms_others() {
    let pins = json!([{"group": "tags", "tenant": "seven", "worker": 0}]);
    let spec = json!({"workers": {"count": 1}, "sharding": {"pins": pins}});
    let wanted = Wanted::from(&serde_json::from_value::<DialogClusterSpec>(spec).unwrap());
    let say = |heat: Heat| {
        let observed = Observed { heat: Some(heat), ..at_rest() };
        let findings = plan(&wanted, &topology(), &observed).findings;
        let finding = findings.into_iter().find(|finding| finding.kind == HOT_TENANT).unwrap();
        (finding.holds.as_str(), finding.reason, finding.message)
    };
    let problem = "spec.sharding.pins: no table of the group tags is distributed yet, or there is none";
    let who = "hot: dialog 7 (52 % of the writes of worker-0)";
    let refused = vec![Refusal { reason: Reason::Budget, message: "it stays".to_owned() }];
    for (heat, reason, message) in [
        (Heat::default(), "PinNotPossible", problem.to_owned()),
        (hot(2), "PinNotPossible", format!("{problem}; {who}; something follows after 3 periods in a row")),
        (
            Heat { last: Some(decided(10)), ..hot(3) },
            "WouldAct",
            format!("dialog 7 would go; and of a pin: {problem}"),
        ),
        (Heat { refused, ..hot(3) }, "NothingHelps", format!("{who}; it stays; and of a pin: {problem}")),
    ] {
        assert_eq!(say(heat), ("True", reason, message));
    }
}

#[test]
fn what_has_failed_is_told_for_a_cooldown_whatever_the_clock_of_who_looks() {
    let spec = json!({"workers": {"count": 1}, "sharding": {"hotTenants": {"mode": "Isolate"}}});
    let wanted = Wanted::from(&serde_json::from_value::<DialogClusterSpec>(spec).unwrap());
    let failed = json!({
        "id": 1, "decided": at(0), "begun": at(1), "ended": at(2), "tenant": "7", "asked_by": "policy", "why": "it is hot",
        "action": {"kind": "Release", "tenant": {"colocationId": 1, "hash": 7}}, "attempts": 3, "outcome": "Failed",
        "note": "no answer", "before": null, "after": null,
    });
    for (now, reason) in [(59, "ActionFailed"), (60, "NoneHot")] {
        for ahead in [-600, 0, 600] {
            let mut observed = at_rest();
            observed.kept.acts = vec![serde_json::from_value(failed.clone()).unwrap()];
            observed.kept.now = Some(at(now));
            observed.heat = Some(Heat { end: Some(at(now + ahead)), ..Heat::default() });
            let findings = plan(&wanted, &topology(), &observed).findings;
            let finding = findings.into_iter().find(|finding| finding.kind == HOT_TENANT).unwrap();
            assert_eq!(finding.reason, reason, "{ahead}: {}", finding.message);
        }
    }
}

#[test]
fn what_has_failed_hides_nobody_who_is_hot() {
    let spec = json!({"workers": {"count": 1}, "sharding": {"hotTenants": {"mode": "Isolate"}}});
    let wanted = Wanted::from(&serde_json::from_value::<DialogClusterSpec>(spec).unwrap());
    let say = |action: serde_json::Value| {
        let failed = json!({
            "id": 1, "decided": at(0), "begun": at(1), "ended": at(2), "tenant": null, "asked_by": "policy", "why": "it was to be",
            "action": action, "attempts": 3, "outcome": "Failed", "note": "no answer", "before": null, "after": null,
        });
        let mut observed = at_rest();
        observed.kept.acts = vec![serde_json::from_value(failed).unwrap()];
        observed.kept.now = Some(at(10));
        observed.heat = Some(Heat { cooling_until: Some(at(60)), ..hot(5) });
        let findings = plan(&wanted, &topology(), &observed).findings;
        let finding = findings.into_iter().find(|finding| finding.kind == HOT_TENANT).unwrap();
        (finding.reason, finding.message)
    };
    let who = "hot: dialog 7 (52 % of the writes of worker-0)";
    let split = json!({
        "kind": "Split", "colocationId": 1, "shardId": 7, "from": "worker-0", "at": 5, "to": ["worker-1", "worker-2"],
    });
    assert_eq!(say(split), ("CoolingDown", format!("{who}; nothing more is done before {}", at(60))));
    let isolation = json!({
        "kind": "Isolate", "tenant": {"colocationId": 1, "hash": 7}, "from": "worker-0", "to": "worker-1", "rest": null,
    });
    assert_eq!(
        say(isolation),
        ("ActionFailed", format!("{who}; it was to be; it could not be done: no answer"))
    );
}

#[test]
fn what_is_waited_for_hides_nobody_who_is_hot() {
    let spec = json!({"workers": {"count": 1}, "sharding": {"hotTenants": {"mode": "Isolate"}}});
    let wanted = Wanted::from(&serde_json::from_value::<DialogClusterSpec>(spec).unwrap());
    let say = |tenant: &str, heat: Heat| {
        let open = json!({
            "id": 1, "decided": at(0), "begun": null, "ended": null, "tenant": tenant, "asked_by": "spec",
            "why": "it is asked for", "attempts": 0, "outcome": null, "note": null, "before": null, "after": null,
            "action": {
                "kind": "Isolate", "tenant": {"colocationId": 1, "hash": 4750}, "from": "worker-0", "to": "worker-1",
                "rest": null,
            },
        });
        let mut observed = Observed { heat: Some(heat), ..at_rest() };
        observed.kept.acts = vec![serde_json::from_value(open).unwrap()];
        catalog(&mut observed).foreign =
            vec![Foreign::Job { id: 4, description: "Rebalance all".to_owned() }];
        let findings = plan(&wanted, &topology(), &observed).findings;
        let finding = findings.into_iter().find(|finding| finding.kind == HOT_TENANT).unwrap();
        assert_eq!(finding.reason, "ActionWaits", "{}", finding.message);
        assert!(finding.message.starts_with("it is asked for; it waits: "), "{}", finding.message);
        finding.message
    };
    let two = || Heat { hot: vec![isolated(), hot(5).hot.remove(0)], ..hot(5) };
    let who = "; hot: dialog 7 (52 % of the writes of worker-0)";
    assert!(say("6", two()).ends_with(who), "{}", say("6", two()));
    // Whom it is about is said; and what is not known now, is not.
    for heat in
        [(two(), "7"), (Heat { failure: Some("no answer".to_owned()), ..two() }, "6"), (Heat::default(), "6")]
    {
        assert!(!say(heat.1, heat.0.clone()).contains("hot:"), "{heat:?}");
    }
}
