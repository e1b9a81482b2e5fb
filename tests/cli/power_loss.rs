//! A power loss takes what no sync has covered. A small model tells what that is, from strace's log of a run: the bytes of a
//! file are safe with `fsync` or `fdatasync` of it, its name with `fsync` of the folder it was renamed in, and both with
//! `syncfs`, where the call has returned and what it covers was done before it began. Everything else is damaged.
//!
//! The model is harsher than journaling file systems, which keep the order of names, and than disks, which write by
//! themselves after a while. It does not take folders that were made, which only loses whole images, nor changed modes:
//! those are made after the bytes are safe.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

use crate::checker::{check, check_images};
use crate::commands::pull;
use crate::crashes::after_a_new_start;
use crate::support::{
    Context, Result,
    binary::Sandbox,
    images::Image,
    process::run,
    registry::Registry,
    skopeo,
    strace::{self, Fault},
};

const MIB: u64 = 1024 * 1024;

/// The calls that the model knows.
const CALLS: &str = "trace=write,writev,pwrite64,pwritev,pwritev2,fallocate,ftruncate,copy_file_range,/^rename,fsync,fdatasync,syncfs";

/// What comes back of what was not safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    /// Empty files.
    Nothing,
    Zeros,
    /// The first part came to the disk, then something else.
    GarbageTail,
    /// The bytes did, the names did not.
    NameLost,
}

const DAMAGES: [Damage; 4] = [
    Damage::Nothing,
    Damage::Zeros,
    Damage::GarbageTail,
    Damage::NameLost,
];

/// One call with the lines of the log at which it began and ended.
struct Call {
    name: String,
    text: String,
    began: usize,
    /// None if it never returned, or with an error.
    ended: Option<usize>,
}

/// The calls of a log, each whole: strace cuts those in two that others come between.
fn calls(log: &str) -> Vec<Call> {
    let mut calls = Vec::new();
    let mut open = BTreeMap::new();
    for (number, line) in log.lines().enumerate() {
        let Some((thread, rest)) = line.split_once(' ') else {
            continue;
        };
        let rest = rest.trim_start();
        let (began, text) = if let Some(resumed) = rest.strip_prefix("<... ") {
            let Some((began, first)) = open.remove(thread) else {
                continue;
            };
            let end = resumed.split_once(" resumed>").map_or("", |(_, end)| end);
            (began, format!("{first}{end}"))
        } else if let Some(first) = rest.strip_suffix("<unfinished ...>") {
            open.insert(thread.to_owned(), (number, first.to_owned()));
            continue;
        } else {
            (number, rest.to_owned())
        };
        calls.extend(call(&text, began, Some(number)));
    }
    calls.extend(
        open.into_values()
            .filter_map(|(began, text)| call(&text, began, None)),
    );
    calls
}

fn call(text: &str, began: usize, ended: Option<usize>) -> Option<Call> {
    let (name, _) = text.split_once('(')?;
    let (_, result) = text.rsplit_once(" = ").unwrap_or_default();
    let is_done = result.starts_with(|digit: char| digit.is_ascii_digit());
    Some(Call {
        name: name.to_owned(),
        text: text.to_owned(),
        began,
        ended: ended.filter(|_| is_done),
    })
}

impl Call {
    /// The path that strace adds to the number of the open file.
    fn file(&self) -> Option<PathBuf> {
        let (_, rest) = self.text.split_once('<')?;
        rest.split_once('>').map(|(path, _)| path.into())
    }

    fn renamed(&self) -> Option<(PathBuf, PathBuf)> {
        let mut quoted = self.text.split('"').skip(1).step_by(2);
        Some((quoted.next()?.into(), quoted.next()?.into()))
    }
}

/// What a power loss may take: files with bytes that are not safe, and renames with names that are not.
#[derive(Debug, Default)]
struct AtRisk {
    files: BTreeSet<PathBuf>,
    renames: Vec<(PathBuf, PathBuf)>,
}

impl AtRisk {
    fn of(log: &str, cache: &Path) -> Self {
        let calls = calls(log);
        // A sync that is still on its way, or failed, covers nothing.
        let syncs: Vec<_> = calls
            .iter()
            .filter(|call| call.name.contains("sync") && call.ended.is_some())
            .collect();
        let is_synced = |path: &Path, done: Option<usize>| {
            let is_before = |sync: &Call| done.is_some_and(|done| done < sync.began);
            syncs.iter().any(|sync| {
                is_before(sync) && (sync.name == "syncfs" || sync.file().as_deref() == Some(path))
            })
        };
        let mut risk = Self::default();
        for call in &calls {
            match call.renamed() {
                Some((from, to)) if call.name.starts_with("rename") => {
                    if call.ended.is_some() && risk.files.remove(&from) {
                        risk.files.insert(to.clone());
                    }
                    let folder = to.parent().unwrap_or(&to);
                    if call.ended.is_some() && !is_synced(folder, call.ended) {
                        risk.renames.push((from, to));
                    }
                }
                _ if call.name.contains("sync") => {}
                _ => {
                    let file = call.file().filter(|file| file.starts_with(cache));
                    risk.files
                        .extend(file.filter(|file| !is_synced(file, call.ended)));
                }
            }
        }
        // What still has its temporary name is nobody's, whatever is in it.
        let is_temporary = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default();
            name.to_string_lossy().starts_with(".tmp-")
        };
        risk.files.retain(|path| !is_temporary(path));
        risk
    }

    fn is_nothing(&self) -> bool {
        self.files.is_empty() && self.renames.is_empty()
    }

    /// Damages them. `before` is the cache as it was when the run began, all of it safe.
    fn strike(&self, damage: Damage, cache: &Path, before: &Path) -> Result<()> {
        if damage == Damage::NameLost {
            for (from, to) in self.renames.iter().rev().filter(|(_, to)| to.exists()) {
                fs::rename(to, from).context("could not take the name back")?;
                let former = before.join(to.strip_prefix(cache).context("outside")?);
                if former.exists() {
                    fs::copy(former, to).context("could not bring the former file back")?;
                }
            }
            return Ok(());
        }
        for path in self.files.iter().filter(|path| path.is_file()) {
            let file = fs::OpenOptions::new().write(true).open(path);
            let file = file.context(format!("could not damage {}", path.display()))?;
            let size = file.metadata().context("no size")?.len();
            let kept = if damage == Damage::GarbageTail {
                size / 2
            } else {
                0
            };
            file.set_len(kept).context("could not cut")?;
            match damage {
                Damage::Nothing | Damage::NameLost => {}
                Damage::Zeros => file.set_len(size).context("could not fill")?,
                Damage::GarbageTail => {
                    let garbage = vec![0x5a; usize::try_from(size - kept).context("too large")?];
                    file.write_all_at(&garbage, kept)
                        .context("could not write")?;
                }
            }
        }
        Ok(())
    }
}

/// A moment of a run: the cache looks like this, and one of the calls is not made yet.
struct Moment {
    name: &'static str,
    calls: &'static str,
    looks: fn(&Scene) -> bool,
    /// Whether anything is not safe then.
    is_risky: bool,
}

const MOMENTS: [Moment; 4] = [
    Moment {
        name: "blobs have no names",
        calls: "/^rename",
        looks: |scene| fs::read_to_string(scene.notes()).is_ok_and(|text| text.lines().count() > 1),
        is_risky: true,
    },
    Moment {
        name: "blobs are not synced",
        calls: "syncfs",
        looks: |scene| scene.layer().exists() && !scene.has_partials(),
        is_risky: true,
    },
    Moment {
        name: "the tag's folder is not synced",
        calls: "fsync",
        looks: Scene::has_new_tag,
        is_risky: true,
    },
    Moment {
        name: "the index has no name",
        calls: "/^rename",
        looks: |scene| scene.has_new_tag() && scene.has_temporary(),
        is_risky: false,
    },
];

/// A cache with an image whose tag stands for another one at the registry by now.
struct Scene {
    registry: Registry,
    sandbox: Sandbox,
    cache: PathBuf,
    new: Image,
}

impl Scene {
    fn new() -> Result<Self> {
        let registry = Registry::open()?;
        let sandbox = Sandbox::new()?;
        let build = |seed| {
            let builder = Image::builder().layer_sizes(&[3 * MIB, 60_000]);
            builder.gzip_level(0).seed(seed).build()
        };
        let scene = Self {
            cache: sandbox.path().join(".cache"),
            registry,
            sandbox,
            new: build(2)?,
        };
        build(1)?.push(scene.registry.access(), "team/app:1")?;
        scene.sandbox.run(&scene.command())?.expect_code(0)?;
        scene.keep("before")?;
        scene.new.push(scene.registry.access(), "team/app:1")?;
        Ok(scene)
    }

    fn command(&self) -> Vec<&str> {
        pull("team/app", "1", self.registry.address())
    }

    fn copy_of(&self, name: &str) -> PathBuf {
        self.sandbox.path().join(name)
    }

    /// Keeps the cache as it is.
    fn keep(&self, name: &str) -> Result<()> {
        copy(&self.cache, &self.copy_of(name))
    }

    /// Brings it back.
    fn bring(&self, name: &str) -> Result<()> {
        copy(&self.copy_of(name), &self.cache)
    }

    fn layer(&self) -> PathBuf {
        let digest = &self.new.manifests[0].layers[0].blob.digest;
        self.cache.join(digest.replace("sha256:", "blobs/sha256/"))
    }

    fn notes(&self) -> PathBuf {
        let digest = &self.new.manifests[0].layers[0].blob.digest;
        self.cache
            .join("blobs/.partial")
            .join(format!("{digest}.state"))
    }

    fn has_partials(&self) -> bool {
        fs::read_dir(self.cache.join("blobs/.partial")).is_ok_and(|files| files.count() > 0)
    }

    fn has_temporary(&self) -> bool {
        let mut files = fs::read_dir(&self.cache).into_iter().flatten().flatten();
        files.any(|file| file.file_name().to_string_lossy().starts_with(".tmp-"))
    }

    fn has_new_tag(&self) -> bool {
        fs::read(self.cache.join("manifests/team/app/1"))
            .is_ok_and(|bytes| skopeo::sha256(&bytes) == self.new.digest)
    }

    /// Runs the pull up to a moment, or to its end, and tells what a power loss could take then.
    fn run_to(&self, moment: Option<&Moment>) -> Result<AtRisk> {
        let fault = moment.map(|moment| Fault::hold_up(moment.calls));
        let injection = fault.as_ref().map(Fault::injection);
        let mut options = vec!["-s", "4096", "-e", CALLS];
        options.extend(
            injection
                .iter()
                .flat_map(|injection| ["-e", injection.as_str()]),
        );
        let traced = strace::trace(&self.sandbox, &options, &self.command())?;
        let log = traced.log.clone();
        if let Some(moment) = moment {
            let finished = traced.kill_when(|| (moment.looks)(self))?;
            assert_eq!(finished.code(), None, "it was not killed: {finished:?}");
        } else {
            traced.running.wait()?.expect_code(0)?;
        }
        Ok(AtRisk::of(&strace::read(&log), &self.cache))
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to).context("could not make room for a copy")?;
    }
    run(Command::new("cp").arg("-a").args([from, to])).map(drop)
}

#[test]
fn what_a_power_loss_takes_comes_again_and_no_image_names_it() -> Result<()> {
    let scene = Scene::new()?;
    for moment in MOMENTS.iter().map(Some).chain([None]) {
        let name = moment.map_or("the run is over", |moment| moment.name);
        scene.bring("before")?;
        let risk = scene.run_to(moment).context(name)?;
        let is_risky = moment.is_some_and(|moment| moment.is_risky);
        assert_eq!(!risk.is_nothing(), is_risky, "{name}: {risk:?}");
        scene.keep("after")?;
        // Where nothing is at risk, every damage is the same.
        let damages = if is_risky {
            &DAMAGES[..]
        } else {
            &DAMAGES[..1]
        };
        for damage in damages.iter().copied() {
            let what = format!("{name}, {damage:?}");
            scene.bring("after")?;
            risk.strike(damage, &scene.cache, &scene.copy_of("before"))?;
            check_images(&scene.cache).context(&what)?;
            let again = after_a_new_start(&scene.sandbox, &scene.command())?;
            again.expect_code(0).context(&what)?;
            assert!(scene.has_new_tag(), "{what}");
            check(&scene.cache).context(&what)?;
            let verified = scene.sandbox.run(&["verify"])?;
            verified.expect_code(0).context(&what)?;
        }
    }
    Ok(())
}
