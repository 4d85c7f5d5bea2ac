//! What the commands know of the cluster from one run to the next.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::cache::{self, Cache};
use crate::engine::{Engine, Own};

/// What is remembered of the cluster between runs, a file each: `engine` (which was chosen), `tools`
/// (the folder of the programs that speak to it), `network` (if kind's was not there before), and `created` (the node's
/// image, once kind is done).
#[derive(Debug)]
pub(super) struct Files(PathBuf);

impl Files {
    pub(super) fn of(cache: &Cache) -> Result<Self> {
        cache.folder("cluster").map(Self)
    }

    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.0.join("kubeconfig")
    }

    pub(super) fn recall(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.0.join(name)).ok()
    }

    pub(super) fn remember(&self, name: &str, value: &str) -> Result<()> {
        let path = self.0.join(name);
        fs::write(&path, value).with_context(|| format!("cannot write {}", path.display()))
    }

    /// The engine that was chosen; failing that, one whose choice was forgotten but which still runs.
    pub(super) fn engine(&self, cache: &Cache) -> Result<Option<Engine>> {
        match self.recall("engine").as_deref() {
            Some("machine") => Ok(Some(Engine::Machine)),
            Some("own") => Ok(Some(Engine::Own(Own::of(cache)?))),
            _ => Ok(Some(Own::of(cache)?).filter(Own::has_traces).map(Engine::Own)),
        }
    }

    pub(super) fn clear(&self) -> Result<()> {
        cache::remove(&self.0)
    }
}
