//! Sends and lists together, at a rate that both ways can keep up, with the ledger.

use anyhow::{Context as _, Result};

use super::{
    measure::{Bench, Load, MIXED, Measured, NO_CITUS, failures, latency_row, name, p99},
    service::Service,
};
use crate::{
    audit::Audit,
    report::Report,
    table::{Limit, Row},
    workload::Kind,
};

/// At 60 % of the peak of the coordinator's path. The report is the last of ours.
pub(super) async fn rows(
    bench: &Bench<'_>,
    api: &Service,
    coordinator: Option<&Service>,
) -> Result<(Vec<Row>, Report)> {
    let peak = bench.measure(coordinator.unwrap_or(api), MIXED).await?.per_second;
    let load = Load { rate: Some(peak * 0.6), audit: true, ..MIXED };
    let (ours, theirs) = match coordinator {
        Some(coordinator) => bench.by_turns(api, coordinator, load).await?,
        None => (vec![bench.measure(api, load).await?], Vec::new()),
    };
    let mut rows = Vec::new();
    for kind in [Kind::Send, Kind::List] {
        let what = format!("p99 of {}s in a mixed load at 60 % of peak", name(kind));
        rows.push(if coordinator.is_some() {
            let what = what + ", owner against coordinator";
            latency_row(what, kind, &ours, &theirs, Limit::AtMost(0.7))
        } else {
            let figures = format!("{NO_CITUS}; {:.2} ms{}", p99(kind, &ours), failures(&ours));
            Row::not_measured(what, figures)
        });
    }
    rows.push(ledger_row("these mixed loads", ours.iter().chain(&theirs)));
    let report = ours.into_iter().next_back().context("no round was measured")?.report;
    Ok((rows, report))
}

/// What the ledger has against some runs.
#[allow(clippy::cast_precision_loss, reason = "a small count")]
pub(super) fn ledger_row<'a>(what: &str, rounds: impl IntoIterator<Item = &'a Measured>) -> Row {
    let mut all = Audit::default();
    for audit in rounds.into_iter().filter_map(|round| round.report.audit.as_ref()) {
        all.acknowledged += audit.acknowledged;
        all.lost += audit.lost;
        all.doubled += audit.doubled;
        all.out_of_order += audit.out_of_order;
        all.strange += audit.strange;
    }
    let Audit { acknowledged, lost, doubled, out_of_order, strange, .. } = all;
    let figures =
        format!("{acknowledged} acknowledged, {lost} lost, {doubled} doubled, {out_of_order} out of order");
    let wrong = (lost + doubled + out_of_order + strange) as f64;
    Row::ratio(format!("messages not as acknowledged, {what}"), figures, wrong, Limit::AtMost(0.0))
}
