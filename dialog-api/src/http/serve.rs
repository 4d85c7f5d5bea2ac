//! The HTTP server: accepts connections, bounds what each may take, and ends without losing a request.

use std::{convert::Infallible, io, pin::Pin, sync::Arc, time::Duration};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

use super::{
    answer::Answer,
    guard::{Guarded, Phase},
    hot::Front,
    places::{Ending, Places},
};
use crate::{config::Limits, metrics::Metrics};

/// Largest head of a request, in bytes.
const HEAD_LIMIT: usize = 16 * 1024;
/// How long a client that has just connected may take to send its request when the server ends.
const FIRST_REQUEST: Duration = Duration::from_secs(1);
/// Pause after a failed accept: the usual reason is that the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until `stop`, then lets accepted requests finish.
///
/// Connections that wait in the kernel's queue at that moment are accepted as well; only then the port closes.
/// Returns whether everything finished within the configured time.
pub async fn serve(
    listener: TcpListener,
    front: Arc<Front>,
    limits: &Limits,
    metrics: &Arc<Metrics>,
    stop: &CancellationToken,
) -> bool {
    let places = Places::new(limits.max_connections as usize);
    let mut http = http1::Builder::new();
    // Heads have their time from [`Guarded`], idle connections theirs from [`Places`]; the library's own would be a timer
    // for each request.
    http.max_buf_size(HEAD_LIMIT).header_read_timeout(None);
    let (idle, idle_limit) = (Arc::clone(&places), limits.idle_timeout);
    let _ends_idle = AbortOnDropHandle::new(tokio::spawn(async move { idle.end_idle(idle_limit).await }));
    let connections = TaskTracker::new();
    let accept = |stream: TcpStream, place| {
        let _ = stream.set_nodelay(true);
        let phase = Phase::default();
        let guarded = Guarded::new(stream, phase.clone(), limits.header_timeout, limits.body_timeout);
        let (front, begun) = (Arc::clone(&front), phase.clone());
        let service = service_fn(move |request| {
            let (front, handling) = (Arc::clone(&front), phase.begin());
            // An open stream is no idle connection: the request ends with the body of its response. In a box, which is
            // there while it is handled only: an idle connection would keep room for it, 5 kB, in itself.
            Box::pin(async move {
                Ok::<_, Infallible>(front.answer(request).await.map(|body| Answer::new(body, handling)))
            })
        });
        let connection = http.serve_connection(TokioIo::new(guarded), service);
        let client = metrics.client_connected();
        let entry = places.enter(begun.clone());
        connections.spawn(async move {
            let _held = (place, client);
            let mut connection = std::pin::pin!(connection);
            // In this order, so that what has arrived is read before the end is considered.
            let outcome = tokio::select! {
                biased;
                outcome = connection.as_mut() => outcome,
                ending = entry.told_to_end() => match ending {
                    Ending::Stop => finish(connection, &begun).await,
                    Ending::GiveWay => give_way(connection, &begun).await,
                },
            };
            if let Err(error) = outcome {
                tracing::debug!(%error, "connection of a client ended");
            }
        });
    };

    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            // One more than there are places, if the end comes while this one waits for its own.
            Ok((stream, _)) => accept(stream, stop.run_until_cancelled(places.take()).await.flatten()),
            Err(error) => pause_after(&error).await,
        }
    }
    places.stop();
    match listener.into_std() {
        // Asked directly: the runtime knows of a new connection only some time after the kernel.
        Ok(listener) => {
            while let Some(place) = places.try_take() {
                let accepted = listener.accept().and_then(|(stream, _)| {
                    stream.set_nonblocking(true)?;
                    TcpStream::from_std(stream)
                });
                match accepted {
                    Ok(stream) => accept(stream, Some(place)),
                    Err(_) => break,
                }
            }
        }
        Err(error) => tracing::warn!(%error, "connections that wait to be accepted are lost"),
    }
    tracing::info!(connections = connections.len(), "no longer accepting");
    connections.close();
    timeout(limits.shutdown_timeout, connections.wait()).await.is_ok()
}

/// Ends a connection: the request that is being handled is answered, none after it is read.
///
/// A connection on which nothing has happened yet belongs to a client that is about to send its first request:
/// it gets a moment to do so, and its response says that the connection ends.
async fn finish<C>(mut connection: Pin<&mut C>, phase: &Phase) -> hyper::Result<()>
where
    C: hyper_util::server::graceful::GracefulConnection<Error = hyper::Error>,
{
    if phase.is_new()
        && let Ok(outcome) = timeout(FIRST_REQUEST, connection.as_mut()).await
    {
        return outcome;
    }
    connection.as_mut().graceful_shutdown();
    connection.await
}

/// Ends a connection whose place somebody else needs, or that nobody uses: at once if nothing was ever asked on it, otherwise as
/// soon as the last response has been taken.
async fn give_way<C>(mut connection: Pin<&mut C>, phase: &Phase) -> hyper::Result<()>
where
    C: hyper_util::server::graceful::GracefulConnection<Error = hyper::Error>,
{
    if phase.is_new() {
        return Ok(());
    }
    connection.as_mut().graceful_shutdown();
    connection.await
}

/// A client that was gone before it was accepted is nobody's fault; everything else needs a moment.
async fn pause_after(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset};
    if !matches!(error.kind(), ConnectionAborted | ConnectionReset) {
        tracing::warn!(%error, "a connection could not be accepted");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}
