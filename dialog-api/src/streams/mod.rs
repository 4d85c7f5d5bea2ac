//! Streams of new messages: who listens to which dialog, and who is told when something happens in it.
//!
//! News are hints. They say that a dialog has changed, not how: whoever listens reads the dialog by key ([`follow`]),
//! and does so from time to time without any news. So news may be lost, doubled or late, and no message is missed; and
//! what one replica knows it can tell the others in the cheapest way there is ([`peers`]). Only of the change of an older
//! message there is nothing but the news: it is told as far as they come. `LISTEN` and `NOTIFY` would
//! make every commit on the server wait for every other.

pub mod follow;
pub mod peers;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// News of a dialog that wait for a listener; one that falls further behind reads the dialog anyway.
const WAITING_NEWS: usize = 16;

/// What happened in a dialog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// There are new messages.
    Sent,
    /// This message has another text, or none any more.
    Changed(Uuid),
}

/// What happened where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The dialog.
    pub dialog: Uuid,
    /// What happened.
    pub news: News,
}

/// How streams behave.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Most streams open at a time.
    pub limit: usize,
    /// Most of them for one reader.
    pub reader_limit: usize,
    /// How often a dialog is read without news.
    pub poll: Duration,
    /// How far behind the newest message one that was written late is still looked for.
    pub overlap: Duration,
}

/// Who listens to which dialog.
pub struct Streams {
    open: Mutex<Open>,
    places: Arc<Semaphore>,
    peers: OnceLock<mpsc::Sender<Notice>>,
    closing: CancellationToken,
    settings: Settings,
}

/// What is open here. Counted rather than looked up in the channels: two who leave at the same moment would each see
/// the other.
#[derive(Default)]
struct Open {
    /// By dialog: where its listeners are told, and how many there are.
    dialogs: HashMap<Uuid, (broadcast::Sender<News>, usize)>,
    /// How many streams a reader has.
    readers: HashMap<Uuid, usize>,
}

/// No more streams can be opened here at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooManyStreams {
    /// By anybody.
    #[error("too many streams are open")]
    Here,
    /// By this reader.
    #[error("you have too many streams open")]
    OfReader,
}

/// Somebody who listens to a dialog, until dropped.
pub struct Listener {
    streams: Arc<Streams>,
    dialog: Uuid,
    reader: Uuid,
    news: broadcast::Receiver<News>,
    _place: OwnedSemaphorePermit,
}

impl Streams {
    /// Nobody listens yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            open: Mutex::default(),
            places: Arc::new(Semaphore::new(settings.limit)),
            peers: OnceLock::new(),
            closing: CancellationToken::new(),
            settings,
        }
    }

    /// Listens to a dialog for a reader.
    ///
    /// # Errors
    /// When as many streams are open as there may be, here or for this reader.
    pub fn listen(self: &Arc<Self>, dialog: Uuid, reader: Uuid) -> Result<Listener, TooManyStreams> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| TooManyStreams::Here)?;
        let mut open = self.lock();
        let Open { dialogs, readers } = &mut *open;
        let streams = readers.entry(reader).or_default();
        if *streams >= self.settings.reader_limit {
            return Err(TooManyStreams::OfReader);
        }
        *streams += 1;
        let (sender, listeners) =
            dialogs.entry(dialog).or_insert_with(|| (broadcast::Sender::new(WAITING_NEWS), 0));
        *listeners += 1;
        let news = sender.subscribe();
        drop(open);
        Ok(Listener { streams: Arc::clone(self), dialog, reader, news, _place: place })
    }

    /// Something happened here: tells who listens, here and at the other replicas.
    pub fn announce(&self, notice: Notice) {
        self.tell(notice);
        if let Some(peers) = self.peers.get() {
            // Too many at once are left to the others' own reading.
            let _ = peers.try_send(notice);
        }
    }

    /// Something happened, here or at another replica: tells who listens here.
    fn tell(&self, notice: Notice) {
        if let Some((listeners, _)) = self.lock().dialogs.get(&notice.dialog) {
            // It fails when nobody listens, which is no failure.
            let _ = listeners.send(notice.news);
        }
    }

    /// Streams that are open now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.settings.limit - self.places.available_permits()
    }

    /// Ends all streams: clients go on at another replica.
    pub fn close(&self) {
        self.closing.cancel();
    }

    /// Nothing is left half done under this lock, so a panic elsewhere is no reason to stop.
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut open = self.streams.lock();
        if let Some((_, listeners)) = open.dialogs.get_mut(&self.dialog) {
            *listeners -= 1;
            if *listeners == 0 {
                open.dialogs.remove(&self.dialog);
            }
        }
        if let Some(streams) = open.readers.get_mut(&self.reader) {
            *streams -= 1;
            if *streams == 0 {
                open.readers.remove(&self.reader);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn streams(limit: usize, reader_limit: usize) -> Arc<Streams> {
        let (poll, overlap) = (Duration::from_secs(1), Duration::from_secs(1));
        Arc::new(Streams::new(Settings { limit, reader_limit, poll, overlap }))
    }

    /// How many dialogs and readers.
    fn remembered(streams: &Streams) -> (usize, usize) {
        let open = streams.lock();
        (open.dialogs.len(), open.readers.len())
    }

    const ADA: Uuid = Uuid::from_u128(100);
    const BOB: Uuid = Uuid::from_u128(101);

    #[tokio::test]
    async fn who_listens_is_told_and_who_leaves_is_forgotten() {
        let (streams, dialog) = (streams(2, 2), Uuid::from_u128(1));
        let (mut one, other) = (streams.listen(dialog, ADA).unwrap(), streams.listen(dialog, BOB).unwrap());
        assert_eq!(streams.listen(dialog, ADA).err(), Some(TooManyStreams::Here), "the limit is 2");
        streams.announce(Notice { dialog, news: News::Sent });
        assert_eq!(one.news.recv().await, Ok(News::Sent));
        drop(other);
        assert_eq!((streams.open(), remembered(&streams)), (1, (1, 1)));
        drop(one);
        assert_eq!((streams.open(), remembered(&streams)), (0, (0, 0)));
        streams.announce(Notice { dialog, news: News::Sent });
    }

    #[test]
    fn one_reader_does_not_take_the_places_of_all() {
        let streams = streams(10, 2);
        let of_ada: Vec<_> =
            (0..2).map(|dialog| streams.listen(Uuid::from_u128(dialog), ADA).unwrap()).collect();
        let third = Uuid::from_u128(3);
        assert_eq!(streams.listen(third, ADA).err(), Some(TooManyStreams::OfReader));
        assert!(streams.listen(third, BOB).is_ok());
        drop(of_ada);
        assert!(streams.listen(third, ADA).is_ok());
        assert_eq!(streams.open(), 0, "a place that was refused is free again");
    }
}
