//! Checks of the Helm chart and the examples, without a cluster.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::apiserver::{self, ApiServer};
use crate::cache::Cache;
use crate::command::{self, Log};
use crate::progress::Progress;
use crate::repository;
use crate::tools::{Tool, Tools};

mod alerts;
mod schemas;

/// A render that is kept: its name, and the values that make it, as a file of the chart's `ci` folder.
const RENDERS: [&str; 2] = ["default", "everything"];
/// The namespace the chart is rendered for, and the one that a render has the operator look after.
const NAMESPACES: [&str; 2] = ["dialog-system", "chat"];
/// Kinds whose definitions belong to other projects: there is nothing to hold them against.
const FOREIGN: &str = "ServiceMonitor,PrometheusRule";

/// Checks the chart; with `bless`, writes the golden renders instead of comparing with them.
pub(crate) fn run(cache: &Cache, progress: &Progress, bless: bool) -> Result<()> {
    let wanted: Vec<_> = apiserver::TOOLS.iter().chain(&[Tool::Helm, Tool::Kubeconform]).copied().collect();
    let tools = Tools::ensure(cache, progress, &wanted)?;
    let check = Check { tools: &tools };
    progress.step("helm lint", |log| check.lint(log))?;
    progress.step("A chart without images says so", |log| check.refuses_without_images(log))?;
    progress.step("Golden renders", |log| check.golden(bless, log))?;
    progress.step("promtool test rules", |log| check.alerts(cache, log))?;
    let server = progress.step("kube-apiserver", |log| ApiServer::start(&tools, log))?;
    progress.step("kubeconform -strict", |log| check.conforms(&server, log))?;
    progress.step("The API server takes the chart and the examples", |log| check.is_taken(&server, log))
}

struct Check<'a> {
    tools: &'a Tools,
}

impl Check<'_> {
    fn lint(&self, log: &Log) -> Result<()> {
        RENDERS.iter().try_for_each(|name| {
            command::run(self.helm(&["lint", "--strict"]).arg(chart()).arg("--values").arg(values(name)), log)
        })
    }

    fn refuses_without_images(&self, log: &Log) -> Result<()> {
        let Err(error) = command::output(self.helm(&["template", "dialog-operator"]).arg(chart())) else {
            bail!("`helm template` without image.repository succeeds");
        };
        let error = format!("{error:#}");
        log.note(&error)?;
        ensure!(error.contains("--set image.repository="), "the failure does not say what to set: {error}");
        Ok(())
    }

    fn golden(&self, bless: bool, log: &Log) -> Result<()> {
        let mut differences = Vec::new();
        for name in RENDERS {
            // The definitions have their own drift check.
            let render = self.render(name, &["--set", "crds.install=false"])?;
            let golden = chart().join("tests/golden").join(format!("{name}.yaml"));
            if bless {
                fs::write(&golden, &render).with_context(|| format!("cannot write {}", golden.display()))?;
            } else if fs::read_to_string(&golden).ok().as_ref() != Some(&render) {
                let fresh = log.path().with_extension(format!("{name}.yaml"));
                fs::write(&fresh, &render).with_context(|| format!("cannot write {}", fresh.display()))?;
                let _ = command::run(Command::new("diff").arg("--unified").arg(&golden).arg(&fresh), log);
                differences.push(golden.display().to_string());
            }
        }
        ensure!(
            differences.is_empty(),
            "the chart renders something else than {}: if that is meant, run `cargo xtask chart --bless`; the \
             difference: {}",
            differences.join(", "),
            log.path().display()
        );
        Ok(())
    }

    fn alerts(&self, cache: &Cache, log: &Log) -> Result<()> {
        let render = self.render("everything", &["--show-only", alerts::TEMPLATE])?;
        alerts::check(cache, &render, &chart().join("tests/alerts.yaml"), log)
    }

    fn conforms(&self, server: &ApiServer, log: &Log) -> Result<()> {
        let folder = tempfile::tempdir().context("cannot create a temporary folder")?;
        schemas::write(server, folder.path())?;
        for name in RENDERS {
            let render = self.render(name, &[])?;
            let mut kubeconform = self.tools.command(Tool::Kubeconform);
            kubeconform.args(["-strict", "-summary", "-verbose", "-skip", FOREIGN, "-schema-location"]);
            kubeconform.arg(folder.path().join(schemas::TEMPLATE));
            command::run_with_input(&mut kubeconform, render.as_bytes(), log)?;
        }
        Ok(())
    }

    fn is_taken(&self, server: &ApiServer, log: &Log) -> Result<()> {
        let definitions = repository().join("crds");
        let apply = |flags: &[&str], path: &Path| {
            command::run(
                server.kubectl().args(["apply", "--server-side"]).args(flags).arg("--filename").arg(path),
                log,
            )
        };
        apply(&[], &definitions)?;
        let mut wait = server.kubectl();
        wait.args(["wait", "--for", "condition=Established", "--timeout", "60s", "--filename"]);
        command::run(wait.arg(&definitions), log)?;
        apply(&["--dry-run=server", "--namespace", "default"], &repository().join("examples"))?;
        for namespace in NAMESPACES {
            command::run(server.kubectl().args(["create", "namespace", namespace]), log)?;
        }
        for name in RENDERS {
            let mut kubectl = server.kubectl();
            kubectl.args(["apply", "--server-side", "--dry-run=server", "--filename", "-"]);
            let own = "metrics.serviceMonitor.enabled=false,metrics.prometheusRule.enabled=false";
            let render = self.render(name, &["--set", own])?;
            command::run_with_input(&mut kubectl, render.as_bytes(), log)?;
        }
        Ok(())
    }

    fn render(&self, name: &str, arguments: &[&str]) -> Result<String> {
        let mut helm = self.helm(&["template", "dialog-operator", "--namespace", NAMESPACES[0]]);
        let render = command::output(helm.arg(chart()).arg("--values").arg(values(name)).args(arguments))?;
        Ok(render + "\n")
    }

    fn helm(&self, arguments: &[&str]) -> Command {
        let mut helm = self.tools.command(Tool::Helm);
        helm.args(arguments);
        helm
    }
}

fn chart() -> PathBuf {
    repository().join("charts/dialog-operator")
}

fn values(render: &str) -> PathBuf {
    chart().join("ci").join(format!("{render}-values.yaml"))
}
