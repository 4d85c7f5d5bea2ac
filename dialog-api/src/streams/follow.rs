//! Follows a dialog: delivers each of its messages once, as they are written, wherever they are.
//!
//! The order of ids is not the order of commits: a message whose transaction was slow, or whose replica has a late
//! clock, appears behind messages that were delivered already. So a stretch behind the newest message is read again and
//! again, and what is known there is dropped (`Window`).

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::broadcast::error::{RecvError, TryRecvError},
    time::{Instant, sleep_until},
};
use uuid::Uuid;

use super::{Listener, News};
use crate::dialogs::{
    DialogError, Dialogs,
    page::{Message, Range},
    pair::Pair,
};

/// Messages that are read at a time, and so the most that wait for a slow client.
const PAGE: u16 = 16;

/// Bits of a UUIDv7 behind its milliseconds.
const BEHIND_TIME: u32 = 80;

/// Where a stream was, as it goes to the client and comes back as `Last-Event-ID`: the newest message, and how many
/// messages it knew in the window, with the combination of their ids. If that is what the window still holds,
/// nothing came late meanwhile; otherwise the window is delivered again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    newest: Uuid,
    known: Option<(usize, u64)>,
}

impl Position {
    /// Reads what was sent as an event's id, or the id of a message.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let newest = Uuid::try_parse(parts.next()?).ok()?;
        let known = match (parts.next(), parts.next(), parts.next()) {
            (None, ..) => None,
            (Some(count), Some(digest), None) => {
                Some((count.parse().ok()?, u64::from_str_radix(digest, 16).ok()?))
            }
            _ => return None,
        };
        Some(Self { newest, known })
    }

    /// The newest message.
    #[must_use]
    pub fn message(self) -> Uuid {
        self.newest
    }

    /// The time of the newest message, in milliseconds since 1970.
    #[must_use]
    pub fn milliseconds(self) -> u128 {
        self.newest.as_u128() >> BEHIND_TIME
    }
}

impl std::fmt::Display for Position {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}", self.newest)?;
        self.known.map_or(Ok(()), |(count, digest)| write!(formatter, ".{count}.{digest:x}"))
    }
}

/// The messages that are known in the stretch behind the newest.
#[derive(Debug)]
struct Window {
    width: Duration,
    newest: Uuid,
    known: BTreeSet<Uuid>,
}

impl Window {
    /// Knows of no message.
    fn new(width: Duration, newest: Uuid) -> Self {
        Self { width, newest, known: BTreeSet::new() }
    }

    /// Where the window begins: the smallest id of a message that much older than the newest.
    fn start(&self) -> Uuid {
        let milliseconds = self.newest.as_u128() >> BEHIND_TIME;
        Uuid::from_u128(milliseconds.saturating_sub(self.width.as_millis()) << BEHIND_TIME)
    }

    /// Takes a message. Returns whether it is a new one.
    fn admit(&mut self, id: Uuid) -> bool {
        if id < self.start() || !self.known.insert(id) {
            return false;
        }
        if id > self.newest {
            self.newest = id;
            self.known = self.known.split_off(&self.start());
        }
        true
    }

    fn position(&self) -> Position {
        #[allow(clippy::cast_possible_truncation, reason = "the lower half is the random one")]
        let digest = self.known.iter().fold(0, |digest, id| digest ^ id.as_u128() as u64);
        Position { newest: self.newest, known: Some((self.known.len(), digest)) }
    }
}

/// Follows one dialog for one reader.
pub struct Follower {
    dialogs: Arc<Dialogs>,
    listener: Listener,
    reader: Uuid,
    peer: Uuid,
    window: Window,
    found: VecDeque<(Position, Message)>,
    /// Messages that have changed, and have not been read since.
    changed: BTreeSet<Uuid>,
    /// Whether there may be more to read without waiting.
    behind: bool,
    next_poll: Instant,
}

impl Follower {
    /// Follows from a position, or from now. What is told from this moment on is not missed.
    ///
    /// # Errors
    /// When the other does not exist, or the database failed.
    pub async fn new(
        dialogs: Arc<Dialogs>,
        listener: Listener,
        (reader, peer): (Uuid, Uuid),
        position: Option<Position>,
    ) -> Result<Self, DialogError> {
        debug_assert_eq!(listener.dialog, Pair::new(reader, peer).dialog_id());
        let settings = listener.streams.settings;
        let newest = if let Some(position) = position {
            position.newest
        } else {
            let page = dialogs.list(reader, peer, Range::default(), 1).await?;
            page.messages.first().map(|message| message.id).unwrap_or_default()
        };
        let next_poll = Instant::now() + settings.poll;
        let window = Window::new(settings.overlap, newest);
        let (found, behind) = (VecDeque::new(), position.is_some());
        let changed = BTreeSet::new();
        let mut follower =
            Self { dialogs, listener, reader, peer, window, found, changed, behind, next_poll };
        follower.recall(position).await?;
        Ok(follower)
    }

    /// Finds out what the client knows already of the window.
    async fn recall(&mut self, position: Option<Position>) -> Result<(), DialogError> {
        let newest = self.window.newest;
        let mut before = Window::new(self.window.width, newest);
        let mut start = before.start();
        'window: loop {
            let page = self.dialogs.list(self.reader, self.peer, Range::After(start), PAGE).await?;
            for message in page.messages.iter().rev() {
                if message.id > newest {
                    break 'window;
                }
                before.admit(message.id);
                start = message.id;
            }
            if page.messages.len() < usize::from(PAGE) {
                break;
            }
        }
        let same = position.is_none_or(|position| position == before.position());
        if same {
            self.window = before;
        } else {
            // The message that it was told last it knows in any case.
            self.window.admit(newest);
        }
        Ok(())
    }

    /// Waits for the next message, or the next change of one. Nothing when the streams are closed, or when the reader
    /// may not read any more, which is asked before each message and whenever the dialog was read.
    pub async fn next(&mut self, may_read: impl Fn() -> bool) -> Option<(Position, Message)> {
        loop {
            if !may_read() {
                return None;
            }
            if let Some(found) = self.found.pop_front() {
                return Some(found);
            }
            let outcome =
                if self.behind { self.read(self.window.start()).await } else { self.wait().await? };
            if let Err(error) = outcome {
                tracing::debug!(%error, "a stream could not read its dialog, it will try again");
                self.behind = false;
            }
        }
    }

    /// Waits for news or for the time to read without any.
    async fn wait(&mut self) -> Option<Result<(), DialogError>> {
        let closing = self.listener.streams.closing.clone();
        tokio::select! {
            () = closing.cancelled() => None,
            news = self.listener.news.recv() => match news {
                Ok(news) => Some(self.hear(news).await),
                Err(RecvError::Lagged(_)) => Some(self.hear(News::Sent).await),
                Err(RecvError::Closed) => None,
            },
            () = sleep_until(self.next_poll) => {
                // Many streams that were opened together should not all read at the same moment.
                let poll = self.listener.streams.settings.poll.mul_f64(0.75 + rand::random::<f64>() / 2.0);
                self.next_poll = Instant::now() + poll;
                Some(self.look_again().await)
            }
        }
    }

    async fn hear(&mut self, first: News) -> Result<(), DialogError> {
        let mut sent = false;
        let mut news = Ok(first);
        loop {
            match news {
                Ok(News::Sent) | Err(TryRecvError::Lagged(_)) => sent = true,
                Ok(News::Changed(message)) => {
                    self.changed.insert(message);
                }
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
            news = self.listener.news.try_recv();
        }
        if sent {
            self.read(self.window.newest).await?;
            if self.found.is_empty() {
                // Something was written, and not at the end.
                self.read(self.window.start()).await?;
            }
        }
        self.read_changed().await
    }

    /// What is done without news; also after a failure, so that nothing that was heard is forgotten by it.
    async fn look_again(&mut self) -> Result<(), DialogError> {
        self.read(self.window.start()).await?;
        self.read_changed().await
    }

    /// Reads the messages that have changed; one is forgotten when it was read.
    async fn read_changed(&mut self) -> Result<(), DialogError> {
        while let Some(id) = self.changed.first().copied() {
            if let Some(message) = self.dialogs.get(self.reader, self.peer, id).await? {
                self.found.push_back((self.window.position(), message));
            }
            self.changed.remove(&id);
        }
        Ok(())
    }

    /// Reads a page of what is newer than this.
    async fn read(&mut self, start: Uuid) -> Result<(), DialogError> {
        let mut start = start;
        loop {
            let page = self.dialogs.list(self.reader, self.peer, Range::After(start), PAGE).await?;
            self.behind = page.messages.len() == usize::from(PAGE);
            start = page.next.unwrap_or(start);
            for message in page.messages.into_iter().rev() {
                if self.window.admit(message.id) {
                    self.found.push_back((self.window.position(), message));
                }
            }
            // A page that was known entirely leads to the next one; one with something new is delivered first.
            if !self.behind || !self.found.is_empty() {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(milliseconds: u128, random: u128) -> Uuid {
        Uuid::from_u128((milliseconds << BEHIND_TIME) | random)
    }

    #[test]
    fn a_late_message_is_admitted_once_and_a_known_one_never() {
        let mut window = Window::new(Duration::from_millis(100), id(1000, 0));
        assert!(window.admit(id(1000, 1)) && window.admit(id(1050, 1)));
        assert!(!window.admit(id(1000, 1)));
        assert!(window.admit(id(951, 7)) && !window.admit(id(951, 7)));
        assert!(!window.admit(id(949, 7)), "further behind than the window reaches");
        assert!(window.admit(id(2000, 1)));
        assert_eq!(window.known.len(), 1, "nothing is remembered that cannot come again");
    }

    #[test]
    fn a_position_survives_its_way_to_the_client_and_back() {
        let mut window = Window::new(Duration::from_millis(100), id(1000, 0));
        window.admit(id(1000, 1));
        let one = window.position();
        assert_eq!(Position::parse(&one.to_string()), Some(one));
        window.admit(id(990, 2));
        assert_ne!(window.position(), one, "a late message changes it");
        let plain = Position::parse(&id(1, 2).to_string()).unwrap();
        assert_eq!(plain, Position { newest: id(1, 2), known: None });
        for text in ["", "x", "0.1.2", &format!("{one}.0"), &format!("{}.1", id(1, 2)), "1.2.3.4"] {
            assert_eq!(Position::parse(text), None, "{text}");
        }
    }
}
