use std::collections::BTreeMap;

use jiff::SignedDuration;

use super::*;
use crate::api::ShareOf;
use crate::shards::heat::Refusal;
use crate::shards::rebalance::Role;

fn text(registry: &Registry) -> String {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
    text
}

#[test]
fn an_action_is_counted_once_when_it_begins_and_once_when_it_ends() {
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let act = |id: i64, begun: Option<&str>, ended: Option<&str>, outcome: Option<&str>| -> Act {
        let action = serde_json::json!({"kind": "Spread", "from": "worker-0", "to": "worker-1"});
        serde_json::from_value(serde_json::json!({
            "id": id, "decided": "2026-01-05T09:00:00Z", "begun": begun, "ended": ended, "action": action,
            "tenant": null, "asked_by": "policy", "why": "", "attempts": 0, "outcome": outcome, "note": null,
            "before": null, "after": null,
        }))
        .unwrap()
    };
    let (begun, ended) = (Some("2026-01-05T09:00:01Z"), Some("2026-01-05T09:00:03Z"));
    let old = act(6, begun, ended, Some("Done"));
    let decided = act(7, None, None, None);
    let under_way = act(7, begun, None, None);
    let done = act(7, begun, ended, Some("Done"));
    let dropped = act(8, begun, ended, Some("Dropped"));
    let looks = [
        vec![old.clone()],
        vec![old.clone(), decided],
        vec![old.clone(), under_way.clone()],
        vec![old.clone(), under_way],
        // Between two looks another was dropped, and the oldest has gone.
        vec![done.clone(), dropped.clone()],
        vec![old, done, dropped],
    ];
    for pair in looks.windows(2) {
        metrics.actions("ns", "chat", &pair[0], &pair[1]);
    }
    let shown = text(&registry);
    for line in [
        "actions_started_total{namespace=\"ns\",cluster=\"chat\",kind=\"Spread\"} 2",
        "actions_ended_total{namespace=\"ns\",cluster=\"chat\",kind=\"Spread\",outcome=\"Done\"} 1",
        "actions_ended_total{namespace=\"ns\",cluster=\"chat\",kind=\"Spread\",outcome=\"Dropped\"} 1",
        "action_duration_seconds_sum{namespace=\"ns\",cluster=\"chat\",kind=\"Spread\"} 2.0",
        "action_duration_seconds_count{namespace=\"ns\",cluster=\"chat\",kind=\"Spread\"} 1",
    ] {
        assert!(shown.contains(line), "{line} is not in:\n{shown}");
    }
    metrics.budget("ns", "chat", Some(Budget { isolations: 3, shard_groups: 40 }));
    assert!(text(&registry).contains("isolations_left{namespace=\"ns\",cluster=\"chat\"} 3"));
    metrics.budget("ns", "chat", None);
    assert!(!text(&registry).contains("_left{"), "{}", text(&registry));
}

#[test]
fn what_is_over_is_not_shown() {
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let load = NodeLoad {
        role: Role::Shared,
        queries: 6000,
        writes: 1200,
        cpu: 15_000_000,
        cpu_limit: 18_000_000,
        free_bytes: None,
        unseen: 0,
        unlisted: 0,
    };
    let hot = HotTenant {
        tenant: "a".to_owned(),
        group: "dialog".to_owned(),
        node: "worker-0".to_owned(),
        share_percent: 52,
        share_of: ShareOf::Queries,
        queries_per_second: 50,
        writes_per_second: 10,
        cpu_millicores: 130,
        periods: 3,
        pinned: false,
        left_alone: false,
    };
    let size = |group: &str, growth_per_hour| SizeStatus {
        group: group.to_owned(),
        shards: 24,
        bytes: 5 << 20,
        largest_bytes: 1 << 20,
        growth_per_hour,
    };
    let isolated = HotTenant { tenant: "b".to_owned(), share_percent: 99, pinned: true, ..hot.clone() };
    let heat = Heat {
        sizes: vec![size("dialog", Some(-70)), size("user", None)],
        length: SignedDuration::from_mins(1),
        nodes: BTreeMap::from([(Group::Worker(0), load)]),
        hot: vec![isolated, hot],
        refused: vec![Refusal { reason: Reason::TooHot, message: String::new() }],
        ..Heat::default()
    };
    metrics.show("ns", "chat", None, Some(&heat));
    metrics.show("ns", "chat", Some(&heat), Some(&heat));
    let shown = text(&registry);
    for line in [
        "node_query_rate{namespace=\"ns\",cluster=\"chat\",group=\"worker-0\"} 100.0",
        "node_cpu_cores{namespace=\"ns\",cluster=\"chat\",group=\"worker-0\"} 0.25",
        "node_cpu_limit_cores{namespace=\"ns\",cluster=\"chat\",group=\"worker-0\"} 0.3",
        "hot_tenants{namespace=\"ns\",cluster=\"chat\"} 1",
        "group=\"worker-0\",tables=\"dialog\",tenant=\"a\",pinned=\"false\"} 0.52",
        "group=\"worker-0\",tables=\"dialog\",tenant=\"b\",pinned=\"true\"} 0.99",
        "refused_actions{namespace=\"ns\",cluster=\"chat\",reason=\"TooHot\"} 1",
        "tables_growth_bytes_per_hour{namespace=\"ns\",cluster=\"chat\",tables=\"dialog\"} -70",
    ] {
        assert!(shown.contains(line), "{line} is not in:\n{shown}");
    }
    assert!(!shown.contains("per_hour{namespace=\"ns\",cluster=\"chat\",tables=\"user\""), "{shown}");
    let calm = Heat { hot: Vec::new(), refused: Vec::new(), ..heat.clone() };
    metrics.show("ns", "chat", Some(&heat), Some(&calm));
    let shown = text(&registry);
    assert!(shown.contains("hot_tenants{namespace=\"ns\",cluster=\"chat\"} 0"), "{shown}");
    assert!(!shown.contains("tenant=") && !shown.contains("reason="), "{shown}");
    metrics.isolated("ns", "chat", Some(2));
    assert!(text(&registry).contains("isolated_tenants{namespace=\"ns\",cluster=\"chat\"} 2"));
    metrics.isolated("ns", "chat", None);
    metrics.show("ns", "chat", Some(&calm), None);
    assert!(!text(&registry).contains("chat"), "{}", text(&registry));
}
