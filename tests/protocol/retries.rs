//! What is tried again, after which pause, and for how long: rules R13 to R21 of the registry reference, P12 and P13.

use std::time::{Duration, Instant};

use futures::future::join_all;

use crate::support::Result;
use crate::support::fake::{Fault, RetryAfter, Sample, Step, StorageTrouble};
use crate::way::{TAG, TO, Way, job, with_leaps};

fn small() -> Sample {
    Sample::image(1, &[40_000, 9_000])
}

// R13
#[tokio::test]
async fn a_connection_that_died_while_it_was_idle_costs_nothing() -> Result<()> {
    let mut way = Way::of(small())?
        .from(Fault::StaleConn.times(1))
        .to(Fault::StaleConn.times(1));
    way.retry_attempts = 1;
    let started = Instant::now();
    way.copies().await;
    assert!(started.elapsed() < Duration::from_secs(20));
    Ok(())
}

// R14
#[tokio::test]
async fn a_registry_that_fails_for_a_moment_is_asked_again() -> Result<()> {
    let mut ways = Vec::new();
    for status in [408, 500, 502, 503, 504, 507] {
        ways.push(Way::of(small())?.to(Fault::Status(status).on(Step::ManifestPut).times(1)));
        ways.push(Way::of(small())?.from(Fault::Status(status).on(Step::ManifestGet).times(1)));
    }
    join_all(ways.iter().map(Way::copies)).await;
    Ok(())
}

// R14
#[tokio::test]
async fn connections_that_end_after_each_answer_do_no_harm() -> Result<()> {
    Way::of(Sample::index(1))?
        .from(Fault::Goaway)
        .to(Fault::Goaway)
        .copies()
        .await;
    Ok(())
}

// R14
#[tokio::test]
async fn trouble_of_the_registrys_storage_is_told_and_a_full_quota_is_final() -> Result<()> {
    for (trouble, reason) in [
        (StorageTrouble::Full, "RegistryStorageFailed"),
        (StorageTrouble::Driver, "RegistryStorageFailed"),
        (StorageTrouble::Quota, "RegistryQuotaExceeded"),
    ] {
        let mut way = Way::of(Sample::no_layers(1))?.to(Fault::Storage(trouble).on(Step::Put));
        way.retry_attempts = 1;
        way.fails(reason).await;
        let attempts = way.target.count(Step::Put);
        let expected = if trouble == StorageTrouble::Quota {
            1
        } else {
            2
        };
        assert_eq!(attempts, expected, "{trouble:?}\n{}", way.story());
    }
    Ok(())
}

// R15
#[tokio::test]
async fn a_demanded_pause_is_kept_in_each_of_its_spellings() -> Result<()> {
    for after in [
        RetryAfter::Seconds(1),
        RetryAfter::DateIn(2),
        RetryAfter::EpochIn(2),
    ] {
        for status in [429, 503] {
            let mut way = Way::of(small())?.outdated().from(
                Fault::RetryAfter(status, after)
                    .on(Step::ManifestHead)
                    .times(2),
            );
            // A wait is no retry.
            way.retry_attempts = 0;
            let started = Instant::now();
            way.copies().await;
            assert!(
                started.elapsed() >= Duration::from_millis(1_500),
                "{after:?} {status}"
            );
        }
    }
    Ok(())
}

// R15
#[tokio::test]
async fn one_pause_holds_for_everything_that_is_asked_of_the_host() -> Result<()> {
    let way = Way::of(Sample::image(1, &[5_000; 6]))?.from(
        Fault::RetryAfter(429, RetryAfter::Seconds(1))
            .on(Step::BlobGet)
            .times(1),
    );
    way.copies().await;
    let seen = way.source.of_step(Step::BlobGet);
    let refused = seen.iter().find(|seen| seen.status == Some(429)).unwrap();
    let told = refused.ended.unwrap();
    // Requests that were under way already do not count.
    let slack = Duration::from_millis(100);
    let within = seen.iter().filter(|seen| {
        seen.started > told + slack && seen.started + slack < told + Duration::from_secs(1)
    });
    assert_eq!(within.count(), 0, "{}", way.story());
    Ok(())
}

// R15
#[tokio::test]
async fn a_pause_of_an_hour_parks_the_run() -> Result<()> {
    let way = Way::of(small())?.from(Fault::RetryAfter(429, RetryAfter::Seconds(3600)));
    let failure = way.fails("TooManyRequests").await;
    let pause = failure.retry_after.unwrap();
    assert!(
        pause > Duration::from_secs(3_500) && pause <= Duration::from_hours(1),
        "{pause:?}"
    );
    assert_eq!(way.source.requests().len(), 1, "{}", way.story());
    Ok(())
}

// R17
#[tokio::test]
async fn what_is_forbidden_is_not_asked_again() -> Result<()> {
    let way = Way::of(Sample::no_layers(1))?.to(Fault::Status(403).on(Step::UploadStart));
    way.fails("AccessDenied").await;
    assert_eq!(way.target.count(Step::UploadStart), 1, "{}", way.story());
    Ok(())
}

// R18
#[tokio::test]
async fn a_blob_that_is_not_seen_right_after_its_upload_is_looked_for_again() -> Result<()> {
    let way = Way::of(Sample::no_layers(1))?
        .to(Fault::Any2xx(202).on(Step::Put))
        .to(Fault::Status(404).on(Step::BlobHead).times(2));
    way.copies().await;
    assert_eq!(way.target.count(Step::Put), 1, "{}", way.story());
    Ok(())
}

// R18
#[tokio::test]
async fn a_manifest_that_is_not_there_is_asked_for_once() -> Result<()> {
    let way = Way::of(small())?;
    let report = way.run(&[job(&way.source, "missing", &[(TO, TAG)])]).await;
    let reasons: Vec<_> = report
        .failures()
        .map(|(_, _, failure)| failure.reason)
        .collect();
    assert_eq!(reasons, ["ManifestUnknown"]);
    assert!(way.source.requests().len() <= 2, "{}", way.story());
    Ok(())
}

// R19
#[tokio::test]
async fn a_body_too_large_for_a_proxy_goes_in_chunks() -> Result<()> {
    let sample = Sample::image(1, &[200 << 20]);
    let limit = 100 << 20;
    let way = Way::of(sample)?.to(Fault::BodyLimit(limit));
    way.copies().await;
    let largest = way
        .target
        .of_step(Step::Patch)
        .iter()
        .map(|seen| seen.body_bytes)
        .max();
    assert!(
        largest <= Some(limit) && largest > Some(0),
        "{}",
        way.story()
    );
    Ok(())
}

// R19
#[tokio::test]
async fn a_manifest_too_large_for_the_registry_is_an_error() -> Result<()> {
    let way = Way::of(Sample::big_manifest(1, 200_000))?
        .to(Fault::BodyLimit(100_000).on(Step::ManifestPut));
    way.fails("RequestTooLarge").await;
    assert_eq!(way.target.count(Step::ManifestPut), 1, "{}", way.story());
    Ok(())
}

// R21, D3, D5
#[tokio::test]
async fn a_blob_that_breaks_off_again_and_again_arrives_by_its_progress() -> Result<()> {
    let sample = Sample::image(1, &[11 << 20]);
    let mut way = Way::of(sample)?.from(Fault::CutAt(2 << 20));
    way.retry_attempts = 1;
    way.copies().await;
    // Resumed, not begun again: each byte comes about once.
    let came = way.source.answer_bytes(Step::BlobGet);
    assert!(
        came < (12 << 20) + (2 << 20),
        "{came} bytes\n{}",
        way.story()
    );
    Ok(())
}

// R21
#[tokio::test]
async fn without_progress_there_are_as_many_retries_as_configured() -> Result<()> {
    for retries in [0, 2] {
        let mut way = Way::of(Sample::no_layers(1))?.from(Fault::CutAt(0));
        way.retry_attempts = retries;
        way.fails("ConnectionFailed").await;
        let attempts = way.source.count(Step::BlobGet);
        let least = usize::try_from(retries).unwrap() + 1;
        // A connection that broke may be replaced once at once (R13).
        assert!(
            (least..=least + 1).contains(&attempts),
            "{attempts}\n{}",
            way.story()
        );
    }
    Ok(())
}

// P12
#[tokio::test]
async fn a_registry_that_says_nothing_is_asked_again() -> Result<()> {
    let way = Way::of(small())?.from(Fault::NoHeader.on(Step::ManifestGet).times(1));
    let silent = || {
        way.source
            .of_step(Step::ManifestGet)
            .iter()
            .filter(|seen| seen.status.is_none())
            .count()
    };
    with_leaps(Duration::from_secs(31), silent, way.copies()).await;
    assert_eq!(way.source.count(Step::ManifestGet), 2, "{}", way.story());
    Ok(())
}

// P13
#[tokio::test]
async fn a_registry_that_throttles_gets_fewer_connections_and_everything_arrives() -> Result<()> {
    let way = Way::of(Sample::image(1, &[300_000; 12]))?
        .from(Fault::ThrottleAbove(2))
        .from(Fault::Drip(1_000_000));
    way.copies().await;
    let refused = way
        .source
        .of_step(Step::BlobGet)
        .iter()
        .filter(|seen| seen.status == Some(429))
        .count();
    assert!(refused < 30, "{refused} refusals\n{}", way.story());
    Ok(())
}
