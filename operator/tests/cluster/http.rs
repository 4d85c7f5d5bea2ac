//! People who use the service, through the ingress.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

/// dialog-api behind the ingress.
#[derive(Clone)]
pub(crate) struct Service {
    agent: ureq::Agent,
    address: String,
    host: String,
}

/// Somebody with an account and a token.
#[derive(Clone)]
pub(crate) struct Person {
    pub(crate) id: String,
    token: String,
}

impl Service {
    /// The service that the ingress has under `host`, once it answers that it is ready.
    pub(crate) fn behind(host: &str) -> Result<Self> {
        let address = std::env::var("DIALOG_INGRESS").unwrap_or_else(|_| "127.0.0.1:8080".to_owned());
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(20)))
            .proxy(None)
            .build();
        let service = Self { agent: agent.into(), address, host: host.to_owned() };
        let started = Instant::now();
        loop {
            match service.request("GET", "/ready", None, None) {
                Ok((200, _)) => return Ok(service),
                // The ingress controller learns of a new host by a watch.
                outcome => ensure!(started.elapsed() < Duration::from_secs(30), "GET /ready: {outcome:?}"),
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Somebody new.
    pub(crate) fn person(&self, first: &str) -> Result<Person> {
        let registration = json!({
            "first_name": first, "second_name": "Test", "birthdate": "1990-01-01", "biography": "-", "city": "-",
            "password": "correct horse battery staple",
        });
        let answer = self.json("POST", "/user/register", None, Some(&registration))?;
        let id = answer["user_id"].as_str().context("no user_id")?.to_owned();
        let login = json!({"id": id, "password": "correct horse battery staple"});
        let answer = self.json("POST", "/login", None, Some(&login))?;
        Ok(Person { id, token: answer["token"].as_str().context("no token")?.to_owned() })
    }

    /// The HTTP status of sending `text`.
    pub(crate) fn send(&self, from: &Person, to: &Person, text: &str) -> Result<u16> {
        let path = format!("/dialog/{}/send", to.id);
        Ok(self.request("POST", &path, Some(&from.token), Some(&json!({"text": text})))?.0)
    }

    /// The texts of the dialog, as `person` sees them.
    pub(crate) fn list(&self, person: &Person, with: &Person) -> Result<Vec<String>> {
        let messages = self.json("GET", &format!("/dialog/{}/list", with.id), Some(&person.token), None)?;
        let messages = messages.as_array().context("the list is no array")?;
        Ok(messages.iter().filter_map(|message| message["text"].as_str().map(str::to_owned)).collect())
    }

    fn json(&self, method: &str, path: &str, token: Option<&str>, body: Option<&Value>) -> Result<Value> {
        let (status, text) = self.request(method, path, token, body)?;
        ensure!(status == 200, "{method} {path}: {status} {text}");
        serde_json::from_str(&text).with_context(|| format!("{method} {path}: {text}"))
    }

    fn request(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
    ) -> Result<(u16, String)> {
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address))
            .header("host", &self.host);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let mut answer = match body {
            Some(body) => {
                self.agent.run(request.header("content-type", "application/json").body(body.to_string())?)?
            }
            None => self.agent.run(request.body(())?)?,
        };
        Ok((answer.status().as_u16(), answer.body_mut().read_to_string()?))
    }
}
