//! The scenarios of `scenarios/`, each with what it is expected to come to, and the pictures of them in the documentation.

use std::fs;
use std::path::{Path, PathBuf};

use dialog_operator::heat::{Action, Mode, Policy, Reason};
use dialog_operator::names::Group;
use dialog_operator::shards::rebalance::Strategy;
use dialog_operator::simulate::{Outcome, Scenario, simulate};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")
}

fn text(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn scenario(file: &str) -> Scenario {
    Scenario::read(&text(&directory().join(file))).unwrap_or_else(|invalid| panic!("{file}: {invalid}"))
}

/// The outcome of a scenario, which is as expected, and whose picture is the one in the documentation.
fn outcome(file: &str) -> Outcome {
    let outcome = simulate(&scenario(file));
    let name = file.trim_end_matches(".yaml").trim_end_matches(".json");
    insta::assert_snapshot!(name, outcome.to_string());
    let docs = directory().join("../../docs");
    let picture = format!("simulation/{name}.svg");
    if text(&docs.join("simulation.md")).contains(&picture) {
        let drawn = fs::read_to_string(docs.join(&picture)).unwrap_or_default();
        assert!(
            drawn == outcome.svg(),
            "docs/simulation/{name}.svg is not of this scenario any more; draw it again: \
             dialog-operator simulate operator/scenarios/{file} --svg docs/simulation/{name}.svg"
        );
    }
    outcome
}

fn kinds(outcome: &Outcome) -> Vec<(&'static str, usize)> {
    outcome.counts().into_iter().collect()
}

#[test]
fn a_spammer_is_isolated_on_the_dedicated_worker_within_a_period_more_than_it_takes() {
    let outcome = outcome("spammer.yaml");
    assert_eq!(kinds(&outcome), [("isolate", 1)]);
    assert!(outcome.actions[0].at <= 3600 + 4 * 60);
    assert!(matches!(outcome.actions[0].action, Action::Isolate { to: Group::Worker(0), .. }));
}

#[test]
fn observing_names_the_same_action_and_does_nothing() {
    let observed = outcome("observe.yaml");
    let isolated = simulate(&scenario("spammer.yaml"));
    let actions =
        |outcome: &Outcome| outcome.actions.iter().map(|acted| (acted.at, acted.action)).collect::<Vec<_>>();
    assert_eq!(actions(&observed), actions(&isolated));
    assert_eq!(Some(observed.busy_minutes), observed.busy_minutes_without);
}

#[test]
fn of_a_celebrity_the_rows_of_the_user_are_isolated_and_no_dialog() {
    let outcome = outcome("celebrity.yaml");
    assert_eq!(kinds(&outcome), [("isolate", 1)]);
    assert!(outcome.actions[0].tenant.as_ref().unwrap().starts_with("celebrity (users"));
}

#[test]
fn slow_growth_ends_in_splits_within_the_budget_and_a_shard_of_its_own() {
    let outcome = outcome("slow-growth.yaml");
    let counts = outcome.counts();
    assert_eq!(counts["isolate"], 1);
    assert!(counts["split"] >= 4, "{counts:?}");
    assert!(outcome.shard_groups[1] <= 30);
    assert!(outcome.refused.iter().any(|spell| spell.reason == Reason::TooManyShards));
}

#[test]
fn a_daily_wave_is_no_reason_to_do_anything() {
    let outcome = outcome("daily-wave.yaml");
    assert!(outcome.actions.is_empty() && outcome.refused.is_empty());
}

#[test]
fn a_flash_crowd_is_spread() {
    let outcome = outcome("flash-crowd.yaml");
    assert!(outcome.actions.iter().all(|acted| matches!(acted.action, Action::Spread { .. })));
    assert!(!outcome.actions.is_empty());
    assert!(outcome.busy_minutes * 4 < outcome.busy_minutes_without.unwrap());
}

#[test]
fn a_flash_crowd_stays_where_shards_do_not_go_by_load_and_that_is_said() {
    let mut scenario = scenario("flash-crowd.yaml");
    scenario.policy.strategy = Strategy::BySize;
    let outcome = simulate(&scenario);
    assert!(outcome.actions.is_empty(), "{:?}", outcome.actions);
    assert_eq!(Some(outcome.busy_minutes), outcome.busy_minutes_without);
    let [spell] = &outcome.refused[..] else { panic!("{:?}", outcome.refused) };
    assert_eq!((spell.subject.as_str(), spell.reason), ("worker-2", Reason::NotByLoad));
    assert!(spell.periods > 100, "{spell:?}");
}

#[test]
fn a_flapping_tenant_causes_one_action_in_a_cooldown() {
    let outcome = outcome("flapping.yaml");
    let times: Vec<u64> = outcome.actions.iter().map(|acted| acted.at).collect();
    assert!(times.windows(2).all(|pair| pair[1] - pair[0] >= 3600), "{times:?}");
    // It is isolated and released all day long.
    assert!((20..=24).contains(&times.len()), "{times:?}");
    let isolated = outcome.counts()["isolate"];
    assert!(isolated * 2 == times.len() || isolated * 2 == times.len() + 1, "{:?}", outcome.counts());
    // Its shard is cut out once, and is its own from then on: it is moved.
    assert_eq!(outcome.shard_groups, [48, 50]);
    // It would stay where it was put for as long as a policy says that says nothing.
    let mut patient = scenario("flapping.yaml");
    patient.policy.release_after = Policy::default().release_after;
    assert_eq!(kinds(&simulate(&patient)), [("isolate", 1)]);
}

#[test]
fn what_is_too_hot_for_any_worker_stays_where_it_is() {
    let outcome = outcome("too-hot.yaml");
    assert!(outcome.actions.iter().all(|acted| !matches!(acted.action, Action::Isolate { .. })));
    assert!(outcome.refused.iter().any(|spell| spell.reason == Reason::TooHot && spell.periods > 100));
}

#[test]
fn what_is_too_hot_for_any_worker_goes_once_to_the_one_that_is_kept_free() {
    let outcome = outcome("too-hot-alone.yaml");
    assert_eq!(kinds(&outcome), [("isolate", 1)]);
    assert!(matches!(outcome.actions[0].action, Action::Isolate { to: Group::Worker(0), .. }));
    // It has no more than before there, and the others have.
    let reasons: Vec<Reason> = outcome.refused.iter().map(|spell| spell.reason).collect();
    assert_eq!(reasons, [Reason::TooHotAlone]);
    let shared = |outcome: &Outcome| {
        let busy = |group| outcome.demand[&group].iter().filter(|demand| **demand > 0.8).count();
        (1..4).map(Group::Worker).map(busy).sum::<usize>()
    };
    assert!(shared(&outcome) * 10 < shared(&simulate(&scenario("too-hot.yaml"))));
}

#[test]
fn incidents_delay_what_is_done_and_do_not_confuse_it() {
    let outcome = outcome("incidents.yaml");
    assert_eq!(outcome.counts()["isolate"], 2);
    assert!(outcome.refused.iter().any(|spell| spell.reason == Reason::Budget));
    assert_eq!(outcome.retargeted.len(), 1);
    let gone = Group::Worker(4);
    assert!(outcome.retargeted.iter().all(|retargeted| retargeted.to != gone));
    // Six hours with it, and it leaves before the ten are over.
    assert!(outcome.demand[&gone].len() < outcome.demand[&Group::Worker(0)].len());
}

#[test]
fn three_tenants_of_a_million_are_found_on_three_hundred_workers() {
    let outcome = outcome("large.yaml");
    assert_eq!((outcome.workers, outcome.shards, outcome.tenants), (300, Some(100_000), Some(1_000_000)));
    assert_eq!(outcome.counts()["isolate"], 3);
}

#[test]
fn a_recording_is_decided_as_if_it_happened_now() {
    let outcome = outcome("recorded.json");
    assert_eq!((outcome.mode, kinds(&outcome)), (Mode::Isolate, vec![("isolate", 1)]));
    assert_eq!(outcome.actions[0].at, 4 * 60);
}

#[test]
fn a_scenario_has_one_outcome() {
    let flash = scenario("flash-crowd.yaml");
    assert_eq!(simulate(&flash).svg(), simulate(&flash).svg());
}

#[test]
fn a_bad_scenario_is_refused_with_the_field_and_what_to_do() {
    let good = text(&directory().join("spammer.yaml"));
    let changed = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        Scenario::read(&good.replace(from, to)).unwrap_err().to_string()
    };
    let messages = [
        changed("duration: 4h", "duration: 4 parsecs"),
        changed("duration: 4h", "duration: 4ms"),
        changed("count: 5", "count: five"),
        changed("cpu: 4", "cpu: lots"),
        changed("storage: 500Gi", "storage: 500Qi"),
        changed("dedicated: 1", "dedicated: 5"),
        changed("skew: 0.5", "skew: -1"),
        changed("tenants: 100000", "tenants: 0"),
        changed("tables: dialogs, first", "tables: dialogues, first"),
        changed("first: 40000", "first: 100000"),
        changed("from: 1h", "every: 1h"),
        changed("noisePercent: 5", "noise: 5"),
        changed("synthetic:", "policy: {sharePercent: 0}\nsynthetic:"),
        changed("synthetic:", "recorded: []\nsynthetic:"),
        changed("from: 1h}", "from: 1h}\n  incidents: [{at: 1h, kind: Drain}]"),
        changed("from: 1h}", "from: 1h}\n  incidents: [{at: 1h, kind: Drain, worker: 5}]"),
        Scenario::read("{\"description\": \"nothing\"}").unwrap_err().to_string(),
        Scenario::read("{\"description\": \"nothing\", \"recorded\": []}").unwrap_err().to_string(),
    ];
    insta::assert_snapshot!(messages.join("\n"));
}
