//! Messages of the protocol as they travel.

use super::error::StatementError;

/// Letters that say what a message of the server is.
pub(super) mod tag {
    pub(in super::super) const AUTHENTICATION: u8 = b'R';
    pub(in super::super) const BACKEND_KEY: u8 = b'K';
    pub(in super::super) const BIND_COMPLETE: u8 = b'2';
    pub(in super::super) const COMMAND_COMPLETE: u8 = b'C';
    pub(in super::super) const DATA_ROW: u8 = b'D';
    pub(in super::super) const ERROR: u8 = b'E';
    pub(in super::super) const NO_DATA: u8 = b'n';
    pub(in super::super) const NOTICE: u8 = b'N';
    pub(in super::super) const NOTIFICATION: u8 = b'A';
    pub(in super::super) const PARAMETER_DESCRIPTION: u8 = b't';
    pub(in super::super) const PARAMETER_STATUS: u8 = b'S';
    pub(in super::super) const PARSE_COMPLETE: u8 = b'1';
    pub(in super::super) const READY: u8 = b'Z';
    pub(in super::super) const ROW_DESCRIPTION: u8 = b'T';
}

/// Bytes before the body of a message: its letter and its length.
pub(super) const HEADER: usize = 5;

/// PostgreSQL sends no longer ones.
const LONGEST: usize = 1 << 30;

/// The message at the beginning of these bytes: its letter and its body, which ends `HEADER` bytes after its own length.
/// Nothing as long as it is not complete.
pub(super) fn first(bytes: &[u8]) -> Result<Option<(u8, &[u8])>, StatementError> {
    let Some(&[tag, ref length @ ..]) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
    // It counts its own four bytes.
    let body = u32::from_be_bytes(*length).checked_sub(4).map(usize::try_from);
    let Some(Ok(body)) = body else { return Err(StatementError::Protocol("a message of no length")) };
    if body > LONGEST {
        return Err(StatementError::Protocol("a message of more than 1 GiB"));
    }
    Ok(bytes[HEADER..].get(..body).map(|body| (tag, body)))
}

/// All values in the binary format: the number of formats, and the format that holds for all.
const BINARY: [u8; 4] = [0, 1, 0, 1];
/// Executes what was bound, all rows of it.
const EXECUTE: [u8; 10] = [b'E', 0, 0, 0, 9, 0, 0, 0, 0, 0];
/// Ends a transaction, and what is skipped after an error.
const SYNC: [u8; 5] = [b'S', 0, 0, 0, 4];

/// What executing a statement begins with, up to the values of its parameters.
pub(super) fn bind_prefix(statement: &str, parameters: u16) -> Box<[u8]> {
    // The portal without a name.
    [b"\0", statement.as_bytes(), b"\0", &BINARY, &parameters.to_be_bytes()].concat().into()
}

/// Executes a statement with the values of its parameters, each with its length before it.
pub(super) fn execute(buffer: &mut Vec<u8>, bind_prefix: &[u8], values: &[u8]) -> Result<(), StatementError> {
    let length = 4 + bind_prefix.len() + values.len() + BINARY.len();
    let Ok(length) = i32::try_from(length) else {
        return Err(StatementError::Protocol("parameters of more than 2 GiB"));
    };
    buffer.push(b'B');
    buffer.extend_from_slice(&length.to_be_bytes());
    buffer.extend_from_slice(bind_prefix);
    buffer.extend_from_slice(values);
    buffer.extend_from_slice(&BINARY);
    buffer.extend_from_slice(&EXECUTE);
    Ok(())
}

/// Ends a transaction.
pub(super) fn sync(buffer: &mut Vec<u8>) {
    buffer.extend_from_slice(&SYNC);
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use postgres_protocol::{IsNull, message::frontend};

    use super::*;

    #[test]
    fn a_message_is_complete_or_nothing() {
        let message = [b'C', 0, 0, 0, 6, b'x', 0, b'Z'];
        for end in 0..7 {
            assert!(first(&message[..end]).unwrap().is_none(), "{end}");
        }
        assert_eq!(first(&message).unwrap(), Some((b'C', b"x\0".as_slice())));
        assert_eq!(first(&[b'1', 0, 0, 0, 4]).unwrap(), Some((b'1', b"".as_slice())));
        assert!(first(&[b'C', 0, 0, 0, 3]).is_err());
        assert!(first(&[b'C', 0x40, 0, 0, 4]).unwrap().is_none());
        assert!(first(&[b'C', 0x40, 0, 0, 5]).is_err());
    }

    #[test]
    fn executing_is_said_as_the_library_says_it() {
        let mut theirs = BytesMut::new();
        let values = [Some(b"abc".as_slice()), None];
        let bound = frontend::bind(
            "",
            "s7",
            [1],
            values,
            |value, buffer| {
                buffer.extend_from_slice(value.unwrap_or_default());
                Ok(if value.is_some() { IsNull::No } else { IsNull::Yes })
            },
            [1],
            &mut theirs,
        );
        assert!(bound.is_ok());
        frontend::execute("", 0, &mut theirs).unwrap();
        frontend::sync(&mut theirs);

        let mut ours = Vec::new();
        let encoded = [3_i32.to_be_bytes().as_slice(), b"abc", &(-1_i32).to_be_bytes()].concat();
        execute(&mut ours, &bind_prefix("s7", 2), &encoded).unwrap();
        sync(&mut ours);
        assert_eq!(ours, theirs);
    }
}
