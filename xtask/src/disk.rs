//! Room on the disk, asked for before something long needs it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::command;

const MEBIBYTE: u64 = 1 << 20;

/// Fails unless each file system has room for what goes into `folders`, in bytes. The folders need not exist yet.
pub(crate) fn need_room(folders: &[(&Path, u64)]) -> Result<()> {
    let mut places = Vec::new();
    for (folder, bytes) in folders {
        // What a folder will be on is what the first one above it that exists is on.
        let there = folder.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
        let device = fs::metadata(there).with_context(|| format!("cannot read {}", there.display()))?.dev();
        places.push((device, there, *bytes));
    }
    for (there, bytes) in by_device(&places) {
        let free = free(there)?;
        ensure!(
            free >= bytes,
            "what is built needs about {} MiB on the disk of {}, which has {} MiB left: make room, or set DIALOG_CACHE, \
             GOCACHE and GOMODCACHE to folders on a larger one",
            bytes / MEBIBYTE,
            there.display(),
            free / MEBIBYTE
        );
    }
    Ok(())
}

/// The first folder on each device, and what all folders on it need.
fn by_device<'a>(places: &[(u64, &'a Path, u64)]) -> Vec<(&'a Path, u64)> {
    let mut devices: Vec<(u64, &Path, u64)> = Vec::new();
    for (device, folder, bytes) in places {
        match devices.iter_mut().find(|(known, ..)| known == device) {
            Some((.., all)) => *all += bytes,
            None => devices.push((*device, folder, *bytes)),
        }
    }
    devices.into_iter().map(|(_, folder, bytes)| (folder, bytes)).collect()
}

fn free(folder: &Path) -> Result<u64> {
    let mut df = Command::new("df");
    let text = command::output(df.args(["--output=avail", "--block-size=1"]).arg(folder))?;
    text.lines()
        .last()
        .and_then(|line| line.trim().parse().ok())
        .with_context(|| format!("df says nothing of {}: {text}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_to_the_same_device_adds_up() {
        let (a, b, c) = (Path::new("/a"), Path::new("/b"), Path::new("/c"));
        assert_eq!(by_device(&[(1, a, 5), (2, b, 3), (1, c, 4)]), [(a, 9), (b, 3)]);
    }

    #[test]
    fn too_little_room_is_said_with_the_folder_and_the_sizes() {
        let folder = tempfile::tempdir().unwrap();
        let absent = folder.path().join("not/yet");
        need_room(&[(&absent, 1), (folder.path(), 1)]).unwrap();
        let error = need_room(&[(&absent, 1), (folder.path(), u64::MAX - 1)]).unwrap_err().to_string();
        assert!(error.contains(&folder.path().display().to_string()), "{error}");
    }
}
