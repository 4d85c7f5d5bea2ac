//! The service's hash of ids is PostgreSQL's.

use anyhow::Result;
use dialog_api::{database::routing::hash::hash_uuid, dialogs::pair::Pair};
use testbed::postgres::{Server, citus_or_skip};
use uuid::Uuid;

const RANDOM: usize = 20_000;

/// Ids at the edges of everything that a hash reads: bits, bytes, words.
fn edges() -> Vec<Uuid> {
    let mut values = vec![0, u128::MAX, 1, u128::MAX - 1, u128::MAX / 3, u128::MAX / 3 * 2];
    for bit in 0..128 {
        values.extend([1 << bit, !(1 << bit), u128::MAX >> bit, u128::MAX << bit]);
    }
    for byte in 0..16 {
        values.extend((0..=255).map(|value: u128| value << (8 * byte)));
    }
    for word in 0..4 {
        for value in [0x7fff_ffff_u128, 0x8000_0000, 0xffff_ffff, 0x8000_0001] {
            values.extend([value << (32 * word), !(value << (32 * word))]);
        }
    }
    values.into_iter().map(Uuid::from_u128).collect()
}

#[tokio::test]
async fn every_id_hashes_as_on_the_server() -> Result<()> {
    if !citus_or_skip() {
        return Ok(());
    }
    let server = Server::builder("hash").citus().start()?;
    let sql = server.connect("postgres").await?;
    sql.batch_execute("CREATE EXTENSION citus").await?;
    let mut ids = edges();
    ids.extend((0..RANDOM).map(|_| Uuid::new_v4()));
    // The kinds of ids that there are: of users, and of dialogs.
    ids.extend((0..1000).map(|_| Uuid::now_v7()));
    ids.extend((0..1000).map(|_| Pair::new(Uuid::now_v7(), Uuid::now_v7()).dialog_id()));
    let rows = sql
        .query(
            "SELECT worker_hash(id) FROM unnest($1::uuid[]) WITH ORDINALITY AS ids(id, n) ORDER BY n",
            &[&ids],
        )
        .await?;
    assert_eq!(rows.len(), ids.len());
    for (id, row) in ids.iter().zip(&rows) {
        assert_eq!(hash_uuid(*id), row.get::<_, i32>(0), "{id}");
    }
    Ok(())
}

/// What the service does at its start against a server whose hash is another one.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hashes_differently_is_noticed() -> Result<()> {
    if !citus_or_skip() {
        return Ok(());
    }
    let cluster = crate::cluster::Cluster::new(1).await?;
    // Preferred to Citus' own, which takes a value of any type.
    let sql = cluster.coordinator.connect("dialog").await?;
    sql.batch_execute(
        "SET citus.enable_ddl_propagation = off;
         CREATE FUNCTION pg_catalog.worker_hash(id uuid) RETURNS int LANGUAGE sql IMMUTABLE STRICT
         AS 'SELECT hashtext(id::text)'",
    )
    .await?;
    let service = cluster.serving(&["--distribution", "required"]).await?;
    crate::cluster::wait_for_metric(&service, r#"routing_mode{mode="hash_mismatch"}"#, |value| value > 0.0)
        .await?;
    service.wait_for_log("hashes ids differently")?;
    let client = service.client();
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);
    assert_eq!(client.send(&ada, &bob, "through the coordinator").await?.status, 200);
    assert_eq!(client.texts(&bob, &ada).await?, ["through the coordinator"]);
    let owner = crate::cluster::metric(&service, r#"routing_statements_total{route="owner"}"#).await?;
    assert!(owner.abs() < f64::EPSILON, "{owner} statements went by a hash that is wrong");
    Ok(())
}
