//! Streams of messages: whichever replica they are on, whatever breaks, each message once.

use std::{
    collections::BTreeSet,
    net::UdpSocket,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use dialog_api::{database::statements::Sql, dialogs::pair::Pair};
use http::Method;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use uuid::Uuid;

use crate::support::{Service, User, database, eventually, service::SOON};

/// Nobody polls within a test: what arrives was told.
const NEVER: [&str; 2] = ["--stream-poll", "1h"];

#[tokio::test]
async fn a_stream_has_what_is_sent_from_now_on_and_what_is_changed() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &NEVER).await?;
    let client = service.client();
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);
    client.send(&ada, &bob, "before").await?;
    let (mut bobs, mut adas) =
        (client.stream(&bob, &ada, None).await?, client.stream(&ada, &bob, None).await?);
    client.send(&ada, &bob, "one").await?;
    client.send(&bob, &ada, "two").await?;
    for stream in [&mut bobs, &mut adas] {
        assert_eq!(stream.text().await?, "one");
        let second = stream.next().await?.context("second")?;
        assert_eq!(second.data, client.list(&ada, &bob).await?.json()?[0]);
    }
    let id = client.list(&ada, &bob).await?.json()?[1]["id"].as_str().context("id")?.to_owned();
    let path = format!("/dialog/{}/messages/{id}", bob.id);
    client.call_as(&ada, Method::PATCH, &path, Some(&json!({"text": "changed"}))).await?;
    let changed = bobs.next().await?.context("changed")?.data;
    assert_eq!((&changed["id"], &changed["text"]), (&json!(id), &json!("changed")));
    client.call_as(&ada, Method::DELETE, &path, None).await?;
    assert!(bobs.next().await?.context("deleted")?.data["deleted_at"].is_string());
    Ok(())
}

/// Two ports that are free now.
fn free_ports() -> Result<[u16; 2]> {
    let sockets = [UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?];
    Ok([sockets[0].local_addr()?.port(), sockets[1].local_addr()?.port()])
}

#[tokio::test]
async fn a_replica_is_told_what_was_sent_through_another() -> Result<()> {
    let server = database().await?;
    let [one, other] = free_ports()?.map(|port| format!("127.0.0.1:{port}"));
    let both = format!("{one},localhost:{}", other.rsplit(':').next().context("port")?);
    let start = async |listen: &str| {
        Service::start(&server, &[&NEVER[..], &["--peers", &both, "--peer-listen", listen]].concat()).await
    };
    let (one, other) = (start(&one).await?, start(&other).await?);
    let (ada, bob) = (one.client().user("Ada").await?, one.client().user("Bob").await?);
    let mut stream = other.client().stream(&bob, &ada, None).await?;
    for number in 0..20 {
        one.client().send(&ada, &bob, &number.to_string()).await?;
        let text = timeout(SOON, stream.text()).await.context("the other replica was not told")??;
        assert_eq!(text, number.to_string());
    }
    Ok(())
}

#[tokio::test]
async fn without_a_word_between_replicas_a_stream_finds_out_by_itself() -> Result<()> {
    let server = database().await?;
    let one = Service::start(&server, &[]).await?;
    let other = Service::start(&server, &["--stream-poll", "100ms"]).await?;
    let (ada, bob) = (one.client().user("Ada").await?, one.client().user("Bob").await?);
    let mut stream = other.client().stream(&bob, &ada, None).await?;
    for number in 0..250 {
        one.client().send(&ada, &bob, &number.to_string()).await?;
    }
    for number in 0..250 {
        assert_eq!(stream.text().await?, number.to_string());
    }
    Ok(())
}

/// As a slow transaction or a late clock would write it.
async fn insert_at(
    sql: &tokio_postgres::Client,
    from: &User,
    to: &User,
    ago: Duration,
    text: &str,
) -> Result<()> {
    let (from, to): (Uuid, Uuid) = (from.id.parse()?, to.id.parse()?);
    let now = jiff::Timestamp::now();
    let then = u64::try_from(now.as_millisecond())? - u64::try_from(ago.as_millis())?;
    let timestamp =
        uuid::Timestamp::from_unix(uuid::NoContext, then / 1000, u32::try_from(then % 1000)? * 1_000_000);
    let dialog = Pair::new(from, to).dialog_id();
    sql.execute(Sql::InsertMessage.text(), &[&dialog, &Uuid::new_v7(timestamp), &from, &to, &text, &now])
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_message_that_was_written_late_is_not_skipped_and_none_comes_twice() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &["--stream-poll", "100ms"]).await?;
    let client = service.client();
    let sql = server.connect("dialog").await?;
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);
    client.send(&ada, &bob, "known").await?;
    let mut stream = client.stream(&bob, &ada, None).await?;
    client.send(&ada, &bob, "first").await?;
    assert_eq!(stream.text().await?, "first");
    insert_at(&sql, &ada, &bob, Duration::from_secs(3), "late").await?;
    let late = stream.next().await?.context("late")?;
    assert_eq!(late.data["text"], "late");
    drop(stream);

    // Nothing came late while nobody listened: nothing is repeated.
    let mut stream = client.stream(&bob, &ada, Some(&late.id)).await?;
    client.send(&ada, &bob, "second").await?;
    let second = stream.next().await?.context("second")?;
    assert_eq!(second.data["text"], "second");
    drop(stream);

    // Something did: it is delivered, and what was close to it again.
    insert_at(&sql, &ada, &bob, Duration::from_secs(4), "late again").await?;
    client.send(&ada, &bob, "third").await?;
    let mut stream = client.stream(&bob, &ada, Some(&second.id)).await?;
    let mut seen = BTreeSet::new();
    while seen.insert(stream.text().await?) && !seen.contains("third") {}
    let expected = ["known", "first", "late", "late again", "third"].map(str::to_owned);
    assert_eq!(seen, BTreeSet::from(expected), "all of the window but the message the client named");
    Ok(())
}

#[tokio::test]
async fn a_client_that_comes_back_goes_on_where_it_was_at_any_replica() -> Result<()> {
    let server = database().await?;
    let (one, other) = (Service::start(&server, &NEVER).await?, Service::start(&server, &NEVER).await?);
    let client = one.client();
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);
    let mut stream = client.stream(&bob, &ada, None).await?;
    client.send(&ada, &bob, "seen").await?;
    let seen = stream.next().await?.context("seen")?;
    drop((stream, one));
    for number in 0..230 {
        other.client().send(&ada, &bob, &number.to_string()).await?;
    }
    let mut stream = other.client().stream(&bob, &ada, Some(&seen.id)).await?;
    for number in 0..230 {
        assert_eq!(stream.text().await?, number.to_string());
    }
    for nonsense in ["x", "", "1.2.3", &Uuid::max().to_string(), "\u{e9}"] {
        let path = format!("/dialog/{}/stream", ada.id);
        let authorization = format!("Bearer {}", bob.token);
        let headers = [("authorization", authorization.as_str()), ("last-event-id", nonsense)];
        other.client().send_raw(Method::GET, &path, &headers, "").await?.assert_error(400);
    }
    other.client().get_as(&bob, &format!("/dialog/{}/stream", Uuid::now_v7())).await?.assert_error(400);
    other.client().get(&format!("/dialog/{}/stream", ada.id)).await?.assert_error(401);
    Ok(())
}

#[tokio::test]
async fn streams_end_with_the_process_and_have_a_limit() -> Result<()> {
    let server = database().await?;
    let mut service = Service::start(&server, &["--max-streams", "1"]).await?;
    let client = service.client();
    let ada = client.user("Ada").await?;
    let mut stream = client.stream(&ada, &ada, None).await?;
    client.get_as(&ada, &format!("/dialog/{}/stream", ada.id)).await?.assert_error(503);
    let started = Instant::now();
    service.signal("TERM")?;
    assert!(stream.next().await?.is_none(), "an end, and no error");
    assert!(service.wait().await?.success(), "{}", service.log_text());
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_stream_ends_with_its_token_and_when_its_user_is_erased() -> Result<()> {
    let server = database().await?;
    let flags = ["--token-lifetime", "5s", "--stream-poll", "100ms"];
    let service = Service::start(&server, &flags).await?;
    let client = service.client();
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);
    let mut stream = client.stream(&bob, &ada, None).await?;
    client.send(&ada, &bob, "while it is good").await?;
    assert_eq!(stream.text().await?, "while it is good");
    assert!(timeout(SOON, stream.next()).await??.is_none(), "the token has ended");
    client.list(&bob, &ada).await?.assert_error(401);

    let (eve, dan) = (client.user("Eve").await?, client.user("Dan").await?);
    let mut stream = client.stream(&eve, &dan, None).await?;
    let password = json!({"password": eve.password});
    assert_eq!(client.post_as(&eve, "/user/erase", &password).await?.status, 202);
    assert!(timeout(SOON, stream.next()).await??.is_none(), "the user does not exist any more");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_open_streams_cost_little_memory() -> Result<()> {
    const STREAMS: usize = 2_000;
    let server = database().await?;
    let service =
        Service::start(&server, &[&NEVER[..], &["--user-streams", &STREAMS.to_string()]].concat()).await?;
    let client = service.client();
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);
    let request = format!(
        "GET /dialog/{}/stream HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n",
        ada.id, bob.token
    );
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        let mut stream = TcpStream::connect(service.address()).await?;
        stream.write_all(request.as_bytes()).await?;
        streams.push(stream);
    }
    let mut buffer = [0; 1024];
    for stream in &mut streams {
        let length = timeout(SOON, stream.read(&mut buffer)).await??;
        assert!(buffer[..length].starts_with(b"HTTP/1.1 200"));
    }
    assert!(client.get("/metrics").await?.text().contains(&format!("dialog_api_streams_open {STREAMS}")));
    client.send(&ada, &bob, "to all of you").await?;
    for stream in &mut streams {
        let mut text = String::new();
        while !text.contains("to all of you") {
            let length = timeout(SOON, stream.read(&mut buffer)).await??;
            text.push_str(std::str::from_utf8(&buffer[..length])?);
        }
    }
    let resident = service.resident_kib()?;
    assert!(resident < 100 * 1024, "{resident} KiB with {STREAMS} streams");
    drop(streams);
    eventually("the end of the streams of clients that are gone", async || {
        Ok(client.get("/metrics").await?.text().contains("dialog_api_streams_open 0").then_some(()))
    })
    .await
}
