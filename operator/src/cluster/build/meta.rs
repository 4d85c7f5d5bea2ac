//! Names, labels and selectors of objects.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::ObjectMeta;

use crate::names::{CLUSTER_LABEL, GROUP_LABEL, Group, Names, SCOPE_LABEL};

/// Label with what an object is part of: `database` or `api`.
pub const COMPONENT_LABEL: &str = "app.kubernetes.io/component";
/// The component of everything that a database group needs.
pub const DATABASE: &str = "database";
/// The component of everything that dialog-api needs.
pub const API: &str = "api";

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

fn labels<const N: usize>(pairs: [(&str, String); N]) -> Labels {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// The labels of an object of a component.
#[must_use]
pub fn component(names: &Names, component: &str) -> Labels {
    labels([
        ("app.kubernetes.io/name", "dialog".to_owned()),
        ("app.kubernetes.io/instance", names.cluster().to_owned()),
        ("app.kubernetes.io/managed-by", "dialog-operator".to_owned()),
        (COMPONENT_LABEL, component.to_owned()),
        (CLUSTER_LABEL, names.cluster().to_owned()),
    ])
}

/// The labels of an object of a database group.
#[must_use]
pub fn group(names: &Names, group: Group) -> Labels {
    let mut labels = component(names, DATABASE);
    labels.insert(GROUP_LABEL.to_owned(), group.to_string());
    labels
}

/// The labels by which Patroni finds its pods and its state.
#[must_use]
pub fn patroni(names: &Names, group: Group) -> Labels {
    let mut labels = self::group(names, group);
    labels.insert(SCOPE_LABEL.to_owned(), names.group(group));
    labels
}

/// What selects the pods of a group; never changes, because a StatefulSet's selector cannot.
#[must_use]
pub fn select_group(names: &Names, group: Group) -> Labels {
    labels([(CLUSTER_LABEL, names.cluster().to_owned()), (GROUP_LABEL, group.to_string())])
}

/// What selects the pods of dialog-api.
#[must_use]
pub fn select_api(names: &Names) -> Labels {
    labels([(CLUSTER_LABEL, names.cluster().to_owned()), (COMPONENT_LABEL, API.to_owned())])
}

/// A selector of these labels.
#[must_use]
pub fn selector(labels: Labels) -> LabelSelector {
    LabelSelector { match_labels: Some(labels), ..LabelSelector::default() }
}

/// The metadata of an object.
#[must_use]
pub fn object(names: &Names, name: String, labels: Labels) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(names.namespace().to_owned()),
        labels: Some(labels),
        ..ObjectMeta::default()
    }
}
