//! The numbers that a release is held to, each with its limit.

use std::time::Duration;

use serde_json::Value;

/// From `kubectl apply` to Ready, with two workers.
const TO_READY: Duration = Duration::from_mins(1);
/// The working set of the operator with one cluster, and that of an idle dialog-api.
const MEMORY: u64 = 24 << 20;
/// Each image of the operator and of dialog-api, unpacked.
const PROGRAM_IMAGE: u64 = 40_000_000;
/// The PostgreSQL image, unpacked.
const POSTGRES_IMAGE: u64 = 500_000_000;

/// One of the numbers, as it was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Number {
    /// What was measured.
    pub what: String,
    /// How much it is, with the unit.
    pub value: String,
    /// How much it may be, with the unit.
    pub limit: String,
    /// Whether it is within the limit.
    pub holds: bool,
}

/// The bytes of the three images, all layers unpacked: see [`Number::images`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ImageSizes {
    /// dialog-operator.
    pub operator: u64,
    /// dialog-api.
    pub dialog_api: u64,
    /// PostgreSQL.
    pub postgres: u64,
}

impl Number {
    /// How long it took from applying a cluster with two workers until it was ready.
    #[must_use]
    pub fn to_ready(took: Duration) -> Self {
        let seconds = |time: Duration| format!("{:.1} s", time.as_secs_f64());
        Self {
            what: "apply to Ready, two workers".to_owned(),
            value: seconds(took),
            limit: seconds(TO_READY),
            holds: took <= TO_READY,
        }
    }

    /// The memory of one container: its working set, which is what the kubelet evicts by, in bytes.
    #[must_use]
    pub fn memory(of: &str, bytes: u64) -> Self {
        // Bytes of programs are far below the integers that an f64 holds exactly.
        #[allow(clippy::cast_precision_loss, reason = "see above")]
        let mebibytes = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
        Self {
            what: format!("memory of {of}"),
            value: mebibytes(bytes),
            limit: mebibytes(MEMORY),
            holds: bytes <= MEMORY,
        }
    }

    /// The images, one number each.
    #[must_use]
    pub fn images(sizes: ImageSizes) -> [Self; 3] {
        let image = |what: &str, bytes: u64, limit: u64| {
            let megabytes = |bytes: u64| format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10);
            Self {
                what: what.to_owned(),
                value: megabytes(bytes),
                limit: megabytes(limit),
                holds: bytes <= limit,
            }
        };
        [
            image("image operator", sizes.operator, PROGRAM_IMAGE),
            image("image dialog-api", sizes.dialog_api, PROGRAM_IMAGE),
            image("image postgres", sizes.postgres, POSTGRES_IMAGE),
        ]
    }
}

/// The largest working set, in bytes, among the containers called `container` in `namespace`, by the kubelet's summary
/// (`/api/v1/nodes/NODE/proxy/stats/summary`); `None` while the kubelet has not measured any.
#[must_use]
pub fn working_set(summary: &Value, namespace: &str, container: &str) -> Option<u64> {
    let pods = summary["pods"].as_array()?.iter();
    pods.filter(|pod| pod["podRef"]["namespace"] == namespace)
        .flat_map(|pod| pod["containers"].as_array().into_iter().flatten())
        .filter(|found| found["name"] == container)
        .filter_map(|found| found["memory"]["workingSetBytes"].as_u64())
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_limit_is_still_allowed_and_one_more_is_not() {
        let memory = |bytes| Number::memory("x", bytes);
        assert!(memory(24 << 20).holds && !memory((24 << 20) + 1).holds);
        assert_eq!(memory(12_700_000).value, "12.1 MiB");
        assert!(!Number::to_ready(Duration::from_millis(60_001)).holds);
        let sizes = ImageSizes { operator: 12_340_000, dialog_api: 40_000_001, postgres: 500_000_000 };
        let [operator, dialog_api, postgres] = Number::images(sizes);
        assert_eq!((operator.value.as_str(), operator.limit.as_str()), ("12.3 MB", "40.0 MB"));
        assert!(operator.holds && !dialog_api.holds && postgres.holds);
    }

    #[test]
    fn the_largest_of_the_named_containers_counts() {
        let container =
            |name: &str, bytes: Option<u64>| json!({"name": name, "memory": {"workingSetBytes": bytes}});
        let pod = |namespace: &str, containers: &[Value]| {
            let reference = json!({"name": "p", "namespace": namespace});
            json!({"podRef": reference, "containers": containers})
        };
        let summary = json!({"pods": [
            pod("a", &[container("api", Some(5)), container("other", Some(9))]),
            pod("a", &[container("api", Some(7)), container("api", None)]),
            pod("b", &[container("api", Some(11))]),
            {"podRef": {"name": "new", "namespace": "a"}},
        ]});
        assert_eq!(working_set(&summary, "a", "api"), Some(7));
        assert_eq!(working_set(&summary, "b", "other"), None);
        assert_eq!(working_set(&json!({}), "a", "api"), None);
    }
}
