//! Reads the hashes of the tenants that the resource names.

use std::collections::BTreeMap;

use tokio_postgres::types::Type;

use crate::api::TableKind;
use crate::names::Group;
use crate::pg;
use crate::shards::observed::{Hashes, Name, Observed, Spread};
use crate::shards::sessions::{Door, Sessions};
use crate::shards::wanted::Wanted;

/// The hashes of the tenants that are named, as far as their tables are distributed. What was known `before` is not asked
/// again; what the coordinator does not answer now is not among them.
pub(in crate::shards) async fn hashes(
    sessions: &Sessions,
    wanted: &Wanted,
    observed: &Observed,
    before: Option<&Hashes>,
) -> Hashes {
    let mut hashes = Hashes::new();
    let types = types(wanted, observed);
    for pin in &wanted.pins {
        let Some(type_name) = types.get(pin.group.as_str()) else { continue };
        let name = Name { type_name: (*type_name).to_owned(), tenant: pin.tenant.clone() };
        let known = before.and_then(|before| before.get(&name)).cloned();
        let hash = match known {
            Some(known) => known,
            None => match ask(sessions, &name).await {
                Ok(hash) => Ok(hash),
                // The value is none of its type.
                Err(error) if error.sqlstate().is_some_and(|state| state.code().starts_with("22")) => {
                    Err(error.to_string())
                }
                Err(_) => continue,
            },
        };
        hashes.insert(name, hash);
    }
    hashes
}

/// The types of the distribution columns, by groups of tables.
pub(in crate::shards) fn types<'a>(wanted: &'a Wanted, observed: &'a Observed) -> BTreeMap<&'a str, &'a str> {
    let distributed = wanted.tables.iter().filter(|table| table.kind == TableKind::Distributed);
    let known = distributed.filter_map(|policy| {
        let table = observed.tables.get(&policy.name)?;
        let Spread::Hash { .. } = table.spread else { return None };
        Some((policy.group.as_deref()?, table.column_type.as_deref()?))
    });
    known.collect()
}

async fn ask(sessions: &Sessions, name: &Name) -> Result<i32, pg::Error> {
    let session = sessions.session(Group::Coordinator, Door::Dialog).await?;
    // The name of a type as the server writes it where none of its lengths is meant: `character` alone would cut the key.
    let statement = format!("SELECT worker_hash($1::text::{})", name.type_name);
    Ok(session.query_one(&statement, &[(&name.tenant, Type::TEXT)]).await?.get(0))
}
