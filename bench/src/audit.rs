//! What became of every send: the ledger against what the shards hold.
//!
//! Every shard is read by SQL on the node that holds it, never through the service. Acknowledged and absent is
//! lost; there twice is doubled. Everything is held in memory while it is compared: about 130 bytes per send.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, Result};
use futures::TryStreamExt as _;
use serde::{Deserialize, Serialize};
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::{
    database::{Database, Shard},
    gaps::{self, Gap},
    ledger::{self, Entry, Head},
    population::Population,
    schedule,
    stats::Latency,
};

/// How many lost and doubled sends are named in a report.
const EXAMPLES: usize = 20;

/// A message of the run, as a shard holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Which send it is.
    pub sequence: u64,
    /// Its id, which lists are ordered by.
    pub message: Uuid,
    /// The dialog it is in.
    pub dialog: Uuid,
}

/// What became of the sends of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Audit {
    /// Messages of the run that the shards hold.
    pub rows: u64,
    /// Shards read.
    pub shards: u64,
    /// Sends made.
    pub sends: u64,
    /// Sends answered with success.
    pub acknowledged: u64,
    /// Acknowledged, and in no shard.
    pub lost: u64,
    /// In the shards more than once.
    pub doubled: u64,
    /// Failed, and stored all the same: the answer was lost, not the message.
    pub stored_without_answer: u64,
    /// In the shards, but in a dialog that the send was not for, or not of this run's sends at all.
    pub strange: u64,
    /// Sent after an earlier message of the dialog was acknowledged, and listed before it.
    pub out_of_order: u64,
    /// Some of the lost and doubled, by their numbers.
    pub examples: Vec<String>,
}

/// Acknowledgements of one shard group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupReport {
    /// The shard of the messages at the end of the run; 0 if the table is not distributed.
    pub shard: i64,
    /// The node that held it at the end.
    pub node: String,
    /// Sends acknowledged.
    pub acknowledged: u64,
    /// Longest time between two acknowledgements, and when it began.
    #[serde(flatten)]
    pub gap: Gap,
}

/// Sends to the shards of one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    /// The node that held them at the end.
    pub node: String,
    /// Latencies of those that were acknowledged, from when they were due, warm-up included.
    pub latency_ms: Latency,
}

/// Acknowledgements by where the messages are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Places {
    /// By shard group, in the order of hashes.
    pub shard_groups: Vec<GroupReport>,
    /// By node, in the order of their names.
    pub nodes: Vec<NodeReport>,
}

/// Compares. Pure; `entries` are in the order of their numbers, from 0 and without a hole.
#[must_use]
pub fn compare(entries: &[Entry], dialog_of: impl Fn(&Entry) -> Uuid, found: &[Found]) -> Audit {
    let mut audit = Audit {
        rows: count(found.len()),
        sends: count(entries.len()),
        acknowledged: count(entries.iter().filter(|entry| entry.code.is_success()).count()),
        ..Audit::default()
    };
    let mut stored: Vec<Option<Uuid>> = vec![None; entries.len()];
    let mut extra: BTreeMap<u64, u64> = BTreeMap::new();
    for row in found {
        let place = usize::try_from(row.sequence).ok().filter(|place| *place < entries.len());
        match place {
            Some(place) if dialog_of(&entries[place]) == row.dialog => {
                if stored[place].replace(row.message).is_some() {
                    *extra.entry(row.sequence).or_default() += 1;
                }
            }
            _ => {
                audit.strange += 1;
                example(&mut audit.examples, || {
                    format!("strange: send {} in dialog {}", row.sequence, row.dialog)
                });
            }
        }
    }
    audit.doubled = count(extra.len());
    for (sequence, more) in extra {
        example(&mut audit.examples, || format!("doubled: send {sequence}, {} times", more + 1));
    }
    for (entry, stored) in entries.iter().zip(&stored) {
        match (entry.code.is_success(), stored) {
            (true, None) => {
                audit.lost += 1;
                example(&mut audit.examples, || {
                    format!("lost: send {} in dialog {}", entry.sequence, dialog_of(entry))
                });
            }
            (false, Some(_)) => audit.stored_without_answer += 1,
            _ => {}
        }
    }
    audit.out_of_order = out_of_order(entries, &stored);
    audit
}

fn example(examples: &mut Vec<String>, text: impl FnOnce() -> String) {
    if examples.len() < EXAMPLES {
        examples.push(text());
    }
}

/// Counts acknowledged messages with a smaller id than one that had been acknowledged before they were sent, in
/// the same dialog. Two that were under way at the same time have no order to keep.
fn out_of_order(entries: &[Entry], stored: &[Option<Uuid>]) -> u64 {
    // Both directions of a pair are one dialog.
    let dialog = |entry: &Entry| (entry.from.min(entry.to), entry.from.max(entry.to));
    let mut acknowledged: Vec<(&Entry, Uuid)> = entries
        .iter()
        .zip(stored)
        .filter(|(entry, _)| entry.code.is_success())
        .filter_map(|(entry, stored)| stored.map(|stored| (entry, stored)))
        .collect();
    acknowledged.sort_unstable_by_key(|(entry, _)| (dialog(entry), entry.started));
    acknowledged
        .chunk_by(|(one, _), (other, _)| dialog(one) == dialog(other))
        .map(|by_start| {
            let mut by_end: Vec<_> = by_start.iter().collect();
            by_end.sort_unstable_by_key(|(entry, _)| entry.finished);
            let (mut before, mut newest) = (by_end.into_iter().peekable(), Uuid::nil());
            let late = by_start.iter().filter(|(entry, id)| {
                while let Some((_, id)) = before.next_if(|(earlier, _)| earlier.finished < entry.started) {
                    newest = newest.max(*id);
                }
                *id < newest
            });
            count(late.count())
        })
        .sum()
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// Reads every shard and compares it with the ledger.
///
/// # Errors
/// When a shard cannot be read.
pub async fn audit(database: &Database, head: &Head, entries: &[Entry]) -> Result<(Audit, Places)> {
    let population = head.population()?;
    let client = database.connect().await?;
    let shards = database.shards(&client).await?;
    let mut found = Vec::with_capacity(entries.len());
    for shard in &shards {
        read(database, shard, head.run, &mut found).await.with_context(|| {
            format!("read {} on {}; if shards were moved meanwhile, audit again", shard.table, shard.node())
        })?;
    }
    let dialogs = dialogs(entries, population);
    let dialog_of = |entry: &Entry| dialogs.get(&(entry.from, entry.to)).copied().unwrap_or_default();
    let mut audit = compare(entries, dialog_of, &found);
    audit.shards = count(shards.len());
    let places = places(database, &client, &shards, entries, &dialogs).await?;
    Ok((audit, places))
}

/// The id of every dialog that was sent to, by both orders of its users.
fn dialogs(entries: &[Entry], population: Population) -> HashMap<(u64, u64), Uuid> {
    let mut dialogs = HashMap::new();
    for Entry { from, to, .. } in entries {
        dialogs.entry((*from, *to)).or_insert_with(|| population.dialog_id(*from, *to));
    }
    dialogs
}

async fn read(database: &Database, shard: &Shard, run: Uuid, found: &mut Vec<Found>) -> Result<()> {
    let client = database.connect_to(shard).await?;
    let statement = format!(
        "SELECT left(text, 64), message_id, dialog_id FROM {} WHERE starts_with(text, $1)",
        shard.table
    );
    let mark = ledger::mark_of_run(run);
    let parameters: [&(dyn ToSql + Sync); 1] = [&mark];
    let mut rows = std::pin::pin!(client.query_raw(&statement, parameters).await?);
    while let Some(row) = rows.try_next().await? {
        let text: &str = row.get(0);
        let sequence = ledger::read_mark(run, text).unwrap_or(u64::MAX);
        found.push(Found { sequence, message: row.get(1), dialog: row.get(2) });
    }
    Ok(())
}

/// The gaps of each shard group and the latencies of each node, by the shards there are at the end.
async fn places(
    database: &Database,
    client: &tokio_postgres::Client,
    shards: &[Shard],
    entries: &[Entry],
    dialogs: &HashMap<(u64, u64), Uuid>,
) -> Result<Places> {
    let pairs: Vec<(u64, u64)> = dialogs.keys().copied().collect();
    let ids: Vec<Uuid> = dialogs.values().copied().collect();
    let places: Vec<usize> = if shards.len() == 1 {
        vec![0; ids.len()]
    } else {
        let hashes = database.hashes(client, &ids).await?;
        hashes.iter().map(|hash| shards.partition_point(|shard| shard.hashes.1 < *hash)).collect()
    };
    let place_of: HashMap<(u64, u64), usize> = pairs.into_iter().zip(places).collect();
    let mut by_shard: Vec<Vec<&Entry>> = vec![Vec::new(); shards.len()];
    for entry in entries {
        let place = place_of.get(&(entry.from, entry.to)).and_then(|place| by_shard.get_mut(*place));
        place.context("a dialog whose hash belongs to no shard")?.push(entry);
    }
    let report = |(shard, entries): (&Shard, &Vec<&Entry>)| GroupReport {
        shard: shard.id,
        node: shard.node(),
        acknowledged: count(entries.iter().filter(|entry| entry.code.is_success()).count()),
        gap: gaps::longest(entries.iter().copied()),
    };
    let shard_groups = shards.iter().zip(&by_shard).map(report).collect();
    let mut by_node: BTreeMap<String, Vec<&Entry>> = BTreeMap::new();
    for (shard, entries) in shards.iter().zip(by_shard) {
        by_node.entry(shard.node()).or_default().extend(entries);
    }
    let report = |(node, entries): (String, Vec<&Entry>)| {
        let acknowledged = entries.into_iter().filter(|entry| entry.code.is_success());
        let latencies = acknowledged.map(|entry| schedule::latency(entry.intended, entry.finished));
        Ok(NodeReport { node, latency_ms: Latency::of(latencies)? })
    };
    let nodes = by_node.into_iter().map(report).collect::<Result<_>>()?;
    Ok(Places { shard_groups, nodes })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ledger::Code;

    fn entry(sequence: u64, from: u64, to: u64, time: (u64, u64), status: u16) -> Entry {
        let (started, finished) = time;
        Entry {
            sequence,
            from,
            to,
            intended: started,
            started,
            finished,
            code: Code::Status(status),
            attempts: 1,
        }
    }

    fn dialog_of(entry: &Entry) -> Uuid {
        Uuid::from_u64_pair(entry.from.min(entry.to), entry.from.max(entry.to))
    }

    fn found(entry: &Entry, message: u128) -> Found {
        Found { sequence: entry.sequence, message: Uuid::from_u128(message), dialog: dialog_of(entry) }
    }

    #[test]
    fn a_loss_a_double_a_stranger_and_a_lost_answer_are_told_apart() {
        let entries: Vec<Entry> = (0..5)
            .map(|number| entry(number, 1, 2, (number, number + 1), if number == 3 { 503 } else { 200 }))
            .collect();
        // 0 is well, 1 lost, 2 there three times, 3 stored without an answer, 4 in another's dialog.
        let elsewhere = Found { dialog: Uuid::nil(), ..found(&entries[4], 9) };
        let rows = [0, 2, 2, 2, 3].map(|number| found(&entries[number], number as u128));
        let unknown = Found { sequence: 77, ..rows[0] };
        let audit = compare(&entries, dialog_of, &[&rows[..], &[elsewhere, unknown]].concat());
        assert_eq!((audit.sends, audit.acknowledged, audit.rows), (5, 4, 7));
        assert_eq!((audit.lost, audit.doubled), (2, 1), "1 and 4 are lost to their dialog");
        assert_eq!((audit.stored_without_answer, audit.strange), (1, 2));
        assert!(audit.examples.contains(&"doubled: send 2, 3 times".to_owned()), "{:?}", audit.examples);
    }

    #[test]
    fn only_what_was_sent_after_an_acknowledgement_has_an_order() {
        let one = entry(0, 1, 2, (0, 10), 200);
        let reply = entry(1, 2, 1, (20, 30), 200);
        let elsewhere = entry(2, 1, 3, (20, 30), 200);
        let order = |entries: &[Entry], ids: &[u128]| {
            let rows: Vec<_> = entries.iter().zip(ids).map(|(entry, id)| found(entry, *id)).collect();
            compare(entries, dialog_of, &rows).out_of_order
        };
        assert_eq!(order(&[one, reply, elsewhere], &[5, 6, 1]), 0);
        assert_eq!(order(&[one, reply, elsewhere], &[5, 4, 1]), 1);
        let meanwhile = Entry { started: 5, ..reply };
        assert_eq!(order(&[one, meanwhile], &[5, 4]), 0);
        let failed = Entry { code: Code::Timeout, ..one };
        assert_eq!(order(&[failed, reply], &[5, 4]), 0);
    }

    proptest! {
        /// Whatever is taken away or added, exactly that is reported.
        #[test]
        fn every_loss_and_every_double_is_counted(
            fates in prop::collection::vec((0_usize..4, any::<bool>()), 0..200),
        ) {
            let entries: Vec<Entry> = (0..).zip(&fates).map(|(number, (_, acknowledged))| {
                entry(number, number % 7, 9, (number, number), if *acknowledged { 200 } else { 503 })
            }).collect();
            let rows: Vec<Found> = entries.iter().zip(&fates)
                .flat_map(|(entry, (copies, _))| vec![found(entry, u128::from(entry.sequence)); *copies])
                .collect();
            let audit = compare(&entries, dialog_of, &rows);
            let count = |wanted: &dyn Fn(usize, bool) -> bool| {
                fates.iter().filter(|(copies, acknowledged)| wanted(*copies, *acknowledged)).count() as u64
            };
            prop_assert_eq!(audit.lost, count(&|copies, acknowledged| acknowledged && copies == 0));
            prop_assert_eq!(audit.doubled, count(&|copies, _| copies > 1));
            prop_assert_eq!(audit.stored_without_answer, count(&|copies, acknowledged| !acknowledged && copies > 0));
            prop_assert_eq!((audit.strange, audit.out_of_order), (0, 0));
            prop_assert_eq!(audit.rows, rows.len() as u64);
        }
    }
}
