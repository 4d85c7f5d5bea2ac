//! What was built once, kept outside the clone and keyed by what it was built from.
//!
//! An entry is a directory named by a hash of its sources. It is built under a temporary name beside
//! its final one and renamed when it is complete, so an interrupted build leaves nothing that looks
//! like a finished one.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

/// The folder that holds everything the commands build or run.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    root: PathBuf,
}

impl Cache {
    /// `$DIALOG_CACHE`, else `$XDG_CACHE_HOME/dialog-operator`, else `~/.cache/dialog-operator`.
    pub(crate) fn open() -> Result<Self> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = set("DIALOG_CACHE")
            .or_else(|| set("XDG_CACHE_HOME").map(|path| path.join("dialog-operator")))
            .or_else(|| set("HOME").map(|path| path.join(".cache/dialog-operator")))
            .context("none of DIALOG_CACHE, XDG_CACHE_HOME and HOME is set: set DIALOG_CACHE to a folder")?;
        fs::create_dir_all(&root).with_context(|| format!("cannot create the cache {}", root.display()))?;
        let root = root.canonicalize().with_context(|| format!("cannot resolve {}", root.display()))?;
        Ok(Self { root })
    }

    /// A folder with a fixed name, created if absent: for state that is not keyed by its sources.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.root.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(path)
    }

    /// The folder itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where the entry `kind` built from `key` is, whether or not it exists.
    pub(crate) fn entry(&self, kind: &str, key: &Key) -> PathBuf {
        self.root.join(kind).join(&key.0)
    }

    /// A folder for intermediate results, deleted when the value goes. What a run that was killed left
    /// goes with the next one.
    pub(crate) fn scratch(&self) -> Result<TempDir> {
        let all = self.folder("scratch")?;
        let left = fs::read_dir(&all).with_context(|| format!("cannot read {}", all.display()))?;
        for path in left.filter_map(|entry| Some(entry.ok()?.path())) {
            let pid = path.file_name().and_then(OsStr::to_str).and_then(|name| name.split('-').next());
            if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                remove(&path)?;
            }
        }
        tempfile::Builder::new()
            .prefix(&format!("{}-", std::process::id()))
            .tempdir_in(&all)
            .with_context(|| format!("cannot create a folder in {}", all.display()))
    }

    /// Waits until no other run holds `name`. The operating system releases the lock when the process
    /// ends, however it ends.
    pub(crate) fn lock(&self, name: &str) -> Result<Lock> {
        let path = self.folder("locks")?.join(name);
        let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                eprintln!("another run holds the lock `{name}`; waiting for it");
                file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
            }
            Err(fs::TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        Ok(Lock { _file: file })
    }
}

/// Held for as long as it lives.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// What an entry was built from, as a short hash that is a valid file name and image tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key(String);

impl Key {
    /// Starts an empty key.
    pub(crate) fn of() -> KeyBuilder {
        KeyBuilder(Sha256::new())
    }

    /// The hash as text: 16 hexadecimal digits.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Collects what a [`Key`] covers. Every part is framed by its length, so that no two lists of parts
/// share a hash by being joined differently.
#[derive(Debug)]
pub(crate) struct KeyBuilder(Sha256);

impl KeyBuilder {
    /// Covers a piece of text.
    pub(crate) fn text(mut self, text: &str) -> Self {
        self.frame(text.as_bytes());
        self
    }

    /// Covers a file, or a folder with everything in it: relative names and contents.
    pub(crate) fn tree(mut self, path: &Path) -> Result<Self> {
        self.add_tree(path, path)?;
        Ok(self)
    }

    /// The key of all parts.
    pub(crate) fn finish(self) -> Key {
        let mut text = String::new();
        for byte in self.0.finalize().iter().take(8) {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        Key(text)
    }

    fn frame(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn add_tree(&mut self, root: &Path, path: &Path) -> Result<()> {
        let failed = || format!("cannot read {}", path.display());
        if path.is_dir() {
            let mut children = fs::read_dir(path)
                .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>())
                .with_context(failed)?;
            children.sort();
            for child in children {
                self.add_tree(root, &child)?;
            }
            return Ok(());
        }
        let name = path.strip_prefix(root).map_or(OsStr::new(""), Path::as_os_str);
        self.frame(name.as_encoded_bytes());
        let contents = fs::read(path).with_context(failed)?;
        self.frame(&contents);
        Ok(())
    }
}

/// Removes a file or folder; nothing there is fine.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let outcome = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match outcome {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            bail!("cannot remove {}: {error}", path.display())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_depends_on_where_parts_end() {
        assert_ne!(Key::of().text("ab").text("c").finish(), Key::of().text("a").text("bc").finish());
    }

    #[test]
    fn a_tree_key_depends_on_names_and_contents() {
        let folder = tempfile::tempdir().unwrap();
        let key = || Key::of().tree(folder.path()).unwrap().finish();
        fs::create_dir(folder.path().join("sub")).unwrap();
        fs::write(folder.path().join("sub/a"), "1").unwrap();
        let first = key();
        assert_eq!(first, key());
        fs::write(folder.path().join("sub/a"), "2").unwrap();
        let second = key();
        assert_ne!(first, second);
        fs::rename(folder.path().join("sub/a"), folder.path().join("sub/b")).unwrap();
        assert_ne!(second, key());
    }

    #[test]
    fn scratch_of_a_dead_run_goes_and_that_of_a_live_one_stays() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache { root: folder.path().into() };
        let live = cache.scratch().unwrap();
        // Above the largest number that Linux gives to a process.
        let dead = folder.path().join("scratch/4194305-x");
        fs::create_dir(&dead).unwrap();
        let _another = cache.scratch().unwrap();
        assert!(live.path().exists() && !dead.exists());
    }

    #[test]
    fn removing_what_is_absent_succeeds() {
        let folder = tempfile::tempdir().unwrap();
        remove(&folder.path().join("absent")).unwrap();
    }
}
