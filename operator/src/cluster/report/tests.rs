use std::collections::BTreeSet;

use serde_json::json;

use super::*;
use crate::cluster::certificates::Secrets;
use crate::cluster::observe::ObservedApi;
use crate::condition::Holds;
use crate::context::Settings;

const DAY: SignedDuration = SignedDuration::from_hours(24);

fn start() -> Timestamp {
    "2026-03-01T00:00:00Z".parse().unwrap()
}

fn cluster(phase: Option<Phase>, paused: bool) -> DialogCluster {
    serde_json::from_value(json!({
        "apiVersion": "dialogcluster.io/v1alpha1",
        "kind": "DialogCluster",
        "metadata": { "name": "chat", "namespace": "ns", "uid": "5f1d", "generation": 7 },
        "spec": { "workers": { "count": 0 }, "paused": paused },
        "status": { "phase": phase },
    }))
    .unwrap()
}

fn reported(cluster: &DialogCluster, problems: &[Problem], step: &Step, now: Timestamp) -> Report {
    let settings = Settings {
        postgres_image: Some("postgres".to_owned()),
        api_image: Some("api".to_owned()),
        ..Settings::default()
    };
    let observed = Observed {
        api: Some(ObservedApi { current: true, ..ObservedApi::default() }),
        ..Observed::default()
    };
    let target = Target::new(cluster, &settings, &observed).unwrap();
    let groups = BTreeSet::from([Group::Coordinator]);
    let certificates = Certificates::ensure(&Secrets::new(), &target.names, &groups, start()).unwrap();
    report(cluster, &target, &observed, &certificates, problems, step, now)
}

fn problem(passes: bool) -> Problem {
    Problem { reason: "Reason", message: "a sentence".to_owned(), passes }
}

fn phase_of(before: Option<Phase>, problems: &[Problem], step: &Step) -> Phase {
    reported(&cluster(before, false), problems, step, start()).0.phase.unwrap()
}

#[test]
fn the_phase_says_whether_it_served_before() {
    let broken = [problem(false)];
    let update = Step::Wait("something".to_owned());
    assert_eq!(phase_of(None, &[], &Step::Nothing), Phase::Ready);
    assert_eq!(phase_of(None, &broken, &Step::Nothing), Phase::Creating);
    assert_eq!(phase_of(Some(Phase::Creating), &broken, &update), Phase::Creating);
    assert_eq!(phase_of(Some(Phase::Ready), &broken, &Step::Nothing), Phase::Degraded);
    assert_eq!(phase_of(Some(Phase::Degraded), &broken, &Step::Nothing), Phase::Degraded);
    assert_eq!(phase_of(Some(Phase::Ready), &broken, &update), Phase::Updating);
    assert_eq!(phase_of(Some(Phase::Ready), &[], &update), Phase::Updating);
    let paused = reported(&cluster(Some(Phase::Ready), true), &[], &Step::Nothing, start());
    assert_eq!(paused.0.phase, Some(Phase::Paused));
}

#[test]
fn ready_names_the_worst_problem_and_a_few_more() {
    let problems = vec![problem(false); 5];
    let (status, findings) = reported(&cluster(None, false), &problems, &Step::Nothing, start());
    assert_eq!(status.observed_generation, Some(7));
    assert_eq!((findings[0].kind, findings[0].holds, findings[0].reason), (READY, Holds::False, "Reason"));
    assert_eq!(findings[0].message, "a sentence; a sentence; a sentence; and 2 more");
    assert_eq!((findings[1].holds, findings[1].reason), (Holds::False, "Blocked"));
    let (_, findings) = reported(&cluster(None, false), &[problem(true)], &Step::Nothing, start());
    assert_eq!((findings[1].holds, findings[1].reason), (Holds::True, "Reason"));
}

#[test]
fn what_is_held_back_or_did_not_help_is_no_progress() {
    let step = Step::Wait("something".to_owned());
    let (_, findings) = reported(&cluster(None, true), &[], &step, start());
    assert_eq!((findings[1].holds, findings[1].reason), (Holds::False, "Paused"));
    assert!(findings[1].message.contains("are under way go on, and are cancelled if they do not get on"));
    let leave = Step::ScaleIn("worker-1 leaves".to_owned());
    let (_, findings) = reported(&cluster(None, false), &[], &leave, start());
    assert_eq!((findings[1].holds, findings[1].reason), (Holds::True, "ScalingIn"));
    assert_eq!(findings[1].message, "worker-1 leaves", "it is no update");
    let after = Step::AfterMoves { group: Group::Coordinator, then: Box::new(Step::Nothing) };
    let (_, findings) = reported(&cluster(None, false), &[], &after, start());
    assert_eq!((findings[1].holds, findings[1].reason), (Holds::True, AFTER_MOVES));
    let helpless =
        Step::Helpless { pod: "chat-worker-0-0".to_owned(), parameters: vec!["work_mem".to_owned()] };
    let (_, findings) = reported(&cluster(None, false), &[], &helpless, start());
    assert_eq!((findings[1].holds, findings[1].reason), (Holds::False, "RestartDidNotHelp"));
    assert!(findings[1].message.contains("chat-worker-0-0") && findings[1].message.contains("work_mem"));
}

#[test]
fn a_refusal_does_not_forget_that_a_cluster_served() {
    let phase = |before| refusal(&cluster(before, false), None, "ImageMissing", "", None, start()).0.phase;
    assert_eq!(phase(None), Some(Phase::Creating));
    assert_eq!(phase(Some(Phase::Ready)), Some(Phase::Degraded));
}

#[test]
fn certificates_are_reported_before_they_expire() {
    let after = |days: i32| {
        let (_, findings) = reported(&cluster(None, false), &[], &Step::Nothing, start() + DAY * days);
        (findings[2].holds, findings[2].reason)
    };
    assert_eq!(after(334), (Holds::True, "Valid"));
    assert_eq!(after(336), (Holds::True, "ExpiresSoon"));
    assert_eq!(after(366), (Holds::False, "Expired"));

    let names = Names::new("chat", "ns");
    let groups = BTreeSet::from([Group::Coordinator]);
    let certificates = Certificates::ensure(&Secrets::new(), &names, &groups, start()).unwrap();
    let of_a_group = validity(&certificates, &names, start() + DAY * 366).message;
    assert!(
        of_a_group.contains("Secret chat-coordinator-tls") && of_a_group.contains("in order"),
        "{of_a_group}"
    );
    // Nine years later every leaf is a new one.
    let old = start() + DAY * 3649;
    let leaves = Certificates::ensure(&Secrets::new(), &names, &groups, old).unwrap();
    let certificates = Certificates { authority: certificates.authority, ..leaves };
    let of_an_authority = validity(&certificates, &names, old).message;
    assert!(
        of_an_authority.contains("Secret chat-ca") && of_an_authority.contains("refuse each other"),
        "{of_an_authority}"
    );
}

#[test]
fn a_cluster_that_is_being_made_says_what_it_waits_for() {
    let step = Step::Wait("Patroni to take up its configuration".to_owned());
    let reason = |before| reported(&cluster(before, false), &[problem(true)], &step, start()).1[1].reason;
    assert_eq!(reason(None), "Reason");
    assert_eq!(reason(Some(Phase::Creating)), "Reason");
    assert_eq!(reason(Some(Phase::Ready)), "Updating");
}

#[test]
fn the_url_is_the_service_unless_there_is_an_ingress() {
    let (status, _) = reported(&cluster(None, false), &[], &Step::Nothing, start());
    assert_eq!(status.url.as_deref(), Some("http://chat-api.ns.svc:8080"));
    assert_eq!(
        status.selector.as_deref(),
        Some(
            "dialogcluster.io/cluster=chat,dialogcluster.io/group,dialogcluster.io/group notin (coordinator)"
        )
    );
}
