//! Against services that anybody would write, and against the database alone.

use std::path::Path;

use anyhow::Result;

use super::{
    measure::{Bench, KINDS, Load, Measured, cpu, failures, name, speed},
    pgbench::Pgbench,
    service::Service,
};
use crate::{
    table::{Limit, Row},
    workload::Kind,
};

const CPU_LIMIT: Limit = Limit::AtMost(0.6);
const SPEED_LIMIT: Limit = Limit::AtLeast(1.3);

/// A service that anybody would write.
struct Plain {
    name: String,
    /// Whether it gives clients what dialog-api gives them. If not, the comparison is stated and not judged.
    does_the_same: bool,
    /// `None` where it cannot be built.
    service: Option<Service>,
}

/// CPU time and throughput for both kinds of request.
pub(super) async fn rows(bench: &Bench<'_>, api: &Service, pgbench: &Pgbench<'_>) -> Result<Vec<Row>> {
    let programs = bench.programs;
    let languages = [
        ("axum + deadpool", Some(programs.plain_axum.as_path())),
        ("Go + pgx", programs.plain_go.as_deref()),
    ];
    let mut rows = Vec::new();
    for (kind, load) in KINDS {
        let mut plain = Vec::new();
        for (language, program) in languages {
            let mut only = start(bench, language, program, &[]).await?;
            // To send is to store the message and to keep the inboxes of both users, as we do.
            if kind == Kind::Send {
                let mut same = start(bench, language, program, &["--inbox"]).await?;
                same.name += " that keeps inboxes";
                plain.push(same);
                only.name += " that only stores the message";
                only.does_the_same = false;
            }
            plain.push(only);
        }
        let (ours, theirs) = by_turns(bench, api, &plain, load).await?;
        for (plain, theirs) in plain.iter().zip(&theirs) {
            rows.extend(against(kind, plain, &ours, theirs));
        }
        rows.extend(against_pgbench(kind, &ours, pgbench)?);
    }
    Ok(rows)
}

async fn start(bench: &Bench<'_>, language: &str, program: Option<&Path>, more: &[&str]) -> Result<Plain> {
    let file: String =
        language.chars().chain(more.concat().chars()).filter(char::is_ascii_alphanumeric).collect();
    let service = match program {
        Some(program) => Some(bench.plain(&file, program, more).await?),
        None => None,
    };
    Ok(Plain { name: language.into(), does_the_same: true, service })
}

async fn by_turns(
    bench: &Bench<'_>,
    api: &Service,
    plain: &[Plain],
    load: Load,
) -> Result<(Vec<Measured>, Vec<Vec<Measured>>)> {
    let (mut ours, mut theirs) = (Vec::new(), vec![Vec::new(); plain.len()]);
    for round in 0..bench.size.rounds {
        // Begins with another one in each round, as two that are compared in turn.
        let mut turns: Vec<Option<usize>> = [None].into_iter().chain((0..plain.len()).map(Some)).collect();
        let shift = round % turns.len();
        turns.rotate_left(shift);
        for turn in turns {
            let Some(number) = turn else {
                ours.push(bench.measure(api, load).await?);
                continue;
            };
            let plain = &plain[number];
            if let Some(service) = &plain.service {
                let measured = bench.measure(service, load).await?;
                if measured.failed() > 0 {
                    eprintln!("{}: {} failed; {}", plain.name, measured.failed(), service.log_tail());
                }
                theirs[number].push(measured);
            }
        }
    }
    Ok((ours, theirs))
}

fn against(kind: Kind, plain: &Plain, ours: &[Measured], theirs: &[Measured]) -> [Row; 2] {
    let kind = name(kind);
    let by_cpu = format!("CPU time for a {kind}, against {}", plain.name);
    let by_speed = format!("{kind}s per second, against {}", plain.name);
    if plain.service.is_none() {
        return [by_cpu, by_speed].map(|what| Row::not_measured(what, "not built: there is no Go here"));
    }
    let failed = failures(ours.iter().chain(theirs));
    let (our_cpu, their_cpu) = (cpu(ours), cpu(theirs));
    let (our_speed, their_speed) = (speed(ours), speed(theirs));
    let cpus = format!("{our_cpu:.0} µs against {their_cpu:.0} µs{failed}");
    let speeds = format!("{our_speed:.0}/s against {their_speed:.0}/s{failed}");
    let limit = |limit| if plain.does_the_same { limit } else { Limit::None };
    [
        Row::ratio(by_cpu, cpus, our_cpu / their_cpu, limit(CPU_LIMIT)),
        Row::ratio(by_speed, speeds, our_speed / their_speed, limit(SPEED_LIMIT)),
    ]
}

/// The service's own prepared statement without the service, through the coordinator and on the shards' owner.
fn against_pgbench(kind: Kind, ours: &[Measured], pgbench: &Pgbench<'_>) -> Result<Vec<Row>> {
    let what = format!("{}s per second, against pgbench on the same statement", name(kind));
    let ours = speed(ours);
    let row = |way: &str, theirs: f64| {
        let figures = format!("{ours:.0}/s against {theirs:.0}/s");
        Row::ratio(format!("{what}{way}"), figures, ours / theirs, Limit::None)
    };
    let way = if pgbench.has_owner() { " through the coordinator" } else { "" };
    let mut rows = vec![row(way, pgbench.by_coordinator(kind)?)];
    if let Some(theirs) = pgbench.by_owner(kind)? {
        rows.push(row(" on a worker, its own dialogs only", theirs));
    }
    Ok(rows)
}
