//! kill -9 at any moment, alone or beside another process: what is left is never wrong, and the next run completes.
//!
//! `KILLS=1000` kills that often, `SEED=n` does again what failed once (as far as the machine's timing allows).

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;

use crate::commands::{pull, push};
use crate::support::{
    Context, Failure, Result, binary::Sandbox, images::Image, registry::Registry, skopeo,
};

const MIB: u64 = 1024 * 1024;

/// A number from the environment.
fn number(name: &str) -> Result<Option<u64>> {
    let text = std::env::var(name).ok();
    text.map(|text| text.parse().context(format!("{name} is no number")))
        .transpose()
}

#[test]
fn whatever_is_killed_leaves_nothing_wrong_and_the_next_run_completes() -> Result<()> {
    let kills = number("KILLS")?.unwrap_or(100);
    let seed = number("SEED")?.unwrap_or_else(|| fastrand::u64(..));
    println!("SEED={seed} KILLS={kills}");
    let mut random = fastrand::Rng::with_seed(seed);

    let source = Registry::open()?;
    let plain = Image::builder()
        .layer_sizes(&[3 * MIB, MIB, 70_000])
        .gzip_level(0)
        .build()?;
    plain.push(source.access(), "team/plain:1")?;
    let index = Image::builder()
        .layer_sizes(&[2 * MIB, 5_000])
        .platforms(&["linux/amd64", "linux/arm64"])
        .gzip_level(0)
        .build()?;
    index.push(source.access(), "team/index:1")?;
    let destination = Registry::open()?;
    let sandbox = Sandbox::new()?;
    let archive = sandbox.path().join("app.tar");
    plain.save_docker_archive(&archive, "team/archived:1")?;
    let cache = sandbox.path().join(".cache");

    let archive = archive.display().to_string();
    let jobs = [
        pull("team/plain", "1", source.address()),
        pull("team/index", "1", source.address()),
        vec!["extract", "-f", &archive],
        push("team/index:1", "copy/index", "1", destination.address()),
        push(&archive, "copy/archived", "1", destination.address()),
        vec!["clean"],
    ];
    for kill in 0..kills {
        let round = || format!("kill {kill} of SEED={seed}");
        // A push of what the cache has not is no work, nor is a pull of what it has.
        match random.u8(..3) {
            0 => drop(fs::remove_dir_all(&cache)),
            1 => drop(sandbox.run(&jobs[1])?.expect_code(0)?),
            _ => {}
        }
        let job = random.choice(&jobs).expect("there are jobs");
        let killed = sandbox.start(job)?;
        let beside = (random.u8(..3) == 0)
            .then(|| sandbox.start(&jobs[random.usize(..3)]))
            .transpose()?;
        std::thread::sleep(Duration::from_micros(random.u64(..250_000)));
        killed.signal("KILL")?;
        killed.wait()?;
        if let Some(beside) = beside {
            beside.wait()?.expect_code(0).context(round())?;
        }
        check(&cache).context(round())?;
        let verified = sandbox.run(&["verify"])?;
        verified.expect_code(0).context(round())?;
    }

    for job in &jobs[..5] {
        sandbox.run(job)?.expect_code(0)?;
    }
    check(&cache)?;
    let digest = skopeo::digest(destination.access(), "copy/index:1")?;
    assert_eq!(digest, index.digest);
    let layers = skopeo::config(destination.access(), "copy/archived:1")?;
    let diff_ids: Vec<_> = plain.manifests[0]
        .layers
        .iter()
        .map(|layer| &layer.diff_id)
        .collect();
    assert_eq!(layers["rootfs"]["diff_ids"], serde_json::json!(diff_ids));

    sandbox.run(&["clean"])?.expect_code(0)?;
    let left = files_below(&cache.join("blobs"))?;
    assert!(left.is_empty(), "clean leaves {left:?}");
    Ok(())
}

/// Every file below a folder that is there.
fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    if !folder.exists() {
        return Ok(files);
    }
    let listed = fs::read_dir(folder).context(format!("could not list {}", folder.display()))?;
    for entry in listed {
        let path = entry.context("could not list")?.path();
        if path.is_dir() {
            files.extend(files_below(&path)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}

/// Looks at a cache as a stranger who knows only its published layout: every blob is what its name says, every manifest is
/// whole, and whatever it names is there.
fn check(cache: &Path) -> Result<()> {
    for algorithm in ["sha256", "sha512"] {
        for blob in files_below(&cache.join("blobs").join(algorithm))? {
            let bytes = read(&blob)?;
            let name = blob.file_name().unwrap_or_default().to_string_lossy();
            if skopeo::sha256(&bytes) != format!("sha256:{name}") {
                return wrong(&blob, "its bytes are others");
            }
        }
    }
    for manifest in files_below(&cache.join("manifests"))? {
        let name = manifest.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(".tmp-") {
            continue;
        }
        let bytes = read(&manifest)?;
        if name.starts_with("sha256:") && skopeo::sha256(&bytes) != name {
            return wrong(&manifest, "its bytes are others");
        }
        check_manifest(cache, &manifest, &bytes)?;
    }
    let index = cache.join("index.json");
    if index.exists() && serde_json::from_slice::<Value>(&read(&index)?).is_err() {
        return wrong(&index, "it is torn");
    }
    Ok(())
}

fn check_manifest(cache: &Path, path: &Path, bytes: &[u8]) -> Result<()> {
    let Ok(manifest) = serde_json::from_slice::<Value>(bytes) else {
        return wrong(path, "it is torn");
    };
    let list = |field: &str| manifest[field].as_array().cloned().unwrap_or_default();
    for child in list("manifests") {
        let digest = child["digest"].as_str().unwrap_or_default();
        if !path.with_file_name(digest).is_file() {
            return wrong(path, &format!("it names {digest}, which is not there"));
        }
    }
    let blobs = manifest
        .get("config")
        .cloned()
        .into_iter()
        .chain(list("layers"));
    for blob in blobs {
        let hex = blob["digest"]
            .as_str()
            .unwrap_or_default()
            .replace("sha256:", "");
        let file = cache.join("blobs/sha256").join(&hex);
        let size = fs::metadata(file).ok().map(|metadata| metadata.len());
        if size != blob["size"].as_u64() {
            return wrong(
                path,
                &format!("it names {hex}, of which {size:?} bytes are there"),
            );
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).context(format!("could not read {}", path.display()))
}

fn wrong(path: &Path, what: &str) -> Result<()> {
    Err(Failure::new(format!("{}: {what}", path.display())))
}
