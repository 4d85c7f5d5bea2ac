//! A client that knows the specification and nothing else.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, bail};
use axum::body::Bytes;
use http::{HeaderMap, Method, Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};

/// Longest wait for a response; longer than anything the service allows itself.
const LIMIT: Duration = Duration::from_mins(1);

/// Talks to one replica over connections that are kept open.
#[derive(Clone)]
pub(crate) struct Client {
    http: legacy::Client<HttpConnector, Full<Bytes>>,
    address: SocketAddr,
}

/// A complete response.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Response {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("not JSON: {}", self.text()))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Checks that this is an error as clients may expect it: status, JSON body, request id.
    pub(crate) fn assert_error(&self, status: u16) {
        assert_eq!(self.status, status, "{}", self.text());
        let body = self.json().unwrap();
        assert!(body["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
        assert!(body["code"].as_u64().is_some(), "{body}");
        assert_eq!(body["request_id"].as_str(), self.header("x-request-id"), "{body}");
        assert_eq!(self.header("content-type"), Some("application/json"));
        if status == 503 {
            let seconds: u32 = self.header("retry-after").unwrap().parse().unwrap();
            assert!(seconds >= 1);
        }
    }
}

/// Somebody registered and logged in.
#[derive(Clone, Debug)]
pub(crate) struct User {
    pub(crate) id: String,
    pub(crate) token: String,
    pub(crate) password: String,
}

impl User {
    /// Somebody nobody knows.
    pub(crate) fn unknown() -> Self {
        Self { id: uuid::Uuid::now_v7().to_string(), token: String::new(), password: String::new() }
    }
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { http: legacy::Client::builder(TokioExecutor::new()).build_http(), address }
    }

    /// Sends a request as it is.
    pub(crate) async fn request(&self, request: Request<Full<Bytes>>) -> Result<Response> {
        tokio::time::timeout(LIMIT, async {
            let response = self.http.request(request).await?;
            let (parts, body) = response.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok(Response { status: parts.status.as_u16(), headers: parts.headers, body })
        })
        .await
        .context("no response")?
    }

    /// Sends any bytes with these headers.
    pub(crate) async fn send_raw(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Response> {
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.request(request.body(Full::new(body.into()))?).await
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Response> {
        self.send_raw(Method::GET, path, &[], Bytes::new()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Response> {
        let headers = [(header::CONTENT_TYPE.as_str(), "application/json")];
        self.send_raw(Method::POST, path, &headers, body.to_string()).await
    }

    pub(crate) async fn post_as(&self, user: &User, path: &str, body: &Value) -> Result<Response> {
        let authorization = format!("Bearer {}", user.token);
        let headers = [
            (header::CONTENT_TYPE.as_str(), "application/json"),
            (header::AUTHORIZATION.as_str(), authorization.as_str()),
        ];
        self.send_raw(Method::POST, path, &headers, body.to_string()).await
    }

    pub(crate) async fn get_as(&self, user: &User, path: &str) -> Result<Response> {
        let authorization = format!("Bearer {}", user.token);
        let headers = [(header::AUTHORIZATION.as_str(), authorization.as_str())];
        self.send_raw(Method::GET, path, &headers, Bytes::new()).await
    }

    /// Registers somebody and logs in.
    pub(crate) async fn user(&self, name: &str) -> Result<User> {
        let password = format!("password of {name}");
        let registration = json!({
            "first_name": name, "second_name": "Test", "birthdate": "2000-02-29", "biography": "none",
            "city": "Москва", "password": password,
        });
        let response = self.post("/user/register", &registration).await?;
        if response.status != 200 {
            bail!("register {name}: {} {}", response.status, response.text());
        }
        let id = response.json()?["user_id"].as_str().context("user_id")?.to_owned();
        let response = self.post("/login", &json!({"id": id, "password": password})).await?;
        if response.status != 200 {
            bail!("log in {name}: {} {}", response.status, response.text());
        }
        let token = response.json()?["token"].as_str().context("token")?.to_owned();
        Ok(User { id, token, password })
    }

    /// Sends a message.
    pub(crate) async fn send(&self, from: &User, to: &User, text: &str) -> Result<Response> {
        self.post_as(from, &format!("/dialog/{}/send", to.id), &json!({"text": text})).await
    }

    /// Sends a message with headers of its own.
    pub(crate) async fn send_with(
        &self,
        from: &User,
        to: &User,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> Result<Response> {
        let authorization = format!("Bearer {}", from.token);
        let own = [("content-type", "application/json"), ("authorization", authorization.as_str())];
        let path = format!("/dialog/{}/send", to.id);
        self.send_raw(Method::POST, &path, &[&own, headers].concat(), body.to_string()).await
    }

    /// A request in somebody's name, with a JSON body or none.
    pub(crate) async fn call_as(
        &self,
        user: &User,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Response> {
        let authorization = format!("Bearer {}", user.token);
        let mut headers = vec![("authorization", authorization.as_str())];
        if body.is_some() {
            headers.push(("content-type", "application/json"));
        }
        self.send_raw(method, path, &headers, body.map(ToString::to_string).unwrap_or_default()).await
    }

    /// Lists a dialog.
    pub(crate) async fn list(&self, reader: &User, peer: &User) -> Result<Response> {
        self.get_as(reader, &format!("/dialog/{}/list", peer.id)).await
    }

    /// The texts of a dialog, newest first.
    pub(crate) async fn texts(&self, reader: &User, peer: &User) -> Result<Vec<String>> {
        let response = self.list(reader, peer).await?;
        if response.status != 200 {
            bail!("list: {} {}", response.status, response.text());
        }
        let list = response.json()?;
        let messages = list.as_array().context("a bare array")?;
        Ok(messages.iter().map(|message| message["text"].as_str().unwrap_or_default().to_owned()).collect())
    }
}

/// A stream of server-sent events.
pub(crate) struct Events {
    pub(crate) content_type: String,
    body: hyper::body::Incoming,
    text: String,
}

/// An event.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) id: String,
    pub(crate) data: Value,
}

impl Client {
    /// Opens the stream of a dialog.
    pub(crate) async fn stream(&self, reader: &User, peer: &User, last: Option<&str>) -> Result<Events> {
        let mut request = Request::get(format!("http://{}/dialog/{}/stream", self.address, peer.id))
            .header(header::AUTHORIZATION, format!("Bearer {}", reader.token));
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response =
            tokio::time::timeout(LIMIT, self.http.request(request.body(Full::default())?)).await??;
        let (parts, body) = response.into_parts();
        if parts.status != 200 {
            bail!("stream: {} {:?}", parts.status, body.collect().await?.to_bytes());
        }
        let content_type =
            parts.headers.get(header::CONTENT_TYPE).context("content-type")?.to_str()?.to_owned();
        Ok(Events { content_type, body, text: String::new() })
    }
}

impl Events {
    /// The next event; nothing at the end of the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            while let Some((event, _)) = self.text.split_once("\n\n") {
                let end = event.len() + 2;
                let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
                let found = match (field("id: "), field("data: ")) {
                    (Some(id), Some(data)) => {
                        Some(Event { id: id.to_owned(), data: serde_json::from_str(data)? })
                    }
                    _ => None,
                };
                self.text.drain(..end);
                if found.is_some() {
                    return Ok(found);
                }
            }
            let frame = tokio::time::timeout(LIMIT, self.body.frame()).await.context("no event")?;
            match frame {
                Some(frame) => {
                    if let Ok(bytes) = frame?.into_data() {
                        self.text.push_str(std::str::from_utf8(&bytes)?);
                    }
                }
                None => return Ok(None),
            }
        }
    }

    /// The text of the next message.
    pub(crate) async fn text(&mut self) -> Result<String> {
        let event = self.next().await?.context("the stream has ended")?;
        Ok(event.data["text"].as_str().context("text")?.to_owned())
    }
}
