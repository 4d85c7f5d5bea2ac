//! What the server says, and for whom it is.

use std::collections::VecDeque;

use tokio::sync::oneshot;

use super::{
    error::{ServerError, StatementError},
    messages::{self, tag},
    rows::{Gathered, Rows},
};

/// What becomes of a statement.
pub(super) type Outcome = Result<Rows, Unanswered>;

/// Why a statement has no answer.
#[derive(Debug)]
pub(super) enum Unanswered {
    /// An error.
    Failed(StatementError),
    /// It was not executed, because of the error of one before it in the same transaction.
    Skipped,
}

/// A statement that was sent, or soon will be.
#[derive(Debug)]
pub(super) struct Asked {
    /// Who asked. May be gone.
    pub(super) reply: oneshot::Sender<Outcome>,
    /// Whether the transaction ends behind it.
    pub(super) ends_transaction: bool,
}

/// Finds out of the server's messages which answer is whose: it answers in the order in which it is asked.
#[derive(Default)]
pub(super) struct Answers {
    asked: VecDeque<Asked>,
    /// Rows of the statement that is being answered.
    rows: Gathered,
    /// Bytes at the beginning that are known already: whole messages of an answer that is not complete.
    known: usize,
    /// All of the last statement in a transaction, which is not worth anything before the transaction has ended.
    uncommitted: Option<Rows>,
    /// After an error everything is skipped until the transaction ends.
    failed: bool,
}

impl Extend<Asked> for Answers {
    /// Statements are sent: their answers are expected.
    fn extend<T: IntoIterator<Item = Asked>>(&mut self, asked: T) {
        self.asked.extend(asked);
    }
}

impl Answers {
    /// Whether the server owes an answer.
    pub(super) fn are_due(&self) -> bool {
        !self.asked.is_empty()
    }

    /// Deals with all that can be understood of what has been received. Says how much of it is done with; the rest has
    /// to be handed over again, and more behind it.
    ///
    /// # Errors
    /// When the connection is of no use any more: the server ends it, or says what it cannot say.
    pub(super) fn take(&mut self, received: &[u8]) -> Result<usize, StatementError> {
        // Where the answer begins that is being read.
        let mut start = 0;
        let mut place = self.known;
        while let Some((tag, body)) = messages::first(&received[place..])? {
            let end = place + messages::HEADER + body.len();
            match tag {
                tag::DATA_ROW => {
                    self.expect_statement()?;
                    self.rows.add(place + messages::HEADER - start, body)?;
                }
                tag::COMMAND_COMPLETE => {
                    self.expect_statement()?;
                    let rows = if self.rows.is_empty() {
                        Rows::default()
                    } else {
                        self.rows.finish(&received[start..place])
                    };
                    self.complete(rows);
                }
                tag::ERROR => {
                    self.rows.clear();
                    let error = ServerError::read(body)
                        .ok_or(StatementError::Protocol("an error that cannot be read"))?;
                    self.fail(error)?;
                }
                tag::READY => self.end_transaction()?,
                tag::BIND_COMPLETE | tag::NOTICE | tag::NOTIFICATION | tag::PARAMETER_STATUS => {}
                _ => return Err(StatementError::Protocol("a message that is none of an answer")),
            }
            place = end;
            if self.rows.is_empty() {
                start = place;
            }
        }
        self.known = place - start;
        Ok(start)
    }

    fn expect_statement(&self) -> Result<(), StatementError> {
        if self.failed || self.uncommitted.is_some() || self.asked.is_empty() {
            return Err(StatementError::Protocol("an answer to nothing"));
        }
        Ok(())
    }

    /// A statement was executed.
    fn complete(&mut self, rows: Rows) {
        if self.asked.front().is_some_and(|asked| asked.ends_transaction) {
            self.uncommitted = Some(rows);
        } else if let Some(asked) = self.asked.pop_front() {
            asked.reply(Ok(rows));
        }
    }

    /// A statement failed, and with it all behind it in the same transaction; or the end of the transaction did.
    fn fail(&mut self, error: ServerError) -> Result<(), StatementError> {
        self.uncommitted = None;
        // Of its own accord the server speaks only before it closes the connection.
        let Some(failed) = self.asked.pop_front().filter(|_| !self.failed) else {
            return Err(error.into());
        };
        self.failed = true;
        let mut ends = failed.ends_transaction;
        failed.reply(Err(Unanswered::Failed(error.into())));
        while !ends && let Some(skipped) = self.asked.pop_front() {
            ends = skipped.ends_transaction;
            skipped.reply(Err(Unanswered::Skipped));
        }
        Ok(())
    }

    fn end_transaction(&mut self) -> Result<(), StatementError> {
        if std::mem::take(&mut self.failed) {
            return Ok(());
        }
        let (Some(rows), Some(asked)) = (self.uncommitted.take(), self.asked.pop_front()) else {
            return Err(StatementError::Protocol("the end of a transaction that was none"));
        };
        asked.reply(Ok(rows));
        Ok(())
    }
}

impl Asked {
    fn reply(self, outcome: Outcome) {
        // Whoever does not wait any more does not want it.
        let _ = self.reply.send(outcome);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [[tag].as_slice(), &length, body].concat()
    }

    /// What a statement returns that returns these texts.
    fn rows(texts: &[&str]) -> Vec<u8> {
        let mut bytes = message(tag::BIND_COMPLETE, b"");
        for text in texts {
            let length = u32::try_from(text.len()).unwrap().to_be_bytes();
            bytes.extend(message(tag::DATA_ROW, &[&[0, 1], length.as_slice(), text.as_bytes()].concat()));
        }
        bytes.extend(message(tag::COMMAND_COMPLETE, b"SELECT 1\0"));
        bytes
    }

    fn ready() -> Vec<u8> {
        message(tag::READY, b"I")
    }

    fn error(code: &str) -> Vec<u8> {
        message(tag::ERROR, format!("VERROR\0C{code}\0Mno\0\0").as_bytes())
    }

    /// Statements, each with whether the transaction ends behind it.
    fn asked(answers: &mut Answers, ends: &[bool]) -> Vec<oneshot::Receiver<Outcome>> {
        let mut receivers = Vec::new();
        for &ends_transaction in ends {
            let (reply, receiver) = oneshot::channel();
            answers.extend([Asked { reply, ends_transaction }]);
            receivers.push(receiver);
        }
        receivers
    }

    /// In few words: texts, an error's code, `skipped`, and nothing as long as there is no answer.
    fn outcome(receiver: &mut oneshot::Receiver<Outcome>) -> Option<String> {
        Some(match receiver.try_recv().ok()? {
            Ok(rows) => rows.iter().map(|row| row.get::<&str>(0)).collect::<Vec<_>>().join(","),
            Err(Unanswered::Failed(StatementError::Server(error))) => error.code,
            Err(Unanswered::Failed(other)) => other.to_string(),
            Err(Unanswered::Skipped) => "skipped".to_owned(),
        })
    }

    /// Hands over the bytes in pieces of this size, as they might arrive.
    fn receive(answers: &mut Answers, bytes: &[u8], size: usize) {
        let mut received = Vec::new();
        for piece in bytes.chunks(size) {
            received.extend_from_slice(piece);
            let done = answers.take(&received).unwrap();
            received.drain(..done);
        }
        assert!(received.is_empty());
    }

    #[test]
    fn each_gets_its_own_answer_however_it_arrives() {
        let notice = message(tag::NOTICE, b"SWARNING\0\0");
        let status = message(tag::PARAMETER_STATUS, b"TimeZone\0UTC\0");
        let long = "x".repeat(1000);
        let bytes = [
            rows(&["a", "b"]),
            notice,
            rows(&[]),
            rows(&[&long, "c"]),
            ready(),
            status,
            rows(&["d"]),
            ready(),
        ]
        .concat();
        for size in [1, 2, 3, 5, 7, 64, 1000, bytes.len()] {
            let mut answers = Answers::default();
            let mut receivers = asked(&mut answers, &[false, false, true, true]);
            receive(&mut answers, &bytes, size);
            let outcomes: Vec<_> = receivers.iter_mut().filter_map(outcome).collect();
            assert_eq!(outcomes, ["a,b", "", &format!("{long},c"), "d"], "{size}");
        }
    }

    #[test]
    fn notices_between_rows_are_no_rows() {
        let mut answers = Answers::default();
        let mut receivers = asked(&mut answers, &[true]);
        let row = |text: &[u8]| message(tag::DATA_ROW, &[&[0, 1, 0, 0, 0, 1], text].concat());
        let bytes = [
            row(b"a"),
            message(tag::NOTIFICATION, b"\0\0\0\x01channel\0text\0"),
            row(b"b"),
            message(tag::COMMAND_COMPLETE, b"SELECT 2\0"),
            ready(),
        ]
        .concat();
        receive(&mut answers, &bytes, 9);
        assert_eq!(outcome(&mut receivers[0]).as_deref(), Some("a,b"));
    }

    #[test]
    fn nothing_is_worth_anything_before_its_transaction_has_ended() {
        let mut answers = Answers::default();
        let mut receivers = asked(&mut answers, &[true, true]);
        receive(&mut answers, &rows(&["a"]), 4);
        assert_eq!(outcome(&mut receivers[0]), None);
        receive(&mut answers, &[error("40001"), ready(), rows(&["b"]), ready()].concat(), 4);
        let outcomes: Vec<_> = receivers.iter_mut().filter_map(outcome).collect();
        assert_eq!(outcomes, ["40001", "b"]);
    }

    #[test]
    fn an_error_takes_along_only_what_is_behind_it_in_its_transaction() {
        for size in [1, 1000] {
            let mut answers = Answers::default();
            let mut receivers = asked(&mut answers, &[false, false, false, true, true]);
            let bytes = [rows(&["a"]), error("22012"), ready(), rows(&["e"]), ready()].concat();
            receive(&mut answers, &bytes, size);
            let outcomes: Vec<_> = receivers.iter_mut().filter_map(outcome).collect();
            assert_eq!(outcomes, ["a", "22012", "skipped", "skipped", "e"]);
        }
    }

    #[test]
    fn rows_before_an_error_are_forgotten() {
        let mut answers = Answers::default();
        let mut receivers = asked(&mut answers, &[true, true]);
        let row = message(tag::DATA_ROW, &[0, 1, 0, 0, 0, 1, b'x']);
        receive(&mut answers, &[row, error("57014"), ready(), rows(&["b"]), ready()].concat(), 6);
        let outcomes: Vec<_> = receivers.iter_mut().filter_map(outcome).collect();
        assert_eq!(outcomes, ["57014", "b"]);
    }

    #[test]
    fn answers_that_nobody_waits_for_are_read() {
        let mut answers = Answers::default();
        let mut receivers = asked(&mut answers, &[true, true]);
        drop(receivers.remove(0));
        receive(&mut answers, &[rows(&["a"]), ready(), rows(&["b"]), ready()].concat(), 1000);
        assert_eq!(outcome(&mut receivers[0]).as_deref(), Some("b"));
    }

    #[test]
    fn an_error_without_a_statement_is_the_end() {
        let mut answers = Answers::default();
        assert!(
            matches!(answers.take(&error("57P01")), Err(StatementError::Server(error)) if error.code == "57P01")
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let cut_row = message(tag::DATA_ROW, &[0, 1, 0, 0, 0, 9, b'x']);
        let second_answer = [rows(&["a"]), rows(&["b"])].concat();
        let copying = message(b'G', &[0, 0, 0]);
        for bytes in [ready(), cut_row, second_answer, copying, vec![b'D', 0, 0, 0, 0]] {
            let mut answers = Answers::default();
            let _receivers = asked(&mut answers, &[true]);
            assert!(matches!(answers.take(&bytes), Err(StatementError::Protocol(_))), "{bytes:?}");
        }
        for bytes in [rows(&["a"]), rows(&[]), ready()] {
            assert!(matches!(Answers::default().take(&bytes), Err(StatementError::Protocol(_))), "{bytes:?}");
        }
    }
}
