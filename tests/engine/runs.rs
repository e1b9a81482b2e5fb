//! A run with several images and destinations: nothing is moved twice, one failure stops nothing else.

use std::time::Duration;

use docker_image_pusher::{
    cache::Cache,
    output::OutputManager,
    registry::{ClientOptions, Endpoint, RegistryClient},
    transfer::{
        Destination, ImageJob, Outcome, Registries, RegistryId, RegistryImage, Run,
        TargetReference, TransferOptions,
    },
};
use http::Method;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::support::{
    Context, Result,
    faults::{Action, Rule},
    gateway::Gateway,
    images::Image,
    install_crypto_provider,
    process::temporary_folder,
    registry::Registry,
    skopeo,
};

/// One source, two destinations, a cache, and three images that share layers: `team/app:1` to `team/app:3`.
struct Bed {
    source: Registry,
    destinations: [Registry; 2],
    images: Vec<Image>,
    folder: TempDir,
    output: OutputManager,
}

impl Bed {
    fn new() -> Result<Self> {
        install_crypto_provider();
        let source = Registry::open()?;
        let images = [&[50_000, 60_000][..], &[50_000, 70_000], &[50_000, 80_000]]
            .map(|layers| Image::builder().seed(11).layer_sizes(layers).build());
        let images = images.into_iter().collect::<Result<Vec<_>>>()?;
        for (number, image) in images.iter().enumerate() {
            image.push(source.access(), &format!("team/app:{}", number + 1))?;
        }
        Ok(Self {
            source,
            destinations: [Registry::open()?, Registry::open()?],
            images,
            folder: temporary_folder("cache")?,
            output: OutputManager::silent(),
        })
    }

    fn addresses(&self) -> [&str; 3] {
        let [one, two] = &self.destinations;
        [self.source.address(), one.address(), two.address()]
    }

    fn run(&self, addresses: [&str; 3]) -> Result<Run> {
        let cache = Cache::open(self.folder.path(), self.output.clone()).context("cache")?;
        let mut registries = Registries::new();
        for (name, address) in ["source", "one", "two"].into_iter().zip(addresses) {
            let endpoint = Endpoint::parse(address).context("address")?;
            let options = ClientOptions {
                retry_attempts: 0,
                ..ClientOptions::default()
            };
            let client =
                RegistryClient::new(endpoint, options, self.output.clone()).context("client")?;
            registries.insert(RegistryId(name.to_owned()), client);
        }
        Ok(Run::new(
            &cache,
            registries,
            TransferOptions::default(),
            self.output.clone(),
        ))
    }

    /// Brings one image into the cache, and tells how many were copied.
    async fn fill_cache(&self, number: usize) -> Result<usize> {
        let mut job = self.jobs().swap_remove(number - 1);
        job.destinations.clear();
        Ok(self.run(self.addresses())?.execute(&[job]).await.copied())
    }

    fn jobs(&self) -> Vec<ImageJob> {
        let job = |number: usize| ImageJob {
            cached: format!("source.example/team/app:{number}").parse().unwrap(),
            pinned: None,
            source: Some(RegistryImage {
                registry: RegistryId("source".into()),
                repository: "team/app".parse().unwrap(),
                reference: number.to_string().parse().unwrap(),
            }),
            destinations: ["one", "two"].map(|name| destination(name, number)).into(),
        };
        (1..=self.images.len()).map(job).collect()
    }
}

fn destination(name: &str, number: usize) -> Destination {
    Destination {
        name: name.to_owned(),
        registry: RegistryId(name.to_owned()),
        repository: "mirror/app".parse().unwrap(),
        reference: TargetReference::Known(number.to_string().parse().unwrap()),
    }
}

#[tokio::test]
async fn each_blob_is_read_once_and_sent_once_to_each_destination() -> Result<()> {
    let bed = Bed::new()?;
    let addresses = bed.addresses();
    let report = bed.run(addresses)?.execute(&bed.jobs()).await;
    assert_eq!((report.copied(), report.failed()), (3, 0), "{report:?}");
    // Four layers and three configurations between them.
    let blobs = 7;
    assert_eq!(bed.source.count("GET", "/blobs/"), blobs);
    for destination in &bed.destinations {
        assert_eq!(destination.count("POST", "/blobs/uploads/"), blobs);
        for (number, image) in bed.images.iter().enumerate() {
            let name = format!("mirror/app:{}", number + 1);
            assert_eq!(skopeo::digest(destination.access(), &name)?, image.digest);
        }
    }
    assert_eq!(
        (bed.output.totals().downloaded, bed.output.totals().uploaded),
        (7, 14)
    );

    // The same again: one question per tag and side, nothing else.
    let before = bed.source.requests().len();
    let again = bed.run(addresses)?.execute(&bed.jobs()).await;
    assert_eq!((again.up_to_date(), again.copied()), (3, 0), "{again:?}");
    assert_eq!(bed.source.requests().len() - before, 3);
    Ok(())
}

#[tokio::test]
async fn a_destination_that_is_gone_fails_alone() -> Result<()> {
    let bed = Bed::new()?;
    let nobody = format!("127.0.0.1:{}", crate::support::ports::free_port()?);
    let report = bed
        .run([bed.source.address(), bed.destinations[0].address(), &nobody])?
        .execute(&bed.jobs())
        .await;
    assert_eq!(report.failed(), 3);
    for image in &report.images {
        assert_eq!(image.destinations[0].outcome, Outcome::Copied);
        let failure = image.destinations[1].outcome.failure().unwrap();
        assert_eq!(failure.reason, "ConnectionRefused", "{failure:?}");
    }
    assert_eq!(
        skopeo::digest(bed.destinations[0].access(), "mirror/app:1")?,
        bed.images[0].digest
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn when_time_is_over_what_a_destination_has_reached_stays() -> Result<()> {
    let bed = Bed::new()?;
    let rule = Rule::on(
        &Method::PUT,
        "/manifests/",
        Action::Delay(Duration::from_mins(5)),
    );
    let slow = Gateway::before(&bed.destinations[1]).rule(rule).start()?;
    let limit = Duration::from_secs(5);
    let run = bed
        .run([
            bed.source.address(),
            bed.destinations[0].address(),
            &slow.url(),
        ])?
        .until(Instant::now() + limit, limit);
    let mut jobs = bed.jobs();
    jobs.truncate(2);
    // One comes from its registry, the other from the cache.
    assert_eq!(bed.fill_cache(2).await?, 1);
    jobs[1].source = None;
    let report = run.execute(&jobs).await;
    for image in &report.images {
        assert_eq!(image.fetched.failure(), None, "{image:?}");
        assert!(image.digest.is_some());
        assert_eq!(image.destinations[0].outcome, Outcome::Copied, "{image:?}");
        let failure = image.destinations[1].outcome.failure().unwrap();
        assert_eq!(failure.reason, "RunTimedOut", "{failure:?}");
    }
    assert_eq!(report.failures().count(), 2);
    Ok(())
}

#[tokio::test]
async fn an_image_that_is_not_there_fails_alone_and_leaves_nothing_at_the_destinations()
-> Result<()> {
    let bed = Bed::new()?;
    let addresses = bed.addresses();
    let mut jobs = bed.jobs();
    jobs[1].source.as_mut().unwrap().reference = "missing".parse().unwrap();
    let report = bed.run(addresses)?.execute(&jobs).await;
    assert_eq!((report.copied(), report.failed()), (2, 1));
    let failures: Vec<_> = report
        .failures()
        .map(|(_, _, failure)| failure.reason)
        .collect();
    assert_eq!(failures, ["ManifestUnknown"]);
    assert!(skopeo::digest(bed.destinations[0].access(), "mirror/app:2").is_err());
    Ok(())
}

#[tokio::test]
async fn a_tag_made_of_the_digest_is_known_once_the_source_was_asked() -> Result<()> {
    let bed = Bed::new()?;
    let addresses = bed.addresses();
    let mut jobs = bed.jobs();
    jobs.truncate(1);
    jobs[0].destinations[0].reference = TargetReference::WithDigest("1-{digest}".into());
    let report = bed.run(addresses)?.execute(&jobs).await;
    let tag = format!("1-digest-{}", &bed.images[0].digest["sha256:".len()..]);
    let target = &report.images[0].destinations[0].target;
    assert_eq!(
        *target,
        format!("{}/mirror/app:{tag}", bed.destinations[0].address())
    );
    assert_eq!(
        skopeo::digest(bed.destinations[0].access(), &format!("mirror/app:{tag}"))?,
        bed.images[0].digest
    );
    Ok(())
}

#[tokio::test]
async fn a_cancelled_run_leaves_no_tag_and_the_next_one_finishes() -> Result<()> {
    let bed = Bed::new()?;
    let addresses = bed.addresses();
    for milliseconds in [0, 2, 5, 10, 20, 40] {
        let (run, jobs) = (bed.run(addresses)?, bed.jobs());
        let limit = Duration::from_millis(milliseconds);
        drop(tokio::time::timeout(limit, run.execute(&jobs)).await);
        for destination in &bed.destinations {
            if skopeo::digest(destination.access(), "mirror/app:1").is_ok() {
                // A tag that is there stands for a whole image.
                skopeo::download(
                    destination.access(),
                    "mirror/app:1",
                    temporary_folder("copy")?.path(),
                )?;
            }
        }
    }
    let report = bed.run(addresses)?.execute(&bed.jobs()).await;
    assert_eq!(report.failed(), 0, "{report:?}");
    Ok(())
}
