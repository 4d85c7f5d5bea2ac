//! Straight to the shard's owner against through the coordinator, both through the service.

use anyhow::Result;

use super::{
    measure::{Bench, KINDS, Load, NO_CITUS, failures, latency_row, name, speed},
    service::Service,
};
use crate::{
    table::{Limit, Row},
    workload::Kind,
};

/// Peaks, and latencies at a rate that both ways can keep up.
pub(super) async fn rows(
    bench: &Bench<'_>,
    owner: &Service,
    coordinator: Option<&Service>,
) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (kind, load) in KINDS {
        let least = if kind == Kind::Send { 1.5 } else { 1.4 };
        let by_speed = format!("{}s per second, owner against coordinator", name(kind));
        let by_latency =
            format!("p99 of {}s at 60 % of the coordinator's peak, owner against coordinator", name(kind));
        let Some(coordinator) = coordinator else {
            rows.extend([by_speed, by_latency].map(|what| Row::not_measured(what, NO_CITUS)));
            continue;
        };
        let (ours, theirs) = bench.by_turns(owner, coordinator, load).await?;
        let (one, other, failed) = (speed(&ours), speed(&theirs), failures(ours.iter().chain(&theirs)));
        let figures = format!("{one:.0}/s against {other:.0}/s{failed}");
        rows.push(Row::ratio(by_speed, figures, one / other, Limit::AtLeast(least)));
        let load = Load { rate: Some(other * 0.6), ..load };
        let (ours, theirs) = bench.by_turns(owner, coordinator, load).await?;
        rows.push(latency_row(by_latency, kind, &ours, &theirs, Limit::Below(1.0)));
    }
    Ok(rows)
}
