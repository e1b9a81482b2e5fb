//! Every data set of the specification's conformance suite travels from a registry into the cache and on to others, byte for
//! byte (registry reference, X3): to the fake registry, and to distribution 2.8.2, where that takes it.

use docker_image_pusher::registry::{ClientOptions, Endpoint, RegistryClient};
use sha2::{Digest, Sha256};

use crate::support::fake::{FakeRegistry, Fault, Sample};
use crate::support::{Context, Result, registry::Registry, skopeo};
use crate::way::{FROM, TAG, TO, Way};

/// All of them with their names.
fn all() -> Vec<(&'static str, Sample)> {
    let urls = ["https://publisher.example/layer".to_owned()];
    vec![
        ("image", Sample::image(1, &[30_000, 20_000])),
        ("index", Sample::index(2)),
        ("nested index", Sample::nested_index(3)),
        ("sparse index", Sample::sparse_index(4)),
        ("artifact", Sample::artifact(5)),
        ("subject", Sample::subject(6)),
        ("subjectMissing", Sample::subject_missing(7)),
        ("artifactList", Sample::artifact_list(8)),
        ("dataField", Sample::data_field(9)),
        ("nondistributable", Sample::nondistributable(10, &urls)),
        ("customFields", Sample::custom_fields(11)),
        ("noLayers", Sample::no_layers(12)),
        ("emptyBlob", Sample::empty_blob(13)),
        ("sha512", Sample::sha512(14)),
    ]
}

/// What distribution 2.8.2 does not take, with the reason that a copy then fails with. To a layer with `urls`, which its
/// configuration must allow, it answers 500.
const REFUSED_BY_DISTRIBUTION: [(&str, &str); 2] = [
    ("sparse index", "SparseIndexRefused"),
    ("nondistributable", "RegistryUnavailable"),
];

/// Copies a data set between fakes.
async fn copies(name: &str) -> Result<()> {
    let sample = all()
        .into_iter()
        .find(|(known, _)| *known == name)
        .context(name)?
        .1;
    let way = Way::of(sample)?;
    way.copies().await;
    // The cache has it now: without its source it goes on to the next.
    way.target.heal();
    let next = FakeRegistry::start()?;
    let mut job = way.job();
    job.source = None;
    let clients = [("target", way.client(&next))];
    let report = way.run_with(clients, &[job]).await;
    assert_eq!(report.failed(), 0, "{name}: {report:#?}");
    assert_eq!(next.difference(TO, TAG, &way.sample), None, "{name}");
    Ok(())
}

#[tokio::test]
async fn an_image_travels() -> Result<()> {
    copies("image").await
}

#[tokio::test]
async fn an_index_travels() -> Result<()> {
    copies("index").await
}

#[tokio::test]
async fn a_nested_index_travels() -> Result<()> {
    copies("nested index").await
}

#[tokio::test]
async fn a_sparse_index_travels() -> Result<()> {
    copies("sparse index").await
}

#[tokio::test]
async fn an_artifact_travels() -> Result<()> {
    copies("artifact").await
}

#[tokio::test]
async fn an_artifact_about_an_image_travels() -> Result<()> {
    copies("subject").await
}

#[tokio::test]
async fn an_artifact_about_nothing_travels() -> Result<()> {
    copies("subjectMissing").await
}

#[tokio::test]
async fn an_index_of_artifacts_travels() -> Result<()> {
    copies("artifactList").await
}

#[tokio::test]
async fn embedded_data_travel() -> Result<()> {
    copies("dataField").await
}

#[tokio::test]
async fn an_image_with_a_layer_that_stays_travels() -> Result<()> {
    copies("nondistributable").await
}

#[tokio::test]
async fn fields_that_nobody_knows_travel() -> Result<()> {
    copies("customFields").await
}

#[tokio::test]
async fn an_image_without_layers_travels() -> Result<()> {
    copies("noLayers").await
}

#[tokio::test]
async fn a_blob_without_bytes_travels() -> Result<()> {
    copies("emptyBlob").await
}

#[tokio::test]
async fn an_image_by_sha512_travels() -> Result<()> {
    copies("sha512").await
}

#[tokio::test]
async fn distribution_gets_every_data_set_that_it_takes() -> Result<()> {
    let registry = Registry::open()?;
    let mut refused = Vec::new();
    for (name, sample) in all() {
        let way = Way::of(sample)?;
        let endpoint = Endpoint::parse(registry.address()).context("address")?;
        let client = RegistryClient::new(endpoint, ClientOptions::default(), way.output.clone());
        let clients = [
            ("source", way.client(&way.source)),
            ("target", client.context("client")?),
        ];
        let report = way.run_with(clients, &[way.job()]).await;
        match report.failures().next() {
            Some((_, _, failure)) => refused.push((name, failure.reason)),
            None => assert_whole(&registry, name, &way.sample)?,
        }
    }
    assert_eq!(refused, REFUSED_BY_DISTRIBUTION);
    Ok(())
}

/// The registry has the manifest and every blob, on its disk.
fn assert_whole(registry: &Registry, name: &str, sample: &Sample) -> Result<()> {
    let root = skopeo::raw_manifest(registry.access(), &format!("{TO}:{TAG}"))?;
    assert_eq!(root, sample.root.1.bytes, "{name}");
    let travelling = sample
        .blobs
        .iter()
        .filter(|(digest, _)| !sample.staying.contains(digest));
    for (_, content) in travelling {
        // Whatever it is named by, on the disk it lies by SHA-256.
        let digest = content.digest();
        let bytes = std::fs::read(registry.blob_file(&digest)).context(&digest)?;
        assert_eq!(
            skopeo::digest_text(&Sha256::digest(&bytes)),
            digest,
            "{name}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_data_set_that_breaks_off_at_any_byte_travels_all_the_same() -> Result<()> {
    let mut random = fastrand::Rng::with_seed(11);
    for (name, sample) in all() {
        // These have tests of their own; what breaks off is the same for all.
        if matches!(name, "sparse index" | "sha512") {
            continue;
        }
        let cut = random.u64(1..4_000);
        let way = Way::of(sample)?.from(Fault::CutAt(cut).of(FROM).times(3));
        way.copies().await;
    }
    Ok(())
}
