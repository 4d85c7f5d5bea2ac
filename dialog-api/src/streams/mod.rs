//! Streams of new messages: who listens to which dialog, and who is told when something happens in it.
//!
//! News are hints. They say that a dialog has changed, not how: whoever listens reads the dialog by key ([`follow`]),
//! and does so from time to time without any news. So news may be lost, doubled or late, and nothing is missed; and
//! what one replica knows it can tell the others in the cheapest way there is ([`peers`]). `LISTEN` and `NOTIFY` would
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
    /// How often a dialog is read without news.
    pub poll: Duration,
    /// How far behind the newest message one that was written late is still looked for.
    pub overlap: Duration,
}

/// Who listens to which dialog.
pub struct Streams {
    listeners: Mutex<HashMap<Uuid, broadcast::Sender<News>>>,
    places: Arc<Semaphore>,
    peers: OnceLock<mpsc::Sender<Notice>>,
    closing: CancellationToken,
    settings: Settings,
}

/// No more streams can be opened here at the moment.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("too many streams are open")]
pub struct TooManyStreams;

/// Somebody who listens to a dialog, until dropped.
pub struct Listener {
    streams: Arc<Streams>,
    dialog: Uuid,
    news: broadcast::Receiver<News>,
    _place: OwnedSemaphorePermit,
}

impl Streams {
    /// Nobody listens yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            listeners: Mutex::default(),
            places: Arc::new(Semaphore::new(settings.limit)),
            peers: OnceLock::new(),
            closing: CancellationToken::new(),
            settings,
        }
    }

    /// Listens to a dialog.
    ///
    /// # Errors
    /// When as many streams are open as there may be.
    pub fn listen(self: &Arc<Self>, dialog: Uuid) -> Result<Listener, TooManyStreams> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| TooManyStreams)?;
        let news =
            self.lock().entry(dialog).or_insert_with(|| broadcast::Sender::new(WAITING_NEWS)).subscribe();
        Ok(Listener { streams: Arc::clone(self), dialog, news, _place: place })
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
        if let Some(listeners) = self.lock().get(&notice.dialog) {
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
    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, broadcast::Sender<News>>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut listeners = self.streams.lock();
        // This one still counts.
        if listeners.get(&self.dialog).is_some_and(|others| others.receiver_count() <= 1) {
            listeners.remove(&self.dialog);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_listens_is_told_and_who_leaves_is_forgotten() {
        let settings = Settings { limit: 2, poll: Duration::from_secs(1), overlap: Duration::from_secs(1) };
        let streams = Arc::new(Streams::new(settings));
        let dialog = Uuid::from_u128(1);
        let (mut one, other) = (streams.listen(dialog).unwrap(), streams.listen(dialog).unwrap());
        assert!(streams.listen(dialog).is_err(), "the limit is 2");
        streams.announce(Notice { dialog, news: News::Sent });
        assert_eq!(one.news.recv().await, Ok(News::Sent));
        drop(other);
        assert_eq!((streams.open(), streams.lock().len()), (1, 1));
        drop(one);
        assert_eq!((streams.open(), streams.lock().len()), (0, 0));
        streams.announce(Notice { dialog, news: News::Sent });
    }
}
