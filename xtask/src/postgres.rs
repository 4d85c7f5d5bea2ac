//! This machine's PostgreSQL, and the Citus extension in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command;

/// What is laid over the base of the PostgreSQL image.
#[derive(Debug, Clone)]
pub(crate) enum Overlay {
    /// Nothing: the base image has all.
    None,
    /// Nothing, because this machine has no Citus: the image will have none either.
    Absent,
    /// The extension of this machine.
    Citus(Citus),
}

impl Overlay {
    /// What this machine can give.
    pub(crate) fn here() -> Result<Self> {
        Ok(Citus::here()?.map_or(Self::Absent, Self::Citus))
    }
}

/// The Citus extension of this machine's PostgreSQL.
#[derive(Debug, Clone)]
pub(crate) struct Citus {
    /// The version of the server that it was compiled for, such as `15.20`.
    server: String,
    libraries: PathBuf,
    scripts: PathBuf,
}

impl Citus {
    /// The extension, if this machine has PostgreSQL's `pg_config` and Citus' files where it points.
    pub(crate) fn here() -> Result<Option<Self>> {
        let ask = |flag: &str| command::output(Command::new("pg_config").arg(flag));
        let Ok(version) = ask("--version") else { return Ok(None) };
        let libraries = PathBuf::from(ask("--pkglibdir")?);
        let scripts = PathBuf::from(ask("--sharedir")?).join("extension");
        if !scripts.join("citus.control").is_file() || !libraries.join("citus.so").is_file() {
            return Ok(None);
        }
        let server =
            number(&version).with_context(|| format!("pg_config's version `{version}` has no number"))?;
        Ok(Some(Self { server: server.to_owned(), libraries, scripts }))
    }

    /// The server's version.
    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    /// Every file of the extension, with its place below an image's root.
    pub(crate) fn files(&self) -> Result<Vec<(PathBuf, PathBuf)>> {
        let mut files = Vec::new();
        for folder in [&self.libraries, &self.scripts] {
            let entries =
                fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
            for entry in entries {
                let path = entry.with_context(|| format!("cannot read {}", folder.display()))?.path();
                if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("citus")) {
                    files.extend(files_below(&path)?);
                }
            }
        }
        files.sort();
        let place = |file: PathBuf| {
            let target = file.strip_prefix("/").unwrap_or(&file).to_path_buf();
            (file, target)
        };
        Ok(files.into_iter().map(place).collect())
    }
}

/// All files below `path`, or `path` itself if it is one; none if there is nothing.
pub(crate) fn files_below(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_path_buf()]);
    }
    if !path.is_dir() {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))? {
        files.extend(files_below(&entry.with_context(|| format!("cannot read {}", path.display()))?.path())?);
    }
    files.sort();
    Ok(files)
}

/// `15.20` of `PostgreSQL 15.20 (Debian 15.20-0+deb12u1)`.
fn number(version: &str) -> Option<&str> {
    version.split_whitespace().find(|word| word.starts_with(|letter: char| letter.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_found_with_and_without_a_distributor() {
        assert_eq!(number("PostgreSQL 15.20 (Debian 15.20-0+deb12u1)"), Some("15.20"));
        assert_eq!(number("PostgreSQL 17.6"), Some("17.6"));
        assert_eq!(number("PostgreSQL"), None);
    }

    #[test]
    fn files_below_nothing_are_none() {
        let folder = tempfile::tempdir().unwrap();
        assert!(files_below(&folder.path().join("absent")).unwrap().is_empty());
        fs::create_dir(folder.path().join("sub")).unwrap();
        fs::write(folder.path().join("sub/a"), "").unwrap();
        assert_eq!(files_below(folder.path()).unwrap(), [folder.path().join("sub/a")]);
    }
}
