//! A port of this machine that leads into a pod.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Stdio};

use anyhow::{Context as _, Result};

use crate::bed::{Bed, kubectl_command};

/// Leads into the pod until it is dropped.
pub(crate) struct Forward {
    process: Child,
    /// `kubectl` says something about every connection, and dies if nobody can read it.
    _output: BufReader<ChildStdout>,
    port: u16,
}

impl Forward {
    /// To this port of the pod.
    pub(crate) fn to(bed: &Bed, pod: &str, port: u16) -> Result<Self> {
        let mut process = kubectl_command()
            .args(["--namespace", bed.names.namespace(), "port-forward", "--address", "127.0.0.1"])
            .arg(format!("pod/{pod}"))
            .arg(format!(":{port}"))
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run kubectl port-forward")?;
        let mut output = BufReader::new(process.stdout.take().context("kubectl has no output")?);
        let mut line = String::new();
        let read = output.read_line(&mut line);
        let mut forward = Self { process, _output: output, port: 0 };
        read.context("cannot read what kubectl says")?;
        // `Forwarding from 127.0.0.1:40123 -> 8008`
        let port = line.split(" -> ").next().and_then(|from| from.rsplit(':').next());
        forward.port =
            port.and_then(|port| port.parse().ok()).with_context(|| format!("kubectl says: {line}"))?;
        Ok(forward)
    }

    /// The port of this machine.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
