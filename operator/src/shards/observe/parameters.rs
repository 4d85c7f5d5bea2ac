//! Reads the settings that the operator asks for, and what became of the parameters that the resource declares.

use tokio_postgres::types::Type;

use crate::pg::{self, Session};
use crate::shards::observed::{Facts, Parameter};
use crate::shards::settings;

/// What is in force of the settings that the operator asks for, which of its own somebody has changed by `ALTER SYSTEM`,
/// and the declared parameters `names`.
///
/// The files are read anew for this, so it sees what the server would make of them now. Of several lines for one parameter
/// the last counts.
pub(super) async fn read(session: &Session, names: &[&str], facts: &mut Facts) -> Result<(), pg::Error> {
    let required: Vec<&str> = settings::REQUIRED.iter().map(|(name, _)| *name).collect();
    let owned = settings::owned();
    let rows = session
        .query(
            "WITH files AS MATERIALIZED (
                 SELECT DISTINCT ON (lower(name)) lower(name) AS name, setting, error
                 FROM pg_file_settings WHERE name IS NOT NULL ORDER BY lower(name), seqno DESC)
             SELECT 'required', name, setting, NULL::bool, NULL::bool, NULL FROM pg_settings WHERE name = ANY ($1)
             UNION ALL
             SELECT DISTINCT 'overridden', name, NULL, NULL::bool, NULL::bool, NULL FROM pg_file_settings
             WHERE sourcefile LIKE '%/postgresql.auto.conf' AND name = ANY ($2)
             UNION ALL
             SELECT 'declared', declared.name, files.setting, pg_settings.name IS NOT NULL,
                    coalesce(pending_restart, false), files.error
             FROM unnest($3) AS declared (name)
             LEFT JOIN pg_settings ON lower(pg_settings.name) = declared.name
             LEFT JOIN files ON files.name = declared.name
             ORDER BY 1, 2",
            &[(&required, Type::TEXT_ARRAY), (&owned, Type::TEXT_ARRAY), (&names, Type::TEXT_ARRAY)],
        )
        .await?;
    for row in &rows {
        let name: String = row.get(1);
        match row.get(0) {
            "required" => drop(facts.settings.insert(name, row.get(2))),
            "overridden" => facts.overrides.push(name),
            _ => {
                let parameter = Parameter {
                    known: row.get(3),
                    restart_pending: row.get(4),
                    written: row.get(2),
                    error: row.get(5),
                };
                facts.parameters.insert(name, parameter);
            }
        }
    }
    Ok(())
}
