//! Manifests: rules M1 to M13 of the registry reference.

use docker_image_pusher::error::Class;
use docker_image_pusher::image::Reference;
use futures::future::join_all;
use serde_json::json;

use crate::support::Result;
use crate::support::fake::{
    Content, ContentType, DigestHeader, Document, FakeRegistry, Fault, Sample, Step,
};
use crate::way::{FROM, TAG, TO, Way, from, tag};

/// A source that has something else than a good image under the tag.
fn with_root(document: Document) -> Result<Way> {
    let way = Way::of(Sample::image(1, &[9_000]))?;
    way.source.put_document(FROM, TAG, document);
    Ok(way)
}

// M1
#[tokio::test]
async fn manifests_of_four_and_eight_mebibytes_are_copied_and_one_of_nine_is_not() -> Result<()> {
    Way::of(Sample::big_manifest(1, 4 << 20))?.copies().await;
    Way::of(Sample::big_manifest(1, 8 << 20))?.copies().await;
    Way::of(Sample::big_manifest(1, 9 << 20))?
        .fails("ManifestTooLarge")
        .await;
    Ok(())
}

// M2
#[tokio::test]
async fn an_image_by_sha512_is_copied() -> Result<()> {
    Way::of(Sample::sha512(1))?.copies().await;
    Ok(())
}

// M2
#[tokio::test]
async fn a_digest_of_an_unknown_algorithm_is_refused_by_name() -> Result<()> {
    let sample = Sample::image(1, &[9_000]);
    let root = sample.root_with(|root| {
        root["layers"][0]["digest"] = json!("foo:0123456789abcdef0123456789abcdef");
    });
    let failure = with_root(root)?.fails("AlgorithmUnsupported").await;
    assert!(failure.message.contains("foo"), "{}", failure.message);
    Ok(())
}

// M3
#[tokio::test]
async fn a_wrong_digest_header_is_an_error_by_digest_and_a_warning_by_tag() -> Result<()> {
    for (header, by_digest) in [
        (DigestHeader::Wrong, Some("DigestMismatch")),
        (DigestHeader::NoPrefix, None),
        (DigestHeader::Missing, None),
    ] {
        let way = Way::of(Sample::image(1, &[9_000]))?.from(Fault::DigestHeader(header));
        let client = way.client(&way.source);
        let digest: Reference = way.sample.digest().parse().unwrap();
        let found = client.get_manifest(&from(), &digest).await;
        let reason = found.as_ref().err().map(<&str>::from);
        assert_eq!(reason, by_digest, "{header:?} by digest");
        let manifest = client.get_manifest(&from(), &tag()).await.unwrap();
        assert_eq!(
            manifest.digest().to_string(),
            way.sample.digest(),
            "{header:?} by tag"
        );
    }
    Ok(())
}

// M3
#[tokio::test]
async fn an_image_whose_tag_says_no_digest_or_a_malformed_one_is_copied() -> Result<()> {
    for header in [DigestHeader::NoPrefix, DigestHeader::Missing] {
        let way = Way::of(Sample::image(1, &[9_000]))?
            .from(Fault::DigestHeader(header))
            .to(Fault::DigestHeader(header));
        way.copies().await;
    }
    Ok(())
}

// M4
#[tokio::test]
async fn parameters_of_a_content_type_are_ignored() -> Result<()> {
    let way = Way::of(Sample::index(1))?.from(Fault::ContentType(ContentType::Charset));
    way.copies().await;
    Ok(())
}

// M4
#[tokio::test]
async fn a_content_type_that_contradicts_the_manifest_is_an_error() -> Result<()> {
    let way = Way::of(Sample::image(1, &[9_000]))?.from(Fault::ContentType(ContentType::Mismatch));
    way.fails("ManifestInvalid").await;
    Ok(())
}

// M4: the fake refuses a push whose type is not the manifest's own.
#[tokio::test]
async fn dockers_types_stay_as_they_are() -> Result<()> {
    Way::of(Sample::docker_image(1))?.copies().await;
    Ok(())
}

// M5
#[tokio::test]
async fn schema_1_is_refused_with_what_to_do() -> Result<()> {
    let failure = with_root(Sample::schema1())?
        .fails("ManifestUnsupported")
        .await;
    assert!(
        failure.message.contains("rebuild the image"),
        "{}",
        failure.message
    );
    Ok(())
}

// M5
#[tokio::test]
async fn an_artifact_manifest_of_before_oci_1_1_is_copied_byte_for_byte() -> Result<()> {
    Way::of(Sample::artifact_manifest(1))?.copies().await;
    Ok(())
}

// M6
#[tokio::test]
async fn a_negative_size_is_refused() -> Result<()> {
    let sample = Sample::image(1, &[9_000]);
    for pointer in ["/layers/0/size", "/config/size"] {
        let root = sample.root_with(|root| *root.pointer_mut(pointer).unwrap() = json!(-1));
        with_root(root)?.fails("ManifestInvalid").await;
    }
    Ok(())
}

// M7
#[tokio::test]
async fn everything_is_there_before_what_names_it() -> Result<()> {
    for sample in [
        Sample::nested_index(1),
        Sample::index(2),
        Sample::image(3, &[9_000]),
    ] {
        let way = Way::of(sample)?.to(Fault::StrictRefs);
        way.copies().await;
        // Children go by digest, never by a tag; the tag comes last.
        let puts = way.target.of_step(Step::ManifestPut);
        let (last, others) = puts.split_last().unwrap();
        assert!(last.path.ends_with("/manifests/1"), "{}", way.story());
        assert!(
            others
                .iter()
                .all(|seen| seen.path.contains("/manifests/sha256:"))
        );
        assert_eq!(way.target.tags(TO), ["1"]);
    }
    Ok(())
}

// M7
#[tokio::test]
async fn a_target_that_dies_at_any_moment_never_has_a_tag_on_half_an_image() -> Result<()> {
    let mut ways = Vec::new();
    for requests in 0..24 {
        let mut way = Way::of(Sample::index(1))?.to(Fault::Reset.after(requests));
        way.retry_attempts = 0;
        ways.push(way);
    }
    let runs = ways.iter().map(|way| async move {
        let report = way.run(&[way.job()]).await;
        if way.target.manifest(TO, TAG).is_some() {
            assert_eq!(
                way.target.difference(TO, TAG, &way.sample),
                None,
                "{}",
                way.story()
            );
        } else {
            assert_eq!(report.failed(), 1, "{}", way.story());
        }
        // And what is left goes on from there.
        way.target.heal();
        way.copies().await;
    });
    join_all(runs).await;
    Ok(())
}

// M8
#[tokio::test]
async fn a_registry_that_says_yes_to_everything_is_found_out() -> Result<()> {
    let writes = Way::of(Sample::image(1, &[9_000]))?.to(Fault::YesMan);
    writes.fails("UnexpectedAnswer").await;

    let everything = Way::of(Sample::image(1, &[9_000]))?.to(Fault::YesMan
        .on(Step::ManifestPut)
        .on(Step::ManifestHead)
        .on(Step::ManifestGet));
    let report = everything.run(&[everything.job()]).await;
    assert_eq!(report.failed(), 1, "{}", everything.story());
    Ok(())
}

// M9
#[tokio::test]
async fn a_blob_that_the_registry_forgot_is_sent_again() -> Result<()> {
    let way = Way::of(Sample::image(1, &[9_000, 8_000]))?.to(Fault::BlobUnknown.times(2));
    way.copies().await;
    assert_eq!(way.target.count(Step::ManifestPut), 3, "{}", way.story());
    Ok(())
}

// M9
#[tokio::test]
async fn a_registry_that_always_forgets_a_blob_is_given_up() -> Result<()> {
    let way = Way::of(Sample::image(1, &[9_000]))?.to(Fault::BlobUnknown.times(9));
    way.fails("ManifestBlobUnknown").await;
    let attempts = way.target.count(Step::ManifestPut);
    assert!((2..=5).contains(&attempts), "{attempts}");
    Ok(())
}

// M10
#[tokio::test]
async fn a_registry_that_takes_no_sparse_index_gets_all_children_or_the_error_is_clear()
-> Result<()> {
    Way::of(Sample::index(1))?
        .to(Fault::NoSparse)
        .copies()
        .await;

    let way = Way::of(Sample::sparse_index(1))?.to(Fault::NoSparse);
    way.fails("SparseIndexRefused").await;
    Ok(())
}

// M11
#[tokio::test]
async fn an_immutable_tag_is_no_trouble_with_the_same_content_and_a_policy_with_another()
-> Result<()> {
    for status in [400, 412] {
        let way = Way::of(Sample::image(1, &[9_000]))?.to(Fault::Immutable(status));
        way.target.put(TO, TAG, &way.sample);
        way.copies().await;
        assert_eq!(way.target.count(Step::ManifestPut), 0, "{}", way.story());

        let way = Way::of(Sample::image(1, &[9_000]))?.to(Fault::Immutable(status));
        let other = Sample::image(2, &[9_000]);
        way.target.put(TO, TAG, &other);
        let report = way.run(&[way.job()]).await;
        let failure = report
            .failures()
            .next()
            .map(|(_, _, failure)| failure.clone())
            .unwrap();
        assert_eq!(
            (failure.reason, failure.class),
            ("TagImmutable", Class::Policy)
        );
        assert_eq!(way.target.difference(TO, TAG, &other), None);
    }
    Ok(())
}

// M12
#[tokio::test]
async fn a_refusal_wrapped_in_an_invalid_manifest_is_shown_and_not_repeated() -> Result<()> {
    let inner = "403 Forbidden: not enough permissions to overwrite";
    let way =
        Way::of(Sample::image(1, &[9_000]))?
            .to(Fault::Refuse(400, "MANIFEST_INVALID", inner).on(Step::ManifestPut));
    let failure = way.fails("AccessDenied").await;
    assert!(failure.message.contains(inner), "{}", failure.message);
    assert_eq!(way.target.count(Step::ManifestPut), 1, "{}", way.story());
    Ok(())
}

// M13
#[tokio::test]
async fn a_refused_media_type_is_named() -> Result<()> {
    let refused = "application/vnd.oci.image.layer.v1.tar+gzip";
    let way = Way::of(Sample::image(1, &[9_000]))?.to(Fault::RefuseType(refused));
    let failure = way.fails("ManifestRejected").await;
    let message = failure.message;
    assert!(
        message.contains(refused) && message.contains("allow-list"),
        "{message}"
    );
    assert_eq!(way.target.count(Step::ManifestPut), 1, "{}", way.story());
    Ok(())
}

// T8
#[tokio::test]
async fn a_proxy_project_that_takes_no_push_is_not_asked_again() -> Result<()> {
    let refusal = Fault::Refuse(403, "DENIED", "can not push artifact to a proxy project");
    let way = Way::of(Sample::no_layers(1))?.to(refusal
        .on(Step::UploadStart)
        .on(Step::Mount)
        .on(Step::ManifestPut));
    let failure = way.fails("AccessDenied").await;
    assert!(
        failure.message.contains("proxy project"),
        "{}",
        failure.message
    );
    assert_eq!(way.target.count(Step::UploadStart), 1, "{}", way.story());
    Ok(())
}

// T6
#[tokio::test]
async fn a_referrer_at_a_registry_without_referrers_is_listed_under_the_fallback_tag() -> Result<()>
{
    for race in [false, true] {
        let target = FakeRegistry::start()?.with(Fault::Legacy);
        let way = Way::between(FakeRegistry::start()?, target, Sample::subject(1))?;
        let root: serde_json::Value = serde_json::from_slice(&way.sample.root.1.bytes).unwrap();
        let subject = root["subject"]["digest"].as_str().unwrap();
        let list = subject.replacen(':', "-", 1);
        if race {
            way.target.add(Fault::Race.about(&list).times(1));
        }
        way.copies().await;
        let fallback = way.target.manifest(TO, &list);
        let fallback = fallback.unwrap_or_else(|| panic!("no fallback tag\n{}", way.story()));
        let index: serde_json::Value = serde_json::from_slice(&fallback.bytes).unwrap();
        let entries = index["manifests"].as_array().unwrap();
        let digests: Vec<_> = entries
            .iter()
            .filter_map(|entry| entry["digest"].as_str())
            .collect();
        assert!(digests.contains(&way.sample.digest()), "{index}");
        let foreign = Content::new("{}").digest();
        assert_eq!(digests.contains(&foreign.as_str()), race, "{index}");
    }
    Ok(())
}

// T6
#[tokio::test]
async fn a_registry_that_knows_referrers_gets_no_fallback_tag() -> Result<()> {
    let way = Way::of(Sample::subject(1))?;
    way.copies().await;
    assert_eq!(way.target.tags(TO), ["1"]);
    Ok(())
}
