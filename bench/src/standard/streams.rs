//! Memory of the service with many open streams, each of which gets a message.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use tokio::time::timeout;
use uuid::Uuid;

use super::{measure::Bench, service::Service};
use crate::{
    client::{Connection, Requests},
    ledger::{Code, mark},
    process,
    table::{Limit, Row},
    workload::{Kind, Operation},
};

/// Memory, in MB (10^6 bytes).
const LIMIT: Limit = Limit::AtMost(100.0);
/// Longest wait for a stream to open, and for its message.
const WAIT: Duration = Duration::from_secs(20);
/// The run that the messages belong to.
const RUN: Uuid = Uuid::from_u128(0x57ea);

/// A stream, and the connection that has to stay for it.
struct Stream {
    number: u64,
    body: Incoming,
    _connection: Connection,
}

/// Of a service of its own, which has done nothing else.
#[allow(clippy::cast_precision_loss, reason = "KiB of one process")]
pub(super) async fn row(bench: &Bench<'_>) -> Result<Row> {
    let count = bench.size.streams;
    let mut api = bench.api("dialog-api-streams", &[])?;
    api.wait_for("/ready", &[200]).await?;
    let megabytes = || anyhow::Ok(process::resident_kib(api.pid())? as f64 * 1_024.0 / 1e6);
    let before = megabytes()?;
    let requests = Arc::new(Requests::new(bench.size.population, &bench.key(), RUN, 100, false)?);
    let mut streams = Vec::with_capacity(count);
    for number in (0..bench.size.population.dialogs()).take(count) {
        streams.push(open(bench, &api, &requests, number).await?);
    }
    let open = streams.len();
    ensure!(open == count, "{count} streams need as many dialogs");
    let idle = megabytes()?;
    let mut sender = Connection::new(api.target().clone(), WAIT);
    for Stream { number, .. } in &streams {
        let (from, to) = bench.size.population.members(*number);
        let request = requests.request(Operation { kind: Kind::Send, from, to }, *number)?;
        let code = sender.ask(request).await;
        ensure!(code == Code::Status(200), "a message to stream {number} was answered {code}");
    }
    for stream in &mut streams {
        wait_for_message(stream).await?;
    }
    let after = megabytes()?;
    let figures = format!(
        "{before:.0} MB before, {idle:.0} MB with all of them open, {after:.0} MB once each had a message"
    );
    Ok(Row::ratio(format!("memory at {count} open streams, in MB"), figures, after.max(idle), LIMIT))
}

async fn open(bench: &Bench<'_>, api: &Service, requests: &Requests, number: u64) -> Result<Stream> {
    let (one, other) = bench.size.population.members(number);
    let request = Request::get(format!("/dialog/{}/stream", bench.size.population.user(one)))
        .header(header::AUTHORIZATION, requests.authorization(other)?)
        .body(Full::default())
        .context("a request")?;
    let mut connection = Connection::new(api.target().clone(), WAIT);
    match connection.open(request).await {
        Ok(response) if response.status() == 200 => {
            Ok(Stream { number, body: response.into_body(), _connection: connection })
        }
        Ok(response) => bail!("stream {number} was answered {}", response.status()),
        Err(code) => {
            bail!("stream {number}: {code}; each takes an open file here and in the service, see `ulimit -n`")
        }
    }
}

async fn wait_for_message(stream: &mut Stream) -> Result<()> {
    let (number, wanted) = (stream.number, mark(RUN, stream.number));
    let mut text = Vec::new();
    let read = async {
        while let Some(frame) = stream.body.frame().await {
            let frame = frame.context("read a stream")?;
            text.extend_from_slice(frame.data_ref().map_or(&[][..], AsRef::as_ref));
            if String::from_utf8_lossy(&text).contains(&wanted) {
                return Ok(());
            }
        }
        bail!("stream {number} ended")
    };
    timeout(WAIT, read).await.with_context(|| format!("stream {number} has shown no message"))?
}
