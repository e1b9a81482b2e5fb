//! Manifests that are unusual and legal, between real registries: indexes with gaps, signatures, digests by SHA-512.

use std::io::Write;

use docker_image_pusher::{
    cache::Cache,
    image::{Algorithm, Digest, MediaType, RawManifest, Reference, RepositoryPath, Tag},
    output::{Direction, OutputManager},
    registry::{BlobSource, BlobUpload, ClientOptions, Endpoint, RegistryClient},
    transfer::{
        Destination, ImageJob, Outcome, Registries, RegistryId, RegistryImage, Run, RunReport,
        TargetReference, TransferOptions,
    },
};
use futures::future::try_join_all;
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use crate::support::{
    Context, Result, images::Image, install_crypto_provider, process::temporary_folder,
    registry::Registry,
};

const EMPTY: &str = "application/vnd.oci.empty.v1+json";

fn client(registry: &Registry) -> Result<RegistryClient> {
    install_crypto_provider();
    let endpoint = Endpoint::parse(registry.address()).context("address")?;
    let options = ClientOptions {
        retry_attempts: 0,
        ..ClientOptions::default()
    };
    RegistryClient::new(endpoint, options, OutputManager::silent()).context("client")
}

fn repository() -> RepositoryPath {
    "team/app".parse().unwrap()
}

fn blob(content: &[u8], algorithm: Algorithm) -> Value {
    json!({"mediaType": EMPTY, "digest": Digest::with_algorithm(algorithm, content), "size": content.len()})
}

fn raw(value: &Value, algorithm: Algorithm) -> RawManifest {
    RawManifest::new(value.to_string().into(), None, algorithm).unwrap()
}

async fn put_blob(client: &RegistryClient, content: &[u8], algorithm: Algorithm) -> Result<()> {
    let mut file = NamedTempFile::new().context("blob")?;
    file.write_all(content).context("blob")?;
    let source = BlobSource::open(file.path()).context("blob")?;
    let descriptor = serde_json::from_value(blob(content, algorithm)).unwrap();
    let digest = Digest::of(content);
    let progress =
        OutputManager::silent().transfer(Direction::Upload, &digest, content.len() as u64);
    let upload = BlobUpload {
        repository: &repository(),
        descriptor: &descriptor,
        source: &source,
        progress: &progress,
        mount_from: None,
        notes: None,
    };
    let uploaded = client.upload_blob_with_token(&upload, None).await;
    uploaded.context("upload").map(drop)
}

async fn put(client: &RegistryClient, reference: &str, manifest: &RawManifest) -> Result<()> {
    let reference: Reference = reference.parse().unwrap();
    client
        .upload_manifest_with_token(&repository(), &reference, manifest, None)
        .await
        .context("manifest")
}

/// Copies `team/app:1` by way of the cache.
async fn copy(cache: &Cache, from: &Registry, to: Option<&Registry>) -> Result<RunReport> {
    let id = |name: &str| RegistryId(name.to_owned());
    let mut registries = Registries::new();
    registries.insert(id("from"), client(from)?);
    let mut destinations = Vec::new();
    if let Some(to) = to {
        registries.insert(id("to"), client(to)?);
        destinations.push(Destination {
            name: "to".to_owned(),
            registry: id("to"),
            repository: repository(),
            reference: TargetReference::Known("1".parse().unwrap()),
        });
    }
    let job = ImageJob {
        cached: "team/app:1".parse().unwrap(),
        pinned: None,
        source: Some(RegistryImage {
            registry: id("from"),
            repository: repository(),
            reference: "1".parse().unwrap(),
        }),
        destinations,
    };
    let options = TransferOptions::default();
    let run = Run::new(cache, registries, options, OutputManager::silent());
    Ok(run.execute(&[job]).await)
}

#[tokio::test]
async fn an_index_that_lost_a_platform_is_cached_as_it_is_and_refused_by_name() -> Result<()> {
    let (from, to) = (Registry::open()?, Registry::open()?);
    let image = Image::builder()
        .platforms(&["linux/amd64", "linux/arm64"])
        .build()?;
    image.push(from.access(), "team/app:1")?;
    let lost = from.blob_file(&image.manifests[1].digest);
    std::fs::remove_file(lost).context("could not lose a manifest")?;

    let folder = temporary_folder("cache")?;
    let cache = Cache::open(folder.path(), OutputManager::silent()).context("cache")?;
    let report = copy(&cache, &from, None).await?;
    assert_eq!(report.failed(), 0, "{report:?}");
    let root = cache
        .manifest(&"team/app".parse().unwrap(), &"1".parse().unwrap())
        .await
        .context("cache")?;
    assert_eq!(root.unwrap().digest().to_string(), image.digest);

    // This registry, version 2, takes no index with gaps (registry rule M10).
    let report = copy(&cache, &from, Some(&to)).await?;
    let failure = report.images[0].destinations[0].outcome.failure().unwrap();
    assert_eq!(failure.reason, "SparseIndexRefused", "{failure:?}");
    assert!(failure.message.contains("linux/arm64"), "{failure:?}");
    assert_eq!(to.count("PUT", "/manifests/1"), 1);

    // Once the platform is back, all is well.
    image.push(from.access(), "team/app:1")?;
    let report = copy(&cache, &from, Some(&to)).await?;
    assert_eq!(report.images[0].destinations[0].outcome, Outcome::Copied);
    Ok(())
}

#[tokio::test]
async fn signatures_are_found_from_their_subject_at_a_registry_that_keeps_no_lists() -> Result<()> {
    let registry = Registry::open()?;
    Image::builder()
        .build()?
        .push(registry.access(), "team/app:1")?;
    let client = client(&registry)?;
    let subject = client
        .get_manifest(&repository(), &"1".parse().unwrap())
        .await
        .context("subject")?;
    put_blob(&client, b"{}", Algorithm::Sha256).await?;
    let signature = |number: u32| {
        let empty = blob(b"{}", Algorithm::Sha256);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MediaType::OCI_MANIFEST, "artifactType": "application/x-signature",
            "config": empty, "layers": [empty], "annotations": {"number": number.to_string()},
            "subject": {"mediaType": subject.media_type(), "digest": subject.digest(), "size": subject.size()},
        });
        raw(&manifest, Algorithm::Sha256)
    };
    let signatures: Vec<_> = (0..6).map(signature).collect();
    try_join_all(signatures.iter().map(async |signature| {
        let reference = signature.digest().to_string();
        put(&client, &reference, signature).await
    }))
    .await?;
    let tag = Reference::Tag(Tag::of_referrers(subject.digest()));
    let list = client
        .get_manifest(&repository(), &tag)
        .await
        .context("list")?;
    let list: Value = serde_json::from_slice(list.bytes()).unwrap();
    let entries = list["manifests"].as_array().unwrap();
    for signature in &signatures {
        let entry = entries
            .iter()
            .find(|entry| entry["digest"] == signature.digest().to_string())
            .unwrap();
        assert_eq!(entry["artifactType"], "application/x-signature");
    }
    assert_eq!(entries.len(), signatures.len());
    Ok(())
}

#[tokio::test]
async fn an_image_with_blobs_by_sha512_is_copied_under_their_names() -> Result<()> {
    let (from, to) = (Registry::open()?, Registry::open()?);
    let source = client(&from)?;
    for content in [&b"{}"[..], b"layer", b""] {
        put_blob(&source, content, Algorithm::Sha512).await?;
    }
    let part = |content| blob(content, Algorithm::Sha512);
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MediaType::OCI_MANIFEST,
        "config": part(b"{}"), "layers": [part(b"layer"), part(b""), part(b"layer")],
    });
    // This registry takes manifests by sha256 only, and says so.
    let long = raw(&manifest, Algorithm::Sha512);
    let refused = put(&source, &long.digest().to_string(), &long).await;
    let refused = format!("{:?}", refused.unwrap_err());
    assert!(refused.contains("takes sha512"), "{refused}");
    let manifest = raw(&manifest, Algorithm::Sha256);
    put(&source, &manifest.digest().to_string(), &manifest).await?;
    let index = json!({
        "schemaVersion": 2, "mediaType": MediaType::OCI_INDEX,
        "manifests": [{"mediaType": manifest.media_type(), "digest": manifest.digest(), "size": manifest.size()}],
    });
    let index = raw(&index, Algorithm::Sha256);
    put(&source, "1", &index).await?;

    let folder = temporary_folder("cache")?;
    let cache = Cache::open(folder.path(), OutputManager::silent()).context("cache")?;
    let report = copy(&cache, &from, Some(&to)).await?;
    assert_eq!((report.copied(), report.failed()), (1, 0), "{report:?}");
    let child = Reference::Digest(manifest.digest().clone());
    let there = client(&to)?.get_manifest(&repository(), &child).await;
    assert_eq!(there.context("child")?.bytes(), manifest.bytes());
    Ok(())
}
