//! Drives a connection: sends what was asked for, and hands out what is answered.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};

use super::{answers::Answers, error::StatementError, outbox::Outbox, stream::Stream};

/// Room for what is received at once: some pages of messages.
const RECEIVED: usize = 32 * 1024;

/// What drives a connection. It has to be polled for the connection to work, and ends with it: its output says why.
#[must_use = "the connection does not work without its traffic"]
pub struct Traffic {
    stream: Stream,
    outbox: Arc<Outbox>,
    answers: Answers,
    inbound: Inbound,
    outbound: Vec<u8>,
    /// How much of it is written.
    written: usize,
    /// Written, but maybe not on its way yet.
    unflushed: bool,
    /// Whether others had the time to join what waits.
    waited: bool,
}

/// What has been received and not dealt with, at the beginning of the buffer.
struct Inbound {
    buffer: Vec<u8>,
    filled: usize,
}

impl Traffic {
    pub(super) fn new(stream: Stream, outbox: Arc<Outbox>, received: &[u8]) -> Self {
        let mut buffer = received.to_vec();
        buffer.resize(RECEIVED.max(received.len()), 0);
        Self {
            stream,
            outbox,
            answers: Answers::default(),
            inbound: Inbound { buffer, filled: received.len() },
            outbound: Vec::new(),
            written: 0,
            unflushed: false,
            waited: false,
        }
    }

    /// Reads whatever there is.
    fn receive(&mut self, context: &mut Context<'_>) -> Result<(), StatementError> {
        loop {
            let mut space = ReadBuf::new(self.inbound.space());
            match Pin::new(&mut self.stream).poll_read(context, &mut space)? {
                Poll::Ready(()) if space.filled().is_empty() => return Err(StatementError::Closed),
                Poll::Ready(()) => {
                    self.inbound.filled += space.filled().len();
                    let done = self.answers.take(&self.inbound.buffer[..self.inbound.filled])?;
                    self.inbound.forget(done);
                }
                Poll::Pending => return Ok(()),
            }
        }
    }

    /// Sends what waits, as far as there is room.
    ///
    /// Reads that are asked for in the same moment travel together, as one transaction. The first of them wakes the
    /// traffic, which lets everything go first that is ready to run, and then finds the others. While the server owes
    /// answers they wait for those too: it executes one statement after the other, so that they would only wait there,
    /// and meanwhile more come. Writes gain nothing by it and wait for nobody.
    fn send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while self.written < self.outbound.len() {
                let rest = &self.outbound[self.written..];
                let written = ready!(Pin::new(&mut self.stream).poll_write(context, rest))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.written += written;
                self.unflushed = true;
            }
            if self.unflushed {
                ready!(Pin::new(&mut self.stream).poll_flush(context))?;
                self.unflushed = false;
            }
            self.outbound.clear();
            self.written = 0;
            if self.outbox.gathers() {
                // The answers wake.
                if self.answers.are_due() {
                    return Poll::Pending;
                }
                // Once only: those that come meanwhile are among the others.
                if !self.waited {
                    self.waited = true;
                    // Puts this task behind all others in the queue.
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
            self.waited = false;
            self.outbox.take(&mut self.outbound, &mut self.answers);
            if self.outbound.is_empty() {
                return Poll::Pending;
            }
        }
    }
}

impl Future for Traffic {
    /// Why the connection has ended.
    type Output = StatementError;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<StatementError> {
        // Before looking at what waits: what comes after the look wakes.
        self.outbox.register(context.waker());
        if let Err(error) = self.receive(context) {
            return Poll::Ready(error);
        }
        match self.send(context) {
            Poll::Ready(Err(error)) => Poll::Ready(error.into()),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.outbox.close();
    }
}

impl Inbound {
    /// Where to put what is received next. Grows for an answer that is larger than all of it.
    fn space(&mut self) -> &mut [u8] {
        if self.filled == self.buffer.len() {
            self.buffer.resize(2 * self.filled, 0);
        }
        &mut self.buffer[self.filled..]
    }

    /// So much at the beginning is dealt with.
    fn forget(&mut self, done: usize) {
        self.buffer.copy_within(done..self.filled, 0);
        self.filled -= done;
        if self.buffer.len() > RECEIVED && self.filled <= RECEIVED {
            self.buffer.truncate(RECEIVED);
            self.buffer.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read as _};

    use tokio::{net::UnixStream, task::yield_now};

    use super::{
        super::{Client, Company, startup::Prepared},
        *,
    };

    /// How many bytes the server is sent, when everything has had its turn.
    async fn sent(server: &mut std::os::unix::net::UnixStream) -> usize {
        for _ in 0..20 {
            yield_now().await;
        }
        match server.read(&mut [0; 10_000]) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => panic!("{error}"),
        }
    }

    #[tokio::test]
    async fn reads_wait_for_answers_that_are_due_and_writes_and_full_groups_do_not() {
        let statement = Prepared { parameters: Vec::new(), bind_prefix: Box::default() };
        let full = [Company::Shared; Client::TOGETHER];
        let cases: [(&[Company], bool); 5] = [
            (&[Company::Shared], false),
            (&full[1..], false),
            (&full, true),
            (&[Company::Alone], true),
            (&[Company::Shared, Company::Alone], true),
        ];
        for (asked, leave) in cases {
            let (here, there) = UnixStream::pair().unwrap();
            let (outbox, mut server) = (Arc::<Outbox>::default(), there.into_std().unwrap());
            let traffic = tokio::spawn(Traffic::new(Stream::Unix(here), Arc::clone(&outbox), &[]));
            let mut answers = vec![outbox.ask(&statement, &[], Company::Shared).unwrap()];
            assert!(sent(&mut server).await > 0, "nothing is due yet");
            for &company in asked {
                answers.push(outbox.ask(&statement, &[], company).unwrap());
                // Each comes by itself.
                assert_eq!(sent(&mut server).await > 0, leave && answers.len() > asked.len(), "{asked:?}");
            }
            traffic.abort();
        }
    }

    #[test]
    fn room_grows_for_a_large_answer_and_is_given_back() {
        let mut inbound = Inbound { buffer: vec![0; RECEIVED], filled: 0 };
        for number in 0..3_u8 {
            let space = inbound.space();
            space.fill(number);
            inbound.filled += space.len();
        }
        assert_eq!((inbound.filled, inbound.buffer[RECEIVED]), (4 * RECEIVED, 1));
        inbound.forget(4 * RECEIVED - 3);
        assert_eq!((inbound.filled, &inbound.buffer[..3]), (3, [2; 3].as_slice()));
        assert_eq!((inbound.buffer.len(), inbound.space().len()), (RECEIVED, RECEIVED - 3));
    }
}
