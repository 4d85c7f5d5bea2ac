//! What a statement returned, as it was received: values are looked up when they are asked for.

use jiff::{Timestamp, civil::Date};
use uuid::Uuid;

use super::error::StatementError;

/// Rows of an answer, with as many allocations however many there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    /// Messages of the server, whole.
    bytes: Box<[u8]>,
    /// Where in these each value begins with its length, row by row.
    places: Box<[u32]>,
    /// How many values a row has.
    columns: usize,
    count: usize,
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    bytes: &'a [u8],
    places: &'a [u32],
}

/// A column has no value of the type that was asked for: a mistake in this program, or another schema than its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column} does not hold {wanted}")]
pub struct WrongValue {
    /// From 0 on.
    pub column: usize,
    /// The name of the type.
    pub wanted: &'static str,
}

impl Rows {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// One of them, if there are as many.
    #[must_use]
    pub fn get(&self, number: usize) -> Option<Row<'_>> {
        (number < self.count).then(|| self.row(number))
    }

    /// The first, if there is one.
    #[must_use]
    pub fn first(&self) -> Option<Row<'_>> {
        self.get(0)
    }

    /// The last, if there is one.
    #[must_use]
    pub fn last(&self) -> Option<Row<'_>> {
        self.get(self.count.checked_sub(1)?)
    }

    /// All, in the server's order.
    #[must_use]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Row<'_>> + DoubleEndedIterator {
        (0..self.count).map(|number| self.row(number))
    }

    fn row(&self, number: usize) -> Row<'_> {
        Row { bytes: &self.bytes, places: &self.places[number * self.columns..][..self.columns] }
    }
}

impl<'a> Row<'a> {
    /// The value of a column, counted from 0 on.
    ///
    /// # Panics
    /// When it has none of this type. The statements and those who read their rows are parts of one program.
    #[must_use]
    pub fn get<T: Value<'a>>(self, column: usize) -> T {
        match self.try_get(column) {
            Ok(value) => value,
            Err(error) => panic!("{error}"),
        }
    }

    /// The value of a column, counted from 0 on.
    ///
    /// # Errors
    /// When it has none of this type.
    pub fn try_get<T: Value<'a>>(self, column: usize) -> Result<T, WrongValue> {
        self.find(column).ok_or(WrongValue { column, wanted: std::any::type_name::<T>() })
    }

    fn find<T: Value<'a>>(self, column: usize) -> Option<T> {
        let place = usize::try_from(*self.places.get(column)?).ok()?;
        let (length, rest) = self.bytes.get(place..)?.split_first_chunk()?;
        match usize::try_from(i32::from_be_bytes(*length)) {
            Ok(length) => T::read(Some(rest.get(..length)?)),
            Err(_) => T::read(None),
        }
    }
}

/// A type of which a value in the server's binary format can be read.
pub trait Value<'a>: Sized {
    /// Reads a value, which is nothing where it is null; answers with nothing if it is none of this type.
    fn read(raw: Option<&'a [u8]>) -> Option<Self>;
}

impl<'a, T: Value<'a>> Value<'a> for Option<T> {
    fn read(raw: Option<&'a [u8]>) -> Option<Self> {
        raw.map_or(Some(None), |raw| T::read(Some(raw)).map(Some))
    }
}

impl Value<'_> for Uuid {
    fn read(raw: Option<&[u8]>) -> Option<Self> {
        Some(Self::from_bytes(raw?.try_into().ok()?))
    }
}

impl<'a> Value<'a> for &'a str {
    fn read(raw: Option<&'a [u8]>) -> Option<Self> {
        str::from_utf8(raw?).ok()
    }
}

impl Value<'_> for String {
    fn read(raw: Option<&[u8]>) -> Option<Self> {
        <&str>::read(raw).map(str::to_owned)
    }
}

impl Value<'_> for bool {
    fn read(raw: Option<&[u8]>) -> Option<Self> {
        match raw? {
            [0] => Some(false),
            [1] => Some(true),
            _ => None,
        }
    }
}

impl Value<'_> for i32 {
    fn read(raw: Option<&[u8]>) -> Option<Self> {
        Some(Self::from_be_bytes(raw?.try_into().ok()?))
    }
}

impl Value<'_> for i64 {
    fn read(raw: Option<&[u8]>) -> Option<Self> {
        Some(Self::from_be_bytes(raw?.try_into().ok()?))
    }
}

/// Where the server's times begin, 1 January 2000, in microseconds since 1970.
const EPOCH: i64 = 946_684_800_000_000;
/// The same in days.
const EPOCH_DAYS: i64 = 10_957;
/// Hours of a day, as the server's dates have them.
const DAY_HOURS: i64 = 24;

impl Value<'_> for Timestamp {
    /// By one addition, not by the library's calendar: a page has many times.
    fn read(raw: Option<&[u8]>) -> Option<Self> {
        Self::from_microsecond(i64::read(raw)?.checked_add(EPOCH)?).ok()
    }
}

impl Value<'_> for Date {
    fn read(raw: Option<&[u8]>) -> Option<Self> {
        let seconds = (i64::from(i32::read(raw)?) + EPOCH_DAYS) * DAY_HOURS * 3600;
        Some(jiff::tz::Offset::UTC.to_datetime(Timestamp::from_second(seconds).ok()?).date())
    }
}

/// Takes note of the rows of an answer while it is received.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    /// As in [`Rows`]; kept from answer to answer.
    places: Vec<u32>,
    columns: usize,
    count: usize,
}

impl Gathered {
    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Takes note of a row, which begins at this place of the answer.
    pub(super) fn add(&mut self, place: usize, row: &[u8]) -> Result<(), StatementError> {
        const CUT: StatementError = StatementError::Protocol("a row that does not end where it should");
        let (columns, mut rest) = row.split_first_chunk().ok_or(CUT)?;
        let columns = usize::from(u16::from_be_bytes(*columns));
        if self.count > 0 && columns != self.columns {
            return Err(StatementError::Protocol("rows of different lengths in one answer"));
        }
        for _ in 0..columns {
            let value = place + row.len() - rest.len();
            self.places.push(u32::try_from(value).map_err(|_| {
                StatementError::Protocol("an answer of more than 4 GiB, which is more than anybody asks for")
            })?);
            let (length, values) = rest.split_first_chunk().ok_or(CUT)?;
            let length = match i32::from_be_bytes(*length) {
                -1 => 0,
                length => usize::try_from(length).map_err(|_| CUT)?,
            };
            rest = values.get(length..).ok_or(CUT)?;
        }
        if !rest.is_empty() {
            return Err(CUT);
        }
        self.columns = columns;
        self.count += 1;
        Ok(())
    }

    /// The answer is complete; these are its bytes. What comes next belongs to another.
    pub(super) fn finish(&mut self, bytes: &[u8]) -> Rows {
        let rows = Rows {
            bytes: bytes.into(),
            places: (*self.places).into(),
            columns: self.columns,
            count: self.count,
        };
        self.clear();
        rows
    }

    /// Forgets an answer that is of no use.
    pub(super) fn clear(&mut self) {
        self.places.clear();
        self.count = 0;
    }
}

#[cfg(test)]
mod tests {
    use tokio_postgres::types::{FromSql as _, Type};

    use super::*;

    /// A row as the server sends it, without tag and length.
    fn row(values: &[Option<&[u8]>]) -> Vec<u8> {
        let mut row = u16::try_from(values.len()).unwrap().to_be_bytes().to_vec();
        for value in values {
            row.extend(value.map_or(-1, |value| i32::try_from(value.len()).unwrap()).to_be_bytes());
            row.extend(value.unwrap_or_default());
        }
        row
    }

    fn rows(all: &[&[Option<&[u8]>]]) -> Rows {
        let (mut bytes, mut gathered) = (vec![7; 3], Gathered::default());
        for values in all {
            let row = row(values);
            gathered.add(bytes.len(), &row).unwrap();
            bytes.extend(row);
            // As the tag and the length of the next.
            bytes.extend([9; 5]);
        }
        gathered.finish(&bytes)
    }

    #[test]
    fn values_are_found_in_their_rows() {
        let id = Uuid::from_u128(7);
        let rows = rows(&[
            &[Some(id.as_bytes()), Some("größer".as_bytes()), None, Some(&[1])],
            &[Some(&[1; 16]), Some(b""), Some(&[0; 8]), Some(&[0])],
        ]);
        assert_eq!((rows.len(), rows.is_empty(), rows.iter().count()), (2, false, 2));
        let first = rows.first().unwrap();
        assert_eq!((first.get::<Uuid>(0), first.get::<&str>(1)), (id, "größer"));
        assert_eq!((first.get::<Option<i64>>(2), first.get::<bool>(3)), (None, true));
        let last = rows.last().unwrap();
        assert_eq!((last.get::<Uuid>(0), last.get::<String>(1)), (Uuid::from_bytes([1; 16]), String::new()));
        assert_eq!((last.get::<Option<i64>>(2), last.get::<bool>(3)), (Some(0), false));
        assert!(rows.get(2).is_none());
    }

    #[test]
    fn no_rows_are_no_rows() {
        let rows = rows(&[]);
        assert!(rows.is_empty() && rows.first().is_none() && rows.last().is_none());
        assert_eq!(rows.iter().count(), 0);
        // Rows without any column are rows.
        assert_eq!(super::tests::rows(&[&[], &[]]).len(), 2);
    }

    #[test]
    fn what_is_none_of_the_type_is_refused() {
        let rows = rows(&[&[None, Some(&[1; 15]), Some(&[0xff]), Some(&[2]), Some(&[0; 3])]]);
        let row = rows.first().unwrap();
        assert!(row.try_get::<Uuid>(0).is_err() && row.try_get::<Uuid>(1).is_err());
        assert!(row.try_get::<&str>(2).is_err() && row.try_get::<bool>(3).is_err());
        assert!(row.try_get::<i32>(4).is_err() && row.try_get::<Option<i64>>(4).is_err());
        let error = row.try_get::<i32>(5).unwrap_err();
        assert_eq!(error.to_string(), "column 5 does not hold i32");
    }

    #[test]
    fn rows_that_are_cut_are_refused() {
        let whole = row(&[Some(b"ab"), None]);
        for end in 0..whole.len() {
            assert!(Gathered::default().add(0, &whole[..end]).is_err(), "{end}");
        }
        assert!(Gathered::default().add(0, &[whole.as_slice(), b"x"].concat()).is_err());
        let mut gathered = Gathered::default();
        gathered.add(0, &whole).unwrap();
        assert!(gathered.add(whole.len(), &row(&[None])).is_err(), "another number of columns");
    }

    #[test]
    fn times_and_dates_are_those_of_the_library() {
        for microseconds in [0, 1, -1, 843_000_000_123_456, -3_000_000_000_000_001, 200_000_000_000_000_000] {
            let raw = i64::to_be_bytes(microseconds);
            let theirs = Timestamp::from_sql(&Type::TIMESTAMPTZ, &raw).unwrap();
            assert_eq!(Timestamp::read(Some(&raw)), Some(theirs));
        }
        for days in [0, 1, -1, -36_525, 9_999, -700_000, 2_000_000] {
            let raw = i32::to_be_bytes(days);
            assert_eq!(Date::read(Some(&raw)), Date::from_sql(&Type::DATE, &raw).ok(), "{days}");
        }
        for raw in [i64::MAX.to_be_bytes().as_slice(), &i64::MIN.to_be_bytes(), &[0; 7], &[]] {
            assert_eq!(Timestamp::read(Some(raw)), None, "{raw:?}");
        }
        for raw in [i32::MAX.to_be_bytes().as_slice(), &i32::MIN.to_be_bytes(), &[0; 3], &[]] {
            assert_eq!(Date::read(Some(raw)), None, "{raw:?}");
        }
    }
}
