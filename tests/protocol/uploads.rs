//! Writing blobs: rules U1 to U17 of the registry reference.

use std::{
    num::NonZeroU64,
    time::{Duration, Instant},
};

use docker_image_pusher::transfer::TransferOptions;
use futures::future::join_all;

use crate::support::Result;
use crate::support::fake::{
    FakeRegistry, Fault, Location, Lost, RangeAnswer, Rule, Sample, Seen, Step, UploadRange,
};
use crate::way::{TO, Way, copy_within, with_leaps};

const MIB: u64 = 1 << 20;

fn small() -> Sample {
    Sample::image(1, &[300_000, 9_000])
}

/// A target that takes neither a PUT with a body nor a body beyond `limit`: blobs go in chunks.
fn in_chunks(sample: Sample, limit: u64) -> Result<Way> {
    Ok(Way::of(sample)?
        .to(Fault::NoPutBody(405))
        .to(Fault::BodyLimit(limit)))
}

/// The answer to a large chunk gets lost, once the first was refused for its size or taken.
fn lost_chunk() -> Rule {
    Fault::PutLost(Lost::Kept)
        .on(Step::Patch)
        .at_least(MIB / 2)
        .after(1)
        .times(1)
}

fn with_body(seen: &[Seen]) -> usize {
    seen.iter().filter(|seen| seen.body_bytes > 0).count()
}

// U1, U4, U17
#[tokio::test]
async fn a_blob_takes_a_post_and_a_put() -> Result<()> {
    let way = Way::of(small())?.to(Fault::MonoOnly).to(Fault::MountAnon);
    way.copies().await;
    let steps = |step| way.target.count(step);
    assert_eq!(
        (
            steps(Step::UploadStart),
            steps(Step::Put),
            steps(Step::Patch)
        ),
        (3, 3, 0)
    );
    // Only where it was seen to work a POST carries the bytes; a mount names where from.
    assert_eq!(with_body(&way.target.of_step(Step::UploadStart)), 0);
    assert_eq!(steps(Step::Mount), 0);
    for put in way.target.of_step(Step::Put) {
        assert_eq!(put.header("content-type"), Some("application/octet-stream"));
        assert_eq!(
            put.header("content-length"),
            Some(put.body_bytes.to_string().as_str())
        );
        assert_eq!(put.header("expect"), None);
    }
    Ok(())
}

// U2
#[tokio::test]
async fn where_put_takes_no_body_the_bytes_go_by_patch_and_the_host_is_remembered() -> Result<()> {
    for status in [404, 405] {
        let mut way = Way::of(Sample::image(1, &[30_000, 20_000, 10_000, 5_000]))?
            .to(Fault::NoPutBody(status));
        way.options = TransferOptions {
            max_concurrent: 1,
            ..way.options
        };
        way.copies().await;
        let refused = with_body(&way.target.of_step(Step::Put));
        assert_eq!(refused, 1, "{status}\n{}", way.story());
        for patch in way.target.of_step(Step::Patch) {
            assert_eq!(patch.header("content-range"), None, "{}", way.story());
        }
    }
    Ok(())
}

// U3
#[tokio::test]
async fn chunks_are_as_large_as_the_registry_wants_them() -> Result<()> {
    let least = 5 * MIB;
    let way = in_chunks(Sample::image(1, &[17 * MIB]), 8 * MIB)?.to(Fault::ChunkMin(least));
    way.copies().await;
    let patches = way.target.of_step(Step::Patch);
    let chunks: Vec<_> = patches
        .iter()
        .filter(|seen| seen.status == Some(202) && seen.body_bytes > MIB)
        .collect();
    assert!(chunks.len() >= 3, "{}", way.story());
    for chunk in &chunks {
        let range = chunk.header("content-range").unwrap_or_default();
        let numbers = range
            .split_once('-')
            .and_then(|(from, to)| Some((from.parse::<u64>().ok()?, to.parse::<u64>().ok()?)));
        let (from, to) = numbers.unwrap_or_else(|| panic!("'{range}' is not 'a-b'"));
        assert_eq!(to - from + 1, chunk.body_bytes);
    }
    let small = chunks
        .iter()
        .filter(|chunk| chunk.body_bytes < least)
        .count();
    assert!(small <= 1, "{}", way.story());
    Ok(())
}

// U3
#[tokio::test]
async fn chunks_shrink_for_a_registry_that_takes_four_mebibytes() -> Result<()> {
    let way = Way::of(Sample::image(1, &[10 * MIB]))?
        .to(Fault::NoPutBody(405))
        .to(Fault::ChunkMax(4 * MIB));
    way.copies().await;
    Ok(())
}

// U4
#[tokio::test]
async fn a_registry_that_ignores_a_digest_at_the_post_gets_no_bytes_there() -> Result<()> {
    let way = Way::of(small())?.to(Fault::PostDigest);
    way.copies().await;
    let sent: u64 = way
        .target
        .requests()
        .iter()
        .map(|seen| seen.body_bytes)
        .sum();
    let manifests = way.sample.root.1.bytes.len() as u64;
    assert_eq!(sent, way.sample.size() + manifests, "{}", way.story());
    Ok(())
}

// U5
#[tokio::test]
async fn the_query_of_a_location_comes_back_as_it_was() -> Result<()> {
    Way::of(small())?.to(Fault::OpaqueQuery).copies().await;
    in_chunks(Sample::image(1, &[2 * MIB]), MIB)?
        .to(Fault::OpaqueQuery)
        .copies()
        .await;
    Ok(())
}

// U6
#[tokio::test]
async fn a_location_may_be_relative_absolute_or_at_another_host() -> Result<()> {
    for location in [Location::Relative, Location::Absolute] {
        Way::of(small())?
            .to(Fault::Location(location))
            .copies()
            .await;
    }
    let way = Way::of(small())?;
    let other = way.target.beside()?;
    let way = way.to(Fault::Location(Location::OtherHost(other.url())));
    way.copies().await;
    assert_eq!(
        (way.target.count(Step::Put), other.count(Step::Put)),
        (0, 3)
    );
    Ok(())
}

// U7
#[tokio::test]
async fn a_location_that_forgot_its_tls_is_used_with_it() -> Result<()> {
    let target = FakeRegistry::builder().tls().start()?;
    let way =
        Way::between(FakeRegistry::start()?, target, small())?.to(Fault::Location(Location::Http));
    way.copies().await;
    assert_eq!(way.messages.warnings().len(), 1, "{:?}", way.messages.all());
    Ok(())
}

// U7
#[tokio::test]
async fn a_location_without_tls_at_another_host_is_refused() -> Result<()> {
    let target = FakeRegistry::builder().tls().start()?;
    let evil = FakeRegistry::start()?;
    let way = Way::between(FakeRegistry::start()?, target, small())?
        // By name it is another host than by address.
        .to(Fault::Location(Location::OtherHost(
            evil.url().replace("127.0.0.1", "localhost"),
        )));
    way.fails("RedirectRefused").await;
    assert!(evil.requests().is_empty());
    Ok(())
}

// U8
#[tokio::test]
async fn a_location_is_used_once_and_a_fresh_one_is_asked_for() -> Result<()> {
    let way = in_chunks(Sample::image(1, &[5 * MIB]), 2 * MIB)?
        .to(Fault::StateOnce)
        .to(lost_chunk());
    way.copies().await;
    Ok(())
}

// U9
#[tokio::test]
async fn our_own_offset_counts_whatever_range_says() -> Result<()> {
    let mut ways = Vec::new();
    for range in [
        UploadRange::Stuck,
        UploadRange::Relative,
        UploadRange::Minus1,
        UploadRange::Missing,
    ] {
        ways.push(in_chunks(Sample::image(1, &[5 * MIB]), 2 * MIB)?.to(Fault::RangeOf(range)));
    }
    join_all(ways.iter().map(Way::copies)).await;
    Ok(())
}

// U9
#[tokio::test]
async fn a_chunk_that_was_appended_twice_costs_one_new_upload() -> Result<()> {
    let way = in_chunks(Sample::image(1, &[5 * MIB]), 2 * MIB)?
        .to(Fault::AppendBadRange)
        .to(Fault::RangeOf(UploadRange::Stuck))
        .to(lost_chunk());
    way.copies().await;
    let refused = way.target.of_step(Step::Put).into_iter();
    let refused = refused.filter(|seen| seen.status == Some(400)).count();
    assert!(refused <= 1, "{}", way.story());
    Ok(())
}

// U9, R20
#[tokio::test]
async fn a_chunk_whose_answer_was_lost_is_not_sent_twice_where_the_registry_tells() -> Result<()> {
    let way = in_chunks(Sample::image(1, &[5 * MIB]), 2 * MIB)?.to(lost_chunk());
    way.copies().await;
    assert!(way.target.count(Step::UploadStatus) >= 1, "{}", way.story());
    let taken = way.target.of_step(Step::Patch).into_iter();
    let taken = taken.filter(|seen| seen.status != Some(413));
    let taken: u64 = taken.map(|seen| seen.body_bytes).sum();
    assert!(taken <= way.sample.size(), "{taken} bytes\n{}", way.story());
    Ok(())
}

// U10
#[tokio::test]
async fn a_cold_image_of_three_layers_takes_thirteen_requests() -> Result<()> {
    let way = Way::of(Sample::image(1, &[30_000, 20_000, 10_000]))?;
    way.copies().await;
    // HEAD of the tag, three layers of three, the configuration without HEAD, the manifest.
    assert!(way.target.requests().len() <= 13, "{}", way.story());
    assert_eq!(way.target.count(Step::BlobHead), 3, "{}", way.story());
    Ok(())
}

// U10
#[tokio::test]
async fn blobs_that_are_there_are_not_sent() -> Result<()> {
    let way = Way::of(small())?;
    for (_, content) in &way.sample.blobs {
        way.target.put_blob(TO, content);
    }
    way.copies().await;
    let layers = way.target.of_step(Step::UploadStart).len();
    // The configuration is not asked about.
    assert!(layers <= 1, "{}", way.story());
    Ok(())
}

// U11
#[tokio::test]
async fn a_commit_without_answer_is_looked_after_before_it_is_repeated() -> Result<()> {
    for (lost, uploads) in [(Lost::Kept, 1), (Lost::Dropped, 2)] {
        let way = Way::of(Sample::no_layers(1))?.to(Fault::PutLost(lost).times(1));
        way.copies().await;
        assert_eq!(
            way.target.count(Step::Put),
            uploads,
            "{lost:?}\n{}",
            way.story()
        );
    }
    Ok(())
}

// U12
#[tokio::test]
async fn a_commit_may_take_minutes() -> Result<()> {
    let way = Way::of(Sample::no_layers(1))?.to(Fault::SlowCommit(Duration::from_secs(2)));
    let committing = || {
        let seen = way.target.of_step(Step::Put);
        seen.iter()
            .filter(|seen| seen.body_bytes == way.sample.size())
            .count()
    };
    with_leaps(Duration::from_mins(6), committing, way.copies()).await;
    assert_eq!(way.target.count(Step::Put), 1, "{}", way.story());
    Ok(())
}

/// What is in the cache already is held back too: the limit is one of each direction.
#[tokio::test]
async fn a_bandwidth_limit_holds_back_what_goes_to_the_target() -> Result<()> {
    let mut way = Way::of(Sample::image(1, &[4_000_000; 2]))?;
    way.copies().await;
    let fetched = way.source.count(Step::BlobGet);
    way.target = FakeRegistry::start()?;
    way.options.bandwidth_limit = NonZeroU64::new(4_000_000);
    let started = Instant::now();
    way.copies().await;
    let took = started.elapsed();
    assert_eq!(way.source.count(Step::BlobGet), fetched, "{}", way.story());
    // 2 s, less the tenth of a second that may be made up for and the pieces that wait for nobody.
    assert!(took > Duration::from_millis(1_600), "{took:?}");
    Ok(())
}

// U14
#[tokio::test]
async fn blobs_of_no_bytes_and_of_two_are_sent_with_their_length() -> Result<()> {
    for sample in [Sample::empty_blob(1), Sample::artifact(1)] {
        Way::of(sample)?.to(Fault::StrictLength).copies().await;
    }
    Ok(())
}

// U15
#[tokio::test]
async fn an_upload_that_is_given_up_is_cancelled_and_nobody_waits_for_it() -> Result<()> {
    for status in [204, 401, 405] {
        let way = Way::of(Sample::no_layers(1))?
            .to(Fault::Cancel(status))
            .to(Fault::SlowCommit(Duration::from_secs(30)));
        let jobs = [way.job()];
        let sent = async {
            while way.target.count(Step::Put) == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            report = way.run(&jobs) => panic!("it ended by itself: {report:#?}"),
            () = sent => {}
        }
        let given_up = Instant::now();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let cancelled = async {
            while way.target.count(Step::Cancel) == 0 && given_up.elapsed() < Duration::from_secs(5)
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        cancelled.await;
        assert_eq!(
            way.target.count(Step::Cancel),
            1,
            "{status}\n{}",
            way.story()
        );
    }
    Ok(())
}

// U16
#[tokio::test]
async fn within_one_registry_blobs_are_mounted() -> Result<()> {
    let way = Way::of(small())?;
    copy_within(&way).await;
    let mounts = way.source.of_step(Step::Mount);
    assert!(mounts.len() >= 2, "{}", way.story());
    assert!(
        mounts
            .iter()
            .all(|seen| seen.query.contains("from=team%2Fapp")
                || seen.query.contains("from=team/app"))
    );
    assert_eq!(
        with_body(&way.source.of_step(Step::Put)),
        0,
        "{}",
        way.story()
    );
    Ok(())
}

// U16
#[tokio::test]
async fn a_mount_that_starts_an_upload_is_that_upload() -> Result<()> {
    let way = Way::of(small())?.from(Fault::Mount(202));
    copy_within(&way).await;
    assert!(way.source.count(Step::Mount) > 0, "{}", way.story());
    let started = way.source.count(Step::UploadStart) + way.source.count(Step::Mount);
    assert_eq!(started, way.source.count(Step::Put), "{}", way.story());
    Ok(())
}

// U16
#[tokio::test]
async fn a_refused_mount_is_followed_by_an_upload() -> Result<()> {
    for status in [400, 401, 404] {
        let way = Way::of(small())?.from(Fault::Mount(status));
        copy_within(&way).await;
        assert!(
            way.source.count(Step::Mount) > 0,
            "{status}\n{}",
            way.story()
        );
    }
    Ok(())
}

// P7, D3, U11: both sides break off.
#[tokio::test]
async fn a_copy_whose_source_and_target_break_off_ends_whole() -> Result<()> {
    let way = Way::of(Sample::image(1, &[6 * MIB]))?
        .from(Fault::CutAt(2 * MIB))
        .to(Fault::Reset.on(Step::Put).times(2))
        .from(Fault::Range(RangeAnswer::SlowOne(8 * MIB)));
    way.copies().await;
    Ok(())
}
