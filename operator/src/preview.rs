//! What `dialog-operator plan` prints: the plan that the operator has written into a cluster's status.

use anyhow::{Context as _, bail};
use kube::{Api, Client, Config};

use crate::api::{DialogCluster, PlanStatus};
use crate::cli::{Output, Plan};
use crate::condition::{self, BALANCED, SCALE_IN_BLOCKED};

/// What to print, and whether there is anything to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Printed {
    /// The text, with a line break at its end.
    pub text: String,
    /// Whether shards are to be moved or are moving, or are not where they belong, or workers cannot leave that are not asked for.
    pub to_do: bool,
}

/// Reads the cluster's plan with the caller's own kubeconfig.
///
/// # Errors
/// If Kubernetes cannot be asked, there is no such cluster, or the operator has not looked at its shards yet.
pub async fn run(arguments: &Plan) -> anyhow::Result<Printed> {
    let config =
        Config::infer().await.context("cannot find out how to reach Kubernetes; is KUBECONFIG set?")?;
    let namespace = arguments.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config).context("cannot make a client of Kubernetes")?;
    let name = &arguments.name;
    let cluster = Api::<DialogCluster>::namespaced(client, &namespace)
        .get(name)
        .await
        .with_context(|| format!("cannot read DialogCluster {namespace}/{name}"))?;
    print(&cluster, arguments.output)
}

/// What to print of `cluster`.
///
/// # Errors
/// If its status does not say whether the shards are balanced, or says so of a spec that has changed since.
pub fn print(cluster: &DialogCluster, output: Output) -> anyhow::Result<Printed> {
    let status = cluster.status.as_ref();
    let Some(balanced) = status.and_then(|status| condition::find(&status.conditions, BALANCED)) else {
        bail!("the operator has not looked at this cluster's shards yet: wait, or see whether it runs");
    };
    let (seen, now) = (balanced.observed_generation, cluster.metadata.generation);
    if seen < now {
        let number = |generation: Option<i64>| generation.unwrap_or_default();
        bail!(
            "not known: the spec has changed (generation {}), and the operator has looked at the one before ({}): wait, or see \
             whether it runs",
            number(now),
            number(seen)
        );
    }
    let plan = status.and_then(|status| status.plan.clone());
    let blocked = status.and_then(|status| condition::find(&status.conditions, SCALE_IN_BLOCKED));
    let blocked = blocked.filter(|blocked| blocked.status == condition::Holds::True.as_str());
    let even = balanced.status == condition::Holds::True.as_str();
    if plan.is_none() && balanced.status == condition::Holds::Unknown.as_str() {
        bail!("not known: {} ({})", balanced.message, balanced.reason);
    }
    let to_do = plan.is_some() || !even || blocked.is_some();
    let text = match output {
        Output::Json => {
            let asked = &cluster.spec.sharding.rebalance;
            let none = PlanStatus {
                hash: String::new(),
                moves: 0,
                bytes: 0,
                over: Vec::new(),
                strategy: Some(asked.strategy),
                threshold: Some(asked.threshold.clone()),
                steps: Vec::new(),
            };
            format!("{}\n", serde_json::to_string_pretty(&plan.unwrap_or(none))?)
        }
        Output::Table => {
            let none = if to_do { "no moves are planned\n" } else { "nothing to move\n" };
            let table = plan.map_or_else(|| none.to_owned(), |plan| plan.to_string());
            let said = [Some(balanced), blocked].into_iter().flatten();
            said.fold(table, |text, said| format!("{text}{}: {}\n", said.reason, said.message))
        }
    };
    Ok(Printed { text, to_do })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::api::{DialogClusterStatus, PlannedMove, RebalanceStrategy, Threshold};
    use crate::condition::{Finding, Holds};

    fn cluster(plan: Option<PlanStatus>, balanced: Option<(Holds, &'static str, &str)>) -> DialogCluster {
        let mut cluster = DialogCluster::new("chat", serde_json::from_value(json!({})).unwrap());
        cluster.metadata.generation = Some(1);
        let condition = balanced.map(|(holds, reason, message)| {
            Finding::new(BALANCED, holds, reason, message).into_condition(&[], Some(1), Timestamp::UNIX_EPOCH)
        });
        let conditions = condition.into_iter().collect();
        cluster.status = Some(DialogClusterStatus { plan, conditions, ..Default::default() });
        cluster
    }

    fn plan() -> PlanStatus {
        let step = PlannedMove {
            number: 1,
            shard: 102_008,
            from: "worker-0".into(),
            to: "worker-12".into(),
            bytes: 1_610_612_736,
            wave: 1,
            cause: "balance".into(),
        };
        let over = vec!["worker-0".into(), "worker-12".into()];
        PlanStatus {
            hash: "00ff00ff00ff00ff".into(),
            moves: 3,
            bytes: 4 << 30,
            over,
            strategy: Some(RebalanceStrategy::BySize),
            threshold: Some(Threshold::new("0.1")),
            steps: vec![step],
        }
    }

    #[test]
    fn a_plan_is_a_table_with_its_name_and_what_it_waits_for() {
        let waiting = Some((Holds::False, "AwaitingApproval", "approve it"));
        let printed = print(&cluster(Some(plan()), waiting), Output::Table).unwrap();
        assert!(printed.to_do);
        let expected = [
            "WAVE  SHARD   FROM      TO         BYTES    CAUSE",
            "1     102008  worker-0  worker-12  1.5 GiB  balance",
            "and 2 more",
            "3 moves, 4 GiB, plan 00ff00ff00ff00ff",
            "AwaitingApproval: approve it",
            "",
        ];
        assert_eq!(printed.text, expected.join("\n"));
    }

    #[test]
    fn json_has_the_same_fields_whether_there_is_something_to_do_or_not() {
        let balanced = Some((Holds::True, "Balanced", "even"));
        for (plan, moves) in [(Some(plan()), true), (None, false)] {
            let printed = print(&cluster(plan.clone(), balanced), Output::Json).unwrap();
            let value: serde_json::Value = serde_json::from_str(&printed.text).unwrap();
            assert_eq!((value["moves"] != 0, printed.to_do), (moves, moves), "{value}");
            assert!(value["hash"].is_string() && value["bytes"].is_number(), "{value}");
        }
    }

    #[test]
    fn there_is_something_to_do_until_the_shards_are_where_they_belong() {
        let said = |holds, reason| Some((holds, reason, "why"));
        let (no, yes) = (Holds::False, Holds::True);
        for (plan, balanced, to_do, first) in [
            (None, said(yes, "Balanced"), false, "nothing to move"),
            (None, said(yes, "LeftBehind"), false, "nothing to move"),
            (None, said(no, "WorkersMissing"), true, "no moves are planned"),
            (None, said(no, "NoPlace"), true, "no moves are planned"),
            (None, said(no, "OtherRebalance"), true, "no moves are planned"),
            (Some(plan()), said(no, "Moving"), true, "WAVE"),
            // What was planned is still to be done while nobody can look.
            (Some(plan()), said(Holds::Unknown, "NotObserved"), true, "WAVE"),
        ] {
            let mut cluster = cluster(plan, balanced);
            let printed = print(&cluster, Output::Table).unwrap();
            assert_eq!(printed.to_do, to_do, "{balanced:?}");
            assert!(printed.text.starts_with(first), "{}", printed.text);
            assert_eq!(print(&cluster, Output::Json).unwrap().to_do, to_do, "{balanced:?}");
            // The count has changed, and the operator has not seen it.
            cluster.metadata.generation = Some(2);
            let error = print(&cluster, Output::Table).unwrap_err().to_string();
            assert!(error.contains("the spec has changed (generation 2)"), "{error}");
        }
    }

    #[test]
    fn there_is_something_to_do_while_workers_cannot_leave() {
        let mut cluster = cluster(None, Some((Holds::True, "Balanced", "even")));
        for (holds, reason, to_do, text) in [
            (Holds::False, "Draining", false, "nothing to move\nBalanced: even\n"),
            (
                Holds::True,
                "LeftBehind",
                true,
                "no moves are planned\nBalanced: even\nLeftBehind: look at them\n",
            ),
        ] {
            let blocked = Finding::new(SCALE_IN_BLOCKED, holds, reason, "look at them");
            let conditions = &mut cluster.status.as_mut().unwrap().conditions;
            conditions.truncate(1);
            conditions.push(blocked.into_condition(&[], Some(1), Timestamp::UNIX_EPOCH));
            let printed = print(&cluster, Output::Table).unwrap();
            assert_eq!((printed.text.as_str(), printed.to_do), (text, to_do));
        }
    }

    #[test]
    fn what_is_not_known_is_not_called_balanced() {
        let unknown = Some((Holds::Unknown, "NotObserved", "the coordinator does not answer"));
        let error = print(&cluster(None, unknown), Output::Table).unwrap_err();
        assert!(error.to_string().contains("the coordinator does not answer"), "{error}");
        assert!(print(&cluster(None, None), Output::Table).is_err());
    }
}
