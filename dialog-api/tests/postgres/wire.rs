//! The service's own client of the database, on a real server.

use std::{future::Future, time::Duration};

use anyhow::{Context as _, Result};
use dialog_api::database::wire::{
    Client, Company, Keepalive, Target,
    error::StatementError,
    rows::{Rows, Value},
};
use futures::future::join_all;
use testbed::postgres::{Access, Server};
use tokio::task::JoinHandle;

use crate::support::{create_database, database, eventually};

/// A client of these statements, and why its connection has ended.
pub(crate) struct Connected {
    pub(crate) client: Client,
    end: JoinHandle<StatementError>,
}

fn target(server: &Server) -> Target {
    Target {
        host: server.socket_directory().display().to_string(),
        port: server.port(),
        user: "dialog_api".to_owned(),
        database: "dialog".to_owned(),
        application_name: "wire".to_owned(),
        settings: "-c statement_timeout=20000".to_owned(),
        tls: None,
        address_limit: Duration::from_secs(5),
        keepalive: Keepalive { idle: Duration::from_secs(10), interval: Duration::from_secs(5), retries: 3 },
    }
}

pub(crate) async fn connect(server: &Server, statements: &[&str]) -> Result<Connected> {
    let (client, traffic) = Client::connect(&target(server), statements).await?;
    Ok(Connected { client, end: tokio::spawn(traffic) })
}

/// A parameter as it is sent.
fn value(bytes: &[u8]) -> Vec<u8> {
    [&i32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

fn number(number: i64) -> Vec<u8> {
    value(&number.to_be_bytes())
}

/// The first value of the only row.
fn only<T: for<'a> Value<'a>>(rows: &Rows) -> T {
    assert_eq!(rows.len(), 1);
    rows.first().unwrap().get(0)
}

/// The SQLSTATE with which the server refused.
fn refused(answer: Result<Rows, StatementError>) -> String {
    match answer {
        Err(StatementError::Server(error)) => error.code,
        other => panic!("not refused: {other:?}"),
    }
}

async fn all<T>(futures: impl IntoIterator<Item: Future<Output = T>>) -> Vec<T> {
    // All are asked for before the traffic is driven: on the one thread of a test it waits for its turn.
    join_all(futures).await
}

/// The statement says when its transaction began.
const BEGAN: &str = "SELECT extract(epoch FROM now())::text, $1::int8";

#[tokio::test]
async fn reads_of_one_moment_share_a_transaction_and_others_do_not() -> Result<()> {
    let server = database().await?;
    let Connected { client, .. } = connect(&server, &[BEGAN]).await?;
    for (company, transactions) in [(Company::Shared, 2), (Company::Alone, 12)] {
        let answers = all((0..12).map(|asked| {
            let values = number(asked);
            let client = &client;
            async move { client.execute(0, &values, company).await }
        }))
        .await;
        let mut began = Vec::new();
        for (asked, rows) in (0..).zip(answers) {
            let rows = rows?;
            let row = rows.first().context("a row")?;
            assert_eq!(row.get::<i64>(1), asked);
            began.push(row.get::<String>(0));
        }
        began.dedup();
        assert_eq!(began.len(), transactions, "{began:?}");
    }
    Ok(())
}

#[tokio::test]
async fn reads_that_have_waited_for_the_answers_before_them_share_a_transaction_and_writes_do_not()
-> Result<()> {
    let server = database().await?;
    let statements = [BEGAN, "SELECT FROM pg_advisory_xact_lock($1)"];
    let Connected { client, .. } = connect(&server, &statements).await?;
    let locker = server.connect("dialog").await?;
    let (lock, asked) = (number(1), number(2));
    for (last, transactions) in [(Company::Shared, 1), (Company::Alone, 2)] {
        locker.batch_execute("BEGIN; SELECT pg_advisory_xact_lock(1)").await?;
        let mut due = Box::pin(client.execute(1, &lock, Company::Shared));
        assert!(futures::poll!(&mut due).is_pending());
        let waits = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
        eventually("a statement to wait", async || {
            Ok((!locker.query(waits, &[]).await?.is_empty()).then_some(()))
        })
        .await?;
        let mut gathered = Vec::new();
        for company in [Company::Shared, Company::Shared, last] {
            let mut answer = Box::pin(client.execute(0, &asked, company));
            assert!(futures::poll!(&mut answer).is_pending());
            // Time in which it could have left.
            locker.query_one("SELECT 1", &[]).await?;
            gathered.push(answer);
        }
        locker.batch_execute("COMMIT").await?;
        due.await?;
        let mut began = Vec::new();
        for rows in join_all(gathered).await {
            began.push(only::<String>(&rows?));
        }
        began.dedup();
        assert_eq!(began.len(), transactions, "{began:?}");
    }
    Ok(())
}

#[tokio::test]
async fn an_error_costs_none_of_its_company() -> Result<()> {
    let server = database().await?;
    let Connected { client, .. } = connect(&server, &["SELECT 12 / $1::int8"]).await?;
    let divisors = [1, 0, 2, 0, 0, 3];
    let answers = all(divisors.map(|divisor| {
        let values = number(divisor);
        let client = &client;
        async move { client.execute(0, &values, Company::Shared).await }
    }))
    .await;
    for (divisor, answer) in divisors.into_iter().zip(answers) {
        if divisor == 0 {
            assert_eq!(refused(answer), "22012");
        } else {
            assert_eq!(only::<i64>(&answer?), 12 / divisor);
        }
    }
    Ok(())
}

#[tokio::test]
async fn each_write_is_a_transaction_of_its_own_and_acknowledged_when_it_is_committed() -> Result<()> {
    let server = database().await?;
    let sql = server.connect("dialog").await?;
    sql.batch_execute(
        "CREATE TABLE once (id bigint UNIQUE); CREATE TABLE late (id bigint UNIQUE DEFERRABLE INITIALLY DEFERRED);
         GRANT ALL ON once, late TO dialog_api",
    )
    .await?;
    let statements =
        ["INSERT INTO once VALUES ($1)", "INSERT INTO late VALUES ($1)", "SELECT count(*) FROM once"];
    let Connected { client, .. } = connect(&server, &statements).await?;
    for table in [0, 1] {
        let mut answers = all([1, 2, 1, 3].map(|id| {
            let values = number(id);
            let client = &client;
            async move { client.execute(table, &values, Company::Alone).await }
        }))
        .await
        .into_iter();
        for expected in [None, None, Some("23505"), None] {
            let answer = answers.next().context("an answer")?;
            match expected {
                None => assert!(answer?.is_empty()),
                Some(code) => assert_eq!(refused(answer), code),
            }
        }
    }
    // A read between writes keeps its place.
    let steps = [(2, vec![]), (0, number(4)), (2, vec![]), (0, number(5)), (2, vec![])];
    let answers = all(steps.map(|(statement, values)| {
        let company = if statement == 2 { Company::Shared } else { Company::Alone };
        let client = &client;
        async move { client.execute(statement, &values, company).await }
    }))
    .await;
    let mut counts = Vec::new();
    for rows in answers {
        counts.extend(rows?.first().map(|row| row.get::<i64>(0)));
    }
    assert_eq!(counts, [3, 4, 5]);
    for table in ["once", "late"] {
        let row = sql.query_one(&format!("SELECT array_agg(id ORDER BY id) FROM {table}"), &[]).await?;
        let expected: &[i64] = if table == "once" { &[1, 2, 3, 4, 5] } else { &[1, 2, 3] };
        assert_eq!(row.get::<_, Vec<i64>>(0), expected);
    }
    Ok(())
}

#[tokio::test]
async fn answers_that_nobody_waits_for_are_nobody_elses() -> Result<()> {
    let server = database().await?;
    let Connected { client, .. } = connect(&server, &["SELECT $1::int8 FROM pg_sleep(0.01)"]).await?;
    for company in [Company::Shared, Company::Alone] {
        let (first, second, third) = (number(1), number(2), number(3));
        let mut before = Box::pin(client.execute(0, &first, company));
        let mut kept = Box::pin(client.execute(0, &second, company));
        let mut behind = Box::pin(client.execute(0, &third, company));
        for asked in [&mut before, &mut kept, &mut behind] {
            assert!(futures::poll!(asked).is_pending());
        }
        // Before it has left; and while it is under way, or with its answer there.
        drop(before);
        assert_eq!(only::<i64>(&kept.await?), 2);
        drop(behind);
        assert_eq!(only::<i64>(&client.execute(0, &number(4), company).await?), 4);
    }
    Ok(())
}

#[tokio::test]
async fn large_answers_and_large_values_come_whole() -> Result<()> {
    let server = database().await?;
    let text = "SELECT repeat($1, 3), null::text, number FROM generate_series(1, $2::int8) number";
    let Connected { client, .. } = connect(&server, &[text, "SELECT $1::int8"]).await?;
    let large = "größer".repeat(100_000);
    let values = [value(large.as_bytes()), number(3)].concat();
    let small = number(7);
    let (first, second) =
        tokio::join!(client.execute(0, &values, Company::Shared), client.execute(1, &small, Company::Shared));
    let (first, second) = (first?, second?);
    assert_eq!(first.len(), 3);
    for (expected, row) in (1..).zip(first.iter()) {
        assert!(row.get::<&str>(0) == large.repeat(3));
        assert_eq!((row.get::<Option<&str>>(1), row.get::<i64>(2)), (None, expected));
    }
    assert_eq!(only::<i64>(&second), 7);
    Ok(())
}

#[tokio::test]
async fn when_the_server_ends_the_session_all_hear_of_it() -> Result<()> {
    let server = database().await?;
    let Connected { client, end } = connect(&server, &["SELECT pg_sleep(60)", "SELECT $1::int8"]).await?;
    let values = number(1);
    let terminate = async {
        let sql = server.connect("dialog").await?;
        let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                         WHERE application_name = 'wire' AND state = 'active'";
        eventually("a statement to end", async || {
            Ok((!sql.query(terminate, &[]).await?.is_empty()).then_some(()))
        })
        .await
    };
    let (asleep, behind, terminated) = tokio::join!(
        client.execute(0, &[], Company::Alone),
        client.execute(1, &values, Company::Alone),
        terminate,
    );
    terminated?;
    assert_eq!(refused(asleep), "57P01");
    assert!(matches!(behind, Err(StatementError::Closed)), "{behind:?}");
    end.await?;
    let late = client.execute(1, &values, Company::Alone).await;
    assert!(matches!(late, Err(StatementError::Closed)), "{late:?}");
    Ok(())
}

#[tokio::test]
async fn a_session_that_is_of_no_use_is_none() -> Result<()> {
    let server = database().await?;
    let why = async |target: Target, statement: &str| match Client::connect(&target, &[statement]).await {
        Ok(_) => panic!("a session came about"),
        Err(error) => format!("{error:#}"),
    };
    let mut read_only = target(&server);
    read_only.settings = "-c default_transaction_read_only=on".to_owned();
    assert_eq!(why(read_only, "SELECT 1").await, "the server does not allow writes");
    let error = why(target(&server), "SELECT id FROM nothing").await;
    assert!(error.contains("nothing") && error.ends_with("(SQLSTATE 42P01)"), "{error}");
    let mut nowhere = target(&server);
    nowhere.database = "nowhere".to_owned();
    let error = why(nowhere, "SELECT 1").await;
    assert_eq!(error, r#"FATAL: database "nowhere" does not exist (SQLSTATE 3D000)"#);
    Ok(())
}

#[tokio::test]
async fn a_password_is_not_made_up() -> Result<()> {
    let access = Access { rules: vec!["local all all scram-sha-256".to_owned()], identities: Vec::new() };
    let server = Server::builder("wire").access(access).start()?;
    create_database(&server).await?;
    let sql = server.connect("postgres").await?;
    sql.batch_execute("ALTER ROLE dialog_api PASSWORD 'secret'").await?;
    let error = Client::connect(&target(&server), &["SELECT 1"]).await.map(drop).unwrap_err();
    assert_eq!(error.to_string(), "the server asks for a password, and there is none");
    Ok(())
}
