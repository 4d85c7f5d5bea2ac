//! Reads the catalogs of the database `dialog`: the policy's tables, and what Citus made of them.

use std::collections::BTreeMap;

use tokio_postgres::types::Type;

use crate::api::Table as Policy;
use crate::pg::{self, Endpoint, Session, identifier, literal};
use crate::shards::heat::actions::Kept;
use crate::shards::observe::moves;
use crate::shards::observed::{Catalog, Member, Placement, Spread, Table};
use crate::shards::rebalance::HashRange;

/// Citus' own catalogs, and what is written down in the operator's `own_tables` if they are there.
pub(super) async fn read(session: &Session, own_tables: bool) -> Result<(Catalog, Kept), pg::Error> {
    let members = session
        .query(
            "SELECT nodename::text, nodeport, groupid, isactive, hasmetadata, metadatasynced, shouldhaveshards, nodeid
             FROM pg_dist_node WHERE noderole::text = 'primary' ORDER BY groupid",
            &[],
        )
        .await?;
    let placements = session
        .query(
            "SELECT t.colocationid, p.groupid, min(shardid), s.shardminvalue::int, s.shardmaxvalue::int, count(*)
             FROM pg_dist_placement AS p JOIN pg_dist_shard AS s USING (shardid)
             JOIN pg_dist_partition AS t USING (logicalrelid)
             WHERE t.partmethod = 'h' GROUP BY 1, 2, 4, 5 ORDER BY 1, 4, 2",
            &[],
        )
        .await?;
    let mut catalog = Catalog {
        members: members
            .iter()
            .map(|row| Member {
                endpoint: Endpoint::new(row.get::<_, String>(0), port(row.get(1))),
                group_id: row.get(2),
                active: row.get(3),
                has_metadata: row.get(4),
                synced: row.get::<_, bool>(4) && row.get::<_, bool>(5),
                should_have_shards: row.get(6),
                node_id: row.get(7),
            })
            .collect(),
        placements: placements
            .iter()
            .map(|row| Placement {
                colocation_id: row.get(0),
                group_id: row.get(1),
                shard_id: row.get(2),
                range: HashRange { min: row.get(3), max: row.get(4) },
                shards: row.get(5),
            })
            .collect(),
        ..Catalog::default()
    };
    let kept = moves::read(session, own_tables, &mut catalog).await?;
    Ok((catalog, kept))
}

/// A number that is no port names no server of ours.
fn port(number: i32) -> u16 {
    u16::try_from(number).unwrap_or(0)
}

/// Bytes of the shard groups that are placed on this server, measured here, without asking the others.
pub(super) async fn sizes(session: &Session) -> Result<BTreeMap<i64, i64>, pg::Error> {
    // shard_name() leaves the schema `public` out, and this session would not look there.
    let rows = session
        .query(
            "SELECT min(shardid), coalesce(sum(pg_total_relation_size(to_regclass(
                        CASE relnamespace WHEN 'public'::regnamespace THEN 'public.' ELSE '' END
                        || shard_name(logicalrelid, shardid)))), 0)::int8
             FROM pg_dist_placement JOIN pg_dist_shard USING (shardid) JOIN pg_dist_partition USING (logicalrelid)
             JOIN pg_class ON pg_class.oid = logicalrelid
             WHERE partmethod = 'h' AND groupid = (SELECT groupid FROM pg_dist_local_group)
             GROUP BY colocationid, shardminvalue",
            &[],
        )
        .await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// The tables of the policy that exist.
pub(super) async fn tables(
    session: &Session,
    policy: &[Policy],
    citus: bool,
) -> Result<BTreeMap<String, Table>, pg::Error> {
    let names: Vec<&str> = policy.iter().map(|table| table.name.as_str()).collect();
    let columns: Vec<Option<&str>> = policy.iter().map(|table| table.column.as_deref()).collect();
    // One statement, because it is asked all the time; where there is no Citus there are no catalogs of it.
    let (columns_of_citus, catalogs_of_citus) = if citus {
        (
            "partmethod::text, repmodel::text, colocationid, column_to_column_name(logicalrelid, partkey)",
            "LEFT JOIN pg_dist_partition AS t ON t.logicalrelid = pg_class.oid",
        )
    } else {
        ("NULL::text, NULL::text, NULL::int, NULL::text", "")
    };
    let statement = format!(
        "SELECT wanted.name, relkind = 'r' AND relpersistence = 'p' AND NOT relispartition,
                (SELECT format_type(atttypid, -1) FROM pg_attribute
                 WHERE attrelid = pg_class.oid AND attname = wanted.column AND attnum > 0 AND NOT attisdropped),
                CASE relreplident
                    WHEN 'f' THEN true
                    WHEN 'd' THEN EXISTS (SELECT FROM pg_index WHERE indrelid = pg_class.oid AND indisprimary)
                    WHEN 'i' THEN EXISTS (SELECT FROM pg_index WHERE indrelid = pg_class.oid AND indisreplident)
                    ELSE false END,
                {columns_of_citus}
         FROM unnest($1, $2) AS wanted (name, \"column\")
         JOIN pg_class ON relname = wanted.name AND relnamespace = 'public'::regnamespace
         {catalogs_of_citus}"
    );
    let rows = session.query(&statement, &[(&names, Type::TEXT_ARRAY), (&columns, Type::TEXT_ARRAY)]).await?;
    let table = |row: &tokio_postgres::Row| Table {
        ordinary: row.get(1),
        column_type: row.get(2),
        replica_identity: row.get(3),
        spread: spread(row),
    };
    let mut tables: BTreeMap<String, Table> = rows.iter().map(|row| (row.get(0), table(row))).collect();
    for name in with_rows(session, &tables).await? {
        if let Some(table) = tables.get_mut(&name) {
            table.spread = Spread::PlainWithRows;
        }
    }
    Ok(tables)
}

/// How Citus spreads a table; one that it does not know is plain.
fn spread(row: &tokio_postgres::Row) -> Spread {
    let Some(method) = row.get::<_, Option<&str>>(4) else { return Spread::PlainEmpty };
    let colocation_id: i32 = row.get(6);
    match (method, row.get(5), row.get::<_, Option<String>>(7)) {
        ("h", _, Some(column)) => Spread::Hash { column, colocation_id },
        ("n", "t", _) => Spread::Reference,
        // Citus took a local table in, because a foreign key leads to it: it can be distributed as if plain.
        ("n", "s", _) if colocation_id == 0 => Spread::PlainEmpty,
        _ => Spread::Other,
    }
}

/// Which of the plain tables hold rows.
async fn with_rows(session: &Session, tables: &BTreeMap<String, Table>) -> Result<Vec<String>, pg::Error> {
    let questions: Vec<String> = tables
        .iter()
        .filter(|(_, table)| table.ordinary && table.spread == Spread::PlainEmpty)
        .map(|(name, _)| {
            format!("SELECT {} WHERE EXISTS (SELECT FROM public.{})", literal(name), identifier(name))
        })
        .collect();
    if questions.is_empty() {
        return Ok(Vec::new());
    }
    let rows = session.query(&questions.join(" UNION ALL "), &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
