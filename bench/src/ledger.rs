//! The ledger: a file with one entry for every send, written while the load runs.
//!
//! An entry is 56 bytes, so ten minutes at 5,000 sends a second are 168 MB on disk and nothing in memory. The
//! first line of the file says which run and which population it is about, in JSON.

use std::{
    fmt, fs,
    io::{BufRead as _, BufReader, BufWriter, Read as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::population::Population;

const ENTRY: usize = 56;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Code {
    /// With this status.
    Status(u16),
    /// No connection came about.
    Refused,
    /// The connection was lost.
    Lost,
    /// There was no answer in time.
    Timeout,
}

impl Code {
    /// Whether the request succeeded.
    #[must_use]
    pub fn is_success(self) -> bool {
        matches!(self, Self::Status(200..=299))
    }

    /// Whether the same request may succeed when it is sent again.
    #[must_use]
    pub fn may_pass(self) -> bool {
        matches!(self, Self::Status(429 | 500..=599) | Self::Refused | Self::Lost | Self::Timeout)
    }

    /// No status is below 100.
    fn number(self) -> u16 {
        match self {
            Self::Status(status) => status,
            Self::Refused => 1,
            Self::Lost => 2,
            Self::Timeout => 3,
        }
    }

    fn from_number(number: u16) -> Self {
        match number {
            1 => Self::Refused,
            2 => Self::Lost,
            3 => Self::Timeout,
            status => Self::Status(status),
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(formatter, "{status}"),
            Self::Refused => formatter.write_str("no connection"),
            Self::Lost => formatter.write_str("connection lost"),
            Self::Timeout => formatter.write_str("timeout"),
        }
    }
}

/// One send. Times are microseconds after the start of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number in the run, from 0.
    pub sequence: u64,
    /// The sender's number in the population.
    pub from: u64,
    /// The recipient's.
    pub to: u64,
    /// When it was due.
    pub intended: u64,
    /// When its first attempt began.
    pub started: u64,
    /// When its last attempt ended.
    pub finished: u64,
    /// How that ended.
    pub code: Code,
    /// How often it was tried, at most 255.
    pub attempts: u8,
}

impl Entry {
    fn to_bytes(self) -> [u8; ENTRY] {
        let Self { sequence, from, to, intended, started, finished, code, attempts } = self;
        let mut bytes = [0; ENTRY];
        for (place, number) in
            bytes.chunks_exact_mut(8).zip([sequence, from, to, intended, started, finished])
        {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes[48..50].copy_from_slice(&code.number().to_le_bytes());
        bytes[50] = attempts;
        bytes
    }

    fn from_bytes(bytes: &[u8; ENTRY]) -> Self {
        let number = |place: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&bytes[place * 8..][..8]);
            u64::from_le_bytes(number)
        };
        Self {
            sequence: number(0),
            from: number(1),
            to: number(2),
            intended: number(3),
            started: number(4),
            finished: number(5),
            code: Code::from_number(u16::from_le_bytes([bytes[48], bytes[49]])),
            attempts: bytes[50],
        }
    }
}

/// What a ledger is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The run; its messages carry it in their text.
    pub run: Uuid,
    /// When it started.
    pub started_at: Timestamp,
    users: u64,
    dialogs: u64,
    seed: u64,
}

impl Head {
    /// The head of a run's ledger.
    #[must_use]
    pub fn new(run: Uuid, started_at: Timestamp, population: Population) -> Self {
        let (users, dialogs, seed) = (population.users(), population.dialogs(), population.seed());
        Self { run, started_at, users, dialogs, seed }
    }

    /// Who sent to whom.
    ///
    /// # Errors
    /// When the file was changed.
    pub fn population(&self) -> Result<Population> {
        Population::new(self.users, self.dialogs, self.seed).context("the population of a ledger")
    }
}

/// How the text of a message begins: which run and which send it is.
#[must_use]
pub fn mark(run: Uuid, sequence: u64) -> String {
    format!("{}{sequence} ", mark_of_run(run))
}

/// How the texts of all messages of a run begin.
#[must_use]
pub fn mark_of_run(run: Uuid) -> String {
    format!("bench {} ", run.simple())
}

/// The number of the send that a text belongs to; `None` if it is not one of this run.
#[must_use]
pub fn read_mark(run: Uuid, text: &str) -> Option<u64> {
    text.strip_prefix(&mark_of_run(run))?.split(' ').next()?.parse().ok()
}

/// The client's own id of a message.
#[must_use]
pub fn message_id(run: Uuid, sequence: u64) -> Uuid {
    Uuid::new_v5(&run, &sequence.to_be_bytes())
}

/// Writes a ledger.
pub struct Writer {
    file: BufWriter<fs::File>,
    path: PathBuf,
}

impl Writer {
    /// Begins a new file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(path: &Path, head: &Head) -> Result<Self> {
        let file = fs::File::create(path).with_context(|| format!("create the ledger {}", path.display()))?;
        let mut writer = Self { file: BufWriter::new(file), path: path.to_owned() };
        let mut line = serde_json::to_vec(head).context("the head of the ledger")?;
        line.push(b'\n');
        writer.write(&line)?;
        Ok(writer)
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn append(&mut self, entry: Entry) -> Result<()> {
        self.write(&entry.to_bytes())
    }

    /// Writes what is still in memory.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> Result<()> {
        self.file.flush().with_context(|| format!("write the ledger {}", self.path.display()))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).with_context(|| format!("write the ledger {}", self.path.display()))
    }
}

/// Reads a ledger, one entry after the other.
pub struct Reader {
    file: BufReader<fs::File>,
    head: Head,
}

impl Reader {
    /// Opens a file and reads its head.
    ///
    /// # Errors
    /// When it cannot be read or is no ledger.
    pub fn open(path: &Path) -> Result<Self> {
        let what = || format!("read the ledger {}", path.display());
        let mut file = BufReader::new(fs::File::open(path).with_context(what)?);
        let mut line = Vec::new();
        file.read_until(b'\n', &mut line).with_context(what)?;
        let head = serde_json::from_slice(&line).with_context(what)?;
        Ok(Self { file, head })
    }

    /// What it is about.
    #[must_use]
    pub fn head(&self) -> &Head {
        &self.head
    }
}

impl Iterator for Reader {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut bytes = [0; ENTRY];
        let mut filled = 0;
        while filled < ENTRY {
            match self.file.read(&mut bytes[filled..]) {
                Ok(0) if filled == 0 => return None,
                Ok(0) => return Some(Err(anyhow::anyhow!("the ledger ends within an entry"))),
                Ok(count) => filled += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Some(Err(error).context("read the ledger")),
            }
        }
        Some(Ok(Entry::from_bytes(&bytes)))
    }
}

/// All entries, each at the place of its number.
///
/// # Errors
/// When the file cannot be read, or an entry is missing or there twice.
pub fn read_all(path: &Path) -> Result<(Head, Vec<Entry>)> {
    let reader = Reader::open(path)?;
    let head = *reader.head();
    let mut entries = reader.collect::<Result<Vec<_>>>()?;
    entries.sort_unstable_by_key(|entry| entry.sequence);
    for (place, entry) in (0..).zip(&entries) {
        if entry.sequence != place {
            bail!("the ledger {} has no single entry {place}: the run did not end in order", path.display());
        }
    }
    Ok((head, entries))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_code() -> impl Strategy<Value = Code> {
        prop_oneof![
            (100_u16..600).prop_map(Code::Status),
            Just(Code::Refused),
            Just(Code::Lost),
            Just(Code::Timeout)
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            numbers in prop::array::uniform5(any::<u64>()), code in any_code(), attempts in any::<u8>(),
        ) {
            let [from, to, intended, started, finished] = numbers;
            let entry = Entry { sequence: 0, from, to, intended, started, finished, code, attempts };
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("ledger");
            let population = Population::new(10, 10, 3).unwrap();
            let head = Head::new(Uuid::from_u128(9), Timestamp::UNIX_EPOCH, population);
            let mut writer = Writer::create(&path, &head).unwrap();
            writer.append(Entry { sequence: 1, ..entry }).unwrap();
            writer.append(entry).unwrap();
            writer.finish().unwrap();
            let (read, entries) = read_all(&path).unwrap();
            prop_assert_eq!(read, head);
            prop_assert_eq!(read.population().unwrap(), population);
            prop_assert_eq!(entries, vec![entry, Entry { sequence: 1, ..entry }]);
        }

        #[test]
        fn a_mark_tells_which_send_it_is(run in any::<u128>(), sequence in any::<u64>(), filler in "[ -~]{0,9}") {
            let run = Uuid::from_u128(run);
            let text = mark(run, sequence) + &filler;
            prop_assert_eq!(read_mark(run, &text), Some(sequence));
            prop_assert_eq!(read_mark(Uuid::from_u128(!run.as_u128()), &text), None);
        }
    }

    #[test]
    fn a_ledger_that_was_cut_off_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        let head = Head::new(Uuid::nil(), Timestamp::UNIX_EPOCH, Population::new(10, 10, 3).unwrap());
        Writer::create(&path, &head).unwrap().finish().unwrap();
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend([0; 20]);
        fs::write(&path, bytes).unwrap();
        assert!(read_all(&path).unwrap_err().to_string().contains("within an entry"));
    }
}
