//! Whether PostgreSQL fits into the memory that it is given. Pure.

use crate::api::DialogClusterSpec;

/// The page in which `shared_buffers` without a unit is counted, in bytes.
const PAGE: f64 = 8192.0;

/// Why no database could start with what is asked for, with the remedy: its container would be killed each time.
#[must_use]
pub fn excess(spec: &DialogClusterSpec) -> Option<String> {
    let asked = spec.postgres.parameters.get("shared_buffers")?;
    let bytes = bytes(asked)?;
    let workers = (spec.workers.count > 0).then_some(("workers", &spec.workers.resources));
    [Some(("coordinator", &spec.coordinator.resources)), workers].into_iter().flatten().find_map(|(nodes, resources)| {
        let limit = resources.limits.memory.as_ref()?;
        #[allow(clippy::cast_precision_loss, reason = "below 2^53, where every whole number is exact")]
        let too_small = limit.units()? as f64 <= bytes;
        too_small.then(|| {
            format!(
                "spec.postgres.parameters.shared_buffers is {asked}, and spec.{nodes}.resources.limits.memory is {limit}: \
                 PostgreSQL would be killed whenever it starts; lower the one, a quarter of the memory is usual, or \
                 raise the other"
            )
        })
    })
}

/// The bytes of a value of `shared_buffers`; `None` for what PostgreSQL does not take either.
fn bytes(text: &str) -> Option<f64> {
    let text = text.trim();
    let end = text.find(|letter: char| letter.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor = match unit {
        "" => PAGE,
        "B" => 1.0,
        "kB" => 1024.0,
        "MB" => 1024_f64.powi(2),
        "GB" => 1024_f64.powi(3),
        "TB" => 1024_f64.powi(4),
        _ => return None,
    };
    Some(number.trim().parse::<f64>().ok()? * factor)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_read_as_postgresql_reads_them() {
        for (text, kibibytes) in [
            ("16384", Some(131_072.0)),
            ("128MB", Some(131_072.0)),
            (" 128 MB ", Some(131_072.0)),
            ("0.5GB", Some(524_288.0)),
            ("1TB", Some(1_073_741_824.0)),
            ("64kB", Some(64.0)),
            ("1024B", Some(1.0)),
            ("1gb", None),
            ("lots", None),
            ("", None),
        ] {
            assert_eq!(bytes(text).map(|bytes| bytes / 1024.0), kibibytes, "{text}");
        }
    }

    #[test]
    fn what_does_not_fit_is_named_and_what_has_no_limit_fits() {
        let asked = |buffers: &str, coordinator: Option<&str>, workers: i32, worker: Option<&str>| {
            let resources = |limit: Option<&str>| json!({ "limits": { "memory": limit } });
            let spec = json!({
                "coordinator": { "resources": resources(coordinator) },
                "workers": { "count": workers, "resources": resources(worker) },
                "postgres": { "parameters": { "shared_buffers": buffers } },
            });
            excess(&serde_json::from_value(spec).unwrap())
        };
        assert_eq!(asked("4GB", None, 2, None), None);
        assert_eq!(asked("1GB", Some("2Gi"), 2, Some("2Gi")), None);
        assert_eq!(asked("1GB", None, 0, Some("512Mi")), None, "there are no workers");
        assert!(asked("1GB", Some("1Gi"), 0, None).unwrap().contains("spec.coordinator.resources"));
        assert!(asked("1GB", None, 2, Some("512Mi")).unwrap().contains("spec.workers.resources"));
        assert_eq!(excess(&serde_json::from_value(json!({})).unwrap()), None);
    }
}
