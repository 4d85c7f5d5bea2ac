//! Whatever a client sends: a status of the specification and a JSON body, never a 500.

use anyhow::Result;
use axum::body::Bytes;
use http::Method;
use serde_json::{Value, json};

use crate::support::{Client, Service, User, database};

const JSON: (&str, &str) = ("content-type", "application/json");

async fn assert_alive(client: &Client) -> Result<()> {
    assert_eq!(client.get("/ready").await?.status, 200);
    assert!(client.get("/metrics").await?.text().contains("dialog_api_panics_total 0"));
    Ok(())
}

/// Every operation that takes a body, and whether it can do without.
fn operations(ada: &User) -> [(Method, String, bool); 6] {
    let dialog = format!("/dialog/{}", ada.id);
    [
        (Method::POST, "/user/register".to_owned(), false),
        (Method::POST, "/login".to_owned(), false),
        (Method::POST, "/user/erase".to_owned(), false),
        (Method::POST, format!("{dialog}/send"), false),
        (Method::PATCH, format!("{dialog}/messages/{}", uuid::Uuid::nil()), false),
        (Method::POST, format!("{dialog}/read"), true),
    ]
}

/// All fields of all bodies, each with this value.
fn fields(value: &str) -> String {
    let names =
        ["first_name", "second_name", "birthdate", "id", "password", "text", "client_msg_id", "message_id"];
    names.map(|name| format!("\"{name}\": {value}")).join(", ")
}

#[tokio::test]
async fn bodies_that_are_not_what_they_should_be() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let client = service.client();
    let ada = client.user("Ada").await?;
    let authorization = format!("Bearer {}", ada.token);
    let id = format!("\"{}\"", ada.id);
    let twice = format!("{{{}, {}}}", fields(&id), fields(&id));
    let mut not_utf8 = format!("{{{}", fields("\"")).into_bytes();
    not_utf8.extend(b"\xff\xfe\"}");
    let mut bodies: Vec<Vec<u8>> = [
        "",
        "{",
        "{\"text\": \"tru",
        "null",
        "[]",
        "7",
        "\"text\"",
        "{} {}",
        "\u{feff}{}",
        &"[".repeat(60_000),
        &"{\"text\":".repeat(6_000),
        &format!("{{{}}}", fields("7")),
        &format!("{{{}}}", fields("[\"a\"]")),
        &format!("{{{}}}", fields("{\"text\": \"a\"}")),
        &format!("{{{}}}", fields("\"\\ud800\"")),
        &format!("{{{}}} trailing", fields(&id)),
        &twice,
    ]
    .map(|body| body.as_bytes().to_vec())
    .into();
    bodies.push(not_utf8);
    // The values of the fields in their order, and no names.
    for count in 1..=6 {
        bodies.push(format!("[{}]", vec![id.as_str(); count].join(", ")).into_bytes());
    }
    bodies.push(b"[\"text\", null]".to_vec());
    for (method, path, optional) in operations(&ada) {
        let send = async |kind: &str, body: Vec<u8>| {
            let headers = [("content-type", kind), ("authorization", authorization.as_str())];
            client.send_raw(method.clone(), &path, &headers, Bytes::from(body)).await
        };
        for body in &bodies {
            if optional && body.is_empty() {
                continue;
            }
            let response = send(JSON.1, body.clone()).await?;
            let shown = String::from_utf8_lossy(&body[..body.len().min(200)]);
            assert_eq!(response.status, 400, "{method} {path} {shown}: {}", response.text());
            response.assert_error(400);
        }
        let oversized = json!({"text": "x".repeat(70_000)}).to_string();
        send(JSON.1, oversized.into()).await?.assert_error(400);
        for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "\u{e9}"] {
            send(kind, format!("{{{}}}", fields(&id)).into()).await?.assert_error(400);
        }
    }
    assert_alive(&client).await
}

#[tokio::test]
async fn what_is_said_twice_or_between_the_lines() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let client = service.client();
    let ada = client.user("Ada").await?;
    let body = json!({"text": "which of them?"});
    let keys = [("idempotency-key", "one"), ("idempotency-key", "other")];
    client.send_with(&ada, &ada, &keys, &body).await?.assert_error(400);
    for query in ["limit=1&limit=1", "cursor=x", "limit=1%00", "cursor=%ff%fe"] {
        client.get_as(&ada, &format!("/dialogs?{query}")).await?.assert_error(400);
    }
    for query in ["first_name=a&first_name=b&last_name=c", "first_name=%00&last_name=a", "first_name=a%ff"] {
        client.get(&format!("/user/search?{query}")).await?.assert_error(400);
    }
    assert_eq!(client.texts(&ada, &ada).await?, [""; 0]);
    assert_alive(&client).await
}

#[tokio::test]
async fn texts_have_limits() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let client = service.client();
    let ada = client.user("Ada").await?;
    for text in [String::new(), "я".repeat(4097), "with \0 NUL".to_owned(), "\0".to_owned()] {
        client.send(&ada, &ada, &text).await?.assert_error(400);
    }
    let fit = ["я".repeat(4096), "😀".repeat(4096), " ".to_owned(), "\u{feff}\u{202e}\u{7f}\n".to_owned()];
    for text in &fit {
        let response = client.send(&ada, &ada, text).await?;
        assert_eq!(response.status, 200, "{} bytes: {}", text.len(), response.text());
    }
    let escaped: String = "\\ud83d\\ude00".repeat(4096);
    let authorization = format!("Bearer {}", ada.token);
    let headers = [JSON, ("authorization", authorization.as_str())];
    let path = format!("/dialog/{}/send", ada.id);
    let body = format!(r#"{{"text": "{escaped}"}}"#);
    assert_eq!(
        client.send_raw(Method::POST, &path, &headers, body).await?.status,
        200,
        "the longest as escapes"
    );

    let mut expected: Vec<String> = fit.to_vec();
    expected.push("😀".repeat(4096));
    expected.reverse();
    assert_eq!(client.texts(&ada, &ada).await?, expected, "kept to the letter");
    assert_alive(&client).await
}

#[tokio::test]
async fn injection_is_data() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let client = service.client();
    let texts =
        ["'; DROP TABLE messages; --", "$1", "\\x00", "%s%n", "<script>", "{{7*7}}", "${jndi:ldap://x}"];
    let name = "Robert'); DROP TABLE users; --";
    let bobby = client.user(name).await?;
    for text in texts {
        assert_eq!(client.send(&bobby, &bobby, text).await?.status, 200);
    }
    let mut expected = texts;
    expected.reverse();
    assert_eq!(client.texts(&bobby, &bobby).await?, expected);
    let stored = server
        .connect("dialog")
        .await?
        .query_one("SELECT first_name FROM users WHERE user_id = $1::text::uuid", &[&bobby.id])
        .await?;
    assert_eq!(stored.get::<_, &str>(0), name);
    Ok(())
}

#[tokio::test]
async fn tokens_that_are_not_ours() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let client = service.client();
    let ada = client.user("Ada").await?;
    let list = format!("/dialog/{}/list", ada.id);
    let send = format!("/dialog/{}/send", ada.id);
    let tampered = format!("Bearer {}x", ada.token);
    let basic = format!("Basic {}", ada.token);
    let values = ["", "Bearer", "Bearer ", "Bearer a.b.c", &ada.token, &tampered, &basic, "Bearer \u{e9}"];
    for value in values {
        let headers = [JSON, ("authorization", value)];
        client.send_raw(Method::GET, &list, &headers, "").await?.assert_error(401);
        let response = client.send_raw(Method::POST, &send, &headers, r#"{"text": "a"}"#).await?;
        response.assert_error(401);
        assert_eq!(response.header("www-authenticate"), Some("Bearer"));
    }
    client.get(&list).await?.assert_error(401);
    assert_alive(&client).await
}

#[tokio::test]
async fn peers_that_do_not_exist() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let client = service.client();
    let ada = client.user("Ada").await?;
    let stranger = uuid::Uuid::now_v7().to_string();
    let ids =
        ["nobody", "1", "%00", "%ff", "00000000-0000-0000-0000-00000000000g", &stranger, "'%20OR%201=1"];
    for id in ids {
        let peer = User { id: id.to_owned(), ..ada.clone() };
        client.send(&ada, &peer, "hello?").await?.assert_error(400);
        client.list(&ada, &peer).await?.assert_error(400);
    }
    let dialogs = server.connect("dialog").await?.query("SELECT FROM dialogs", &[]).await?;
    assert!(dialogs.is_empty(), "nothing is left behind");
    assert_alive(&client).await
}

#[tokio::test]
async fn registrations_that_make_no_sense() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let client = service.client();
    let good = json!({"first_name": "A", "second_name": "B", "birthdate": "2000-01-01", "password": "c"});
    assert_eq!(client.post("/user/register", &good).await?.status, 200);
    let cases: [(&str, Value); 14] = [
        ("birthdate", json!("1815-12-10")),
        ("birthdate", json!("9999-12-31")),
        ("birthdate", json!("2001-02-29")),
        ("birthdate", json!("yesterday")),
        ("birthdate", json!("")),
        ("birthdate", json!("-2000-01-01")),
        ("birthdate", json!(20_000_101)),
        ("first_name", json!("")),
        ("first_name", json!("x".repeat(201))),
        ("second_name", json!("a\0b")),
        ("city", json!(["Paris"])),
        ("biography", json!("x".repeat(4097))),
        ("password", json!("")),
        ("password", json!("x".repeat(1025))),
    ];
    for (field, value) in cases {
        let mut body = good.clone();
        body[field] = value;
        let response = client.post("/user/register", &body).await?;
        assert_eq!(response.status, 400, "{body}");
        response.assert_error(400);
    }
    for field in ["first_name", "second_name", "password"] {
        let mut body = good.clone();
        body.as_object_mut().unwrap().remove(field);
        client.post("/user/register", &body).await?.assert_error(400);
    }
    assert_alive(&client).await
}

/// Two pairs with one dialog id cannot be made, so the tables are told a lie.
#[tokio::test]
async fn a_dialog_id_that_belongs_to_others_shows_and_takes_nothing() -> Result<()> {
    use dialog_api::dialogs::pair::Pair;

    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let client = service.client();
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);
    let dialog = Pair::new(ada.id.parse()?, bob.id.parse()?).dialog_id();
    let (low, high) = (uuid::Uuid::from_u128(1), uuid::Uuid::from_u128(2));
    let postgres = server.connect("dialog").await?;
    postgres.execute("INSERT INTO dialogs VALUES ($1, $2, $3, now())", &[&dialog, &low, &high]).await?;
    postgres
        .execute(
            "INSERT INTO messages (dialog_id, message_id, from_user_id, to_user_id, text, created_at)
             VALUES ($1, $2, $3, $4, 'secret', now())",
            &[&dialog, &uuid::Uuid::now_v7(), &low, &high],
        )
        .await?;

    client.send(&ada, &bob, "hello").await?.assert_error(500);
    let list = client.list(&ada, &bob).await?;
    list.assert_error(500);
    assert!(!list.text().contains("secret"));
    let messages = postgres.query_one("SELECT count(*) FROM messages", &[]).await?;
    assert_eq!(messages.get::<_, i64>(0), 1);
    Ok(())
}
