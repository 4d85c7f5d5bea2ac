use super::*;

const LEAVER: Group = Group::Worker(2);

/// A group that serves, with its volume and Patroni's state.
fn serving() -> Observed {
    let uid = Some("1".to_owned());
    let claim = Claim { owner: uid.clone(), ..Claim::default() };
    Observed {
        groups: [(LEAVER, ObservedGroup { uid, volumes_follow: true, ..ObservedGroup::default() })].into(),
        claims: [(LEAVER, [(0, claim)].into())].into(),
        with_pods: [LEAVER].into(),
        state: [(LEAVER, vec!["chat-worker-2-leader".to_owned()])].into(),
        certificates: [(LEAVER, "chat-worker-2-tls".to_owned())].into(),
        ..Observed::default()
    }
}

#[test]
fn a_group_leaves_until_its_last_volume_is_gone() {
    let mut observed = serving();
    let is_leaving = |observed: &Observed| {
        let (state, certificates) =
            (observed.orphaned_state().count(), observed.orphaned_certificates().count());
        assert_eq!(state, certificates, "they go together");
        (observed.is_leaving(LEAVER), state)
    };
    assert_eq!(is_leaving(&observed), (false, 0));
    // Its StatefulSet waits for the pods.
    observed.groups.clear();
    observed.leaving.insert(LEAVER);
    assert_eq!(is_leaving(&observed), (true, 0));
    observed.leaving.clear();
    assert_eq!(is_leaving(&observed), (true, 0), "pods are still there");
    // The volume is deleted by Kubernetes, at a time of its own.
    observed.with_pods.clear();
    assert_eq!(is_leaving(&observed), (true, 0));
    observed.claims.clear();
    assert_eq!(is_leaving(&observed), (false, 1), "nobody is left who would know that state");
    // It may come back.
    assert_eq!(is_leaving(&serving()), (false, 0));
}

#[test]
fn a_volume_that_somebody_kept_is_none_that_leaves() {
    let mut observed = serving();
    observed.groups.clear();
    observed.with_pods.clear();
    // It had been told to stay, and so has no owner: the group can be made around it.
    observed.claims.insert(LEAVER, [(0, Claim::default())].into());
    assert!(!observed.is_leaving(LEAVER));
    assert_eq!(observed.orphaned_state().count(), 0, "its database is on the volume");
    // A volume of a StatefulSet before this one goes.
    let mut observed = serving();
    observed.claims.insert(LEAVER, [(0, Claim { owner: Some("0".to_owned()), ..Claim::default() })].into());
    assert!(!observed.is_leaving(LEAVER), "what is there now counts");
}

#[test]
fn a_group_has_no_database_only_while_none_was_made_and_its_volumes_are_its_own() {
    let at = |second| Timestamp::from_second(second).ok();
    let may = |change: fn(&mut ObservedGroup, &mut Claim)| {
        let mut observed = serving();
        let claim = observed.claims.get_mut(&LEAVER).unwrap().get_mut(&0).unwrap();
        let group = observed.groups.get_mut(&LEAVER).unwrap();
        (group.created, claim.created) = (at(100), at(100));
        change(group, claim);
        observed.may_have_database(LEAVER)
    };
    assert!(!may(|_, _| ()));
    assert!(!may(|group, _| group.system_identifier = Some(String::new())), "it was only begun");
    assert!(may(|group, _| group.system_identifier = Some("7".to_owned())));
    assert!(
        may(|_, claim| claim.created = Timestamp::from_second(99).ok()),
        "it outlived another StatefulSet"
    );
    assert!(may(|_, claim| claim.created = None), "nobody knows");
    let mut pending = serving();
    pending.claims.clear();
    assert!(!pending.may_have_database(LEAVER));
}
