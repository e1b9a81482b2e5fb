//! kill -9 at any moment, alone or beside another process: what is left is never wrong, and the next run completes.
//!
//! `KILLS=1000` kills that often, `SEED=n` does again what failed once (as far as the machine's timing allows).

use std::{fs, time::Duration};

use crate::checker::{check, files_below};
use crate::commands::{pull, push};
use crate::support::{Context, Result, binary::Sandbox, images::Image, registry::Registry, skopeo};

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
