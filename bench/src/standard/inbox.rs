//! Keeping both inboxes in the message's own transaction, against after it.

use anyhow::Result;
use dialog_api::database::statements::Sql;

use super::pgbench::{Found, Pgbench, own_send};
use crate::table::{Limit, Row};

/// An id that is newer than all before, as the service's are: inboxes only go forward.
const NEWER: &str = "(lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000000)::bigint), 16, '0') || md5(random()::text))::varchar(32)::uuid";

/// By pgbench: how fast a sender is answered if the inboxes follow later, if each message brings them up to date in
/// statements of their own, and if they are part of its transaction.
pub(super) fn rows(pgbench: &Pgbench<'_>) -> Result<Vec<Row>> {
    let (send, mine, theirs) = (own_send(), merge(":one", ":other"), merge(":other", ":one"));
    let later = pgbench.writes(&[&send])?;
    let row = |what: &str, found: Found| {
        let figures = format!(
            "{:.0}/s, p99 {:.1} ms against {:.0}/s, p99 {:.1} ms, by pgbench",
            later.per_second, later.p99, found.per_second, found.p99
        );
        let what = format!("sends per second, inboxes later against {what}");
        Row::ratio(what, figures, later.per_second / found.per_second, Limit::None)
    };
    let after = pgbench.writes(&[&send, &mine, &theirs])?;
    let within = pgbench.writes(&["BEGIN", &send, &mine, &theirs, "COMMIT"])?;
    Ok(vec![
        row("each message's at once, in statements of their own", after),
        row("in the message's transaction", within),
    ])
}

fn merge(user: &str, peer: &str) -> String {
    [("$1", user), ("$2", ":dialog"), ("$3", peer), ("$4", NEWER)]
        .iter()
        .fold(Sql::MergeUserDialog.text().to_owned(), |text, (parameter, value)| {
            text.replace(parameter, value)
        })
}
