//! One person of a million who writes to a hundred thousand, each in a dialog of its own, as dialog-api does it: by its own
//! statements, its own sessions and its own inboxes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use dialog_api::dialogs::pair::Pair;
use dialog_api::inbox::Inbox;
use dialog_bench::audit::Audit;
use dialog_bench::ledger::Entry;
use dialog_bench::population::Population;
use dialog_operator::names::Group;
use futures::future::join_all;
use tokio::task::JoinHandle;
use tokio_postgres::types::ToSql;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::sends::{Correspondents, Service, Writer};
use crate::world::{World, eventually};

/// Who there is.
pub const USERS: u64 = 1_000_000;
/// Whom the sender writes to.
pub const PEERS: u64 = 100_000;
/// Messages at a time. dialog-api tells the inboxes of so few dialogs by a statement each; of many more at once by one for all
/// of the sender's, and one for those of all others.
const AT_ONCE: usize = 16;

/// A million users, and the dialogs of one of them.
pub struct People {
    writer: Arc<Writer>,
    peers: Vec<Correspondents>,
    /// The newest message of each dialog.
    newest: HashMap<Uuid, Uuid>,
}

impl People {
    /// Fills the tables: all users, and a dialog of the first with each of the next hundred thousand, with one message in it and
    /// in both inboxes.
    pub async fn settle(world: &World) -> Result<Self> {
        let started = Instant::now();
        let population = Population::new(USERS, 1, 1)?;
        let writer = Writer::new(Service::start(world).await?, population);
        let peers: Vec<Correspondents> =
            (1..=PEERS).map(|peer| Correspondents::new(population, 0, peer)).collect();
        let (ids, dialogs): (Vec<Uuid>, Vec<Uuid>) = peers.iter().map(|of| (of.recipient, of.dialog)).unzip();
        let messages: Vec<Uuid> = peers.iter().map(|_| writer.clock.next_id().0).collect();
        let sender = population.user(0);
        let client = world.ask_client(Group::Coordinator).await?;
        client.batch_execute("SET search_path = public").await?;
        // Of whom nobody hears again.
        let others = format!(
            "INSERT INTO users (user_id, first_name, second_name, created_at)
             SELECT gen_random_uuid(), 'First' || number, 'Second' || number % 1000, now()
             FROM generate_series(1, {}) AS number",
            USERS - PEERS - 1
        );
        client.batch_execute(&others).await?;
        let values: [&(dyn ToSql + Sync); 4] = [&ids, &dialogs, &messages, &sender];
        for statement in [
            "INSERT INTO users (user_id, first_name, second_name, created_at)
             SELECT $4::uuid, 'The', 'Sender', now() UNION ALL SELECT peer, 'A', 'Peer', now() FROM ",
            "INSERT INTO dialogs (dialog_id, user_lo, user_hi, created_at, inbox_id)
             SELECT dialog, least(peer, $4::uuid), greatest(peer, $4::uuid), now(), message FROM ",
            "INSERT INTO messages (dialog_id, message_id, from_user_id, to_user_id, text, created_at)
             SELECT dialog, message, $4::uuid, peer, 'Hello', now() FROM ",
            "INSERT INTO user_dialogs (user_id, dialog_id, peer_id, last_message_id)
             SELECT CASE WHEN own THEN $4::uuid ELSE peer END, dialog, CASE WHEN own THEN peer ELSE $4::uuid END, message
             FROM (VALUES (true), (false)) AS side (own), ",
        ] {
            let all = "unnest($1::uuid[], $2::uuid[], $3::uuid[]) AS one (peer, dialog, message)";
            client.execute(&format!("{statement}{all}"), &values).await?;
        }
        println!("{USERS} users and {PEERS} dialogs were there after {:.1?}", started.elapsed());
        let newest = dialogs.into_iter().zip(messages).collect();
        Ok(Self { writer: Arc::new(writer), peers, newest })
    }

    /// The id of who writes to all of them.
    pub fn sender(&self) -> Uuid {
        self.peers[0].sender
    }

    /// Begins to write to one peer after the other.
    pub fn flood(self) -> Flood {
        let stop = CancellationToken::new();
        Flood { stop: stop.clone(), sent: tokio::spawn(self.write(stop)) }
    }

    async fn write(mut self, stop: CancellationToken) -> Sent {
        let service = &self.writer.service;
        let inbox = Inbox::new(Arc::clone(&service.database), Arc::clone(&service.metrics));
        let mut entries = Vec::new();
        for peers in self.peers.chunks(AT_ONCE).cycle() {
            if stop.is_cancelled() {
                break;
            }
            let due = self.writer.elapsed();
            let number = |place: usize| (entries.len() + place) as u64;
            let writes =
                peers.iter().enumerate().map(|(place, of)| self.writer.write(number(place), of, due));
            for (of, (entry, message)) in peers.iter().zip(join_all(writes).await) {
                if entry.code.is_success() {
                    inbox.follow(of.dialog, Pair::new(of.sender, of.recipient), message);
                    self.newest.insert(of.dialog, message);
                }
                entries.push(entry);
            }
            inbox.catch_up().await;
        }
        Sent { people: self, inbox, entries }
    }
}

/// What was sent, and the inboxes that may still have to be told.
struct Sent {
    people: People,
    inbox: Inbox,
    entries: Vec<Entry>,
}

/// Messages on their way.
pub struct Flood {
    stop: CancellationToken,
    sent: JoinHandle<Sent>,
}

/// What became of it.
pub struct Written {
    pub audit: Audit,
    /// Peers who got a message.
    pub peers: usize,
}

impl Flood {
    /// Ends it, and compares what was acknowledged with what every shard holds, and the sender's inbox with both.
    pub async fn end(self, world: &World) -> Result<Written> {
        self.stop.cancel();
        let Sent { people, inbox, entries } = self.sent.await?;
        eventually("all inboxes told", async || Ok(inbox.catch_up().await)).await?;
        let audit = people.writer.audit(&entries).await?;
        let client = world.ask_client(Group::Coordinator).await?;
        let inbox = "SELECT dialog_id, last_message_id FROM public.user_dialogs WHERE user_id = $1";
        let rows = client.query(inbox, &[&people.sender()]).await?;
        let told: HashMap<Uuid, Uuid> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        ensure!(rows.len() == told.len() && told == people.newest, "the sender's inbox is not what was sent");
        let users = world.number(Group::Coordinator, "SELECT count(*) FROM public.users").await?;
        ensure!(users == USERS.cast_signed(), "{users} users are left");
        Ok(Written { audit, peers: entries.len().min(people.peers.len()) })
    }
}
