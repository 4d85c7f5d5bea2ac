//! PodDisruptionBudgets, where there is more than one pod: with one alone, a drain could never end.

use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::meta::{self, Labels};
use crate::cluster::target::Target;
use crate::names::Names;

/// Every PodDisruptionBudget of a cluster.
#[must_use]
pub fn disruption_budgets(target: &Target) -> Vec<PodDisruptionBudget> {
    let names = &target.names;
    let groups = target.groups.keys().filter(|group| target.group(**group).instances > 1).map(|&group| {
        budget(names, names.group(group), meta::group(names, group), meta::select_group(names, group))
    });
    let api = (target.spec.api.replicas > 1)
        .then(|| budget(names, names.api(), meta::component(names, meta::API), meta::select_api(names)));
    groups.chain(api).collect()
}

fn budget(names: &Names, name: String, labels: Labels, selected: Labels) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: meta::object(names, name, labels),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(meta::selector(selected)),
            // A pod that serves nobody must not keep a node from being drained.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    }
}
