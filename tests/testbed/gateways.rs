//! The gateway records what passes, and breaks what it is told to break.

use std::time::{Duration, Instant};

use hyper::Method;

use crate::support::gateway::{Action, Bearer, Gateway, Rule};
use crate::support::images::Image;
use crate::support::registry::Registry;
use crate::support::{Context, Result, install_crypto_provider, skopeo};

const BLOBS: &str = "/blobs/sha256:";

/// A registry with one image, `demo/app:1.0`, of four layers.
fn filled_registry() -> Result<(Registry, Image)> {
    let registry = Registry::open()?;
    let image = Image::builder().layers(4, 200_000).build()?;
    image.push(registry.access(), "demo/app:1.0")?;
    Ok((registry, image))
}

#[expect(
    clippy::expect_used,
    reason = "a client without options cannot fail, and it would end the test anyway"
)]
fn client() -> reqwest::Client {
    install_crypto_provider();
    reqwest::Client::builder()
        .no_proxy()
        .build()
        .expect("a plain client can be built")
}

/// Downloads one layer through the gateway; an error is a body that did not come whole.
async fn download_layer(gateway: &Gateway, image: &Image) -> Result<Vec<u8>> {
    let digest = &image.manifests[0].layers[0].blob.digest;
    let url = format!("{}/v2/demo/app/blobs/{digest}", gateway.url());
    let answer = client().get(url).send().await.context("no answer")?;
    let body = answer.bytes().await.context("half an answer")?;
    Ok(body.to_vec())
}

#[test]
fn a_push_and_a_pull_pass_through_and_are_recorded() -> Result<()> {
    let registry = Registry::open()?;
    let gateway = Gateway::before(&registry).start()?;
    let image = Image::builder().layers(2, 100_000).build()?;
    image.push(&gateway.access(None), "demo/app:1.0")?;
    assert_eq!(
        skopeo::digest(registry.access(), "demo/app:1.0")?,
        image.digest
    );
    // Had an upload location led past the gateway, its PUT would be missing here.
    assert_eq!(gateway.count(&Method::PUT, "/blobs/uploads/"), 3);

    gateway.forget();
    let copy = crate::support::process::temporary_folder("copy")?;
    skopeo::download(&gateway.access(None), "demo/app:1.0", copy.path())?;
    let bytes: u64 = gateway.answer_bytes(|exchange| exchange.path.contains(BLOBS));
    assert_eq!(bytes, image.size());
    assert!(
        gateway
            .exchanges()
            .iter()
            .all(|exchange| exchange.status.is_some() && exchange.ended.is_some())
    );
    Ok(())
}

#[test]
fn upload_locations_stay_at_the_gateway_when_they_are_relative() -> Result<()> {
    let registry = Registry::open()?;
    let gateway = Gateway::before(&registry).relative_locations().start()?;
    let image = Image::builder().build()?;
    image.push(&gateway.access(None), "demo/app:1.0")?;
    assert_eq!(gateway.count(&Method::PUT, "/blobs/uploads/"), 2);
    Ok(())
}

#[test]
fn overlap_is_what_was_under_way_at_the_same_moment() -> Result<()> {
    let (registry, _image) = filled_registry()?;
    let slow = Rule::on(
        &Method::GET,
        BLOBS,
        Action::Delay(Duration::from_millis(300)),
    );
    let gateway = Gateway::before(&registry).rule(slow).start()?;
    let copy = crate::support::process::temporary_folder("copy")?;
    skopeo::download(&gateway.access(None), "demo/app:1.0", copy.path())?;
    // skopeo fetches its four layers side by side, and the manifest before them.
    assert_eq!(
        gateway.max_overlap(|exchange| exchange.path.contains(BLOBS)),
        4
    );
    assert_eq!(
        gateway.max_overlap(|exchange| exchange.path.contains("/manifests/")),
        1
    );
    Ok(())
}

#[tokio::test]
async fn scripted_answers_come_in_turn_and_then_the_real_one() -> Result<()> {
    let (registry, image) = filled_registry()?;
    let gateway = Gateway::before(&registry)
        .rule(Rule::on(&Method::GET, BLOBS, Action::too_many_requests(7)).times(1))
        .rule(
            Rule::on(&Method::GET, BLOBS, Action::html_page(200))
                .skip(1)
                .times(1),
        )
        .rule(
            Rule::on(&Method::GET, BLOBS, Action::HangUp)
                .skip(2)
                .times(1),
        )
        .start()?;
    let url = format!(
        "{}/v2/demo/app/blobs/{}",
        gateway.url(),
        image.manifests[0].config.digest
    );
    let first = client().get(&url).send().await.unwrap();
    assert_eq!(
        (
            first.status().as_u16(),
            first.headers()["retry-after"].to_str().unwrap()
        ),
        (429, "7")
    );
    let second = client().get(&url).send().await.unwrap();
    assert_eq!(
        (
            second.status().as_u16(),
            second.headers()["content-type"].to_str().unwrap()
        ),
        (200, "text/html")
    );
    assert!(client().get(&url).send().await.is_err());
    let fourth = client().get(&url).send().await.unwrap();
    assert_eq!(
        fourth.content_length(),
        Some(image.manifests[0].config.size)
    );

    let statuses: Vec<_> = gateway
        .exchanges()
        .iter()
        .map(|exchange| exchange.status)
        .collect();
    assert_eq!(statuses, [Some(429), Some(200), None, Some(200)]);
    // The registry saw the last one only.
    assert_eq!(registry.count("GET", &image.manifests[0].config.digest), 1);
    Ok(())
}

#[tokio::test]
async fn a_body_can_be_cut_and_corrupted_and_slowed() -> Result<()> {
    let (registry, image) = filled_registry()?;
    let gateway = Gateway::before(&registry).start()?;
    let whole = download_layer(&gateway, &image).await?;

    gateway.add_rule(Rule::on(&Method::GET, BLOBS, Action::CutAnswer(50_000)));
    gateway.forget();
    assert!(download_layer(&gateway, &image).await.is_err());
    assert_eq!(gateway.answer_bytes(|_| true), 50_000);

    gateway.clear_rules();
    gateway.add_rule(Rule::on(
        &Method::GET,
        BLOBS,
        Action::CorruptAnswer(123_456),
    ));
    let corrupted = download_layer(&gateway, &image).await?;
    let different: Vec<usize> = (0..whole.len())
        .filter(|&at| whole[at] != corrupted[at])
        .collect();
    assert_eq!(different, [123_456]);

    gateway.clear_rules();
    gateway.add_rule(Rule::on(&Method::GET, BLOBS, Action::SlowAnswer(400_000)));
    gateway.forget();
    let started = Instant::now();
    assert_eq!(download_layer(&gateway, &image).await?, whole);
    let took = started.elapsed();
    assert!(took > Duration::from_millis(400), "{took:?}");
    // It was under way until the last byte.
    let recorded = gateway.exchanges().remove(0);
    let ended = recorded.ended.context("it did not end")?;
    assert!(ended - recorded.started > Duration::from_millis(400));
    Ok(())
}

#[tokio::test]
async fn a_cut_request_never_reaches_its_end() -> Result<()> {
    let registry = Registry::open()?;
    let gateway = Gateway::before(&registry)
        .rule(Rule::on(
            &Method::PATCH,
            "/blobs/uploads/",
            Action::CutRequest(10_000),
        ))
        .start()?;
    let started = client()
        .post(format!("{}/v2/demo/app/blobs/uploads/", gateway.url()))
        .send()
        .await
        .unwrap();
    let location = started.headers()["location"].to_str().unwrap().to_owned();
    assert!(location.starts_with(&gateway.url()), "{location}");
    assert!(
        client()
            .patch(location)
            .body(vec![0_u8; 1_000_000])
            .send()
            .await
            .is_err()
    );
    let patch = gateway
        .exchanges()
        .into_iter()
        .find(|exchange| exchange.method == Method::PATCH)
        .unwrap();
    assert_eq!((patch.status, patch.request_bytes), (None, 10_000));
    Ok(())
}

#[test]
fn a_token_of_the_gateway_is_good_for_so_many_requests() -> Result<()> {
    let (registry, image) = filled_registry()?;
    let login = ("robot".to_owned(), "secret".to_owned());
    let bearer = Bearer::uses_per_token(3).credentials(&login.0, &login.1);
    let gateway = Gateway::before(&registry).bearer(bearer).start()?;
    assert!(skopeo::digest(&gateway.access(None), "demo/app:1.0").is_err());
    assert_eq!(
        skopeo::digest(&gateway.access(Some(login.clone())), "demo/app:1.0")?,
        image.digest
    );

    gateway.forget();
    // Six requests at least; skopeo asks for a second token when the first is used up.
    let copy = crate::support::process::temporary_folder("copy")?;
    drop(skopeo::download(
        &gateway.access(Some(login)),
        "demo/app:1.0",
        copy.path(),
    ));
    let refused = gateway
        .exchanges()
        .iter()
        .filter(|exchange| exchange.status == Some(401))
        .count();
    assert!(refused >= 2, "{:#?}", gateway.exchanges());
    assert!(gateway.exchanges().iter().any(|exchange| {
        exchange
            .header("authorization")
            .is_some_and(|value| value.starts_with("Bearer "))
    }));
    Ok(())
}

#[test]
fn a_gateway_stands_before_a_registry_with_tls() -> Result<()> {
    let registry = Registry::with_tls()?;
    let gateway = Gateway::before(&registry).start()?;
    let image = Image::builder().build()?;
    image.push(&gateway.access(None), "demo/app:1.0")?;
    assert_eq!(
        skopeo::digest(registry.access(), "demo/app:1.0")?,
        image.digest
    );
    Ok(())
}
