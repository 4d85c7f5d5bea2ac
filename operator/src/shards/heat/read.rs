//! Reads what one server has counted. Nothing here changes anything.

use std::collections::BTreeMap;

use jiff::Timestamp;
use tokio_postgres::types::Type;

use crate::heat::{Counters, Tenant};
use crate::names::Group;
use crate::pg::{self, Session};
use crate::shards::sessions::{Door, Sessions};

/// Citus cuts keys after 99 bytes: what is as long may be a part of something else.
pub(super) const LONGEST_KEY: i32 = 98;

/// What a server has counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    /// When it was read, by the server's clock.
    pub(super) at: Timestamp,
    /// When the server was started: figures of another one are no earlier figures of this one.
    pub(super) started: Timestamp,
    /// When its statistics were made to begin anew last, if ever.
    pub(super) reset: Option<Timestamp>,
    /// What it did since its statistics began: transactions, rows written, and CPU time where that is known.
    pub(super) counters: Counters,
    /// CPU time that it may spend, in thousandths of a core; `None` if its operating system does not say, nor what it did
    /// spend.
    pub(super) cpu: Option<u64>,
    /// What its tenants did in the last whole period.
    pub(super) tenants: Vec<Usage>,
    /// What was missed of a tenant, each time that it was not on the list, is no more than this many queries in the last
    /// whole period; 0 if nothing was.
    pub(super) unlisted: u64,
    /// How many tenants Citus shows.
    pub(super) limit: u64,
    /// Pages that were accessed for each shard group, by the lowest id among its shards, since the statistics began: for
    /// its tables and their indexes, in memory or not. `None` if nobody asked, or it could not be told.
    pub(super) accesses: Option<BTreeMap<i64, u64>>,
    /// How many statements have used each shard group of a single hash at most, by the lowest id among its shards, since the
    /// statistics began: scans of its tables and their indexes, and rows inserted. `None` if it could not be told.
    pub(super) uses: Option<BTreeMap<i64, u64>>,
}

/// What a tenant did in the last whole period.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) tenant: Tenant,
    /// The value of its distribution column.
    pub(super) key: String,
    /// Queries, those of them that write, and CPU time.
    pub(super) counted: Counters,
}

/// Asks `group`'s server; what was done for each shard group only `by_shard`.
pub(super) async fn read(sessions: &Sessions, group: Group, by_shard: bool) -> Result<Reading, pg::Error> {
    let session = sessions.session(group, Door::Dialog).await?;
    let (tenants, scores) = tenants(&session).await?;
    // A server whose operating system tells nothing is watched by its queries and writes.
    let (spent, cpu) = cpu(&session).await.ok().unzip();
    let row = session
        .query_one(
            "SELECT clock_timestamp(), pg_postmaster_start_time(), xact_commit + xact_rollback,
                    tup_inserted + tup_updated + tup_deleted, current_setting('citus.stat_tenants_limit')::int8,
                    current_setting('citus.stat_tenants_untracked_sample_rate')::float8 < 1, stats_reset
             FROM pg_stat_database WHERE datname = current_database()",
            &[],
        )
        .await?;
    let counters =
        Counters { queries: number(row.get(2)), writes: number(row.get(3)), cpu: spent.unwrap_or(0) };
    let accesses = if by_shard { each(&session, ACCESSES, "true").await.ok() } else { None };
    // A server that does not count them says nothing.
    let own = "shardminvalue = shardmaxvalue AND current_setting('track_counts')::bool";
    let uses = each(&session, USES, own).await.ok();
    let limit = number(row.get(4));
    // Whoever is not on the list may be left out however much it does.
    let unlisted = if row.get(5) { u64::MAX } else { unlisted(limit, scores) };
    Ok(Reading {
        at: row.get(0),
        started: row.get(1),
        reset: row.get(6),
        counters,
        cpu,
        tenants,
        unlisted,
        limit,
        accesses,
        uses,
    })
}

/// Pages of a shard, or of an index of it, that were accessed.
const ACCESSES: &str = "pg_stat_get_blocks_fetched($)";
/// Scans of a shard, or of an index of it, and rows inserted: no query of a messenger uses it without one of these (a sample of a
/// table, rows by their place and TRUNCATE do). They are counted when their transaction ends.
const USES: &str = "pg_stat_get_numscans($) + pg_stat_get_tuples_inserted($)";

/// The sum of what `counts` for each of its shards and their indexes, for each shard group that is placed here and is `of` that
/// kind.
async fn each(session: &Session, counts: &str, of: &str) -> Result<BTreeMap<i64, u64>, pg::Error> {
    let (of_shard, of_index) = (counts.replace('$', "shard"), counts.replace('$', "indexrelid"));
    // shard_name() leaves the schema `public` out, and this session would not look there.
    let statement = format!(
        "SELECT min(shardid), coalesce(sum({of_shard} + (
                    SELECT coalesce(sum({of_index}), 0) FROM pg_index WHERE indrelid = shard)), 0)::int8
         FROM (SELECT colocationid, shardminvalue, shardid, to_regclass(
                          CASE relnamespace WHEN 'public'::regnamespace THEN 'public.' ELSE '' END
                          || shard_name(logicalrelid, shardid))::oid AS shard
               FROM pg_dist_placement JOIN pg_dist_shard USING (shardid) JOIN pg_dist_partition USING (logicalrelid)
               JOIN pg_class ON pg_class.oid = logicalrelid
               WHERE partmethod = 'h' AND groupid = (SELECT groupid FROM pg_dist_local_group) AND {of}) AS shards
         GROUP BY colocationid, shardminvalue HAVING bool_and(shard IS NOT NULL)"
    );
    let rows = session.query(&statement, &[]).await?;
    Ok(rows.iter().map(|row| (row.get(0), number(row.get(1)))).collect())
}

/// Nothing that is counted is less than nothing.
fn number(counted: i64) -> u64 {
    u64::try_from(counted).unwrap_or(0)
}

/// CPU time that the server's processes have spent, those that have ended included, in microseconds; and how much it may
/// spend, in thousandths of a core.
async fn cpu(session: &Session) -> Result<(u64, u64), pg::Error> {
    let row = session
        .query_one(
            // After the name in brackets: the state is the first field; 12 to 15 are user and system time, own and of
            // children that have ended, in hundredths of a second.
            "WITH processes AS (
                 SELECT pid FROM pg_stat_activity
                 UNION SELECT split_part(pg_read_file('postmaster.pid', 0, 64), chr(10), 1)::int),
             stats AS (
                 SELECT string_to_array(
                            regexp_replace(pg_read_file('/proc/' || pid || '/stat', 0, 4096, true), '^.*[)] ', ''), ' ') AS f
                 FROM processes)
             SELECT coalesce(sum(f[12]::int8 + f[13]::int8 + f[14]::int8 + f[15]::int8), 0)::int8 * 10000,
                    (SELECT count(*) FROM regexp_matches(pg_read_file('/proc/stat', 0, 1000000), '^cpu[0-9]', 'gn')),
                    pg_read_file('/sys/fs/cgroup/cpu.max', 0, 100, true)
             FROM stats",
            &[],
        )
        .await?;
    let cores = number(row.get(1)).saturating_mul(1000);
    let limit = row.get::<_, Option<String>>(2).and_then(|line| cgroup_limit(&line));
    Ok((number(row.get(0)), limit.map_or(cores, |limit| limit.min(cores))))
}

/// Thousandths of a core that a control group may spend: `50000 100000` are 500, `max 100000` is no limit.
fn cgroup_limit(line: &str) -> Option<u64> {
    let mut words = line.split_whitespace().map(|word| word.parse::<u64>().ok());
    let (quota, period) = (words.next()??, words.next()??);
    quota.checked_mul(1000)?.checked_div(period)
}

/// Citus lists three times as many tenants as it shows. When there is no place for one more, it keeps twice as many, those
/// with the highest scores.
const KEPT: usize = 2;
/// What a query adds to the score of its tenant, which is halved as a period begins.
const SCORE_OF_QUERY: u64 = 1_000_000_000;

/// How many queries a tenant may have made in the last whole period before it lost its place among those with these
/// `scores`, of which Citus shows `limit`; 0 if nobody has.
///
/// Whoever did had a score no higher than the lowest of those that were kept then. Each of these has at least half of it
/// now, as one period has begun since, and those that came later can only be more.
fn unlisted(limit: u64, mut scores: Vec<u64>) -> u64 {
    scores.sort_unstable_by(|a, b| b.cmp(a));
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let lowest = limit.checked_mul(KEPT).and_then(|kept| scores.get(kept.checked_sub(1)?));
    lowest.map_or(0, |lowest| lowest.saturating_mul(2).div_ceil(SCORE_OF_QUERY).max(1))
}

/// How many queries of one tenant a server may have left out in a period in which it did so many `statements`, at most
/// `unlisted` of them at a time.
///
/// A tenant that has lost its place and comes back is counted from 0. Each time that places are lost, as many tenants as
/// Citus shows were new on the list, with a statement each.
pub(super) fn left_out(unlisted: u64, limit: u64, statements: u64) -> u64 {
    // It may have been listed as the period began, and have lost its place after the end.
    let times = statements.checked_div(limit).unwrap_or(statements).saturating_add(2);
    unlisted.saturating_mul(times).min(statements)
}

/// The tenants with queries in the last whole period, and the scores of all that are listed.
async fn tenants(session: &Session) -> Result<(Vec<Usage>, Vec<u64>), pg::Error> {
    let rows = session
        .query(
            "SELECT colocation_id, tenant_attribute, query_count_in_last_period::int8,
                    greatest(query_count_in_last_period - read_count_in_last_period, 0)::int8,
                    (cpu_usage_in_last_period * 1000000)::int8, format_type(distributioncolumntype, -1),
                    score, coalesce(distributioncolumntype <> 0 AND octet_length(tenant_attribute) <= $1, false)
             FROM citus_stat_tenants_local(true) LEFT JOIN pg_dist_colocation ON colocationid = colocation_id",
            &[(&LONGEST_KEY, Type::INT4)],
        )
        .await?;
    let scores = rows.iter().map(|row| number(row.get(6))).collect();
    let mut by_type: BTreeMap<String, Vec<String>> = BTreeMap::new();
    // Of others it takes places.
    let busy = || rows.iter().filter(|row| row.get(7) && row.get::<_, i64>(2) > 0);
    for row in busy() {
        by_type.entry(row.get(5)).or_default().push(row.get(1));
    }
    let mut hashes: BTreeMap<(String, String), i32> = BTreeMap::new();
    for (name, keys) in by_type {
        // The name of a type as the server writes it where none of its lengths is meant: `character` alone would cut the key.
        let statement = format!("SELECT key, worker_hash(key::{name}) FROM unnest($1) AS key");
        for row in session.query(&statement, &[(&keys, Type::TEXT_ARRAY)]).await? {
            hashes.insert((name.clone(), row.get(0)), row.get(1));
        }
    }
    let counted = |row: &tokio_postgres::Row| {
        let key: String = row.get(1);
        let hash = *hashes.get(&(row.get(5), key.clone()))?;
        let tenant = Tenant { colocation_id: row.get(0), hash };
        let counted =
            Counters { queries: number(row.get(2)), writes: number(row.get(3)), cpu: number(row.get(4)) };
        Some(Usage { tenant, key, counted })
    };
    Ok((busy().filter_map(counted).collect(), scores))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_missing_from_a_list_did_no_more_than_those_who_were_kept() {
        let scores = |queries: &[u64]| queries.iter().map(|count| count * SCORE_OF_QUERY).collect::<Vec<_>>();
        // There is place for thirty: until then nobody has lost theirs.
        assert_eq!(unlisted(10, scores(&[900; 19])), 0);
        // Those with few queries came after the others were dropped.
        let late: Vec<u64> = [[900; 19].as_slice(), &[70], &[1; 8]].concat();
        assert_eq!(unlisted(10, scores(&late)), 140);
        // Halves are not lost, and somebody may be missing however little is done.
        assert_eq!(unlisted(1, vec![SCORE_OF_QUERY, SCORE_OF_QUERY / 4]), 1);
        assert_eq!(unlisted(1, vec![0, 0]), 1);
        assert_eq!(unlisted(0, vec![7]), 0);
    }

    #[test]
    fn whoever_loses_its_place_again_and_again_is_left_out_each_time() {
        assert_eq!(left_out(0, 10, 6_400), 0, "nobody has lost their place");
        // Where newcomers take a place each, one may have come back all the time.
        assert_eq!(left_out(80, 10, 6_400), 6_400);
        // At rest there is nobody who would take a place.
        assert_eq!(left_out(2, 10, 35), 2 * 5);
        assert_eq!(left_out(80, 10, 0), 0);
        // Of a sample nobody knows whom it left out, but how many there were.
        assert_eq!(left_out(u64::MAX, 10, 70), 70);
        assert_eq!(left_out(3, 0, u64::MAX), u64::MAX);
    }

    #[test]
    fn a_limit_is_read_as_the_kernel_writes_it() {
        for (line, limit) in [
            ("30000 100000\n", Some(300)),
            ("250000 100000\n", Some(2500)),
            ("max 100000\n", None),
            ("5 0\n", None),
            ("", None),
        ] {
            assert_eq!(cgroup_limit(line), limit, "{line:?}");
        }
    }
}
