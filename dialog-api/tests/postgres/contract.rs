//! A client written for the public specification alone: the six paths of OTUS Highload 1.2.0 with the statuses, headers
//! and bodies that it allows, and nothing that this service adds. Every answer, good or bad, has to be one of them.

use anyhow::{Context as _, Result, ensure};
use axum::body::Bytes;
use http::Method;
use serde_json::{Value, json};
use testbed::postgres::Shutdown;

use crate::support::{Client, Service, client::Response, database};

/// What a 200 carries.
#[derive(Clone, Copy)]
enum Success {
    Nothing,
    Object(&'static [&'static str]),
    ArrayOf(&'static [&'static str]),
}

/// An operation of the specification.
struct Operation {
    method: Method,
    success: Success,
    /// Other statuses than 200, 500 and 503.
    failures: &'static [u16],
}

const LOGIN: Operation =
    Operation { method: Method::POST, success: Success::Object(&["token"]), failures: &[400, 404] };
const REGISTER: Operation =
    Operation { method: Method::POST, success: Success::Object(&["user_id"]), failures: &[400] };
const USER: &[&str] = &["id", "first_name", "second_name", "birthdate", "biography", "city"];
const GET_USER: Operation =
    Operation { method: Method::GET, success: Success::Object(USER), failures: &[400, 404] };
const SEARCH: Operation =
    Operation { method: Method::GET, success: Success::ArrayOf(USER), failures: &[400] };
const SEND: Operation = Operation { method: Method::POST, success: Success::Nothing, failures: &[400, 401] };
const LIST: Operation = Operation {
    method: Method::GET,
    success: Success::ArrayOf(&["from", "to", "text"]),
    failures: &[400, 401],
};

/// Checks an answer against the specification.
fn check(operation: &Operation, response: &Response) -> Result<()> {
    let strings = |value: &Value, fields: &[&str]| -> Result<()> {
        for field in fields {
            ensure!(value[field].is_string(), "{field} is no string in {value}");
        }
        Ok(())
    };
    match response.status {
        200 => match operation.success {
            Success::Nothing => ensure!(response.body.is_empty(), "a body: {}", response.text()),
            Success::Object(fields) => strings(&response.json()?, fields)?,
            Success::ArrayOf(fields) => {
                for element in response.json()?.as_array().context("the array is not bare")? {
                    strings(element, fields)?;
                }
            }
        },
        500 | 503 => {
            let body = response.json()?;
            ensure!(body["message"].is_string() && body["code"].is_i64(), "{body}");
            ensure!(body["request_id"].is_string(), "{body}");
            if let Some(seconds) = response.header("retry-after") {
                seconds.parse::<u32>().context("Retry-After is no integer")?;
            }
        }
        status => ensure!(operation.failures.contains(&status), "{status}: {}", response.text()),
    }
    Ok(())
}

/// Knows the operations, and a token once it has one.
struct Conversation {
    client: Client,
    authorization: Option<String>,
}

impl Conversation {
    async fn call(&self, operation: &Operation, path: &str, body: Option<Value>) -> Result<Response> {
        let mut headers = Vec::new();
        if body.is_some() {
            headers.push(("content-type", "application/json"));
        }
        if let Some(authorization) = &self.authorization {
            headers.push(("authorization", authorization.as_str()));
        }
        let bytes = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let response = self.client.send_raw(operation.method.clone(), path, &headers, bytes).await?;
        check(operation, &response).with_context(|| format!("{} {path}", operation.method))?;
        Ok(response)
    }

    async fn register(&self, first_name: &str, second_name: &str) -> Result<String> {
        let user = json!({
            "first_name": first_name, "second_name": second_name, "birthdate": "2017-02-01",
            "biography": "Хобби, интересы и т.п.", "city": "Москва", "password": "Секретная строка",
        });
        let response = self.call(&REGISTER, "/user/register", Some(user)).await?;
        ensure!(response.status == 200, "{}", response.text());
        Ok(response.json()?["user_id"].as_str().context("user_id")?.to_owned())
    }
}

#[tokio::test]
async fn every_path_does_what_the_specification_says() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let mut client = Conversation { client: service.client(), authorization: None };
    let (ada, bob) = (client.register("Константин", "Осипов").await?, client.register("Bob", "Test").await?);

    let login = json!({"id": ada, "password": "Секретная строка"});
    let token = client.call(&LOGIN, "/login", Some(login)).await?.json()?["token"].clone();
    for (login, status) in [
        (json!({"id": ada, "password": "wrong"}), 400),
        (json!({"id": ada}), 400),
        (json!({"id": uuid::Uuid::now_v7(), "password": "Секретная строка"}), 404),
    ] {
        assert_eq!(client.call(&LOGIN, "/login", Some(login)).await?.status, status);
    }

    let user = client.call(&GET_USER, &format!("/user/get/{ada}"), None).await?.json()?;
    assert_eq!(
        user,
        json!({
            "id": ada, "first_name": "Константин", "second_name": "Осипов", "birthdate": "2017-02-01",
            "biography": "Хобби, интересы и т.п.", "city": "Москва",
        })
    );
    let stranger = uuid::Uuid::now_v7();
    assert_eq!(client.call(&GET_USER, &format!("/user/get/{stranger}"), None).await?.status, 404);
    assert_eq!(client.call(&GET_USER, "/user/get/anybody", None).await?.status, 400);

    let found = client.call(&SEARCH, "/user/search?first_name=Bo&last_name=Te", None).await?.json()?;
    assert_eq!(found.as_array().map(Vec::len), Some(1));
    assert_eq!(found[0]["id"], bob.as_str());
    for query in
        ["", "?first_name=Bo", "?last_name=Te", "?first_name=&last_name=Te", "?first_name=%ff&last_name=T"]
    {
        assert_eq!(client.call(&SEARCH, &format!("/user/search{query}"), None).await?.status, 400, "{query}");
    }

    let (send, list) = (format!("/dialog/{bob}/send"), format!("/dialog/{bob}/list"));
    assert_eq!(client.call(&SEND, &send, Some(json!({"text": "Привет, как дела?"}))).await?.status, 401);
    assert_eq!(client.call(&LIST, &list, None).await?.status, 401);
    client.authorization = Some(format!("Bearer {}", token.as_str().context("token")?));
    assert_eq!(client.call(&LIST, &list, None).await?.json()?, json!([]));
    assert_eq!(client.call(&SEND, &send, Some(json!({"text": "Привет, как дела?"}))).await?.status, 200);
    assert_eq!(client.call(&SEND, &send, Some(json!({}))).await?.status, 400);
    let messages = client.call(&LIST, &list, None).await?.json()?;
    assert_eq!(messages.as_array().map(Vec::len), Some(1));
    let message = &messages[0];
    assert_eq!(
        (&message["from"], &message["to"], &message["text"]),
        (&json!(ada), &json!(bob), &json!("Привет, как дела?"))
    );
    Ok(())
}

#[tokio::test]
async fn without_a_database_every_path_says_so_as_specified() -> Result<()> {
    let mut server = database().await?;
    let service = Service::start(&server, &["--database-timeout", "300ms"]).await?;
    let mut client = Conversation { client: service.client(), authorization: None };
    let ada = client.client.user("Ada").await?;
    client.authorization = Some(format!("Bearer {}", ada.token));
    server.stop(Shutdown::Immediate)?;
    service.wait_for_ready(503).await?;
    let stranger = uuid::Uuid::now_v7();
    let registration = json!({"first_name": "A", "second_name": "B", "password": "c"});
    for (operation, path, body) in [
        (&LOGIN, "/login".to_owned(), Some(json!({"id": ada.id, "password": "x"}))),
        (&REGISTER, "/user/register".to_owned(), Some(registration)),
        (&GET_USER, format!("/user/get/{stranger}"), None),
        (&SEARCH, "/user/search?first_name=A&last_name=B".to_owned(), None),
        (&SEND, format!("/dialog/{stranger}/send"), Some(json!({"text": "x"}))),
        (&LIST, format!("/dialog/{stranger}/list"), None),
    ] {
        let response = client.call(operation, &path, body).await?;
        assert_eq!(response.status, 503, "{path}");
        assert!(response.header("retry-after").is_some(), "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn a_search_is_by_both_prefixes_whatever_their_case_and_knows_no_patterns() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let client = Conversation { client: service.client(), authorization: None };
    let mut ids = Vec::new();
    for (first, second) in
        [("Anna", "Smith"), ("ANNABEL", "smithers"), ("Anna", "Jones"), ("100%_", r"back\slash")]
    {
        ids.push(client.register(first, second).await?);
    }
    for (query, expected) in [
        ("first_name=anna&last_name=SMITH", vec![0, 1]),
        ("first_name=Anna&last_name=J", vec![2]),
        ("first_name=nna&last_name=Smith", vec![]),
        ("first_name=%25&last_name=%25", vec![]),
        ("first_name=A_&last_name=S", vec![]),
        ("first_name=100%25_&last_name=back%5C", vec![3]),
    ] {
        let found = client.call(&SEARCH, &format!("/user/search?{query}"), None).await?.json()?;
        let found: Vec<_> =
            found.as_array().context("array")?.iter().map(|user| user["id"].clone()).collect();
        let expected: Vec<_> = expected.iter().map(|index| json!(ids[*index])).collect();
        assert_eq!(found, expected, "{query}");
    }
    let sql = server.connect("dialog").await?;
    sql.batch_execute("SET enable_seqscan = off").await?;
    let plan = sql
        .query(
            "EXPLAIN SELECT user_id FROM users WHERE lower(first_name) LIKE lower('Anna%')
             AND lower(second_name) LIKE lower('S%')",
            &[],
        )
        .await?;
    let plan: Vec<String> = plan.iter().map(|row| row.get(0)).collect();
    assert!(plan.iter().any(|line| line.contains("users_names")), "{plan:#?}");
    Ok(())
}
