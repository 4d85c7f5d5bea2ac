//! People who use dialog-api through an ingress, over HTTP as any client would.

use std::fmt;
use std::io::{BufRead as _, BufReader};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use ureq::http::{Request, Response};

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

/// A message as it comes in a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// From where a stream goes on after it.
    pub id: String,
    /// The message.
    pub message: Message,
}

/// The messages of a dialog as they are written.
pub struct Stream(BufReader<ureq::BodyReader<'static>>);

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a stream of messages")
    }
}

impl Stream {
    /// The next message; `None` at the end of the stream. Blocks.
    ///
    /// # Errors
    /// If the connection breaks, the stream is open for longer than 20 s, or what comes is no message.
    pub fn event(&mut self) -> Result<Option<Event>> {
        let (mut id, mut data) = (None, None);
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).context("read a stream of messages")? == 0 {
                return Ok(None);
            }
            match line.trim_end().split_once(": ") {
                Some(("id", value)) => id = Some(value.to_owned()),
                Some(("data", value)) => data = Some(value.to_owned()),
                // An empty line ends an event; some have no data.
                None if line.trim_end().is_empty() => {
                    if let (Some(id), Some(data)) = (id.take(), data.take()) {
                        let message =
                            serde_json::from_str(&data).with_context(|| format!("no message: {data}"))?;
                        return Ok(Some(Event { id, message }));
                    }
                }
                _ => {}
            }
        }
    }
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

    /// The messages of the dialog of `person` with the other from now on, or from the event `after` on. Blocks until
    /// the stream is open.
    ///
    /// # Errors
    /// If the service does not answer with 200.
    pub fn stream(&self, person: &Person, with: &Person, after: Option<&str>) -> Result<Stream> {
        let path = format!("/dialog/{}/stream", with.id);
        let call = Call { after, ..Call::get(&path).of(person) };
        let mut answer = self.exchange(&call)?;
        let status = answer.status().as_u16();
        if status != 200 {
            bail!("{call} answered {status}: {}", answer.body_mut().read_to_string().unwrap_or_default());
        }
        Ok(Stream(BufReader::new(answer.into_body().into_reader())))
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
        let answer = self.exchange(call).and_then(|mut answer| {
            let body = answer.body_mut().read_to_string().with_context(|| format!("the answer to {call}"))?;
            Ok((answer.status().as_u16(), body))
        });
        if let Some(observer) = &self.observer {
            match &answer {
                Ok((status, _)) => observer(&format!("{call}: {status}")),
                Err(error) => observer(&format!("{call}: {error:#}")),
            }
        }
        answer
    }

    fn exchange(&self, call: &Call<'_>) -> Result<Response<ureq::Body>> {
        let url = format!("http://{}{}", self.address, call.path);
        let mut request = Request::builder().method(call.method).uri(&url).header("host", &self.host);
        if let Some(token) = call.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(after) = call.after {
            request = request.header("last-event-id", after);
        }
        let answer = match &call.body {
            Some(body) => {
                let request = request.header("content-type", "application/json").body(body.to_string());
                self.agent.run(request.context("a malformed request")?)
            }
            None => self.agent.run(request.body(()).context("a malformed request")?),
        };
        answer.with_context(|| format!("{} {url}", call.method))
    }
}

/// What is asked of the service.
struct Call<'a> {
    method: &'static str,
    path: &'a str,
    /// Whose call it is.
    token: Option<&'a str>,
    body: Option<Value>,
    /// The last event that a stream goes on from.
    after: Option<&'a str>,
}

impl<'a> Call<'a> {
    fn get(path: &'a str) -> Self {
        Self { method: "GET", path, token: None, body: None, after: None }
    }

    fn post(path: &'a str, body: Value) -> Self {
        Self { method: "POST", path, token: None, body: Some(body), after: None }
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

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::TcpListener;
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_stream_gives_each_message_when_it_comes() -> Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let service = Service::new(listener.local_addr()?.to_string(), "chat.localhost");
        let (went_on, go_on) = mpsc::channel();
        let server = thread::spawn(move || -> Result<String> {
            let mut client = BufReader::new(listener.accept()?.0);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                client.read_line(&mut head)?;
            }
            let mut say = |text: &str| client.get_mut().write_all(text.as_bytes());
            say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
            for number in 1..=2 {
                let event = format!(
                    ": a comment\n\nid: {number}\nevent: message\n\
                     data: {{\"from\":\"a\",\"to\":\"b\",\"text\":\"{number}: x\",\"id\":\"{number}\"}}\n\n"
                );
                say(&format!("{:x}\r\n{event}\r\n", event.len()))?;
                // Not before the client has it.
                go_on.recv()?;
            }
            say("0\r\n\r\n")?;
            Ok(head)
        });
        let person = |id: &str| Person { id: id.to_owned(), token: "t".to_owned() };
        let mut stream = service.stream(&person("b"), &person("a"), Some("0"))?;
        for number in 1..=2 {
            let event = stream.event()?.context("the stream has ended")?;
            assert_eq!((event.id, event.message.text), (number.to_string(), format!("{number}: x")));
            went_on.send(())?;
        }
        assert_eq!(stream.event()?, None);
        let head = server.join().ok().context("the server has panicked")??;
        assert!(head.starts_with("GET /dialog/a/stream ") && head.contains("last-event-id: 0\r\n"), "{head}");
        Ok(())
    }
}
