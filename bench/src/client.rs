//! A client of the service: tokens, requests, and one connection that is made again when it is lost.

use std::{path::Path, str::FromStr, sync::OnceLock, time::Duration};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use dialog_api::tokens::{Tokens, read_key};
use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use tokio::{net::TcpStream, time::timeout};
use uuid::Uuid;

use crate::{
    ledger::{self, Code},
    population::Population,
    workload::{Kind, Operation},
};

/// How long tokens are valid: longer than any run.
const TOKEN_LIFETIME: Duration = Duration::from_hours(24);

/// Where the service, or whatever stands in front of it, listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    address: String,
    host: HeaderValue,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = text
            .strip_prefix("http://")
            .map(|rest| rest.trim_end_matches('/'))
            .filter(|rest| !rest.is_empty() && !rest.contains('/'))
            .ok_or_else(|| format!("`{text}` is not of the form http://HOST:PORT"))?;
        let host = HeaderValue::from_str(address).map_err(|_| format!("`{address}` is no host"))?;
        let address = if address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
            address.to_owned()
        } else {
            format!("{address}:80")
        };
        Ok(Self { address, host })
    }
}

impl Target {
    /// The same target, asked for another name than its address: what an ingress goes by.
    ///
    /// # Errors
    /// When it is no name for a header.
    pub fn named(self, host: &str) -> Result<Self, String> {
        Ok(Self { host: HeaderValue::from_str(host).map_err(|_| format!("`{host}` is no host"))?, ..self })
    }
}

/// Makes requests: who asks is told by a token, signed with the service's own key, so that no password is
/// hashed while something is measured.
pub struct Requests {
    population: Population,
    tokens: Tokens,
    issued: Vec<OnceLock<HeaderValue>>,
    run: Uuid,
    client_ids: bool,
    filler: String,
}

impl Requests {
    /// Requests of the run's users. `text` is how many characters a message has, at least; never less than
    /// what tells it from all others. `client_ids` is whether a send carries a `client_msg_id`.
    ///
    /// # Errors
    /// When the key cannot be read or is too short.
    pub fn new(population: Population, key: &Path, run: Uuid, text: usize, client_ids: bool) -> Result<Self> {
        let tokens = Tokens::new(&read_key(key)?, TOKEN_LIFETIME);
        let users = usize::try_from(population.users()).context("users fit in memory")?;
        let issued = (0..users).map(|_| OnceLock::new()).collect();
        Ok(Self { population, tokens, issued, run, client_ids, filler: "x".repeat(text) })
    }

    /// The value of `Authorization` for this user.
    ///
    /// # Errors
    /// When signing fails, which takes a broken program.
    pub fn authorization(&self, user: u64) -> Result<HeaderValue> {
        let place = usize::try_from(user).ok().and_then(|user| self.issued.get(user));
        let place = place.with_context(|| format!("there is no user {user}"))?;
        if let Some(value) = place.get() {
            return Ok(value.clone());
        }
        let token =
            self.tokens.issue(self.population.user(user), Timestamp::now()).context("sign a token")?;
        let value = HeaderValue::try_from(format!("Bearer {token}")).context("a token")?;
        Ok(place.get_or_init(|| value).clone())
    }

    /// The request for an operation. Sends carry their number in the run in the text, and mostly as the client's
    /// own id of the message as well; sent again they are the same request.
    ///
    /// # Errors
    /// As [`Requests::authorization`].
    pub fn request(&self, operation: Operation, sequence: u64) -> Result<Request<Full<Bytes>>> {
        let peer = self.population.user(operation.to);
        let builder = Request::builder().header(header::AUTHORIZATION, self.authorization(operation.from)?);
        match operation.kind {
            Kind::Send => {
                let mark = ledger::mark(self.run, sequence);
                let filler = self.filler.get(mark.len()..).unwrap_or_default();
                let id = if self.client_ids {
                    format!(r#","client_msg_id":"{}""#, ledger::message_id(self.run, sequence))
                } else {
                    String::new()
                };
                builder
                    .method(Method::POST)
                    .uri(format!("/dialog/{peer}/send"))
                    .header(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))
                    .body(format!(r#"{{"text":"{mark}{filler}"{id}}}"#).into())
            }
            Kind::List => builder.uri(format!("/dialog/{peer}/list")).body(Full::default()),
        }
        .context("a request")
    }
}

/// A connection to one target.
pub struct Connection {
    target: Target,
    limit: Duration,
    sender: Option<http1::SendRequest<Full<Bytes>>>,
}

impl Connection {
    /// A connection that is made when it is needed; no answer within `limit` is no answer.
    #[must_use]
    pub fn new(target: Target, limit: Duration) -> Self {
        Self { target, limit, sender: None }
    }

    /// Sends a request and takes the whole answer.
    pub async fn ask(&mut self, request: Request<Full<Bytes>>) -> Code {
        self.ask_for_body(request).await.map_or_else(|code| code, |(code, _)| code)
    }

    /// Sends a request and returns the answer's body as well.
    ///
    /// # Errors
    /// What there is instead of an answer.
    pub async fn ask_for_body(&mut self, request: Request<Full<Bytes>>) -> Result<(Code, Bytes), Code> {
        let limit = self.limit;
        let exchange = async {
            let response = self.open(request).await?;
            let code = Code::Status(response.status().as_u16());
            let body = response.into_body().collect().await.map_err(|_| Code::Lost)?.to_bytes();
            Ok((code, body))
        };
        let outcome = timeout(limit, exchange).await.unwrap_or(Err(Code::Timeout));
        if outcome.is_err() {
            self.sender = None;
        }
        outcome
    }

    /// Sends a request and returns once the head of the answer is there. The body is the caller's to read.
    ///
    /// # Errors
    /// What there is instead of an answer.
    pub async fn open(&mut self, mut request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Code> {
        request.headers_mut().insert(header::HOST, self.target.host.clone());
        let mut sender = match self.sender.take() {
            // A server may close a connection that was idle: then it is made again.
            Some(mut sender) => match sender.ready().await {
                Ok(()) => sender,
                Err(_) => self.connect().await?,
            },
            None => self.connect().await?,
        };
        let response = sender.send_request(request).await.map_err(|_| Code::Lost)?;
        self.sender = Some(sender);
        Ok(response)
    }

    async fn connect(&self) -> Result<http1::SendRequest<Full<Bytes>>, Code> {
        let stream = TcpStream::connect(&self.target.address).await.map_err(|_| Code::Refused)?;
        stream.set_nodelay(true).map_err(|_| Code::Refused)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|_| Code::Refused)?;
        tokio::spawn(async move {
            // How it ended is told by the request that was under way, if any was.
            let _ = connection.await;
        });
        Ok(sender)
    }
}

/// Makes sure that the service knows the population: that its first and its last dialog can be listed.
///
/// # Errors
/// When one cannot, with what to do about it.
pub async fn preflight(population: Population, requests: &Requests, target: &Target) -> Result<()> {
    let mut connection = Connection::new(target.clone(), Duration::from_secs(10));
    for dialog in [0, population.dialogs() - 1] {
        let (from, to) = population.members(dialog);
        let request = requests.request(Operation { kind: Kind::List, from, to }, 0)?;
        let (code, body) = connection.ask_for_body(request).await.map_err(|code| {
            anyhow::anyhow!("{} does not answer: {code}; is it the service's address?", target.address)
        })?;
        ensure!(
            code == Code::Status(200),
            "listing dialog {dialog} of the population answers {code}: {}. Load the population with \
             `dialog-bench load` and the same --users, --dialogs and --seed, and give the service's own \
             --token-key-file",
            String::from_utf8_lossy(&body)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn targets_are_plain_http() {
        let target: Target = "http://127.0.0.1:8080/".parse().unwrap();
        assert_eq!(
            (target.address.as_str(), target.host.as_bytes()),
            ("127.0.0.1:8080", &b"127.0.0.1:8080"[..])
        );
        let named = target.named("chat.localhost").unwrap();
        assert_eq!(
            (named.address.as_str(), named.host.as_bytes()),
            ("127.0.0.1:8080", &b"chat.localhost"[..])
        );
        assert_eq!("http://chat".parse::<Target>().unwrap().address, "chat:80");
        for text in ["https://chat", "chat:80", "http://", "http://chat/path"] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_send_is_the_same_request_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("key");
        std::fs::write(&key, "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=").unwrap();
        let population = Population::new(10, 10, 1).unwrap();
        let run = Uuid::from_u128(5);
        let operation = Operation { kind: Kind::Send, from: 1, to: 2 };
        for client_ids in [true, false] {
            let requests = Requests::new(population, &key, run, 100, client_ids).unwrap();
            let request = || requests.request(operation, 7).unwrap();
            assert_eq!(request().uri().path(), format!("/dialog/{}/send", population.user(2)));
            assert_eq!(request().headers(), request().headers());
            let body = |request: Request<Full<Bytes>>| request.into_body().collect().now_or_never();
            let body = body(request()).unwrap().unwrap().to_bytes();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body["text"].as_str().map(str::len), Some(100));
            assert_eq!(ledger::read_mark(run, body["text"].as_str().unwrap()), Some(7));
            let id = ledger::message_id(run, 7).to_string();
            assert_eq!(body["client_msg_id"].as_str(), client_ids.then_some(id.as_str()));
        }
    }
}
