//! The loader: writes a population by COPY, valid for the service in every respect.
//!
//! All users share one password, hashed once: hashing a million would take days.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::{BufMut as _, Bytes, BytesMut};
use dialog_api::{database::tables::Table, dialogs::pair::Pair, passwords::Passwords};
use futures::SinkExt as _;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use jiff::{SignedDuration, Timestamp};
use uuid::{Builder, Uuid};

use crate::{database::Database, population::Population};

/// Password of every loaded user.
pub const PASSWORD: &str = "dialog-bench";
/// Memory for its hash, in KiB, as the service has it by default.
const PASSWORD_MEMORY: u32 = 19_456;
/// How much is handed to a COPY at a time, in bytes.
const CHUNK: usize = 256 * 1024;
/// Rows between two moves of a progress bar.
const ROWS_SHOWN: u64 = 4_096;

/// What is written.
#[derive(Clone, Copy, Debug)]
pub struct LoadPlan {
    /// Users, and dialogs among them.
    pub population: Population,
    /// Messages in each dialog, both taking turns.
    pub messages: u64,
    /// Length of a text, in characters.
    pub text: usize,
    /// When the newest message was sent; each is a second older than the next of its dialog.
    pub newest: Timestamp,
    /// Whether to show progress bars.
    pub progress: bool,
}

/// How a table of the service is filled.
struct Filling {
    table: Table,
    columns: &'static str,
    /// Users or dialogs, whichever the rows are made from.
    items: fn(&Population) -> u64,
    /// Writes the rows of one of them.
    write: fn(&Rows, u64, &mut BytesMut),
}

const OF_USERS: [Filling; 3] = [
    Filling {
        table: Table::Users,
        columns: "user_id, first_name, second_name, created_at",
        items: Population::users,
        write: Rows::user,
    },
    Filling {
        table: Table::Credentials,
        columns: "user_id, password_hash, updated_at",
        items: Population::users,
        write: Rows::credentials,
    },
    Filling {
        table: Table::UserDialogs,
        columns: "user_id, dialog_id, peer_id, last_message_id",
        items: Population::dialogs,
        write: Rows::inbox_entries,
    },
];
const OF_DIALOGS: [Filling; 2] = [
    Filling {
        table: Table::Dialogs,
        columns: "dialog_id, user_lo, user_hi, created_at, inbox_id",
        items: Population::dialogs,
        write: Rows::dialog,
    },
    Filling {
        table: Table::Messages,
        columns: "dialog_id, message_id, from_user_id, to_user_id, text, created_at",
        items: Population::dialogs,
        write: Rows::messages,
    },
];

/// Loads a population into an empty place.
///
/// # Errors
/// When it was loaded before, or the database fails.
pub async fn load(database: &Database, plan: &LoadPlan) -> Result<()> {
    let client = database.connect().await?;
    let first = plan.population.user(0);
    if client.query_opt("SELECT 1 FROM users WHERE user_id = $1", &[&first]).await?.is_some() {
        bail!("this population is loaded already: use it, or load another with another --seed");
    }
    let hash = Passwords::new(1, 1, Duration::from_mins(1), PASSWORD_MEMORY)?.hash(PASSWORD.into()).await?;
    let bars = MultiProgress::new();
    let rows = Rows { plan: *plan, hash };
    // Two tables at a time: one connection alone leaves a processor idle.
    let fill = async |fillings: &[Filling]| {
        for filling in fillings {
            copy(database, filling, &rows, &bars).await?;
        }
        anyhow::Ok(())
    };
    futures::try_join!(fill(&OF_USERS), fill(&OF_DIALOGS))?;
    for Filling { table, .. } in OF_USERS.iter().chain(&OF_DIALOGS) {
        client
            .batch_execute(&format!("ANALYZE {}", table.name()))
            .await
            .with_context(|| format!("analyze {}", table.name()))?;
    }
    Ok(())
}

async fn copy(database: &Database, filling: &Filling, rows: &Rows, bars: &MultiProgress) -> Result<()> {
    let Filling { table, columns, .. } = filling;
    let what = || format!("copy {}", table.name());
    let client = database.connect().await?;
    // Such a statement takes as long as there are rows.
    client.batch_execute("SET statement_timeout = 0").await.with_context(what)?;
    let statement = format!("COPY {} ({columns}) FROM STDIN", table.name());
    let sink = client.copy_in::<_, Bytes>(&statement).await.with_context(what)?;
    let mut sink = std::pin::pin!(sink);
    let items = (filling.items)(&rows.plan.population);
    let bar = if rows.plan.progress { bars.add(bar(*table, items)) } else { ProgressBar::hidden() };
    let mut buffer = BytesMut::with_capacity(CHUNK + 8_192);
    for item in 0..items {
        (filling.write)(rows, item, &mut buffer);
        if buffer.len() >= CHUNK {
            sink.send(buffer.split().freeze()).await.with_context(what)?;
        }
        if item % ROWS_SHOWN == 0 {
            bar.set_position(item);
        }
    }
    if !buffer.is_empty() {
        sink.send(buffer.freeze()).await.with_context(what)?;
    }
    sink.finish().await.with_context(what)?;
    bar.finish();
    Ok(())
}

fn bar(table: Table, items: u64) -> ProgressBar {
    let bar = ProgressBar::new(items);
    if let Ok(style) = ProgressStyle::with_template("{prefix:12} {bar:40} {human_pos}/{human_len}  {eta}") {
        bar.set_style(style);
    }
    bar.set_prefix(table.name());
    bar
}

/// Rows in PostgreSQL's text format. Nothing in them needs escaping.
struct Rows {
    plan: LoadPlan,
    hash: String,
}

impl Rows {
    fn user(&self, item: u64, buffer: &mut BytesMut) {
        let (user, newest) = (self.plan.population.user(item), self.plan.newest);
        line(buffer, format_args!("{user}\tFirst{item}\tSecond{}\t{newest}", item % 1_000));
    }

    fn credentials(&self, item: u64, buffer: &mut BytesMut) {
        let (user, newest) = (self.plan.population.user(item), self.plan.newest);
        line(buffer, format_args!("{user}\t{}\t{newest}", self.hash));
    }

    fn inbox_entries(&self, item: u64, buffer: &mut BytesMut) {
        let Some(last) = self.last_message_id(item) else { return };
        let (one, other) = self.members(item);
        let dialog = Pair::new(one, other).dialog_id();
        for (user, peer) in [(one, other), (other, one)] {
            line(buffer, format_args!("{user}\t{dialog}\t{peer}\t{last}"));
        }
    }

    fn dialog(&self, item: u64, buffer: &mut BytesMut) {
        let (one, other) = self.members(item);
        let (low, high) = (one.min(other), one.max(other));
        let dialog = Pair::new(one, other).dialog_id();
        // Up to where the inboxes have followed: all the way, or the service would look into each dialog.
        let last = self.last_message_id(item).map_or_else(|| "\\N".to_owned(), |last| last.to_string());
        line(buffer, format_args!("{dialog}\t{low}\t{high}\t{}\t{last}", self.sent_at(0)));
    }

    fn messages(&self, item: u64, buffer: &mut BytesMut) {
        let (one, other) = self.members(item);
        let dialog = Pair::new(one, other).dialog_id();
        for number in 0..self.plan.messages {
            let (from, to) = if number % 2 == 0 { (one, other) } else { (other, one) };
            let (message, at) = (self.message_id(item, number), self.sent_at(number));
            let text = self.text(item, number);
            line(buffer, format_args!("{dialog}\t{message}\t{from}\t{to}\t{text}\t{at}"));
        }
    }

    fn members(&self, dialog: u64) -> (Uuid, Uuid) {
        let (one, other) = self.plan.population.members(dialog);
        (self.plan.population.user(one), self.plan.population.user(other))
    }

    fn sent_at(&self, number: u64) -> Timestamp {
        let before = i64::try_from(self.plan.messages.saturating_sub(number)).unwrap_or(i64::MAX);
        self.plan.newest.checked_sub(SignedDuration::from_secs(before)).unwrap_or(self.plan.newest)
    }

    /// A UUIDv7 of the time when it was sent, as the service makes them; the same each time.
    fn message_id(&self, dialog: u64, number: u64) -> Uuid {
        let mut rest = [0; 10];
        rest[..2].copy_from_slice(&number.to_be_bytes()[6..]);
        rest[2..].copy_from_slice(&(self.plan.population.seed() ^ dialog).to_be_bytes());
        let millis = u64::try_from(self.sent_at(number).as_millisecond()).unwrap_or_default();
        Builder::from_unix_timestamp_millis(millis, &rest).into_uuid()
    }

    /// None where there are no messages.
    fn last_message_id(&self, dialog: u64) -> Option<Uuid> {
        Some(self.message_id(dialog, self.plan.messages.checked_sub(1)?))
    }

    fn text(&self, dialog: u64, number: u64) -> String {
        format!("{:x<width$}", format!("loaded {dialog} {number} "), width = self.plan.text)
    }
}

fn line(buffer: &mut BytesMut, row: std::fmt::Arguments<'_>) {
    use std::fmt::Write as _;
    // A buffer grows: writing to it cannot fail.
    let _ = buffer.write_fmt(row);
    buffer.put_u8(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(filling: &Filling) -> Vec<Vec<String>> {
        let population = Population::new(4, 4, 1).unwrap();
        let newest = "2026-01-01T00:00:00Z".parse().unwrap();
        let plan = LoadPlan { population, messages: 3, text: 30, newest, progress: false };
        let rows = Rows { plan, hash: "$argon2id$v=19$m=64,t=2,p=1$c2FsdA$aGFzaA".into() };
        let mut buffer = BytesMut::new();
        for item in 0..(filling.items)(&population) {
            (filling.write)(&rows, item, &mut buffer);
        }
        let text = String::from_utf8(buffer.to_vec()).unwrap();
        text.lines().map(|line| line.split('\t').map(Into::into).collect()).collect()
    }

    #[test]
    fn every_row_has_every_column() {
        for (filling, count) in OF_USERS.iter().chain(&OF_DIALOGS).zip([4, 4, 8, 4, 12]) {
            let (rows, columns) = (rows(filling), filling.columns.split(',').count());
            assert_eq!(rows.len(), count, "{}", filling.table.name());
            assert!(rows.iter().all(|row| row.len() == columns && row.iter().all(|cell| !cell.is_empty())));
            assert!(rows.iter().flatten().all(|cell| !cell.contains('\\')), "nothing needs escaping");
        }
    }

    #[test]
    fn messages_rise_with_time_and_the_inbox_knows_the_last() {
        let [_, _, inbox] = OF_USERS.each_ref().map(rows);
        let [dialogs, messages] = OF_DIALOGS.each_ref().map(rows);
        for dialog in messages.chunk_by(|one, other| one[0] == other[0]) {
            assert!(dialog.is_sorted_by(|one, other| one[1] < other[1] && one[5] < other[5]));
            assert!(dialog.iter().all(|row| row[1].parse::<Uuid>().unwrap().get_version_num() == 7));
            let last = &dialog[2];
            let entries: Vec<_> = inbox.iter().filter(|row| row[1] == last[0]).collect();
            assert_eq!(entries.len(), 2);
            assert!(entries.iter().all(|row| row[3] == last[1]));
            assert!(dialogs.iter().any(|row| row[0] == last[0] && row[4] == last[1]));
        }
    }
}
