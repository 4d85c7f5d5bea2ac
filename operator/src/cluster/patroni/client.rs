//! Patroni's REST API, over TLS with certificates on both sides.

use std::time::Duration;

use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cluster::certificates::Certificates;
use crate::error::{Error, chain};
use crate::names::PATRONI_PORT;
use crate::tls;

/// Time limit of a question.
const QUESTION: Duration = Duration::from_secs(5);
/// Time limit of a change of the configuration, which Patroni only writes into its store.
const CHANGE: Duration = Duration::from_secs(10);
/// Time limit of an order: Patroni answers when it was carried out.
const ORDER: Duration = Duration::from_secs(40);
/// A restart is not waited for any longer.
const RESTART: Duration = Duration::from_secs(10);
/// No answer is longer.
const LIMIT: usize = 1 << 20;

/// A client that shows a certificate for commands, and believes only the cluster's authority.
pub struct Client {
    http: HttpClient<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

/// An instance to talk to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Its pod.
    pub pod: String,
    /// Its host name, which its certificate must hold.
    pub host: String,
}

/// What an instance says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Whether PostgreSQL has to be restarted for a parameter to take effect.
    pub pending_restart: bool,
    /// When PostgreSQL was started, as PostgreSQL writes it.
    postmaster_start_time: Option<String>,
}

impl Report {
    /// When PostgreSQL was started.
    #[must_use]
    pub fn started(&self) -> Option<Timestamp> {
        let text = self.postmaster_start_time.as_ref()?.replacen(' ', "T", 1);
        text.parse().ok()
    }
}

impl Client {
    /// A client for one cluster.
    ///
    /// # Errors
    /// If the certificates cannot be used.
    pub fn new(certificates: &Certificates) -> Result<Self, Error> {
        let (believed, shown) = (&certificates.authority, &certificates.patroni);
        let tls =
            tls::client(believed.certificate.as_bytes(), shown.certificate.as_bytes(), shown.key.as_bytes())
                .map_err(|error| Error::Certificate {
                    object: "a TLS configuration for Patroni".to_owned(),
                    reason: error.to_string(),
                })?;
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only()
            .enable_http1()
            .build();
        Ok(Self {
            http: HttpClient::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector),
        })
    }

    /// What an instance says of itself.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn report(&self, instance: &Address) -> Result<Report, Error> {
        const ACTION: &str = "read the state";
        // An instance that does not serve answers too, with another status.
        let (_, body) = self.send(instance, ACTION, Method::GET, "/patroni", None, QUESTION).await?;
        serde_json::from_slice(&body).map_err(|error| failed(instance, ACTION, error.to_string()))
    }

    /// Changes the dynamic configuration of an instance's group.
    ///
    /// # Errors
    /// If it refuses, or somebody else changes it at the same time.
    pub async fn configure(&self, instance: &Address, change: &Value) -> Result<(), Error> {
        self.order(instance, "change the configuration", Method::PATCH, "/config", change, CHANGE).await
    }

    /// Has an instance read its configuration anew, and PostgreSQL with it: then it knows what waits for a restart.
    ///
    /// # Errors
    /// If it refuses. It answers before it has done so, which takes it up to a loop.
    pub async fn reload(&self, instance: &Address) -> Result<(), Error> {
        const ACTION: &str = "reload the configuration";
        let answer = self.send(instance, ACTION, Method::POST, "/reload", None, QUESTION).await?;
        accepted(instance, ACTION, &answer)
    }

    /// Restarts PostgreSQL of an instance, if a parameter still waits for that.
    ///
    /// # Errors
    /// If it refuses the order. A restart that takes long, or that fails because PostgreSQL does not start with a value,
    /// is tried by Patroni until it succeeds: the instance says how it is.
    pub async fn restart(&self, instance: &Address) -> Result<(), Error> {
        const ACTION: &str = "restart PostgreSQL";
        let order = json!({ "restart_pending": true });
        let restart = self.send(instance, ACTION, Method::POST, "/restart", Some(&order), ORDER);
        match tokio::time::timeout(RESTART, restart).await {
            Err(_) | Ok(Ok((StatusCode::SERVICE_UNAVAILABLE, _))) => Ok(()),
            Ok(answer) => accepted(instance, ACTION, &answer?),
        }
    }

    /// Makes `to` the primary in place of `from`; or says why that is not possible now, for example because `to` is too
    /// far behind.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn switch_over(&self, from: &Address, to: &str) -> Result<Result<(), Error>, Error> {
        const ACTION: &str = "switch over to a standby";
        let order = json!({ "leader": from.pod, "candidate": to });
        let answer = self.send(from, ACTION, Method::POST, "/switchover", Some(&order), ORDER).await?;
        Ok(accepted(from, ACTION, &answer))
    }

    async fn order(
        &self,
        instance: &Address,
        action: &'static str,
        method: Method,
        path: &str,
        body: &Value,
        limit: Duration,
    ) -> Result<(), Error> {
        let answer = self.send(instance, action, method, path, Some(body), limit).await?;
        accepted(instance, action, &answer)
    }

    async fn send(
        &self,
        instance: &Address,
        action: &'static str,
        method: Method,
        path: &str,
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<(StatusCode, Bytes), Error> {
        let request = Request::builder()
            .method(method)
            .uri(format!("https://{}:{PATRONI_PORT}{path}", instance.host))
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::from(body.map(Value::to_string).unwrap_or_default()))
            .map_err(|error| failed(instance, action, error.to_string()))?;
        let answer = async {
            let response = self.http.request(request).await.map_err(|error| chain(&error))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), LIMIT).collect().await;
            Ok((status, body.map_err(|error| error.to_string())?.to_bytes()))
        };
        tokio::time::timeout(limit, answer)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {} s", limit.as_secs())))
            .map_err(|reason| failed(instance, action, reason))
    }
}

fn accepted(instance: &Address, action: &'static str, answer: &(StatusCode, Bytes)) -> Result<(), Error> {
    let (status, text) = answer;
    if status.is_success() {
        return Ok(());
    }
    Err(failed(instance, action, format!("{status}: {}", String::from_utf8_lossy(text).trim())))
}

fn failed(instance: &Address, action: &'static str, reason: String) -> Error {
    Error::Patroni { instance: instance.pod.clone(), action, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_time_is_read_as_patroni_writes_it() {
        let report: Report = serde_json::from_value(json!({
            "state": "running", "postmaster_start_time": "2026-11-21 10:11:12.345678+00:00", "role": "primary",
        }))
        .unwrap();
        assert_eq!(report.started().unwrap().to_string(), "2026-11-21T10:11:12.345678Z");
        assert!(!report.pending_restart);
        assert_eq!(Report::default().started(), None);
    }
}
