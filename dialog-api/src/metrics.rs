//! What `/metrics` tells. Labels are bounded: route templates, methods, classes of status, names of statements.

use std::{
    hash::{Hash, Hasher},
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::extract::MatchedPath;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

mod routing;

pub use self::routing::{NodeMetrics, RefreshReason, Route, RoutingMetrics, RoutingMode};
use crate::database::statements::Sql;

/// Labels of a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// The route's template, never the path itself.
    pub route: RouteLabel,
    /// The method; `OTHER` for those that HTTP does not define.
    pub method: &'static str,
    /// Class of the status: `2xx`, `4xx`, `5xx`.
    pub status: &'static str,
}

/// Classes of status.
pub const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Histograms of a route's requests, by class of status: found once, and not by comparing labels at each request.
pub type ByClass = [OnceLock<Histogram>; CLASSES.len()];

/// The template of a route. Holding the router's own text costs no copy of it for each request.
#[derive(Clone, Debug)]
pub enum RouteLabel {
    /// A route of the router.
    Matched(MatchedPath),
    /// What is no route.
    Fixed(&'static str),
}

impl RouteLabel {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Matched(path) => path.as_str(),
            Self::Fixed(text) => text,
        }
    }
}

impl PartialEq for RouteLabel {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for RouteLabel {}

impl Hash for RouteLabel {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl EncodeLabelValue for RouteLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), std::fmt::Error> {
        EncodeLabelValue::encode(&self.as_str(), encoder)
    }
}

/// Labels of a statement.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StatementLabels {
    /// The statement's name.
    pub statement: &'static str,
}

/// Labels of a finished statement.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabels {
    /// The statement's name.
    pub statement: &'static str,
    /// `ok` or `error`.
    pub outcome: &'static str,
}

type HistogramFamily<L> = Family<L, Histogram, fn() -> Histogram>;

/// All metrics of the process.
pub struct Metrics {
    registry: Registry,
    requests: HistogramFamily<RequestLabels>,
    statements: HistogramFamily<OutcomeLabels>,
    /// By statement and whether it failed: to find a histogram takes no lock and no comparison of labels.
    statement_histograms: [[OnceLock<Histogram>; 2]; Sql::ALL.len()],
    statement_retries: Family<StatementLabels, Counter>,
    /// Reads that were answered by somebody else's of the same.
    pub reads_shared: Counter,
    /// Which way statements went.
    pub routing: RoutingMetrics,
    /// Attempts to connect to the database that failed.
    pub connection_failures: Counter,
    /// Panics that were caught in handlers; each is a bug.
    pub panics: Counter,
    /// Logins and registrations that were turned away because too many were waiting.
    pub passwords_turned_away: Counter,
    /// Messages of which no inbox was told at once because too many were waiting.
    pub inbox_left_to_sweep: Counter,
    /// Dialogs whose inboxes were brought up to date together with many others'.
    pub inboxes_together: Counter,
    live_connections: Gauge,
    http_connections: Gauge,
    streams: Gauge,
    ready: Gauge,
}

/// 0.25 ms to about 8 s, doubling.
fn latency_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.000_25, 2.0, 16))
}

impl Metrics {
    /// Registers all metrics; `connections` is the configured number of connections to the database.
    #[must_use]
    pub fn new(connections: u16) -> Arc<Self> {
        let mut registry = Registry::with_prefix("dialog_api");
        let requests = HistogramFamily::new_with_constructor(latency_histogram as fn() -> Histogram);
        let statements = HistogramFamily::new_with_constructor(latency_histogram as fn() -> Histogram);
        let (statement_retries, reads_shared) = (Family::default(), Counter::default());
        let (connection_failures, panics) = (Counter::default(), Counter::default());
        let (passwords_turned_away, inbox_left_to_sweep) = (Counter::default(), Counter::default());
        let inboxes_together = Counter::default();
        let (live_connections, configured_connections): (Gauge, Gauge) = Default::default();
        let (http_connections, streams, ready): (Gauge, Gauge, Gauge) = Default::default();
        configured_connections.set(i64::from(connections));
        let routing = RoutingMetrics::register(&mut registry);

        registry.register(
            "http_request_duration_seconds",
            "Time from a request's head to its response",
            requests.clone(),
        );
        registry.register(
            "database_statement_duration_seconds",
            "Time for a statement, retries included",
            statements.clone(),
        );
        registry.register(
            "database_statement_retries",
            "Attempts of statements that had to be repeated",
            statement_retries.clone(),
        );
        registry.register(
            "database_reads_shared",
            "Reads answered by another reader's query, begun after they asked",
            reads_shared.clone(),
        );
        registry.register(
            "database_connection_failures",
            "Failed attempts to connect to the database",
            connection_failures.clone(),
        );
        registry.register(
            "database_connections_live",
            "Connections to the database that work, to all servers",
            live_connections.clone(),
        );
        registry.register(
            "database_connections_configured",
            "Connections that there should be to each server",
            configured_connections,
        );
        registry.register("http_connections", "Open connections of clients", http_connections.clone());
        registry.register("streams_open", "Open streams of messages", streams.clone());
        registry.register(
            "passwords_turned_away",
            "Logins and registrations refused because too many were waiting",
            passwords_turned_away.clone(),
        );
        registry.register(
            "inbox_left_to_sweep",
            "Messages that inboxes were not told of at once because too many were waiting",
            inbox_left_to_sweep.clone(),
        );
        registry.register(
            "inbox_updated_together",
            "Dialogs whose inboxes were brought up to date together with many others'",
            inboxes_together.clone(),
        );
        registry.register("panics", "Panics caught in handlers", panics.clone());
        registry.register("ready", "1 when /ready answers 200", ready.clone());

        Arc::new(Self {
            registry,
            requests,
            statements,
            statement_histograms: std::array::from_fn(|_| Default::default()),
            statement_retries,
            reads_shared,
            routing,
            connection_failures,
            panics,
            passwords_turned_away,
            inbox_left_to_sweep,
            inboxes_together,
            live_connections,
            http_connections,
            streams,
            ready,
        })
    }

    /// Where requests with these labels are counted, in seconds.
    #[must_use]
    pub fn request_histogram(&self, labels: &RequestLabels) -> Histogram {
        self.requests.get_or_create_owned(labels)
    }

    /// Counts a finished statement.
    pub fn statement(&self, sql: Sql, ok: bool, duration: Duration) {
        self.statement_histograms[sql as usize][usize::from(ok)]
            .get_or_init(|| {
                let outcome = if ok { "ok" } else { "error" };
                self.statements.get_or_create_owned(&OutcomeLabels { statement: sql.name(), outcome })
            })
            .observe(duration.as_secs_f64());
    }

    /// Counts an attempt of a statement that has to be repeated.
    pub fn retried(&self, sql: Sql) {
        self.statement_retries.get_or_create(&StatementLabels { statement: sql.name() }).inc();
    }

    /// A client connected; it is counted until the returned value is dropped.
    #[must_use]
    pub fn client_connected(self: &Arc<Self>) -> ConnectedClient {
        self.http_connections.inc();
        ConnectedClient(Arc::clone(self))
    }

    /// All metrics in the `OpenMetrics` text format.
    ///
    /// # Errors
    /// When a metric cannot be written as text, which takes a broken program.
    pub fn render(
        &self,
        live_connections: usize,
        streams: usize,
        ready: bool,
    ) -> Result<String, std::fmt::Error> {
        self.live_connections.set(i64::try_from(live_connections).unwrap_or(i64::MAX));
        self.streams.set(i64::try_from(streams).unwrap_or(i64::MAX));
        self.ready.set(i64::from(ready));
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Stands for a connected client in the metrics.
pub struct ConnectedClient(Arc<Metrics>);

impl Drop for ConnectedClient {
    fn drop(&mut self) {
        self.0.http_connections.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_counted_is_documented() {
        let metrics = Metrics::new(8);
        // Of what has labels there is nothing before it was counted.
        metrics.routing.mode(RoutingMode::Off);
        let node = metrics.routing.node("worker-0:5432");
        node.live(1);
        node.wait();
        node.queue().inc();
        metrics.statement(Sql::ListMessages, true, Duration::ZERO);
        metrics.retried(Sql::ListMessages);
        let labels = RequestLabels { route: RouteLabel::Fixed("/"), method: "GET", status: "2xx" };
        metrics.request_histogram(&labels).observe(0.0);
        let docs =
            concat!(include_str!("../../docs/http-api.md"), include_str!("../../docs/shard-routing.md"));
        let text = metrics.render(0, 0, true).unwrap();
        let types: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE dialog_api_")).collect();
        assert_eq!(types.len(), 21, "{text}");
        for (name, kind) in types.into_iter().filter_map(|line| line.split_once(' ')) {
            let name = if kind == "counter" { format!("`{name}_total") } else { format!("`{name}") };
            assert!(
                ["`", "{"].iter().any(|end| docs.contains(&format!("{name}{end}"))),
                "{name} is not there"
            );
        }
    }

    #[test]
    fn what_was_counted_is_rendered() {
        let metrics = Metrics::new(8);
        let labels = RequestLabels {
            route: RouteLabel::Fixed("/dialog/{user_id}/send"),
            method: "POST",
            status: "2xx",
        };
        metrics.request_histogram(&labels).observe(0.003);
        metrics.statement(Sql::InsertMessage, true, Duration::from_millis(1));
        let client = metrics.client_connected();
        let text = metrics.render(7, 0, true).unwrap();
        for line in [
            r#"dialog_api_http_request_duration_seconds_count{route="/dialog/{user_id}/send",method="POST",status="2xx"} 1"#,
            r#"dialog_api_database_statement_duration_seconds_count{statement="insert_message",outcome="ok"} 1"#,
            "dialog_api_database_connections_live 7",
            "dialog_api_database_connections_configured 8",
            "dialog_api_http_connections 1",
            "dialog_api_ready 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        drop(client);
        assert!(metrics.render(7, 0, true).unwrap().contains("dialog_api_http_connections 0"));
    }
}
