//! Tenants that are pinned, and where.

use super::*;

#[test]
fn a_tenant_is_pinned_and_stays_where_it_is_pinned() {
    let mut observed = with(vec![isolation(TENANT.hash)]);
    cut_out(&mut observed, 1);
    let home = TENANT.pin(Group::Worker(0));
    let steps = planned(&observed, 3).steps;
    let [Step::SetPin { pin: set, author: Author::Policy, .. }] = &steps[..] else { panic!("{steps:?}") };
    assert_eq!(*set, home);
    observed.kept.pins = vec![pin(Group::Worker(0))];
    let done = Step::EndAction { id: 5, outcome: Outcome::Done, note: None };
    assert_eq!(planned(&observed, 3).steps, [done]);
    observed.kept.acts.clear();
    // Somebody moves it away: it comes back, whatever the windows say.
    for at in catalog(&mut observed).placements.iter_mut().filter(|at| at.shard_id == 3001) {
        at.group_id = 3;
    }
    let steps = planned(&observed, 3).steps;
    assert_eq!(steps, [Step::MoveShard { shard_id: 3001, from: Group::Worker(2), to: Group::Worker(0) }]);
}

#[test]
fn a_pin_at_an_address_of_another_cluster_means_where_its_shard_is() {
    let mut observed = observed();
    cut_out(&mut observed, 2);
    let elsewhere = Endpoint::new("other-worker-0.ns.svc", 5432);
    observed.kept.pins = vec![KeptPin { endpoint: elsewhere, ..pin(Group::Worker(0)) }];
    let steps = planned(&observed, 3).steps;
    let [Step::SetPin { pin: set, author: Author::Policy, .. }] = &steps[..] else { panic!("{steps:?}") };
    assert_eq!(*set, TENANT.pin(Group::Worker(1)));
    observed.kept.pins = vec![pin(Group::Worker(1))];
    let steps = planned(&observed, 3).steps;
    assert!(!steps.iter().any(|step| matches!(step, Step::SetPin { .. })), "{steps:?}");
}

#[test]
fn a_pin_at_an_address_of_another_cluster_counts_while_something_else_is_done() {
    let mut observed = with(vec![isolation(4000)]);
    cut_out(&mut observed, 1);
    let elsewhere = Endpoint::new("other-worker-0.ns.svc", 5432);
    let unknown = KeptPin { endpoint: elsewhere, author: Author::Spec, ..pin(Group::Worker(0)) };
    let wanted = Wanted { dedicated: 1, ..wanted(3) };
    let leaves = |observed: &Observed| {
        let moves = plan(&wanted, &topology(), observed).moves.unwrap();
        moves.plan.moves.iter().any(|next| next.shard_id == 3001)
    };
    assert!(leaves(&observed), "a worker that holds pinned shards only has one that is pinned nowhere");
    observed.kept.pins = vec![unknown];
    assert!(!leaves(&observed));
}

#[test]
fn pins_are_retargeted_before_their_node_is_drained() {
    let mut observed = observed();
    cut_out(&mut observed, 3);
    observed.kept.pins = vec![pin(Group::Worker(2))];
    let steps = planned(&observed, 2).steps;
    let position = |kind: &str| steps.iter().position(|step| step.kind() == kind);
    let refused =
        planned(&observed, 2).findings.into_iter().find(|finding| finding.kind == BALANCED).unwrap();
    assert!(
        position("Retarget").is_some() && position("MoveShard").is_none(),
        "{steps:?}: {}",
        refused.message
    );
    let found = steps.iter().find_map(|step| match step {
        Step::Retarget { pin, from, .. } => Some((pin, *from)),
        _ => None,
    });
    let Some((next, Group::Worker(2))) = found else { panic!("{steps:?}") };
    assert!([Group::Worker(0), Group::Worker(1)].contains(&next.node));
    let said: Vec<String> = steps.iter().map(ToString::to_string).collect();
    assert!(said.contains(&format!("pin dialog seven to {}, as worker-2 leaves", next.node)), "{said:?}");
}

#[test]
fn who_is_pinned_goes_where_there_is_time_for_what_it_does() {
    let mut observed = observed();
    cut_out(&mut observed, 3);
    observed.kept.pins = vec![pin(Group::Worker(2))];
    let node = |cpu| NodeLoad { cpu, cpu_limit: 100, ..NodeLoad::unknown(Role::Shared) };
    let nodes = BTreeMap::from([(Group::Worker(0), node(75)), (Group::Worker(1), node(10))]);
    let wanted = Wanted { dedicated: 1, ..wanted(2) };
    // The dedicated worker comes first, if it can bear it.
    for (cpu, expected) in [(5, Group::Worker(0)), (50, Group::Worker(1))] {
        let pinned = vec![(TENANT, cpu)];
        observed.heat = Some(Heat { nodes: nodes.clone(), pinned, ..Heat::default() });
        let (steps, _) = steps(&observed, &wanted);
        let retargeted = steps.iter().find_map(|step| match step {
            Step::Retarget { pin, .. } => Some(pin.node),
            _ => None,
        });
        assert_eq!(retargeted, Some(expected), "{cpu}: {steps:?}");
    }
}

#[test]
fn who_is_pinned_is_shown_by_name_and_no_more_of_them_than_the_schema_allows() {
    let mut observed = observed();
    observed.kept.now = Some("2026-01-05T10:00:00Z".parse().unwrap());
    let since = |minute: i32| pin(Group::Worker(0)).since + jiff::SignedDuration::from_mins(minute.into());
    let unknown = |number: i32| KeptPin {
        tenant: Tenant { hash: number, ..TENANT },
        key: None,
        since: since(number),
        author: Author::Spec,
        ..pin(Group::Worker(1))
    };
    observed.kept.pins = (1..100).rev().map(unknown).chain([pin(Group::Worker(0))]).collect();
    let (wanted, topology) = (wanted(3), topology());
    let shown = |observed: &Observed, before| {
        isolated(&World { wanted: &wanted, topology: &topology, observed }, before)
    };
    let (list, count) = shown(&observed, None);
    assert_eq!((list.len(), count), (64, Some(100)));
    let said = |one: &IsolatedTenant| format!("{} {} {} {}", one.group, one.tenant, one.worker, one.asked_by);
    assert_eq!(said(&list[0]), "dialog seven worker-0 policy");
    assert_eq!((said(&list[1]), list[1].since.0), ("dialog hash 1 worker-1 spec".to_owned(), since(1)));
    // What nobody could read is not over.
    let before = DialogClusterStatus { isolated: list.clone(), isolated_count: count, ..Default::default() };
    observed.kept = Kept::default();
    assert_eq!(shown(&observed, Some(&before)), (list, count));
    observed.kept.now = Some(since(0));
    assert_eq!(shown(&observed, Some(&before)), (Vec::new(), None));
}

#[test]
fn a_pin_of_a_shard_that_covers_more_means_nothing() {
    let mut observed = observed();
    observed.kept.pins = vec![pin(Group::Worker(0))];
    assert_eq!(planned(&observed, 3).steps, []);
}

#[test]
fn nothing_is_begun_while_a_worker_is_away() {
    let mut observed = with(vec![isolation(4750)]);
    observed.nodes.insert(Group::Worker(1), Node::Down("connection refused".to_owned()));
    let steps: BTreeSet<&str> = planned(&observed, 3).steps.iter().map(Step::kind).collect();
    assert!(!steps.contains("SplitShard"), "{steps:?}");
}

#[test]
fn a_worker_that_cannot_start_keeps_nothing_waiting() {
    let pending = |mut observed: Observed| {
        observed.nodes.insert(Group::Worker(3), Node::Down("it has no address".to_owned()));
        observed
    };
    let kinds = |observed: &Observed| -> Vec<&'static str> {
        planned(observed, 4).steps.iter().map(Step::kind).collect()
    };
    assert_eq!(kinds(&pending(with(vec![isolation(4750)]))), ["SplitShard"]);
    let mut cut = pending(with(vec![isolation(4750)]));
    cut_out(&mut cut, 1);
    assert_eq!(kinds(&cut), ["SetPin"]);
    let mut new = pending(observed());
    catalog(&mut new).strategies = Seen::default();
    assert_eq!(kinds(&new), ["SetStrategy"]);
    // Nothing is cut of which a part is to go there.
    let there = act(Action::Isolate {
        tenant: TENANT,
        from: Group::Worker(2),
        to: Group::Worker(0),
        rest: Some(Group::Worker(3)),
    });
    assert!(!kinds(&pending(with(vec![there]))).contains(&"SplitShard"));

    // One that is registered comes back, be it active or not.
    for active in [true, false] {
        let mut registered = pending(with(vec![isolation(4750)]));
        let endpoint = topology().endpoint(Group::Worker(3)).unwrap().clone();
        let first = catalog(&mut registered).members[1].clone();
        catalog(&mut registered).members.push(Member { endpoint, group_id: 4, node_id: 5, active, ..first });
        assert!(!kinds(&registered).contains(&"SplitShard"), "active: {active}");
    }
}

#[test]
fn a_dedicated_worker_is_emptied_of_what_is_not_pinned_there() {
    let mut observed = observed();
    cut_out(&mut observed, 1);
    observed.kept.pins = vec![pin(Group::Worker(0))];
    let dedicated = Wanted { dedicated: 1, ..wanted(3) };
    let (steps, _) = steps(&observed, &dedicated);
    assert!(matches!(&steps[0], Step::SetStrategy { strategy, .. } if strategy.dedicated.len() == 1));
    let moves = plan(&dedicated, &topology(), &observed).moves.unwrap().plan.moves;
    // Two colocation groups, of which it held a third each.
    let leaving = moves.iter().filter(|next| next.from == Group::Worker(0));
    assert_eq!(leaving.filter(|next| next.shard_id != 3001).count(), 32);
    assert!(moves.iter().all(|next| next.to != Group::Worker(0) && next.shard_id != 3001), "{moves:?}");
}
