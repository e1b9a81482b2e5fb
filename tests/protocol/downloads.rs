//! Reading blobs: rules D1 to D12 of the registry reference.

use std::{collections::BTreeSet, time::Duration};

use docker_image_pusher::transfer::ImageJob;
use futures::future::join_all;

use crate::support::Result;
use crate::support::fake::{
    Content, FakeRegistry, Fault, Packed, RangeAnswer, Sample, Step, WrongBlob,
};
use crate::way::{FROM, TO, Way, standing, with_leaps};

const MIB: u64 = 1 << 20;

fn small() -> Sample {
    Sample::image(1, &[300_000, 9_000])
}

/// Enough for several ranges (D9: from 64 MiB on).
fn large() -> Sample {
    Sample::image(1, &[80 * MIB])
}

/// A way whose source keeps its blobs elsewhere.
fn with_storage(sample: Sample, status: u16) -> Result<(Way, FakeRegistry)> {
    let way = Way::of(sample)?;
    let storage = way.source.beside()?;
    let way = way.from(Fault::Redirect(status, storage.url()));
    Ok((way, storage))
}

// D1
#[tokio::test]
async fn blobs_are_fetched_where_the_registry_says_they_are() -> Result<()> {
    for status in [302, 303, 307] {
        let (way, storage) = with_storage(small(), status)?;
        way.copies().await;
        assert_eq!(storage.count(Step::Storage), 3, "{}", way.story());
    }
    Ok(())
}

// D2
#[tokio::test]
async fn no_encoding_is_asked_for_and_one_that_comes_is_undone() -> Result<()> {
    for packed in [Packed::Real, Packed::LabelOnly] {
        let way = Way::of(small())?.from(Fault::CeGzip(packed));
        way.copies().await;
        let asked = way.source.of_step(Step::BlobGet);
        assert!(
            asked
                .iter()
                .all(|seen| seen.header("accept-encoding") == Some("identity"))
        );
    }
    Ok(())
}

// D3
#[tokio::test]
async fn a_blob_that_breaks_off_goes_on_where_it_was() -> Result<()> {
    let sample = Sample::image(1, &[6 * MIB]);
    let layer = sample.largest_blob().to_owned();
    let way = Way::of(sample)?.from(Fault::CutAt(4 * MIB).about(&layer).times(1));
    way.copies().await;
    let came = way.source.answer_bytes(Step::BlobGet);
    assert!(
        came < 6 * MIB + MIB,
        "{came} bytes for 6 MiB\n{}",
        way.story()
    );
    Ok(())
}

// D3
#[tokio::test]
async fn ranges_that_are_ignored_shifted_or_of_another_total_do_no_harm() -> Result<()> {
    let mut ways = Vec::new();
    for answer in [
        RangeAnswer::Ignored,
        RangeAnswer::Shifted,
        RangeAnswer::WrongTotal,
    ] {
        for cut in [10_000, 200_000] {
            ways.push(
                Way::of(small())?
                    .from(Fault::Range(answer))
                    .from(Fault::CutAt(cut).times(1)),
            );
        }
    }
    join_all(ways.iter().map(Way::copies)).await;
    Ok(())
}

// D3
#[tokio::test]
async fn a_blob_whose_last_byte_came_is_whole_though_its_body_never_ended() -> Result<()> {
    Way::of(small())?.from(Fault::Unended).copies().await;
    Ok(())
}

// D4
#[tokio::test]
async fn never_more_than_one_range_is_asked_for() -> Result<()> {
    let way = Way::of(large())?
        .from(Fault::MultiRange)
        .from(Fault::CutAt(5 * MIB).times(3));
    way.copies().await;
    let asked = way.source.of_step(Step::BlobGet);
    assert!(
        asked
            .iter()
            .all(|seen| !seen.header("range").unwrap_or_default().contains(','))
    );
    Ok(())
}

// D9
#[tokio::test]
async fn a_blob_that_comes_slowly_from_near_comes_through_several_connections() -> Result<()> {
    let sample = large();
    let layer = sample.largest_blob().to_owned();
    let way = Way::of(sample)?.from(Fault::Drip(10 * MIB).about(&layer));
    way.copies().await;
    let asked = way.source.of_step(Step::BlobGet);
    let layer: Vec<_> = asked
        .iter()
        .filter(|seen| seen.path.ends_with(&layer))
        .collect();
    let connections: BTreeSet<_> = layer.iter().map(|seen| seen.connection).collect();
    // One brings the first part, and the rest if nobody helps.
    assert!(connections.len() > 2, "{}", way.story());
    let side_by_side = layer.iter().any(|one| {
        let others = layer.iter().filter(|other| {
            other.started < one.ended.unwrap() && one.started < other.ended.unwrap()
        });
        others.count() > 2
    });
    assert!(side_by_side, "{}", way.story());
    Ok(())
}

// D5, P12
#[tokio::test]
async fn a_blob_that_stands_still_goes_on_where_it_was() -> Result<()> {
    let sample = Sample::image(1, &[6 * MIB]);
    let layer = sample.largest_blob().to_owned();
    let way = Way::of(sample)?.from(Fault::Stall(4 * MIB).about(&layer).times(1));
    let still = || standing(&way.source, Step::BlobGet, 4 * MIB);
    with_leaps(Duration::from_secs(61), still, way.copies()).await;
    let came = way.source.answer_bytes(Step::BlobGet);
    assert!(
        came < 6 * MIB + MIB,
        "{came} bytes for 6 MiB\n{}",
        way.story()
    );
    Ok(())
}

// P12
#[tokio::test]
async fn a_blob_that_drips_is_fetched_by_another_connection() -> Result<()> {
    let sample = Sample::image(1, &[2 * MIB]);
    let layer = sample.largest_blob().to_owned();
    let way = Way::of(sample)?.from(Fault::Drip(100).about(&layer).times(1));
    // A few bytes come in each twenty seconds: it never stands still, it only is too slow.
    let dripping = || {
        let seen = way.source.of_step(Step::BlobGet);
        let slow = seen.iter().filter(|seen| seen.answer_bytes < 1_000);
        slow.map(|seen| usize::try_from(seen.answer_bytes / 20).unwrap())
            .max()
            .unwrap_or(0)
    };
    with_leaps(Duration::from_secs(20), dripping, way.copies()).await;
    assert!(way.source.count(Step::BlobGet) >= 3, "{}", way.story());
    Ok(())
}

// D6, P7
#[tokio::test]
async fn a_blob_that_is_not_what_its_digest_says_is_never_committed() -> Result<()> {
    for (wrong, reason) in [
        (WrongBlob::Longer, "SizeMismatch"),
        (WrongBlob::Shorter, "SizeMismatch"),
        (WrongBlob::Bomb, "SizeMismatch"),
        (WrongBlob::Corrupt, "DigestMismatch"),
    ] {
        let way = Way::of(Sample::no_layers(1))?.from(Fault::Blob(wrong));
        way.fails(reason).await;
        let (digest, content) = &way.sample.blobs[0];
        assert!(
            !way.target.has_blob(TO, digest),
            "{wrong:?}\n{}",
            way.story()
        );
        assert!(way.source.answer_bytes(Step::BlobGet) < 4 * content.size() + 16 * MIB);
        assert_eq!(way.target.count(Step::ManifestPut), 0);
    }
    Ok(())
}

// D6
#[tokio::test]
async fn wrong_bytes_are_fetched_once_more() -> Result<()> {
    let way = Way::of(Sample::no_layers(1))?.from(Fault::Blob(WrongBlob::Corrupt).times(1));
    way.copies().await;
    let way = Way::of(Sample::no_layers(1))?.from(Fault::Blob(WrongBlob::Corrupt));
    way.fails("DigestMismatch").await;
    assert_eq!(way.source.count(Step::BlobGet), 2, "{}", way.story());
    Ok(())
}

// D7
#[tokio::test]
async fn a_layer_that_its_registry_lacks_comes_from_its_publisher_into_the_cache_and_is_not_pushed()
-> Result<()> {
    let publisher = FakeRegistry::start()?;
    // The digest of the layer is known once the image is made, and stands in its own URL: so it is made twice.
    let probe = Sample::nondistributable(1, &[String::new()]);
    let digest = probe.staying.iter().next().unwrap().clone();
    let urls = [format!("{}/storage/{digest}", publisher.url())];
    let sample = Sample::nondistributable(1, &urls);
    let content = sample
        .blobs
        .iter()
        .find(|(known, _)| *known == digest)
        .map(|(_, content)| content.clone());
    let content: Content = content.unwrap();
    publisher.put_blob("any", &content);
    let way = Way::of(sample)?;
    way.source.remove_blob(FROM, &digest);
    // Registries leave the layer where it is; who fills the cache has nothing else later.
    way.copies().await;
    assert_eq!(publisher.requests().len(), 0);
    let fill = ImageJob {
        destinations: Vec::new(),
        ..way.job()
    };
    let report = way.run(&[fill]).await;
    assert!(report.failures().next().is_none(), "{report:?}");
    let asked = publisher.requests();
    assert_eq!(
        asked.len(),
        1,
        "the publisher was not asked\n{}",
        way.story()
    );
    assert!(asked[0].header("authorization").is_none());
    assert!(!way.target.has_blob(TO, &digest));
    Ok(())
}

// D8
#[tokio::test]
async fn an_expired_signature_is_replaced_by_one_new_resolve() -> Result<()> {
    let sample = Sample::image(1, &[6 * MIB]);
    let layer = sample.largest_blob().to_owned();
    let (way, storage) = with_storage(sample, 307)?;
    storage.add(Fault::PresignExpire(1));
    storage.add(Fault::CutAt(4 * MIB).about(&layer).times(1));
    way.copies().await;
    // The signature that broke off is not resolved again before it is refused, and then once.
    assert!(way.source.count(Step::BlobGet) <= 3, "{}", way.story());
    let expired = storage
        .requests()
        .iter()
        .filter(|seen| seen.status == Some(403))
        .count();
    assert!(expired <= 2, "{}", way.story());
    Ok(())
}

// D9
#[tokio::test]
async fn a_large_blob_comes_in_ranges_by_several_connections() -> Result<()> {
    // Slow enough for one connection to be noticed.
    let way = Way::of(large())?.from(Fault::Delay(Duration::from_millis(100)).on(Step::BlobGet));
    way.copies().await;
    let ranges = way
        .source
        .of_step(Step::BlobGet)
        .iter()
        .filter(|seen| seen.status == Some(206))
        .count();
    assert!(ranges >= 3, "{ranges} ranges\n{}", way.story());
    let came = way.source.answer_bytes(Step::BlobGet);
    assert!(came < 82 * MIB, "{came} bytes\n{}", way.story());
    let connections = way.source.max_overlap(&[Step::BlobGet]);
    assert!(connections >= 2, "{connections} at once");
    Ok(())
}

// D9
#[tokio::test]
async fn a_registry_without_ranges_sends_one_stream() -> Result<()> {
    let way = Way::of(large())?.from(Fault::Range(RangeAnswer::Ignored));
    way.copies().await;
    let came = way.source.answer_bytes(Step::BlobGet);
    assert!(came < 82 * MIB, "{came} bytes\n{}", way.story());
    Ok(())
}

// D9
#[tokio::test]
async fn a_redirect_is_resolved_once_for_all_ranges_of_a_blob() -> Result<()> {
    let (way, storage) = with_storage(large(), 307)?;
    way.copies().await;
    // The configuration has a redirect of its own.
    assert!(way.source.count(Step::BlobGet) <= 3, "{}", way.story());
    assert!(storage.count(Step::Storage) >= 3);
    Ok(())
}

// D9
#[tokio::test]
async fn one_slow_range_does_not_hold_up_the_others() -> Result<()> {
    let way = Way::of(large())?.from(Fault::Range(RangeAnswer::SlowOne(4 * MIB)));
    way.copies().await;
    Ok(())
}

// D10
#[tokio::test]
async fn ranges_that_come_out_of_order_make_the_same_blob() -> Result<()> {
    let way = Way::of(large())?.from(Fault::OutOfOrder(Duration::from_millis(500)));
    way.copies().await;
    Ok(())
}

// D11, X6
#[tokio::test]
async fn a_cancelled_download_goes_on_where_it_was() -> Result<()> {
    let sample = Sample::image(1, &[24 * MIB]);
    let way = Way::of(sample)?.from(Fault::Drip(24 * MIB));
    let limit = Duration::from_millis(600);
    let jobs = [way.job()];
    let cut = tokio::time::timeout(limit, way.run(&jobs)).await;
    assert!(cut.is_err(), "it was too fast to be cancelled");
    let before = way.source.answer_bytes(Step::BlobGet);
    assert!(before > 2 * MIB, "{before}");
    way.source.heal();
    way.copies().await;
    let came = way.source.answer_bytes(Step::BlobGet);
    // What was on its way when the run was cancelled may come again: buffers and a mebibyte between two notes.
    assert!(
        came < 24 * MIB + 6 * MIB,
        "{came} bytes for 24 MiB\n{}",
        way.story()
    );
    Ok(())
}

// D12
#[tokio::test]
async fn ten_images_with_one_layer_fetch_it_once() -> Result<()> {
    let way = Way::of(Sample::image(1, &[500_000]))?;
    let tags: Vec<String> = (2..=10).map(|number| number.to_string()).collect();
    way.source.put_tags(FROM, "1", tags.clone());
    let names = tags.iter().map(String::as_str).chain(["1"]);
    let jobs: Vec<_> = names
        .map(|tag| crate::way::job(&way.source, tag, &[(TO, tag)]))
        .collect();
    let report = way.run(&jobs).await;
    way.assert_whole(&report);
    assert_eq!(way.source.count(Step::BlobGet), 2, "{}", way.story());
    Ok(())
}
