//! Tables for people.

use acceptance::numbers::Number;
use serde_json::Value;

/// One line per node of a `DialogCluster`'s status.
pub(crate) fn nodes(status: &Value) -> String {
    let text = |node: &Value, key: &str| node[key].as_str().unwrap_or("-").to_owned();
    let mut rows = vec![["NODE", "ADDRESS", "STATE", "SHARDS", "SIZE"].map(str::to_owned)];
    for node in status["nodes"].as_array().into_iter().flatten() {
        rows.push([
            text(node, "group"),
            text(node, "host"),
            text(node, "state"),
            node["shards"].as_i64().unwrap_or_default().to_string(),
            node["bytes"].as_u64().map_or_else(|| "-".to_owned(), size),
        ]);
    }
    columns(&rows)
}

/// One line per number, with its limit.
pub(crate) fn numbers(numbers: &[Number]) -> String {
    let mut rows = vec![["NUMBER", "IS", "LIMIT", ""].map(str::to_owned)];
    rows.extend(numbers.iter().cloned().map(|Number { what, value, limit, holds }| {
        [what, value, limit, if holds { "" } else { "EXCEEDED" }.to_owned()]
    }));
    columns(&rows)
}

/// Rows with their columns aligned.
pub(crate) fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &[String; N]| {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut scaled = bytes;
    let mut rest = 0;
    let mut unit = 0;
    while scaled >= 1024 && unit + 1 < units.len() {
        rest = scaled % 1024;
        scaled /= 1024;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{scaled}.{} {}", rest * 10 / 1024, units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let status = json!({"nodes": [
            {"group": "coordinator", "host": "chat-coordinator.dialog.svc", "state": "Active", "shards": 0, "bytes": 0},
            {"group": "worker-0", "host": "chat-worker-0.dialog.svc", "state": "Active", "shards": 144, "bytes": 1_572_864},
            {"group": "worker-1", "host": "chat-worker-1.dialog.svc", "state": "Syncing", "shards": 144},
        ]});
        assert_eq!(
            nodes(&status),
            "NODE         ADDRESS                      STATE    SHARDS  SIZE\n\
             coordinator  chat-coordinator.dialog.svc  Active   0       0 B\n\
             worker-0     chat-worker-0.dialog.svc     Active   144     1.5 MiB\n\
             worker-1     chat-worker-1.dialog.svc     Syncing  144     -\n"
        );
    }
}
