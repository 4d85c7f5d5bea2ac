//! Time limits on a client's connection that the HTTP library does not have.
//!
//! Between requests a connection may be idle for long: proxies keep theirs open, and closing one they are about
//! to use costs somebody a request. But once a request has begun to arrive its head must be complete soon, and
//! a response must be taken by whoever asked for it. So reads and writes are watched here, knowing from the
//! service whether a request is being handled.

use std::{
    future::Future as _,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

/// Where a connection is: even while a head is waited for, odd while a request is handled.
#[derive(Clone, Debug)]
pub(super) struct Phase(Arc<Progress>);

#[derive(Debug)]
struct Progress {
    number: AtomicU64,
    connected: Instant,
    /// When the number last changed, in milliseconds after the connection was made.
    changed: AtomicU64,
}

impl Default for Phase {
    /// That of a new connection.
    fn default() -> Self {
        Self(Arc::new(Progress {
            number: AtomicU64::new(0),
            connected: Instant::now(),
            changed: AtomicU64::new(0),
        }))
    }
}

impl Phase {
    /// A request's head is complete. It is handled until what is returned is dropped.
    pub(super) fn begin(&self) -> Handling {
        self.next();
        Handling(self.clone())
    }

    fn next(&self) {
        let changed = u64::try_from(self.0.connected.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.changed.store(changed, Ordering::Relaxed);
        self.0.number.fetch_add(1, Ordering::Release);
    }

    /// Whether no request has arrived yet.
    pub(super) fn is_new(&self) -> bool {
        self.now() == 0
    }

    /// For how long a head has been waited for; nothing while a request is handled.
    pub(super) fn idle(&self) -> Option<Duration> {
        // The number before and after: the time of one change is not taken for that of another.
        let number = self.now();
        let changed = Duration::from_millis(self.0.changed.load(Ordering::Acquire));
        let is_idle = number.is_multiple_of(2) && number == self.now();
        is_idle.then(|| self.0.connected.elapsed().saturating_sub(changed))
    }

    fn now(&self) -> u64 {
        self.0.number.load(Ordering::Acquire)
    }
}

/// A request that is being handled, up to the end of its response's body.
pub(super) struct Handling(Phase);

impl Drop for Handling {
    fn drop(&mut self) {
        self.0.next();
    }
}

/// A connection whose reads and writes have to get on.
pub(super) struct Guarded<S> {
    stream: S,
    phase: Phase,
    seen: u64,
    head_limit: Duration,
    head: Deadline,
    write_limit: Duration,
    write: Deadline,
}

impl<S> Guarded<S> {
    /// Guards a new connection: its first head has to be complete within `head_limit` from now, every later
    /// one from its first byte; a write has to take some bytes within `write_limit`.
    pub(super) fn new(stream: S, phase: Phase, head_limit: Duration, write_limit: Duration) -> Self {
        let seen = phase.now();
        let mut head = Deadline::default();
        head.set(head_limit);
        Self { stream, phase, seen, head_limit, head, write_limit, write: Deadline::default() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let phase = self.phase.now();
        if phase != self.seen {
            self.seen = phase;
            self.head.clear();
        }
        let waiting_for_head = phase.is_multiple_of(2);
        if waiting_for_head && self.head.is_over(context) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if waiting_for_head && buffer.filled().len() > before && !self.head.is_set() {
            let limit = self.head_limit;
            self.head.set(limit);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> Guarded<S> {
    /// Ends the write's time when it got on, and the connection when it did not for too long.
    fn watch<T>(&mut self, context: &mut Context<'_>, progress: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if progress.is_ready() {
            self.write.clear();
        } else {
            if !self.write.is_set() {
                self.write.set(self.write_limit);
            }
            if self.write.is_over(context) {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        progress
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, progress)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watch(context, progress)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.stream).poll_flush(context);
        self.watch(context, progress)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.stream).poll_shutdown(context);
        self.watch(context, progress)
    }
}

/// A point in time that costs nothing until somebody has to wait for it.
#[derive(Default)]
struct Deadline {
    at: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Deadline {
    fn set(&mut self, limit: Duration) {
        self.at = Some(Instant::now() + limit);
        self.timer = None;
    }

    fn clear(&mut self) {
        self.at = None;
        self.timer = None;
    }

    fn is_set(&self) -> bool {
        self.at.is_some()
    }

    /// Whether it has passed; if not, the task is woken when it does.
    fn is_over(&mut self, context: &mut Context<'_>) -> bool {
        let Some(at) = self.at else { return false };
        self.timer.get_or_insert_with(|| Box::pin(sleep_until(at))).as_mut().poll(context).is_ready()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn a_head_that_drips_is_cut_off() {
        let (mut client, server) = duplex(64);
        let mut server = Guarded::new(server, Phase::default(), LIMIT, LIMIT);
        let drip = tokio::spawn(async move {
            while client.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        let started = Instant::now();
        let mut byte = [0];
        let error = loop {
            if let Err(error) = server.read_exact(&mut byte).await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(started.elapsed().as_secs(), 10);
        drop(server);
        drip.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn between_requests_a_connection_may_be_idle() {
        let (mut client, server) = duplex(64);
        let phase = Phase::default();
        let mut server = Guarded::new(server, phase.clone(), LIMIT, LIMIT);
        let mut byte = [0];
        for _ in 0..3 {
            client.write_all(b"x").await.unwrap();
            server.read_exact(&mut byte).await.unwrap();
            drop(phase.begin());
            assert!(
                tokio::time::timeout(10 * LIMIT, server.read_exact(&mut byte)).await.is_err(),
                "still waiting, and no error"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_that_is_being_sent_is_no_idle_connection() {
        let phase = Phase::default();
        let stream = axum::body::Body::from_stream(futures::stream::pending::<std::io::Result<String>>());
        let answer = super::super::answer::Answer::new(stream, phase.begin());
        tokio::time::sleep(LIMIT).await;
        assert_eq!(phase.idle(), None);
        drop(answer);
        tokio::time::sleep(LIMIT).await;
        assert_eq!(phase.idle(), Some(LIMIT));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_not_measured_as_a_head() {
        let (mut client, server) = duplex(64);
        let phase = Phase::default();
        let mut server = Guarded::new(server, phase.clone(), LIMIT, LIMIT);
        let _handling = phase.begin();
        tokio::time::sleep(2 * LIMIT).await;
        client.write_all(b"x").await.unwrap();
        assert_eq!(server.read_u8().await.unwrap(), b'x');
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_that_nobody_takes_is_given_up() {
        let (_client, server) = duplex(8);
        let mut server = Guarded::new(server, Phase::default(), LIMIT, LIMIT);
        let started = Instant::now();
        let error = server.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(started.elapsed().as_secs(), 10);
    }
}
