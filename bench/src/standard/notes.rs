//! What the results are results of.

use anyhow::Result;
use jiff::Timestamp;
use testbed::postgres::citus_available;

use super::{
    Size, coalescing,
    measure::{Bench, CONNECTIONS, KINDS, MIXED, POOL, name},
    moves,
};
use crate::{machine, stand::SHARDS};

/// The text above the table; `busy` is the load average before anything was started.
pub(super) async fn notes(bench: &Bench<'_>, quick: bool, busy: &str) -> Result<String> {
    let Size { population, messages, seconds, rounds, .. } = bench.size;
    let (users, dialogs) = (population.users(), population.dialogs());
    let warning = if quick {
        "\n**A quick run: it shows that everything can be measured, not how fast anything is.**\n"
    } else {
        ""
    };
    let servers = if bench.stand.is_citus() {
        format!("A Citus coordinator and {} workers with {SHARDS} shards", bench.stand.workers().len())
    } else {
        let why = if citus_available().is_ok() {
            "as asked for with `--without-citus`"
        } else {
            "the citus extension is missing on this machine"
        };
        format!("**One plain PostgreSQL: {why}, and nothing here is about shards**")
    };
    let command =
        if bench.stand.is_citus() { "cargo xtask bench" } else { "cargo xtask bench -- --without-citus" };
    let [sends, lists] = KINDS.map(|(kind, load)| format!("| {}s | `dialog-bench run {load}` |", name(kind)));
    Ok(format!(
        "# Results

`{command}` measures this table and writes this file; `cargo xtask bench -- --section NAME` prints a part of it. Last: {date}.
{warning}
| | |
|---|---|
{machine}

{servers}, all on this machine: servers, services and load share the processors. fsync and synchronous commits are on,
links are loopback without TLS. {users} users, {dialogs} dialogs with {messages} messages each to begin with. Figures are
medians of {rounds} rounds of {seconds} s in which what is compared takes turns, each round after a second of the same load. CPU time
is what the operating system counts for the service's process, in user and kernel mode, until it is idle again.

| load | the same by hand, with `--users {users} --dialogs {dialogs} --duration {whole}s --warmup 1s` |
|---|---|
{sends}
{lists}
| mixed | `dialog-bench run {MIXED}`, with `--rate` where a rate is named |
| readers of one dialog | `dialog-bench run {readers}` |
| while shards move | `dialog-bench run {moves} --rate RATE`, as long as it says |
| the rest | `{command_of_a_part} --section designs`, `inbox` (pgbench, its scripts made of the service's own statements) or `streams` |

The plain services, [axum with deadpool](examples/plain-axum.rs) and [Go with net/http and pgx](plain-go/main.go), check the
token, the text and that the recipient exists, and write and read the same tables through the coordinator, over {POOL}
connections for {CONNECTIONS} clients. Those that keep inboxes bring those of both users up to date in the message's
transaction and so give clients what dialog-api gives them: the limits are for these. Those that only store the message do
less than it and are shorter; they are stated, and the limits need not hold for them. [What is compared](../docs/benchmarks.md#the-plain-services), in full.

What the operator does has tables of its own: [growing and shrinking](RESULTS-growth.md), [the same on
Kubernetes](RESULTS-scaling.md), [planning](RESULTS-planning.md),
[isolations](RESULTS-isolations.md), [a flood on Kubernetes](RESULTS-hot-pair.md), [watching](RESULTS-watching.md), [deciding](RESULTS-deciding.md).
",
        date = Timestamp::now().strftime("%Y-%m-%d"),
        machine = machine::describe(&bench.stand.coordinator().connect("dialog").await?, busy).await?,
        whole = seconds + 1,
        readers = coalescing::LOAD,
        moves = moves::load(None),
        command_of_a_part = if bench.stand.is_citus() { "cargo xtask bench --" } else { command },
    ))
}
