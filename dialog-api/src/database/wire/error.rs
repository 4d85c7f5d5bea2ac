//! What can go wrong with a statement, as the connection sees it.

use std::{fmt, io};

/// Why a statement has no answer.
#[derive(Debug, thiserror::Error)]
pub enum StatementError {
    /// The server says so.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The connection ended before the answer was there; whether the statement was executed is not known.
    #[error("the connection to the database is closed")]
    Closed,
    /// Reading from the connection, or writing to it, failed.
    #[error("the connection to the database broke")]
    Broken(#[from] io::Error),
    /// The server sent what it cannot send at this point.
    #[error("the server does not keep to the protocol: {0}")]
    Protocol(&'static str),
    /// A value cannot be sent as the parameter of this number (from 1 on).
    #[error("parameter {0} cannot be sent: {1}")]
    Parameter(usize, String),
}

/// What the server says about an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerError {
    /// How bad it is: `ERROR`, or `FATAL` and `PANIC`, which end the session.
    pub severity: String,
    /// The SQLSTATE: five letters and digits.
    pub code: String,
    /// The server's words, without the details, which may contain values.
    pub message: String,
    /// The function of the server's code that found it.
    pub routine: String,
}

impl ServerError {
    /// Whether the server ends the session with it.
    pub(in super::super) fn ends_session(&self) -> bool {
        matches!(self.severity.as_str(), "FATAL" | "PANIC")
    }

    /// Reads the body of an `ErrorResponse`: fields of a letter and a text that ends with a zero byte, and a zero byte
    /// after the last. Nothing if it is none.
    pub(super) fn read(mut body: &[u8]) -> Option<Self> {
        let mut error = Self::default();
        loop {
            let (&field, rest) = body.split_first()?;
            if field == 0 {
                return Some(error);
            }
            let end = rest.iter().position(|&byte| byte == 0)?;
            // Errors of the start may come in whatever encoding the server's files have.
            let text = || String::from_utf8_lossy(&rest[..end]).into_owned();
            match field {
                // In English, whatever the server's language. All servers since 9.6 send it.
                b'V' => error.severity = text(),
                b'C' => error.code = text(),
                b'M' => error.message = text(),
                b'R' => error.routine = text(),
                _ => {}
            }
            body = &rest[end + 1..];
        }
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { severity, code, message, .. } = self;
        write!(formatter, "{severity}: {message} (SQLSTATE {code})")
    }
}

impl std::error::Error for ServerError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_among_others() {
        let body = b"SFEHLER\0VERROR\0C22012\0Mdivision by zero\0Fint.c\0L824\0Rint4div\0\0";
        let error = ServerError::read(body).unwrap();
        assert_eq!(error.to_string(), "ERROR: division by zero (SQLSTATE 22012)");
        assert_eq!(error.routine, "int4div");
        assert!(!error.ends_session());
    }

    #[test]
    fn what_does_not_end_is_no_error_message() {
        for body in [b"".as_slice(), b"VERROR", b"VERROR\0", b"VERROR\0C22012"] {
            assert_eq!(ServerError::read(body), None);
        }
    }
}
