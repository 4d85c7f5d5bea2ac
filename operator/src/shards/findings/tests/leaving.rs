//! What keeps workers that are not asked for any more.

use std::collections::BTreeSet;

use super::moves::two_workers;
use super::{topology, wanted};
use crate::condition::SCALE_IN_BLOCKED;
use crate::names::Group;
use crate::shards::observed::{Node, Observed};
use crate::shards::plan::plan;

/// What is said of who is to leave.
fn blocked(observed: &Observed) -> (&'static str, &'static str, String) {
    let findings = plan(&wanted(), &topology(), observed).findings;
    let found = findings.into_iter().find(|finding| finding.kind == SCALE_IN_BLOCKED).unwrap();
    (found.holds.as_str(), found.reason, found.message)
}

#[test]
fn who_has_no_server_comes_back_with_a_larger_count() {
    let mut observed = two_workers();
    observed.nodes.insert(Group::Worker(1), Node::Down("no such host".to_owned()));
    let (holds, reason, message) = blocked(&observed);
    assert_eq!((holds, reason), ("True", "NodeUnreachable"), "{message}");
    assert!(message.contains("bring it back"), "{message}");
    observed.existing.remove(&Group::Worker(1));
    let (holds, reason, message) = blocked(&observed);
    assert_eq!((holds, reason), ("True", "NodeUnreachable"), "{message}");
    assert!(message.contains("raise spec.workers.count to 2 or more"), "{message}");
    // Where Kubernetes does not say who has a server, it is not said that somebody has none.
    observed.existing = BTreeSet::new();
    assert!(blocked(&observed).2.contains("bring it back"));
}
