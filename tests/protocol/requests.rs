//! Ground rules, names and requests: rules G1 to G5, E2 to E4 and R1 to R21 of the registry reference. Those on where a login
//! goes are in `leaks.rs`.

use std::time::{Duration, Instant};

use docker_image_pusher::image::{Reference, Repository, RepositoryPath};
use docker_image_pusher::registry::{Endpoint, Hosts};
use futures::future::join_all;

use crate::support::Result;
use crate::support::fake::{
    ErrorBody, FakeRegistry, Fault, RetryAfter, Rule, Sample, Step, StorageTrouble,
};
use crate::way::{TAG, TO, Way, from, job, with_leaps};

fn small() -> Sample {
    Sample::image(1, &[40_000, 9_000])
}

/// Steps of a copy at its source and at its target.
const AT_SOURCE: [Step; 3] = [Step::ManifestHead, Step::ManifestGet, Step::BlobGet];
const AT_TARGET: [Step; 5] = [
    Step::ManifestHead,
    Step::BlobHead,
    Step::UploadStart,
    Step::Put,
    Step::ManifestPut,
];

/// A copy with one fault at each step in turn, all at once.
async fn copies_with_each(fault: impl Fn(Step) -> Rule) -> Result<()> {
    let mut ways = Vec::new();
    for step in AT_SOURCE {
        ways.push(Way::of(small())?.from(fault(step)));
    }
    for step in AT_TARGET {
        ways.push(Way::of(small())?.to(fault(step)));
    }
    join_all(ways.iter().map(Way::copies)).await;
    Ok(())
}

// G1, M2
#[tokio::test]
async fn a_manifest_travels_byte_for_byte() -> Result<()> {
    Way::of(Sample::odd_json(1))?.copies().await;
    Ok(())
}

// G2
#[tokio::test]
async fn headers_that_lie_never_put_wrong_bytes_under_a_good_name() -> Result<()> {
    let way = Way::of(small())?.from(Fault::LyingHeaders);
    let report = way.run(&[way.job()]).await;
    match report.failures().next() {
        None => way.assert_whole(&report),
        Some((_, _, failure)) => assert_eq!(failure.reason, "DigestMismatch"),
    }
    let way = Way::of(small())?.to(Fault::LyingHeaders
        .on(Step::Patch)
        .on(Step::Put)
        .on(Step::UploadStart));
    way.copies().await;
    Ok(())
}

// G3
#[tokio::test]
async fn the_status_decides_whatever_the_body_says() -> Result<()> {
    for body in [ErrorBody::Unknown, ErrorBody::Html, ErrorBody::Empty] {
        let way = Way::of(small())?.from(Fault::ErrBody(body)).from(
            Fault::Status(404)
                .on(Step::ManifestHead)
                .on(Step::ManifestGet),
        );
        way.fails("ManifestUnknown").await;
    }
    Ok(())
}

// G4, R14
#[tokio::test]
async fn each_step_that_fails_once_is_repeated() -> Result<()> {
    copies_with_each(|step| Fault::Status(503).on(step).times(1)).await
}

// G4, R13
#[tokio::test]
async fn each_step_whose_connection_breaks_once_is_repeated() -> Result<()> {
    copies_with_each(|step| Fault::Reset.on(step).times(1)).await
}

// G5
#[tokio::test]
async fn any_success_of_a_write_is_a_success() -> Result<()> {
    let mut ways = Vec::new();
    for status in [200, 201, 202, 204] {
        ways.push(Way::of(small())?.to(Fault::Any2xx(status)));
        // Without PUT of a body the bytes go by PATCH.
        ways.push(
            Way::of(small())?
                .to(Fault::Any2xx(status))
                .to(Fault::NoPutBody(405)),
        );
    }
    join_all(ways.iter().map(Way::copies)).await;
    Ok(())
}

// E2
#[test]
fn names_that_no_registry_has_are_refused_before_anything_is_asked() {
    for name in ["a", "a/b", "a.b/c_d/e__f/g-h", "a--b/c", "0/1"] {
        assert!(name.parse::<RepositoryPath>().is_ok(), "{name}");
    }
    for name in [
        "", "A", "a//b", "/a", "a/", "a_", "-a", "a..b", "a___b", "a b", "a/../b", "a%2fb",
    ] {
        assert!(name.parse::<RepositoryPath>().is_err(), "{name}");
    }
    for tag in ["1", "v1.0-rc_2", "_x", &"t".repeat(128)] {
        assert!(tag.parse::<Reference>().is_ok(), "{tag}");
    }
    for tag in ["", ".1", "-1", "a/b", "a b", "a@b", &"t".repeat(129)] {
        assert!(tag.parse::<Reference>().is_err(), "{tag}");
    }
}

// E3
#[test]
fn the_first_part_of_a_name_is_a_host_if_it_looks_like_one() {
    for (name, host, path) in [
        ("ubuntu", None, "ubuntu"),
        ("team/app", None, "team/app"),
        ("registry.example/app", Some("registry.example"), "app"),
        ("registry:5000/app", Some("registry:5000"), "app"),
        ("localhost/app", Some("localhost"), "app"),
        ("Registry/app", Some("Registry"), "app"),
    ] {
        let repository: Repository = name.parse().unwrap();
        assert_eq!(
            repository.host().map(ToString::to_string).as_deref(),
            host,
            "{name}"
        );
        assert_eq!(repository.path().to_string(), path, "{name}");
    }
    let hub = Endpoint::for_host(&"docker.io".parse().unwrap(), false);
    assert_eq!(hub.to_string(), "https://registry-1.docker.io");
}

// E4
#[tokio::test]
async fn an_old_registry_gives_no_signals_and_is_served_all_the_same() -> Result<()> {
    Way::of(Sample::index(1))?
        .from(Fault::Legacy)
        .to(Fault::Legacy)
        .copies()
        .await;
    Ok(())
}

// R1
#[tokio::test]
async fn every_question_for_a_manifest_accepts_all_types_in_one_line() -> Result<()> {
    let way = Way::of(Sample::index(1))?
        .from(Fault::StrictAccept)
        .to(Fault::StrictAccept);
    way.copies().await;
    Ok(())
}

// R2, U10
#[tokio::test]
async fn a_warm_run_asks_once_per_tag_and_reads_nothing() -> Result<()> {
    let way = Way::of(Sample::index(1))?;
    way.copies().await;
    // A pull is a GET of a manifest: each is read once.
    assert_eq!(way.source.count(Step::ManifestGet), 3, "{}", way.story());
    for registry in [&way.source, &way.target] {
        registry.forget();
    }
    way.copies().await;
    for registry in [&way.source, &way.target] {
        let steps: Vec<Step> = registry.requests().iter().map(|seen| seen.step).collect();
        assert_eq!(steps, [Step::ManifestHead], "{}", way.story());
    }
    Ok(())
}

// R3
#[tokio::test]
async fn a_used_up_quota_parks_the_run_and_loses_nothing() -> Result<()> {
    let way = Way::of(Sample::index(1))?.from(Fault::RateLimit(2));
    let failure = way.fails("TooManyRequests").await;
    // The window is six hours: nobody waits for that with a connection in hand.
    assert!(
        failure
            .retry_after
            .is_none_or(|pause| pause > Duration::from_mins(5))
    );
    assert_eq!(
        way.source.count(Step::ManifestGet),
        3,
        "asked again: {}",
        way.story()
    );
    way.source.heal();
    let again = Way {
        hosts: Hosts::default(),
        ..way
    };
    again.copies().await;
    Ok(())
}

// R4
#[tokio::test]
async fn a_head_without_digest_is_followed_by_a_get() -> Result<()> {
    let way = Way::of(small())?
        .from(Fault::HeadNoDigest)
        .to(Fault::HeadNoDigest);
    way.copies().await;
    assert_eq!(way.source.count(Step::ManifestGet), 1, "{}", way.story());
    Ok(())
}

// R5
#[tokio::test]
async fn a_refused_head_is_explained_by_one_get() -> Result<()> {
    let refusal = || {
        Fault::Refuse(403, "DENIED", "ask the owner of team/app")
            .on(Step::ManifestHead)
            .on(Step::ManifestGet)
    };
    let way = Way::of(small())?.from(refusal());
    let failure = way.fails("AccessDenied").await;
    assert!(
        failure.message.contains("ask the owner of team/app"),
        "{}",
        failure.message
    );
    assert!(way.source.count(Step::ManifestGet) <= 1, "{}", way.story());
    Ok(())
}

// R5
#[tokio::test]
async fn a_head_that_meets_the_limit_costs_no_get() -> Result<()> {
    let way = Way::of(small())?
        .from(Fault::RetryAfter(429, RetryAfter::Seconds(3600)).on(Step::ManifestHead));
    way.fails("TooManyRequests").await;
    assert_eq!(way.source.count(Step::ManifestGet), 0, "{}", way.story());
    Ok(())
}

// R10
#[tokio::test]
async fn a_redirected_post_keeps_method_path_and_query() -> Result<()> {
    let way = Way::of(small())?.to(Fault::Post307);
    way.copies().await;
    let moved = way.target.of_step(Step::UploadStart);
    assert!(
        moved
            .iter()
            .any(|seen| seen.path.starts_with("/moved%2Fhere/")),
        "{}",
        way.story()
    );
    Ok(())
}

// R11
#[tokio::test]
async fn answers_without_end_are_given_up_at_their_limits() -> Result<()> {
    let way = Way::of(small())?.from(Fault::Endless.on(Step::ManifestGet));
    way.fails("ManifestTooLarge").await;
    assert!(way.source.answer_bytes(Step::ManifestGet) < 32 << 20);

    let way = Way::of(small())?.from(Fault::Endless.on(Step::Tags));
    let tags = way.client(&way.source).list_tags(&from()).await;
    let error = tags.expect_err("an endless list");
    assert_eq!(<&str>::from(&error), "AnswerTooLarge");

    // Of an error only the beginning is read.
    let way = Way::of(small())?
        .from(
            Fault::Status(403)
                .on(Step::ManifestHead)
                .on(Step::ManifestGet),
        )
        .from(Fault::Endless.on(Step::ManifestGet));
    way.fails("AccessDenied").await;
    assert!(way.source.answer_bytes(Step::ManifestGet) < 16 << 20);
    Ok(())
}

// R12
#[tokio::test]
async fn a_warning_of_the_registry_is_told_once() -> Result<()> {
    let text = "this registry moves to registry.example";
    let way = Way::of(Sample::index(1))?
        .from(Fault::Warning(text))
        .to(Fault::Warning(text));
    way.copies().await;
    let told = way
        .messages
        .all()
        .iter()
        .filter(|told| told.contains(text))
        .count();
    // Two registries may each say it.
    assert!(
        (1..=2).contains(&told),
        "told {told} times: {:?}",
        way.messages.all()
    );
    Ok(())
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
            let mut way = Way::of(small())?.from(
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

// U13
#[tokio::test]
async fn images_that_share_blobs_send_each_once_and_never_twice_at_a_time() -> Result<()> {
    let way = Way::of(Sample::image(1, &[60_000]))?
        .to(Fault::Conflict)
        .to(Fault::Delay(Duration::from_millis(50)).on(Step::Put));
    way.source
        .put_tags("team/app", TAG, ["2".to_owned(), "3".to_owned()]);
    let jobs: Vec<_> = ["1", "2", "3"]
        .map(|tag| job(&way.source, tag, &[(TO, tag)]))
        .into();
    let report = way.run(&jobs).await;
    way.assert_whole(&report);
    assert_eq!(way.target.count(Step::Put), 2, "{}", way.story());
    // D12: nor are they fetched twice.
    assert_eq!(way.source.count(Step::BlobGet), 2, "{}", way.story());
    Ok(())
}

// A6, E4: what the fake itself promises of TLS.
#[tokio::test]
async fn a_registry_with_tls_of_a_private_authority_is_copied_from_and_to() -> Result<()> {
    let registry = || FakeRegistry::builder().tls().start();
    Way::between(registry()?, registry()?, small())?
        .copies()
        .await;
    Ok(())
}
