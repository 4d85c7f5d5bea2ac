//! What periods one after the other tell of a tenant.

use super::*;

/// The last of these answers and those before it whose periods end no further apart than that, the last first. Of several
/// periods that end at once only the first counts.
pub(super) fn in_a_row(answers: &[Answer], most: SignedDuration) -> Vec<&Answer> {
    let mut row: Vec<&Answer> = Vec::new();
    for answer in answers.iter().rev() {
        let Some(last) = row.last_mut() else {
            row.push(answer);
            continue;
        };
        let apart = last.period.end.duration_since(answer.period.end);
        if apart.is_zero() {
            *last = answer;
        } else if apart.is_positive() && apart <= most {
            row.push(answer);
        } else {
            break;
        }
    }
    row
}

/// The most queries that a pinned tenant can have done in a period, where that is less than what counts as quiet or is
/// counted; `None` where nobody knows.
pub(super) fn most_of(period: &Period, tenant: Tenant) -> Option<u64> {
    let listed = period.tenants.iter().filter(|load| load.tenant == tenant);
    // Before it was pinned it was busy, or it would not have been.
    let pin = period.pins.iter().find(|pin| Tenant::from(*pin) == tenant);
    let node = pin.map(|pin| period.nodes[&pin.node]);
    if node.is_some_and(|node| node.role == Role::Unavailable) {
        return None;
    }
    match (listed.map(|load| load.queries).max(), node) {
        (Some(counted), _) => Some(counted),
        (None, Some(node)) => (node.unlisted < policy().min_queries).then_some(node.unlisted),
        (None, None) => Some(0),
    }
}

/// The periods of a row, the last first, in which a tenant was hot since it was last known not to be: a period in which it is
/// on no list is a break where that list goes down to quiet ones.
pub(super) fn without_a_break(policy: &Policy, row: &[&Answer], tenant: Tenant) -> usize {
    let (mut times, mut unseen, mut place) = (0, 0, None);
    for Answer { period, decision, .. } in row.iter().rev() {
        let known =
            |load: &&TenantLoad| load.tenant == tenant && period.nodes[&load.node].role != Role::Unavailable;
        let is_break = if let Some(load) = period.tenants.iter().find(known) {
            (unseen, place) = (0, Some(load.node));
            let node = period.nodes[&load.node];
            let part =
                |own: u64, whole: u64| own * 400 >= whole.max(own) * u64::from(policy.share_percent) * 3;
            let measures = [(load.queries, node.queries), (load.writes, node.writes), (load.cpu, node.cpu)];
            let warm = measures.into_iter().any(|(own, whole)| own > 0 && part(own, whole));
            !warm || load.queries < policy.min_queries
        } else {
            unseen += 1;
            let told = |place| {
                let node: NodeLoad = period.nodes[&place];
                node.role != Role::Unavailable && node.unseen < policy.min_queries
            };
            unseen > policy.consecutive_periods || place.is_none_or(told)
        };
        if is_break {
            times = 0;
        } else if decision.hot.iter().any(|hot| hot.tenant == tenant) {
            times += 1;
        }
    }
    times
}
