//! Ground rules, names and requests: rules G1 to G5, E2 to E4 and R1 to R12 of the registry reference. Where a login goes is
//! in `leaks.rs`, what is tried again in `retries.rs`.

use std::time::Duration;

use docker_image_pusher::image::{Reference, Repository, RepositoryPath};
use docker_image_pusher::registry::{Endpoint, Hosts};
use futures::future::join_all;

use crate::support::Result;
use crate::support::fake::{ErrorBody, FakeRegistry, Fault, RetryAfter, Rule, Sample, Step};
use crate::way::{TAG, TO, Way, from, job};

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
        ways.push(Way::of(small())?.outdated().from(fault(step)));
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
    let way = Way::of(small())?.outdated().from(Fault::LyingHeaders);
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
        let way = Way::of(small())?
            .outdated()
            .from(Fault::ErrBody(body))
            .from(
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

// R2
#[tokio::test]
async fn an_image_that_a_target_lacks_is_read_without_asking_for_its_digest() -> Result<()> {
    let way = Way::of(small())?;
    way.copies().await;
    assert_eq!(way.source.count(Step::ManifestHead), 0, "{}", way.story());
    assert_eq!(way.source.count(Step::ManifestGet), 1, "{}", way.story());
    let way = Way::of(small())?.outdated();
    way.copies().await;
    assert_eq!(way.source.count(Step::ManifestHead), 1, "{}", way.story());
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
        .outdated()
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
    let way = Way::of(small())?.outdated().from(refusal());
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
        .outdated()
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
        .outdated()
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
