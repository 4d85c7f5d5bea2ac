//! Reads what became of the parameters that the resource declares.

use std::collections::BTreeMap;

use tokio_postgres::types::Type;

use crate::pg::{self, Session};
use crate::shards::observed::Parameter;

/// The declared parameters `names` on the server of `session`.
pub(super) async fn read(
    session: &Session,
    names: &[&str],
) -> Result<BTreeMap<String, Parameter>, pg::Error> {
    if names.is_empty() {
        return Ok(BTreeMap::new());
    }
    // The files are read anew for this, so it sees what the server would make of them now. Of several lines for one
    // parameter the last counts.
    let rows = session
        .query(
            "WITH files AS MATERIALIZED (
                 SELECT DISTINCT ON (lower(name)) lower(name) AS name, setting, error
                 FROM pg_file_settings WHERE name IS NOT NULL ORDER BY lower(name), seqno DESC)
             SELECT declared.name, pg_settings.name IS NOT NULL, coalesce(pending_restart, false),
                    files.setting, files.error
             FROM unnest($1) AS declared (name)
             LEFT JOIN pg_settings ON lower(pg_settings.name) = declared.name
             LEFT JOIN files ON files.name = declared.name",
            &[(&names, Type::TEXT_ARRAY)],
        )
        .await?;
    let parameter = |row: &tokio_postgres::Row| Parameter {
        known: row.get(1),
        restart_pending: row.get(2),
        written: row.get(3),
        error: row.get(4),
    };
    Ok(rows.iter().map(|row| (row.get(0), parameter(row))).collect())
}
