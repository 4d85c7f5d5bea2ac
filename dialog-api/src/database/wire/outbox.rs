//! What waits to be sent on a connection.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use futures::task::AtomicWaker;
use tokio::sync::oneshot;

use super::{
    Client, Company,
    answers::{Asked, Outcome},
    error::StatementError,
    messages,
    startup::Prepared,
};

/// Statements that were asked for, encoded, and who waits for them.
#[derive(Default)]
pub(super) struct Outbox {
    waiting: Mutex<Waiting>,
    /// Who drives the traffic.
    traffic: AtomicWaker,
    /// As [`Waiting::gathers`], for those who only look.
    gathers: AtomicBool,
}

#[derive(Default)]
struct Waiting {
    messages: Vec<u8>,
    asked: Vec<Asked>,
    /// How many at the end share a transaction that has not been ended yet.
    group: usize,
    /// Nobody drives the traffic any more.
    closed: bool,
}

impl Outbox {
    /// Asks for a statement to be executed. The answer is dropped if nobody waits for it.
    pub(super) fn ask(
        &self,
        statement: &Prepared,
        values: &[u8],
        company: Company,
    ) -> Result<oneshot::Receiver<Outcome>, StatementError> {
        let (reply, answer) = oneshot::channel();
        let mut waiting = self.lock();
        if waiting.closed {
            return Err(StatementError::Closed);
        }
        // What the traffic has heard of it may let wait.
        let (is_first, gathered) = (waiting.asked.is_empty(), waiting.gathers());
        if company == Company::Alone {
            waiting.end_group();
        }
        messages::execute(&mut waiting.messages, &statement.bind_prefix, values)?;
        waiting.asked.push(Asked { reply, ends_transaction: false });
        waiting.group += 1;
        if company == Company::Alone || waiting.group == Client::TOGETHER {
            waiting.end_group();
        }
        let gathers = waiting.gathers();
        self.gathers.store(gathers, Ordering::Relaxed);
        drop(waiting);
        // Of the others the traffic hears when it comes for the first.
        if is_first || gathered && !gathers {
            self.traffic.wake();
        }
        Ok(answer)
    }

    /// Whether something waits that others may join, and nothing that should not wait for them.
    pub(super) fn gathers(&self) -> bool {
        self.gathers.load(Ordering::Relaxed)
    }

    /// Has this task woken when there is something to send.
    pub(super) fn register(&self, waker: &std::task::Waker) {
        self.traffic.register(waker);
    }

    /// Hands over all that waits: messages into a buffer that is empty, and who waits for their answers.
    pub(super) fn take(&self, messages: &mut Vec<u8>, asked: &mut impl Extend<Asked>) {
        let mut waiting = self.lock();
        waiting.end_group();
        self.gathers.store(false, Ordering::Relaxed);
        std::mem::swap(&mut waiting.messages, messages);
        asked.extend(waiting.asked.drain(..));
    }

    /// Nobody will send anything any more.
    pub(super) fn close(&self) {
        let mut waiting = self.lock();
        waiting.closed = true;
        // Whoever waits hears of it by that.
        waiting.asked.clear();
    }

    /// Nothing is left half done under this lock, so a panic elsewhere is no reason to stop.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Whether all that waits is one transaction that has not been ended.
    fn gathers(&self) -> bool {
        self.group > 0 && self.group == self.asked.len()
    }

    fn end_group(&mut self) {
        if self.group > 0
            && let Some(last) = self.asked.last_mut()
        {
            last.ends_transaction = true;
            messages::sync(&mut self.messages);
            self.group = 0;
        }
    }
}
