//! `cargo xtask test`: the tiers of tests, each with what it needs.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};

use crate::cache::Cache;
use crate::cluster::{Cluster, INGRESS};
use crate::crds::cargo;
use crate::postgres::Citus;
use crate::progress::Progress;
use crate::tools::{Tool, Tools};
use crate::{command, debian, images, python, release, table};

mod report;

use report::{Count, Report};

/// What tests say they lack on a machine without the extension.
const CITUS: &str = "citus";
/// The operator logs each reconciliation, so that tests can count them.
const RECONCILIATIONS: &str = "log.directives=info\\,dialog_operator::reconcile=debug";
/// Tests with servers of their own that run at the same time, on any machine: they wait most of their time, for locks, periods
/// and each other, and two cores are kept busy by no fewer.
const WITH_SERVERS: &str = "4";
/// Tests of the cluster tier that run at the same time: as many as two cores start databases for in good time.
const TOGETHER: &str = "3";

/// Tests that need the same things.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Tier {
    /// Nothing but a compiler.
    Unit,
    /// Debian's PostgreSQL, and Python for Schemathesis.
    Postgres,
    /// PostgreSQL with the citus extension on this machine, skipped where it is missing; and what the next needs.
    Citus,
    /// etcd and kube-apiserver, built here.
    Apiserver,
    /// The local Kubernetes cluster, with the operator in it.
    Cluster,
}

impl Tier {
    /// In the order of what they cost.
    const ALL: [Self; 5] = [Self::Unit, Self::Postgres, Self::Citus, Self::Apiserver, Self::Cluster];

    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Postgres => "postgres",
            Self::Citus => "citus",
            Self::Apiserver => "apiserver",
            Self::Cluster => "cluster",
        }
    }

    /// The test targets: package and name. They are declared with `test = false`, so that a plain `cargo test` is the
    /// unit tier.
    fn targets(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Unit => &[],
            Self::Postgres => {
                &[("testbed", "postgres"), ("dialog-api", "postgres"), ("dialog-bench", "postgres")]
            }
            Self::Citus => {
                &[("dialog-operator", "citus"), ("dialog-api", "citus"), ("dialog-bench", "citus")]
            }
            Self::Apiserver => &[("dialog-operator", "apiserver")],
            Self::Cluster => &[("dialog-operator", "cluster")],
        }
    }
}

/// Runs `tiers`, or all, and prints what came of each. Fails if any test did. `names` are parts of the names of the tests
/// to run; none of them: every test.
pub(crate) fn run(cache: &Cache, progress: &Progress, tiers: &[Tier], names: &[String]) -> Result<()> {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let tiers = if tiers.is_empty() { &Tier::ALL } else { tiers };
    let mut reports = Vec::new();
    for tier in tiers {
        println!("\n== tier {}", tier.name());
        let started = Instant::now();
        let mut report = Report::new(tier.name());
        // One tier that cannot start must not hide what the others have to say.
        if let Err(error) = run_tier(*tier, &names, cache, progress, &mut report) {
            eprintln!("\nerror: tier {}: {error:#}", tier.name());
            report.fail(&error);
        }
        report.finish(started.elapsed());
        reports.push(report);
    }
    let total = reports.iter().map(Report::count).fold(Count::default(), Count::plus);
    println!("\n{}", table::columns(&report::rows(&reports)));
    println!("{} passed, {} failed, {} skipped", total.passed, total.failed, total.skipped);
    ensure!(total.failed == 0, "tests failed");
    Ok(())
}

fn run_tier(
    tier: Tier,
    names: &[&str],
    cache: &Cache,
    progress: &Progress,
    report: &mut Report,
) -> Result<()> {
    match tier {
        Tier::Unit => cargo_test(&["--workspace"], names, &[], report),
        Tier::Postgres | Tier::Citus => {
            // The extension is in no registry: it is on the machine, with its server, or cannot be had.
            if Citus::here()?.is_none() {
                report.lacks(CITUS);
            }
            if tier == Tier::Postgres {
                need_postgres(progress)?;
            }
            let mut environment = Vec::new();
            if tier == Tier::Postgres {
                let schemathesis = python::program(cache, progress, "schemathesis")?;
                environment.push(("SCHEMATHESIS", schemathesis.display().to_string()));
            }
            if tier == Tier::Citus {
                environment.extend(apiserver(cache, progress)?);
            }
            run_targets(tier, names, &environment, report)
        }
        Tier::Apiserver => run_targets(tier, names, &apiserver(cache, progress)?, report),
        Tier::Cluster => {
            let was_up = Cluster::find(cache)?.is_some();
            let outcome = in_cluster(names, cache, progress, report);
            // Of one that could not be brought up, too, a part may be there.
            let down = if was_up { Ok(()) } else { Cluster::down(cache, progress) };
            outcome.and(down)
        }
    }
}

/// What names the programs of the Kubernetes API to the tests.
fn apiserver(cache: &Cache, progress: &Progress) -> Result<[(&'static str, String); 2]> {
    let tools = Tools::ensure(cache, progress, &[Tool::Etcd, Tool::KubeApiserver])?;
    let path = |tool| tools.path(tool).display().to_string();
    Ok([("ETCD", path(Tool::Etcd)), ("KUBE_APISERVER", path(Tool::KubeApiserver))])
}

fn in_cluster(names: &[&str], cache: &Cache, progress: &Progress, report: &mut Report) -> Result<()> {
    let cluster = Cluster::up(cache, progress)?;
    // Helm takes an escaped comma for one of the value.
    let images = release::install(cache, &cluster, &[RECONCILIATIONS], progress)?;
    if !images.has_citus {
        report.lacks(CITUS);
    }
    let without_citus = images::ensure_without_citus(cache, cluster.engine(), progress)?;
    let bench = images::ensure_bench(cache, cluster.engine(), progress)?;
    let missing = cluster.missing_images(&[&without_citus, &bench])?;
    if !missing.is_empty() {
        progress.step("Images into the cluster", |log| cluster.load_images(&missing, log))?;
    }
    let sizes = images::sizes(cluster.engine(), &images)?;
    let sizes = serde_json::to_string(&sizes).context("cannot write the images' sizes")?;
    let environment = [
        ("KUBECONFIG", cluster.kubeconfig().display().to_string()),
        ("KUBECTL", cluster.tool(Tool::Kubectl).display().to_string()),
        ("DIALOG_INGRESS", INGRESS.to_owned()),
        ("DIALOG_OPERATOR_NAMESPACE", release::NAMESPACE.to_owned()),
        ("DIALOG_OPERATOR_DEPLOYMENT", release::NAME.to_owned()),
        ("DIALOG_IMAGE", images.postgres.clone()),
        ("DIALOG_IMAGE_WITHOUT_CITUS", without_citus),
        ("DIALOG_BENCH_IMAGE", bench),
        ("DIALOG_IMAGE_SIZES", sizes),
        ("DIALOG_CITUS", if images.has_citus { "yes" } else { "no" }.to_owned()),
    ];
    run_targets(Tier::Cluster, names, &environment, report)
}

/// PostgreSQL's server programs: installed as a Debian package where `pg_config`, which the tests ask, knows of none.
pub(crate) fn need_postgres(progress: &Progress) -> Result<()> {
    let folder = command::output(Command::new("pg_config").arg("--bindir"));
    if folder.is_ok_and(|folder| Path::new(&folder).join("postgres").is_file()) {
        return Ok(());
    }
    debian::install(progress, &["postgresql"])
}

/// First, one after the other, the tests that measure time or memory or that end what others need; then the others, some at a
/// time. Those that were asked for by name take turns where they share a cluster.
fn run_targets(
    tier: Tier,
    names: &[&str],
    environment: &[(&str, String)],
    report: &mut Report,
) -> Result<()> {
    let (together, by_name) =
        if tier == Tier::Cluster { (TOGETHER, "1") } else { (WITH_SERVERS, WITH_SERVERS) };
    let chosen = [names, &["--test-threads", by_name]].concat();
    let alone = ["alone::", "--test-threads", "1"];
    let others = ["--skip", "alone::", "--test-threads", together];
    let choices: &[&[&str]] = if names.is_empty() { &[&alone, &others] } else { &[&chosen] };
    // All of them, though the first may end with a failure that is more than that of a test.
    let mut outcome = Ok(());
    for (package, target) in tier.targets() {
        for choice in choices {
            let target = ["--package", package, "--test", target];
            outcome = outcome.and(cargo_test(&target, choice, environment, report));
        }
    }
    outcome
}

/// Runs `cargo test` with its output passed on, and counts what it says. `choice` goes to the test programs.
fn cargo_test(
    arguments: &[&str],
    choice: &[&str],
    environment: &[(&str, String)],
    report: &mut Report,
) -> Result<()> {
    let mut test = cargo(&["test", "--no-fail-fast"]);
    test.args(arguments).envs(environment.iter().map(|(name, value)| (name, value)));
    // An error of a test says what it has to; forty lines of the test harness behind it only hide that.
    test.env("RUST_LIB_BACKTRACE", "0");
    test.arg("--").args(choice);
    if !arguments.contains(&"--workspace") {
        // A test that finds something missing says so on its output, which is otherwise kept back for failures.
        test.arg("--nocapture");
    }
    let mut child = test.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot run cargo")?;
    let output = child.stdout.take().context("cargo has no output")?;
    let failed = report.count().failed;
    for line in BufReader::new(output).lines() {
        let line = line.context("cannot read what cargo says")?;
        println!("{line}");
        report.read(&line);
    }
    let status = child.wait().context("cannot wait for cargo")?;
    if !status.success() && report.count().failed == failed {
        bail!("`{}` ended with {status} and no failed test: see above", command::line(&test));
    }
    Ok(())
}
