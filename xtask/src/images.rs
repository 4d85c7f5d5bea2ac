//! The project's own images: built by a Docker engine, named by what is in them.

use std::fs;
use std::path::{Path, PathBuf};

use acceptance::numbers::ImageSizes;
use anyhow::{Context as _, Result, bail};

use crate::cache::{Cache, Key};
use crate::command::{self, Log};
use crate::crds::cargo;
use crate::debian::Release;
use crate::engine::Engine;
use crate::postgres::{self, Overlay};
use crate::progress::Progress;
use crate::{base_image, repository};

/// The repository of the images that never leave this machine.
const LOCAL: &str = "dialog-operator";
/// The programs of a release.
const PROGRAMS: [&str; 2] = ["dialog-operator", "dialog-api"];
/// Makes load, for tests.
const BENCH: &str = "dialog-bench";
/// Certificates of this machine's own authorities, for networks with an inspecting proxy.
const LOCAL_AUTHORITIES: &str = "/usr/local/share/ca-certificates";

/// References of the three images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Images {
    /// dialog-operator.
    pub(crate) operator: String,
    /// dialog-api.
    pub(crate) dialog_api: String,
    /// PostgreSQL with Patroni.
    pub(crate) postgres: String,
    /// Whether the PostgreSQL image has Citus.
    pub(crate) has_citus: bool,
}

impl Images {
    /// All references.
    pub(crate) fn names(&self) -> [&str; 3] {
        [&self.operator, &self.dialog_api, &self.postgres]
    }
}

/// Builds what `engine` does not hold yet, each image tagged with a hash of what is in it.
pub(crate) fn ensure(cache: &Cache, engine: &Engine, progress: &Progress) -> Result<Images> {
    let postgres = Postgres::here(engine)?;
    let tag = postgres.key(engine)?;
    let postgres_name = format!("{LOCAL}/postgres:{}", tag.as_str());
    if !engine.has_image(&postgres_name) {
        let base = debian(cache, engine, progress)?;
        progress.step("Image postgres", |log| {
            postgres.build(engine, base.as_deref(), &postgres_name, log)?;
            engine.remove_other_tags(&postgres_name, log)
        })?;
    }
    let binaries = compile(&PROGRAMS, progress)?;
    let program = |package: &str| ensure_program(cache, engine, package, &binaries, progress);
    Ok(Images {
        operator: program("dialog-operator")?,
        dialog_api: program("dialog-api")?,
        postgres: postgres_name,
        has_citus: postgres.has_citus(),
    })
}

/// Builds the image of dialog-bench, which makes load inside a cluster. Returns its reference.
pub(crate) fn ensure_bench(cache: &Cache, engine: &Engine, progress: &Progress) -> Result<String> {
    let binaries = compile(&[BENCH], progress)?;
    ensure_program(cache, engine, BENCH, &binaries, progress)
}

/// Builds the image of a program, if `engine` does not hold it yet.
fn ensure_program(
    cache: &Cache,
    engine: &Engine,
    package: &str,
    binaries: &Path,
    progress: &Progress,
) -> Result<String> {
    // The libraries come from the base, which is built here where no registry has it.
    let libraries = match engine {
        Engine::Machine => String::new(),
        Engine::Own(_) => Release::here()?.sources_list(),
    };
    let binary = binaries.join(package);
    let key = Key::of().tree(&binary)?.tree(&programs())?.text(&libraries).finish();
    let name = format!("{LOCAL}/{}:{}", image_of(package), key.as_str());
    if !engine.has_image(&name) {
        let base = debian(cache, engine, progress)?;
        progress.step(&format!("Image {}", image_of(package)), |log| {
            build_program(engine, package, &binary, base.as_deref(), &name, log)?;
            engine.remove_other_tags(&name, log)
        })?;
    }
    Ok(name)
}

/// Builds a PostgreSQL image without Citus, whatever this machine has: on plain Debian, without an overlay. Returns its
/// reference.
pub(crate) fn ensure_without_citus(cache: &Cache, engine: &Engine, progress: &Progress) -> Result<String> {
    let plain = Postgres { overlay: Overlay::Absent };
    let name = format!("{LOCAL}/postgres-without-citus:{}", plain.key(engine)?.as_str());
    if !engine.has_image(&name) {
        let base = base_image::debian(cache, engine, progress)?;
        progress.step("Image postgres without Citus", |log| {
            plain.build(engine, Some(&base), &name, log)?;
            engine.remove_other_tags(&name, log)
        })?;
    }
    Ok(name)
}

/// The base that the Dockerfiles are given; `None` on an engine with a registry, where their own defaults serve.
fn debian(cache: &Cache, engine: &Engine, progress: &Progress) -> Result<Option<String>> {
    match engine {
        Engine::Machine => Ok(None),
        Engine::Own(_) => base_image::debian(cache, engine, progress).map(Some),
    }
}

/// How large the images are: all their layers, unpacked.
pub(crate) fn sizes(engine: &Engine, images: &Images) -> Result<ImageSizes> {
    let size = |image: &str| {
        let bytes =
            command::output(engine.docker().args(["image", "inspect", "--format", "{{.Size}}", image]))?;
        bytes.parse::<u64>().with_context(|| format!("the engine says that {image} has {bytes} bytes"))
    };
    Ok(ImageSizes {
        operator: size(&images.operator)?,
        dialog_api: size(&images.dialog_api)?,
        postgres: size(&images.postgres)?,
    })
}

/// Builds the images for a registry, on published base images, with the machine's own Docker engine.
pub(crate) fn publish(repository: &str, tag: &str, push: bool, progress: &Progress) -> Result<Vec<String>> {
    let engine = Engine::Machine;
    if !engine.answers() {
        bail!(
            "images for a registry are built by this machine's Docker engine, and `docker version` reaches none"
        );
    }
    let repository = repository.trim_end_matches('/');
    let name = |image: &str| format!("{repository}/{image}:{tag}");
    let postgres = Postgres { overlay: Overlay::None };
    progress.step("Image postgres", |log| postgres.build(&engine, None, &name("postgres"), log))?;
    let binaries = compile(&PROGRAMS, progress)?;
    for package in PROGRAMS {
        let image = image_of(package);
        progress.step(&format!("Image {image}"), |log| {
            build_program(&engine, package, &binaries.join(package), None, &name(image), log)
        })?;
    }
    let names: Vec<_> = ["operator", "dialog-api", "postgres"].into_iter().map(name).collect();
    if push {
        for name in &names {
            progress.step(&format!("Push {name}"), |log| {
                command::run(engine.docker().args(["push", name]), log)
            })?;
        }
    }
    Ok(names)
}

/// The PostgreSQL image and what goes into it beside its Dockerfile.
struct Postgres {
    overlay: Overlay,
}

impl Postgres {
    /// With a registry in reach, the published Citus image brings everything. Without, Citus comes from this machine, if
    /// it has it.
    fn here(engine: &Engine) -> Result<Self> {
        let overlay = match engine {
            Engine::Machine => Overlay::None,
            Engine::Own(_) => Overlay::here()?,
        };
        Ok(Self { overlay })
    }

    fn has_citus(&self) -> bool {
        // The Dockerfile's default base is a Citus image; the local base is plain Debian.
        !matches!(self.overlay, Overlay::Absent)
    }

    fn key(&self, engine: &Engine) -> Result<Key> {
        let mut key = Key::of().tree(&repository().join("images/postgres"))?;
        if let Engine::Own(_) = engine {
            // The base is built here as well, and packages come from where this machine has its own.
            key = key.text(&Release::here()?.sources_list());
        }
        if let Overlay::Citus(citus) = &self.overlay {
            key = key.text(citus.server());
            for (source, target) in citus.files()? {
                key = key.text(&target.to_string_lossy()).tree(&source)?;
            }
        }
        for authority in local_authorities()? {
            key = key.tree(&authority)?;
        }
        Ok(key.finish())
    }

    fn build(&self, engine: &Engine, base: Option<&str>, name: &str, log: &Log) -> Result<()> {
        let context = tempfile::tempdir().context("cannot create a temporary folder")?;
        let sources = repository().join("images/postgres");
        for file in
            ["Dockerfile", "initdb-atomic", "requirements.txt", "overlay/README.md", "certificates/README.md"]
        {
            copy(&sources.join(file), &context.path().join(file))?;
        }
        for authority in local_authorities()? {
            let file = authority.file_name().context("a certificate without a name")?;
            copy(&authority, &context.path().join("certificates").join(file))?;
        }
        let mut arguments = Vec::new();
        if let Overlay::Citus(citus) = &self.overlay {
            arguments.push(format!("--build-arg=POSTGRES_VERSION={}", citus.server()));
            for (source, target) in citus.files()? {
                copy(&source, &context.path().join("overlay").join(target))?;
            }
        }
        let recipe = context.path().join("Dockerfile");
        build(engine, &recipe, context.path(), base, &arguments, name, log)?;
        smoke(engine, name, log)
    }
}

/// The release binaries' folder, after compiling those of these packages.
fn compile(packages: &[&str], progress: &Progress) -> Result<PathBuf> {
    let metadata = command::output(&mut cargo(&["metadata", "--format-version", "1", "--no-deps"]))?;
    let metadata: serde_json::Value =
        serde_json::from_str(&metadata).context("cargo metadata printed no JSON")?;
    let target = metadata["target_directory"].as_str().context("cargo metadata names no target directory")?;
    let mut build = cargo(&["build", "--release", "--bins"]);
    build.args(packages.iter().flat_map(|package| ["--package", package]));
    progress.step("Rust programs", |log| command::run(&mut build, log))?;
    Ok(Path::new(target).join("release"))
}

fn build_program(
    engine: &Engine,
    package: &str,
    binary: &Path,
    base: Option<&str>,
    name: &str,
    log: &Log,
) -> Result<()> {
    let context = tempfile::tempdir().context("cannot create a temporary folder")?;
    copy(binary, &context.path().join(package))?;
    let program = [format!("--target={package}"), format!("--build-arg=PROGRAM={package}")];
    build(engine, &programs(), context.path(), base, &program, name, log)?;
    smoke(engine, name, log).context(
        "the program does not run in its image: if this machine's C library is newer than the base image's, \
         build on an older machine or give the Dockerfile a newer BASE",
    )
}

fn build(
    engine: &Engine,
    recipe: &Path,
    context: &Path,
    base: Option<&str>,
    arguments: &[String],
    name: &str,
    log: &Log,
) -> Result<()> {
    let mut docker = engine.docker();
    docker.args(["build", "--tag", name, "--file"]).arg(recipe);
    if let Engine::Own(_) = engine {
        // It has no network of its own.
        docker.args(["--network", "host"]);
    }
    docker.args(base.map(|base| format!("--build-arg=BASE={base}"))).args(arguments);
    command::run(docker.arg(context), log)
}

/// Every image's program knows `--version`; running it proves that its libraries are there.
fn smoke(engine: &Engine, name: &str, log: &Log) -> Result<()> {
    let mut docker = engine.docker();
    command::run(docker.args(["run", "--rm", "--network", "none", "--read-only", name, "--version"]), log)
}

/// The Dockerfile of the programs, with a target for each.
fn programs() -> PathBuf {
    repository().join("images/programs/Dockerfile")
}

fn image_of(package: &str) -> &str {
    package.strip_prefix("dialog-operator").map_or(package, |_| "operator")
}

fn local_authorities() -> Result<Vec<PathBuf>> {
    postgres::files_below(Path::new(LOCAL_AUTHORITIES)).map(|mut files| {
        files.retain(|file| file.extension().is_some_and(|extension| extension == "crt"));
        files
    })
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().unwrap_or(to);
    fs::create_dir_all(folder)
        .and_then(|()| fs::copy(from, to))
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}
