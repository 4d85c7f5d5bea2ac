//! What was seen and decided, in the words of the status. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::period::{Names, Seen, group_name, sizes};
use super::{Heat, Refusal};
use crate::api::{DecisionStatus, HotTenant, SizeStatus};
use crate::heat::{Action, Decision, Hot, Mode, Period, Refused, Tenant};

/// Sizes are shown in steps of this: each write of the status is one more that others are told of.
const STEP: i64 = 1 << 20;

/// What is known now. `hot` are the tenants that are really hot, and `before` is what was known so far.
pub(super) fn heat(
    seen: &Seen<'_>,
    period: &Period,
    names: &Names,
    decision: &Decision,
    hot: &[Hot],
    before: &Heat,
) -> Heat {
    let speaker = Speaker { seen, period, names };
    let decided = decision.action.map(|action| DecisionStatus {
        at: Time(period.end),
        kind: action.kind().to_owned(),
        message: speaker.action(action, decision),
    });
    Heat {
        end: Some(period.end),
        length: period.length,
        nodes: period.nodes.clone(),
        hot: hot.iter().map(|hot| speaker.hot(hot)).collect(),
        last: decided.or_else(|| before.last.clone()),
        refused: decision.refused.iter().map(|refused| speaker.refused(refused)).collect(),
        cooling_until: decision.cooling_until,
        sizes: shown_sizes(seen, before),
        loads: before.loads.clone(),
        failure: None,
    }
}

/// The sizes as of now; growth is added by who knows the past.
fn shown_sizes(seen: &Seen<'_>, before: &Heat) -> Vec<SizeStatus> {
    let sizes = sizes(seen);
    if sizes.is_empty() {
        return before.sizes.clone();
    }
    let size = |size: super::period::Size| SizeStatus {
        group: size.group,
        shards: size.shards,
        bytes: size.bytes / STEP * STEP,
        largest_bytes: size.largest / STEP * STEP,
        growth_per_hour: None,
    };
    sizes.into_iter().map(size).collect()
}

struct Speaker<'a> {
    seen: &'a Seen<'a>,
    period: &'a Period,
    names: &'a Names,
}

impl Speaker<'_> {
    fn group(&self, tenant: Tenant) -> String {
        group_name(self.seen.world, tenant.colocation_id)
    }

    fn name(&self, tenant: Tenant) -> String {
        format!("{} {}", self.group(tenant), self.names.of(tenant))
    }

    fn hot(&self, hot: &Hot) -> HotTenant {
        let of = |load: &&crate::heat::TenantLoad| load.tenant == hot.tenant;
        let loads = || self.period.tenants.iter().filter(of);
        let seconds = u64::try_from(self.period.length.as_secs()).unwrap_or(1).max(1);
        let per_second = |count: u64| i64::try_from(count / seconds).unwrap_or(i64::MAX);
        HotTenant {
            tenant: self.names.of(hot.tenant),
            group: self.group(hot.tenant),
            node: hot.node.to_string(),
            share_percent: i32::try_from(hot.share).unwrap_or(100),
            queries_per_second: per_second(loads().map(|load| load.queries).sum()),
            writes_per_second: per_second(loads().map(|load| load.writes).sum()),
            periods: i32::try_from(hot.periods).unwrap_or(i32::MAX),
        }
    }

    fn action(&self, action: Action, decision: &Decision) -> String {
        // In the mode Observe it stays a thought.
        let done = self.seen.watch.policy.mode == Mode::Isolate;
        let say = |done_so: &'static str, thought: &'static str| if done { done_so } else { thought };
        match action {
            Action::Isolate { tenant, from, to, rest } => {
                let hot = decision.hot.iter().find(|hot| hot.tenant == tenant);
                let why = hot.map_or_else(String::new, |hot| format!(" takes {} % of {from} and", hot.share));
                let alone = self.period.tenants.iter().any(|load| load.tenant == tenant && load.alone);
                let name = self.name(tenant);
                let gets = say("gets", "would get");
                match rest {
                    _ if alone => {
                        let moved = say("is moved", "would be moved");
                        format!("{name}{why} has a shard of its own: it {moved} to {to}")
                    }
                    Some(rest) => format!(
                        "{name}{why} {gets} a shard of its own on {to}; the rest of its shard {} to {rest}",
                        say("goes", "would go")
                    ),
                    None => format!("{name}{why} {gets} a shard of its own on {to}"),
                }
            }
            Action::Split { shard_id, from, to: [first, second], .. } => {
                let large = self.period.large.iter().find(|large| large.shard_id == shard_id);
                let bytes = large.map_or(0, |large| large.bytes);
                let split = say("is split", "would be split");
                format!("shard {shard_id} on {from} has {bytes} bytes and {split}, onto {first} and {second}")
            }
            Action::Spread { from, to } => format!(
                "{from} has too much to do and no tenant is to blame: it {} its load with {to}",
                say("should share", "would share")
            ),
            Action::Release { tenant } => format!(
                "{} {} and {} one like the others again",
                self.name(tenant),
                if self.period.empty.contains(&tenant) {
                    "has no rows any more"
                } else {
                    "has been quiet for long"
                },
                say("is", "would be")
            ),
        }
    }

    fn refused(&self, refused: &Refused) -> Refusal {
        let reason = refused.reason;
        let whose = match (refused.tenant, refused.shard_id) {
            (Some(tenant), _) => format!("{} stays where it is", self.name(tenant)),
            (None, Some(shard_id)) => format!("shard {shard_id} is too large and stays as it is"),
            (None, None) => "nothing is done".to_owned(),
        };
        Refusal { reason, message: format!("{whose}: {reason}") }
    }
}
