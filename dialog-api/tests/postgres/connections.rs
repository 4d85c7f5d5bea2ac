//! Connections of clients that are slow, silent, many or strange.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::support::{Service, database, eventually, service::SOON};

const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n";

async fn connect(address: SocketAddr) -> Result<TcpStream> {
    Ok(TcpStream::connect(address).await?)
}

/// Everything the service says until it closes the connection.
async fn read_to_end(stream: &mut TcpStream) -> Result<String> {
    let mut answer = Vec::new();
    // A reset is as much of an end.
    let _ = timeout(SOON, stream.read_to_end(&mut answer)).await.context("the connection is not closed")?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Sends a request and reads its response on a connection that stays open.
async fn exchange(stream: &mut TcpStream) -> Result<String> {
    stream.write_all(HEALTH).await?;
    let mut answer = vec![0; 4096];
    let length = timeout(SOON, stream.read(&mut answer)).await??;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

#[tokio::test]
async fn heads_and_bodies_that_drip_are_cut_off_but_idle_connections_are_not() -> Result<()> {
    let server = database().await?;
    // Time enough for what does not drip, on a busy machine as well.
    let flags = ["--header-timeout", "2s", "--body-timeout", "2s", "--idle-timeout", "60s"];
    let service = Service::start(&server, &flags).await?;

    let mut silent = connect(service.address()).await?;
    let mut slow_head = connect(service.address()).await?;
    slow_head.write_all(b"GET /health HT").await?;
    let mut slow_body = connect(service.address()).await?;
    slow_body
        .write_all(
            b"POST /login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
              content-length: 100\r\nconnection: close\r\n\r\n{",
        )
        .await?;
    assert_eq!(read_to_end(&mut silent).await?, "");
    assert_eq!(read_to_end(&mut slow_head).await?, "");
    let answer = read_to_end(&mut slow_body).await?;
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("did not arrive in time"), "{answer}");

    let mut idle = connect(service.address()).await?;
    assert!(exchange(&mut idle).await?.starts_with("HTTP/1.1 200"));
    let quiet = timeout(Duration::from_secs(3), idle.read_u8()).await;
    assert!(quiet.is_err(), "an idle connection was closed: {quiet:?}");
    assert!(exchange(&mut idle).await?.starts_with("HTTP/1.1 200"));
    Ok(())
}

#[tokio::test]
async fn idleness_has_an_end_as_well() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &["--idle-timeout", "2s"]).await?;
    let mut idle = connect(service.address()).await?;
    assert!(exchange(&mut idle).await?.starts_with("HTTP/1.1 200"));
    assert_eq!(read_to_end(&mut idle).await?, "");
    Ok(())
}

/// A request whose body is still to come.
async fn busy(address: SocketAddr) -> Result<TcpStream> {
    let mut stream = connect(address).await?;
    stream
        .write_all(
            b"POST /login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
              content-length: 2\r\nconnection: close\r\n\r\n",
        )
        .await?;
    Ok(stream)
}

#[tokio::test]
async fn more_busy_connections_than_allowed_wait_for_their_turn() -> Result<()> {
    let server = database().await?;
    let flags = ["--max-connections", "4", "--body-timeout", "60s", "--request-timeout", "60s"];
    let service = Service::start(&server, &flags).await?;
    let mut first = Vec::new();
    for _ in 0..4 {
        first.push(busy(service.address()).await?);
    }
    let mut fifth = connect(service.address()).await?;
    fifth.write_all(HEALTH).await?;
    let waits = timeout(Duration::from_secs(2), fifth.read_u8()).await;
    assert!(waits.is_err(), "{waits:?}");
    for mut stream in first {
        stream.write_all(b"{}").await?;
        assert!(read_to_end(&mut stream).await?.starts_with("HTTP/1.1 400"));
    }
    assert_eq!(timeout(SOON, fifth.read_u8()).await??, b'H');
    Ok(())
}

#[tokio::test]
async fn idle_connections_give_way_and_busy_ones_do_not() -> Result<()> {
    let server = database().await?;
    let limits = ["--max-connections", "4", "--header-timeout", "60s", "--idle-timeout", "60s"];
    let patience = ["--body-timeout", "60s", "--request-timeout", "60s"];
    let service = Service::start(&server, &[&limits[..], &patience[..]].concat()).await?;
    let mut busy = busy(service.address()).await?;
    let mut silent = connect(service.address()).await?;
    let mut idle = Vec::new();
    for _ in 0..2 {
        let mut stream = connect(service.address()).await?;
        assert!(exchange(&mut stream).await?.starts_with("HTTP/1.1 200"));
        idle.push(stream);
    }
    // More than there are places, each of which stays idle afterwards.
    for _ in 0..4 {
        let mut stream = connect(service.address()).await?;
        assert!(exchange(&mut stream).await?.starts_with("HTTP/1.1 200"));
        idle.push(stream);
    }
    assert_eq!(read_to_end(&mut silent).await?, "");
    assert_eq!(read_to_end(&mut idle[0]).await?, "");
    busy.write_all(b"{}").await?;
    assert!(read_to_end(&mut busy).await?.starts_with("HTTP/1.1 400"), "a busy connection was ended");
    Ok(())
}

#[tokio::test]
async fn what_is_not_http_is_answered_or_closed() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &["--header-timeout", "1s"]).await?;
    let huge_head = format!("GET /health HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(100_000));
    let many_heads = format!("GET /health HTTP/1.1\r\nhost: x\r\n{}\r\n", "x: y\r\n".repeat(500));
    let cases: [&[u8]; 6] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\0\0\0\0",
        b"GET /health HTTP/1.1\r\ncontent-length: nonsense\r\n\r\n",
        huge_head.as_bytes(),
        many_heads.as_bytes(),
    ];
    for case in cases {
        let mut stream = connect(service.address()).await?;
        // The service may close before it has taken everything.
        let _ = stream.write_all(case).await;
        let answer = read_to_end(&mut stream).await?;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    assert_eq!(service.client().get("/ready").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_body_that_breaks_off_or_never_ends() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let head = "POST /login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";

    let mut broken = connect(service.address()).await?;
    broken.write_all(format!("{head}content-length: 50\r\n\r\n{{\"id\"").as_bytes()).await?;
    broken.shutdown().await?;
    let answer = read_to_end(&mut broken).await?;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");

    let mut endless = connect(service.address()).await?;
    endless.write_all(format!("{head}transfer-encoding: chunked\r\n\r\n").as_bytes()).await?;
    let chunk = [b"2000\r\n".as_slice(), &[b' '; 0x2000], b"\r\n"].concat();
    let (mut reading, mut writing) = endless.split();
    let mut answer = [0; 12];
    let writer = async { while writing.write_all(&chunk).await.is_ok() {} };
    tokio::select! {
        () = writer => {}
        read = timeout(SOON, reading.read_exact(&mut answer)) => { read??; }
    }
    assert!(
        answer == [0; 12] || answer.starts_with(b"HTTP/1.1 400"),
        "{:?}",
        String::from_utf8_lossy(&answer)
    );
    assert_eq!(service.client().get("/ready").await?.status, 200);
    Ok(())
}

/// Connections that clients hold open at a time: as many as a crowd behind a proxy has, or one attacker.
const CROWD: usize = 5_000;

/// Opens connections until there are as many as of a crowd, and says something on each.
async fn crowd(address: SocketAddr, say: &[u8]) -> Result<Vec<TcpStream>> {
    let mut streams = Vec::with_capacity(CROWD);
    for _ in 0..CROWD {
        let mut stream = connect(address).await?;
        stream.write_all(say).await?;
        streams.push(stream);
    }
    Ok(streams)
}

/// Idle, in the middle of a head, in the middle of a body: whatever a crowd of connections does, each costs little, and
/// all together no more than they may. Meanwhile others are served.
#[tokio::test]
async fn a_crowd_of_connections_takes_bounded_memory_and_keeps_nobody_out() -> Result<()> {
    let server = database().await?;
    let patience = ["--header-timeout", "60s", "--body-timeout", "60s", "--request-timeout", "60s"];
    let service = Service::start(&server, &patience).await?;
    let nearly_a_head = format!("GET /health HTTP/1.1\r\nhost: x\r\nx: {}", "y".repeat(15_000));
    let nearly_a_body = format!(
        "POST /login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 60000\r\n\r\n{}",
        " ".repeat(59_000)
    );
    let empty = service.resident_kib()?;
    for (what, say, limit) in [
        ("silent", &b""[..], 16),
        ("idle after a request", HEALTH, 32),
        ("in the middle of a head", nearly_a_head.as_bytes(), 64),
        // Only so many bodies of that size are held; the others have their answer.
        ("in the middle of a body", nearly_a_body.as_bytes(), 48),
    ] {
        let crowd = crowd(service.address(), say).await?;
        let client = service.client();
        // Who is kept out gets in when the crowd's time is over, and that is a minute.
        let others = async {
            for _ in 0..20 {
                assert_eq!(client.get("/health").await?.status, 200);
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(Duration::from_secs(30), others).await.context("they are kept out")??;
        let each = service.resident_kib()?.saturating_sub(empty) / CROWD as u64;
        println!("{CROWD} connections {what}: {each} KiB each");
        assert!(each < limit, "{each} KiB for each connection {what}");
        drop(crowd);
        eventually("the end of the crowd's connections", async || {
            let metrics = client.get("/metrics").await?.text();
            Ok(metrics.contains("dialog_api_http_connections 1\n").then_some(()))
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_body_of_ten_megabytes_is_refused_before_it_is_taken() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let before = service.resident_kib()?;
    let body = "x".repeat(10_000_000);
    for _ in 0..20 {
        let mut stream = connect(service.address()).await?;
        let head = format!(
            "POST /login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        let (mut reading, mut writing) = stream.split();
        // The service need not take what it does not want.
        let write = async { writing.write_all(body.as_bytes()).await.is_ok() };
        let mut answer = vec![0; 4096];
        let read = async { timeout(SOON, reading.read(&mut answer)).await.context("no answer") };
        let (_, read) = futures::future::join(write, read).await;
        // A reset may overtake the answer.
        let length = read?.unwrap_or_default();
        let answer = String::from_utf8_lossy(&answer[..length]);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    let grown = service.resident_kib()?.saturating_sub(before);
    assert!(grown < 8 * 1024, "{grown} KiB more after bodies that were refused");
    assert_eq!(service.client().get("/ready").await?.status, 200);
    Ok(())
}
