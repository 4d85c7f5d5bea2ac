//! Two people and a message, over HTTP as any client would.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::command::Log;

/// How long the ingress may take to send requests on, and the service to accept them.
const PATIENCE: Duration = Duration::from_mins(1);
const INTERVAL: Duration = Duration::from_millis(200);
const PASSWORD: &str = "correct horse battery staple";

/// What was sent, and how much of it the other side found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Conversation {
    pub(super) sent: usize,
    pub(super) listed: usize,
}

/// dialog-api behind an ingress.
#[derive(Debug)]
pub(super) struct Service<'a> {
    agent: ureq::Agent,
    address: &'a str,
    host: &'a str,
    log: &'a Log,
}

/// Somebody who is registered and logged in.
#[derive(Debug)]
struct Person {
    id: String,
    token: String,
}

impl<'a> Service<'a> {
    /// The service that answers at `address` to requests for `host`, once it says that it is ready.
    ///
    /// The connection goes to the address, because not every machine resolves names below `localhost`.
    pub(super) fn at(address: &'a str, host: &'a str, log: &'a Log) -> Result<Self> {
        let configuration = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(10)))
            .proxy(None);
        let service = Self { agent: configuration.build().into(), address, host, log };
        let started = Instant::now();
        loop {
            match service.request("GET", "/ready", None, None) {
                Ok((200, _)) => return Ok(service),
                outcome if started.elapsed() > PATIENCE => bail!(
                    "GET /ready through the ingress is no 200 after {} s: {}",
                    PATIENCE.as_secs(),
                    outcome.map_or_else(
                        |error| format!("{error:#}"),
                        |(status, body)| format!("{status} {body}")
                    )
                ),
                _ => thread::sleep(INTERVAL),
            }
        }
    }

    /// Registers two people; the first writes to the second, who reads it.
    pub(super) fn converse(&self) -> Result<Conversation> {
        let (ada, grace) = (self.person("Ada", "Lovelace")?, self.person("Grace", "Hopper")?);
        let text = format!("Hello, {}", grace.id);
        self.expect(
            "POST",
            &format!("/dialog/{}/send", grace.id),
            Some(&ada.token),
            Some(&json!({"text": text})),
        )?;
        let messages = self.expect("GET", &format!("/dialog/{}/list", ada.id), Some(&grace.token), None)?;
        let expected = json!({"from": ada.id, "to": grace.id, "text": text});
        let is_expected =
            |message: &&Value| ["from", "to", "text"].iter().all(|key| message[key] == expected[key]);
        let listed = messages.as_array().into_iter().flatten().filter(is_expected).count();
        ensure!(listed == 1, "one message was sent, and the list has {listed} of it: {messages}");
        Ok(Conversation { sent: 1, listed })
    }

    fn person(&self, first: &str, second: &str) -> Result<Person> {
        let registration = json!({
            "first_name": first,
            "second_name": second,
            "birthdate": "1990-01-01",
            "biography": "Registered by the demo",
            "city": "London",
            "password": PASSWORD,
        });
        let answer = self.expect("POST", "/user/register", None, Some(&registration))?;
        let id = text(&answer, "user_id")?;
        let answer = self.expect("POST", "/login", None, Some(&json!({"id": id, "password": PASSWORD})))?;
        Ok(Person { id, token: text(&answer, "token")? })
    }

    /// The body of a request that must succeed; `null` if it is empty.
    fn expect(&self, method: &str, path: &str, token: Option<&str>, body: Option<&Value>) -> Result<Value> {
        let (status, body) = self.request(method, path, token, body)?;
        ensure!(status == 200, "{method} {path} answered {status}: {body}");
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&body).with_context(|| format!("{method} {path} answered no JSON: {body}"))
    }

    fn request(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
    ) -> Result<(u16, String)> {
        let mut request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address))
            .header("host", self.host);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let answer = match body {
            Some(body) => {
                let request = request.header("content-type", "application/json").body(body.to_string());
                self.agent.run(request.context("a malformed request")?)
            }
            None => self.agent.run(request.body(()).context("a malformed request")?),
        };
        let mut answer = answer.with_context(|| format!("{method} http://{}{path}", self.address))?;
        let status = answer.status().as_u16();
        let body =
            answer.body_mut().read_to_string().with_context(|| format!("the answer to {method} {path}"))?;
        self.log.note(&format!("{method} {path}: {status}"))?;
        Ok((status, body))
    }
}

fn text(answer: &Value, key: &str) -> Result<String> {
    answer[key].as_str().map(str::to_owned).with_context(|| format!("the answer has no {key}"))
}
