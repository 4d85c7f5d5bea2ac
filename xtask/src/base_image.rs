//! The images that others are built on, where no registry has them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::cache::{self, Cache, Key};
use crate::command::{self, Log};
use crate::debian::{self, Release};
use crate::engine::Engine;
use crate::progress::Progress;

/// Debian with what its published "slim" image has, under that image's name.
///
/// On an engine with a registry nothing is built: the published image has the same name.
pub(crate) fn debian(cache: &Cache, engine: &Engine, progress: &Progress) -> Result<String> {
    if matches!(engine, Engine::Machine) {
        return Ok("debian:bookworm-slim".to_owned());
    }
    debian::install(progress, &["debootstrap"])?;
    let release = Release::here()?;
    let name = format!("debian:{}-slim", release.codename);
    let key = Key::of().text(include_str!("base_image.rs")).text(&release.sources_list()).finish();
    let built = format!("dialog-operator/debian:{}", key.as_str());
    if !engine.has_image(&built) {
        progress.step("Debian base image", |log| {
            let root = cache.scratch()?;
            command::run(
                Command::new("debootstrap")
                    .args(["--variant=minbase", &release.codename])
                    .arg(root.path())
                    .arg(release.mirror()),
                log,
            )?;
            fs::write(root.path().join("etc/apt/sources.list"), release.sources_list())
                .context("cannot write the image's sources.list")?;
            slim(root.path())?;
            import(engine, root.path(), &built, &["CMD [\"bash\"]"], log)
        })?;
    }
    ensure!(
        command::succeeds(engine.docker().args(["tag", &built, &name])),
        "the engine cannot name the image {built} {name}"
    );
    Ok(name)
}

/// Fills `root` with the C library, certificates, users, and further Debian `packages`; what those
/// depend on must be among them.
pub(crate) fn libc(cache: &Cache, root: &Path, packages: &[&str], log: &Log) -> Result<()> {
    let all: Vec<_> = ["libc6", "libgcc-s1", "ca-certificates"].iter().chain(packages).copied().collect();
    debian::unpack(cache, &all, root, log)?;
    bundle_certificates(root)?;
    slim(root)?;
    let write = |path: &str, text: &str| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap_or(root))
            .and_then(|()| fs::write(&path, text))
            .with_context(|| format!("cannot write {}", path.display()))
    };
    let nobody = "nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n";
    write("etc/passwd", &format!("root:x:0:0:root:/root:/sbin/nologin\n{nobody}"))?;
    write("etc/group", "root:x:0:\nnonroot:x:65532:\n")?;
    write("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")?;
    fs::create_dir_all(root.join("home/nonroot")).context("cannot create the home of nonroot")?;
    temporary(root)
}

/// Gives the image below `root` a `/tmp`.
pub(crate) fn temporary(root: &Path) -> Result<()> {
    let path = root.join("tmp");
    fs::create_dir_all(&path)
        .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o1777)))
        .with_context(|| format!("cannot prepare {}", path.display()))
}

/// Makes the files below `root` an image of one layer called `name`.
pub(crate) fn import(engine: &Engine, root: &Path, name: &str, changes: &[&str], log: &Log) -> Result<()> {
    // The folder is private to root; as an image's root it has to be everyone's.
    fs::set_permissions(root, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot open {} to everyone", root.display()))?;
    let mut import = engine.docker();
    import.arg("import");
    for change in changes {
        import.args(["--change", change]);
    }
    import.args(["-", name]);
    let mut tar = Command::new("tar");
    tar.arg("--directory").arg(root).args(["--numeric-owner", "--create", "."]);
    command::pipe(&mut tar, import, log)
}

/// One file with all authorities, which the package's own script would have put together.
fn bundle_certificates(root: &Path) -> Result<()> {
    let folder = root.join("usr/share/ca-certificates/mozilla");
    let read = || -> std::io::Result<Vec<u8>> {
        let mut files =
            fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
        files.sort();
        let mut bundle = Vec::new();
        for file in files {
            bundle.extend(fs::read(file)?);
        }
        let target = root.join("etc/ssl/certs");
        fs::create_dir_all(&target)?;
        fs::write(target.join("ca-certificates.crt"), &bundle)?;
        Ok(bundle)
    };
    let bundle = read().with_context(|| format!("cannot put together {}", folder.display()))?;
    ensure!(!bundle.is_empty(), "{} holds no certificates", folder.display());
    Ok(())
}

/// Leaves out documentation, translations and package archives, now and when packages are added.
fn slim(root: &Path) -> Result<()> {
    let left_out =
        ["usr/share/doc", "usr/share/info", "usr/share/lintian", "usr/share/locale", "usr/share/man"];
    let mut rules = String::new();
    for folder in left_out {
        rules.extend(["path-exclude=/", folder, "/*\n"]);
        cache::remove(&root.join(folder))?;
    }
    for folder in ["var/cache/apt/archives", "var/lib/apt/lists"] {
        cache::remove(&root.join(folder))?;
    }
    let dpkg = root.join("etc/dpkg/dpkg.cfg.d");
    if dpkg.is_dir() {
        fs::write(dpkg.join("slim"), rules).with_context(|| format!("cannot write in {}", dpkg.display()))?;
    }
    Ok(())
}
