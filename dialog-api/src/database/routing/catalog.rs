//! What Citus' catalogs on the coordinator say about shards, read over a connection of its own.

use std::{collections::HashMap, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use tokio::{sync::Notify, time::timeout};
use tokio_postgres::{Client, Row};
use uuid::Uuid;

use super::{
    hash::hash_uuid,
    map::{Group, Range, ShardMap},
};
use crate::database::{
    Parameters,
    connect::{Connector, Purpose, Traffic},
    tables::Table,
};

/// Longest wait for an answer, somewhat longer than the server gives itself.
const ANSWER_LIMIT: Duration = Duration::from_secs(12);
/// Random ids by which the two hash functions are compared at each start, besides those at the edges of words.
const SAMPLE: usize = 32;
/// Ids at the edges of the words that a hash reads.
const EDGES: [u128; 8] = [
    0,
    u128::MAX,
    1,
    1 << 127,
    0x7fff_ffff_8000_0000_7fff_ffff_8000_0000,
    0x8000_0000_7fff_ffff_8000_0000_7fff_ffff,
    0x0000_0000_ffff_ffff_0000_0000_ffff_ffff,
    0x0123_4567_89ab_cdef_fedc_ba98_7654_3210,
];

/// Every shard of the service's tables, one row for all tables that lie together, and where it is. A table
/// that is distributed by another column than the statements know is not among them.
const SHARDS: &str = "
    SELECT groups.tables, groups.colocationid, shards.shardminvalue::int, shards.shardmaxvalue::int,
           nodes.nodename, nodes.nodeport, placements.groupid = 0,
           coalesce(nodes.isactive AND nodes.hasmetadata AND nodes.metadatasynced, false)
    FROM (SELECT partitions.colocationid, array_agg(keys.name::text ORDER BY keys.name) AS tables,
                 min(partitions.logicalrelid::oid) AS representative
          FROM unnest($1::text[], $2::text[]) AS keys(name, key)
          JOIN pg_dist_partition AS partitions ON partitions.logicalrelid = to_regclass('public.' || keys.name)
          WHERE partitions.partmethod = 'h'
            AND column_to_column_name(partitions.logicalrelid, partitions.partkey) = keys.key
          GROUP BY partitions.colocationid) AS groups
    JOIN pg_dist_shard AS shards ON shards.logicalrelid = groups.representative
    JOIN pg_dist_placement AS placements ON placements.shardid = shards.shardid AND placements.shardstate = 1
    LEFT JOIN pg_dist_node AS nodes ON nodes.groupid = placements.groupid AND nodes.noderole = 'primary'
    ORDER BY groups.colocationid, shards.shardid, placements.placementid";

/// Differs whenever a shard was cut, was moved, came or went, or a node changed. Both catalogs are read whole, but
/// they are small: 300 placements take 0.2 ms, 10,000 take 4 ms.
const VERSION: &str = "
    SELECT (SELECT count(*) FROM pg_dist_placement),
           (SELECT coalesce(bit_xor(hashint8extended(placementid, groupid)), 0) FROM pg_dist_placement),
           (SELECT coalesce(bit_xor(hashtextextended(nodes::text, 0)), 0) FROM pg_dist_node AS nodes)";

/// By this channel the operator says on the coordinator that it has changed where shards are, or the nodes.
pub(super) const CHANNEL: &str = "dialog_map";

/// Tells two states of the catalogs apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Version(i64, i64, i64);

/// A node that holds shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Host and port as Citus has them; `None` for the coordinator, which is known already.
    pub(super) address: Option<(String, u16)>,
    /// Whether it can plan statements itself: its own copy of the catalogs is current.
    pub(super) plans: bool,
}

/// Where all shards are. Nowhere, by default.
#[derive(Debug, Default)]
pub(super) struct Layout {
    /// Nodes, by the numbers in the map.
    pub(super) places: Vec<Place>,
    /// Where each hash is.
    pub(super) map: ShardMap<usize>,
}

/// A session on the coordinator.
pub(super) struct Catalog {
    client: Client,
    /// Somebody has said that the catalogs have changed.
    notice: Arc<Notify>,
}

impl Catalog {
    /// Connects. The traffic has to be driven for the session to work.
    pub(super) async fn connect(connector: &Connector) -> Result<(Self, Traffic)> {
        let notice = Arc::new(Notify::new());
        let told = Arc::clone(&notice);
        let hear = Box::new(move |_: &_| told.notify_one());
        let (client, traffic) = connector.connect_and_hear(Purpose::Routing, hear).await?;
        Ok((Self { client, notice }, traffic))
    }

    /// Has the server tell this session of changes from now on.
    pub(super) async fn listen(&self) -> Result<()> {
        // Quoted by nobody: the name is an identifier as it is.
        self.rows("listen to changes of the map", &format!("LISTEN {CHANNEL}"), &[]).await.map(drop)
    }

    /// Waits until somebody says that the catalogs have changed, or has said so since this was last awaited.
    pub(super) async fn noticed(&self) {
        self.notice.notified().await;
    }

    /// Whether this is a Citus at all.
    pub(super) async fn is_citus(&self) -> Result<bool> {
        let extension = "SELECT FROM pg_extension WHERE extname = 'citus'";
        Ok(!self.rows("look for the citus extension", extension, &[]).await?.is_empty())
    }

    /// The present version of the catalogs.
    pub(super) async fn version(&self) -> Result<Version> {
        let row = self.row("read the version of the catalogs", VERSION, &[]).await?;
        Ok(Version(row.get(0), row.get(1), row.get(2)))
    }

    /// Reads where all shards are.
    pub(super) async fn layout(&self) -> Result<Layout> {
        let keys = Table::ALL.map(Table::key);
        let parameters: Parameters<'_> = &[&Table::NAMES.as_slice(), &keys.as_slice()];
        layout(&self.rows("read where the shards are", SHARDS, parameters).await?)
    }

    /// Compares our hash function with the server's on random ids and on some at the edges; the sentence says how they differ.
    pub(super) async fn hashes_differ(&self) -> Result<Option<String>> {
        let random = (0..SAMPLE).map(|_| rand::random());
        let ids: Vec<Uuid> = EDGES.into_iter().chain(random).map(Uuid::from_u128).collect();
        let question = "SELECT id, worker_hash(id) FROM unnest($1::uuid[]) AS id";
        let rows = self.rows("compare hashes", question, &[&ids]).await?;
        if rows.len() != ids.len() {
            bail!("the server hashed {} of {} ids", rows.len(), ids.len());
        }
        Ok(rows.iter().find_map(|row| {
            let (id, theirs): (Uuid, i32) = (row.get(0), row.get(1));
            let ours = hash_uuid(id);
            (ours != theirs).then(|| format!("the hash of {id} is {theirs} there and {ours} here"))
        }))
    }

    /// Whether the coordinator can connect to this node.
    pub(super) async fn reaches(&self, host: &str, port: u16) -> Result<bool> {
        let (question, port) = ("SELECT citus_check_connection_to_node($1, $2)", i32::from(port));
        Ok(self.row("ask the coordinator for a connection", question, &[&host, &port]).await?.get(0))
    }

    async fn row(&self, what: &'static str, sql: &str, parameters: Parameters<'_>) -> Result<Row> {
        self.rows(what, sql, parameters).await?.pop().context("no row").context(what)
    }

    async fn rows(&self, what: &'static str, sql: &str, parameters: Parameters<'_>) -> Result<Vec<Row>> {
        let answer = timeout(ANSWER_LIMIT, self.client.query(sql, parameters)).await;
        answer.context("no answer in time").and_then(|rows| Ok(rows?)).context(what)
    }
}

fn layout(rows: &[Row]) -> Result<Layout> {
    let mut places: Vec<Place> = Vec::new();
    let mut map = ShardMap::default();
    let mut groups: Vec<(Vec<Table>, Vec<Range<usize>>)> = Vec::new();
    let mut numbers = HashMap::<i32, usize>::new();
    for row in rows {
        let (tables, colocation): (Vec<String>, i32) = (row.get(0), row.get(1));
        let group = *numbers.entry(colocation).or_insert_with(|| {
            groups.push((tables.iter().filter_map(|name| Table::named(name)).collect(), Vec::new()));
            groups.len() - 1
        });
        // Of a shard on no node nobody is known to hold it: a gap.
        let Some(place) = place(row)? else { continue };
        let node = places.iter().position(|known| *known == place).unwrap_or_else(|| {
            places.push(place);
            places.len() - 1
        });
        groups[group].1.push(Range { first: row.get(2), last: row.get(3), node });
    }
    for (tables, ranges) in groups {
        map.insert(&tables, Group::new(ranges).context("the ranges of shards in pg_dist_shard")?);
    }
    Ok(Layout { places, map })
}

fn place(row: &Row) -> Result<Option<Place>> {
    let (name, port): (Option<String>, Option<i32>) = (row.get(4), row.get(5));
    let (is_coordinator, plans) = (row.get(6), row.get(7));
    Ok(match (name, port) {
        _ if is_coordinator => Some(Place { address: None, plans: true }),
        (Some(name), Some(port)) => {
            let port = u16::try_from(port).with_context(|| format!("the port of {name} in pg_dist_node"))?;
            Some(Place { address: Some((name, port)), plans })
        }
        _ => None,
    })
}
