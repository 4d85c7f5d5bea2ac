//! People who use dialog-api through an ingress, over HTTP as any client would.

use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use ureq::http::Request;

/// No answer takes longer.
const LIMIT: Duration = Duration::from_secs(20);
/// How often a service that is not ready yet is asked again.
const INTERVAL: Duration = Duration::from_millis(100);
const PASSWORD: &str = "correct horse battery staple";

/// Called with a line for each request and what came of it.
type Observer = Arc<dyn Fn(&str) + Send + Sync>;

/// dialog-api behind an ingress; cheap to clone.
#[derive(Clone)]
pub struct Service {
    agent: ureq::Agent,
    address: String,
    host: String,
    observer: Option<Observer>,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.host, self.address)
    }
}

/// Somebody who is registered and logged in.
#[derive(Clone)]
pub struct Person {
    /// The user's id.
    pub id: String,
    token: String,
}

/// One message of a dialog, as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Message {
    /// The id of the user who sent it.
    pub from: String,
    /// The id of the user it was sent to.
    pub to: String,
    /// What it says.
    pub text: String,
}

impl Service {
    /// The service that answers at `address`, such as `127.0.0.1:8080`, to requests for `host`.
    ///
    /// The connection goes to the address, because not every machine resolves names below `localhost`.
    #[must_use]
    pub fn new(address: impl Into<String>, host: impl Into<String>) -> Self {
        let configuration = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(LIMIT))
            .proxy(None)
            .build();
        Self { agent: configuration.into(), address: address.into(), host: host.into(), observer: None }
    }

    /// Has `observer` called with a line for each request.
    #[must_use]
    pub fn observed(mut self, observer: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.observer = Some(Arc::new(observer));
        self
    }

    /// Waits until the service says that it is ready. Blocks.
    ///
    /// # Errors
    /// If it does not within `patience`: the ingress controller has to learn of a new host, and the service to start.
    pub fn until_ready(&self, patience: Duration) -> Result<()> {
        let started = Instant::now();
        loop {
            match self.request(&Call::get("/ready")) {
                Ok((200, _)) => return Ok(()),
                outcome if started.elapsed() > patience => bail!(
                    "GET /ready through the ingress is no 200 after {} s: {}",
                    patience.as_secs(),
                    outcome.map_or_else(
                        |error| format!("{error:#}"),
                        |(status, body)| format!("{status} {body}")
                    )
                ),
                _ => thread::sleep(INTERVAL),
            }
        }
    }

    /// Registers somebody new, who logs in. Blocks.
    ///
    /// # Errors
    /// If the service does not answer with 200 and what the specification says.
    pub fn register(&self, first: &str, second: &str) -> Result<Person> {
        let registration = json!({
            "first_name": first,
            "second_name": second,
            "birthdate": "1990-01-01",
            "biography": "Likes to be the first to write",
            "city": "London",
            "password": PASSWORD,
        });
        let answer = self.answer(&Call::post("/user/register", registration))?;
        self.login(&text(&answer, "user_id")?)
    }

    /// Logs in as the user `id`, who was registered by [`Service::register`]. Blocks.
    ///
    /// # Errors
    /// If the service does not answer with 200 and a token.
    pub fn login(&self, id: &str) -> Result<Person> {
        let answer = self.answer(&Call::post("/login", json!({"id": id, "password": PASSWORD})))?;
        Ok(Person { id: id.to_owned(), token: text(&answer, "token")? })
    }

    /// Sends `message`. Blocks until it is acknowledged.
    ///
    /// # Errors
    /// If it is not.
    pub fn send(&self, from: &Person, to: &Person, message: &str) -> Result<()> {
        let path = format!("/dialog/{}/send", to.id);
        self.answer(&Call::post(&path, json!({"text": message})).of(from)).map(drop)
    }

    /// The dialog of `person` with the other, as `person` sees it. Blocks.
    ///
    /// # Errors
    /// If the service does not answer with 200 and a list of messages.
    pub fn list(&self, person: &Person, with: &Person) -> Result<Vec<Message>> {
        let path = format!("/dialog/{}/list", with.id);
        let messages = self.answer(&Call::get(&path).of(person))?;
        serde_json::from_value(messages).with_context(|| format!("GET {path} answered no list of messages"))
    }

    /// The body of the answer to a call that must succeed; `null` if it is empty.
    fn answer(&self, call: &Call<'_>) -> Result<Value> {
        let (status, body) = self.request(call)?;
        ensure!(status == 200, "{call} answered {status}: {body}");
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&body).with_context(|| format!("{call} answered no JSON: {body}"))
    }

    fn request(&self, call: &Call<'_>) -> Result<(u16, String)> {
        let answer = self.exchange(call);
        if let Some(observer) = &self.observer {
            match &answer {
                Ok((status, _)) => observer(&format!("{call}: {status}")),
                Err(error) => observer(&format!("{call}: {error:#}")),
            }
        }
        answer
    }

    fn exchange(&self, call: &Call<'_>) -> Result<(u16, String)> {
        let url = format!("http://{}{}", self.address, call.path);
        let mut request = Request::builder().method(call.method).uri(&url).header("host", &self.host);
        if let Some(token) = call.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let answer = match &call.body {
            Some(body) => {
                let request = request.header("content-type", "application/json").body(body.to_string());
                self.agent.run(request.context("a malformed request")?)
            }
            None => self.agent.run(request.body(()).context("a malformed request")?),
        };
        let mut answer = answer.with_context(|| format!("{} {url}", call.method))?;
        let status = answer.status().as_u16();
        let body = answer.body_mut().read_to_string().with_context(|| format!("the answer to {call}"))?;
        Ok((status, body))
    }
}

/// What is asked of the service.
struct Call<'a> {
    method: &'static str,
    path: &'a str,
    /// Whose call it is.
    token: Option<&'a str>,
    body: Option<Value>,
}

impl<'a> Call<'a> {
    fn get(path: &'a str) -> Self {
        Self { method: "GET", path, token: None, body: None }
    }

    fn post(path: &'a str, body: Value) -> Self {
        Self { method: "POST", path, token: None, body: Some(body) }
    }

    fn of(self, person: &'a Person) -> Self {
        Self { token: Some(&person.token), ..self }
    }
}

impl fmt::Display for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

fn text(answer: &Value, key: &str) -> Result<String> {
    answer[key].as_str().map(str::to_owned).with_context(|| format!("the answer has no {key}"))
}
