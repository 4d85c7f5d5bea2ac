//! The servers of this crate do what the tests of the others rely on; and what the image has of its own does its part.

mod initdb;

use anyhow::Result;
use testbed::{
    certificates::Authority,
    postgres::{Server, Shutdown, citus_or_skip},
};

#[tokio::test]
async fn a_server_keeps_its_port_and_its_committed_rows_over_a_crash() -> Result<()> {
    let mut server = Server::builder("crash").parameter("max_connections", "17").start()?;
    let client = server.connect("postgres").await?;
    client.batch_execute("CREATE TABLE kept (n int); INSERT INTO kept VALUES (42)").await?;
    let port = server.port();

    server.restart(Shutdown::Immediate)?;

    assert_eq!(server.port(), port);
    let client = server.connect("postgres").await?;
    let row = client.query_one("SELECT n, current_setting('max_connections') FROM kept", &[]).await?;
    assert_eq!((row.get::<_, i32>(0), row.get::<_, &str>(1)), (42, "17"));
    Ok(())
}

#[tokio::test]
async fn a_dropped_server_is_gone() -> Result<()> {
    let server = Server::builder("dropped").start()?;
    let (pid, directory) = (server.pid().unwrap_or_default(), server.socket_directory().to_owned());
    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
    drop(server);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert!(!directory.exists());
    Ok(())
}

#[tokio::test]
async fn citus_nodes_talk_to_each_other_over_verified_tls() -> Result<()> {
    if !citus_or_skip() {
        return Ok(());
    }
    let authority = Authority::new()?;
    let nodes = ["coordinator", "worker-0", "worker-1"]
        .map(|name| Server::builder(name).citus().tls(&authority).start())
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    for node in &nodes {
        node.connect("postgres").await?.batch_execute("CREATE EXTENSION citus").await?;
    }
    let coordinator = nodes[0].connect("postgres").await?;
    coordinator
        .execute("SELECT citus_set_coordinator_host('localhost', $1)", &[&i32::from(nodes[0].port())])
        .await?;
    for worker in &nodes[1..] {
        coordinator.execute("SELECT citus_add_node('localhost', $1)", &[&i32::from(worker.port())]).await?;
    }

    let versions = coordinator
        .query(
            "SELECT result FROM run_command_on_workers(
                'SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()') WHERE success",
            &[],
        )
        .await?;

    assert_eq!(versions.iter().map(|row| row.get(0)).collect::<Vec<&str>>(), ["TLSv1.3", "TLSv1.3"]);
    Ok(())
}
