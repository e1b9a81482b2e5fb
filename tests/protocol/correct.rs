//! The fake registry without faults is a correct one: a client that is known to do it right says so.

use reqwest::{Method, Response};
use serde_json::Value;

use crate::support::fake::{Content, FakeRegistry, Fault, Login, Rule, Sample, Step};
use crate::support::images::Image;
use crate::support::{Result, install_crypto_provider, process::temporary_folder, skopeo};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A client that follows nothing and adds nothing.
fn plain_client() -> reqwest::Client {
    install_crypto_provider();
    let builder = reqwest::Client::builder().no_proxy();
    builder
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .unwrap()
}

async fn ask(registry: &FakeRegistry, method: Method, path: &str, body: &[u8]) -> Response {
    let request = plain_client().request(method, format!("{}{path}", registry.url()));
    let request = request.header("content-type", MANIFEST).body(body.to_vec());
    request.send().await.unwrap()
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response
        .headers()
        .get(name)
        .map_or("", |value| value.to_str().unwrap())
}

async fn json(response: Response) -> Value {
    let body = http_body_util::BodyExt::collect(reqwest::Body::from(response))
        .await
        .unwrap();
    serde_json::from_slice(&body.to_bytes()).unwrap()
}

#[test]
fn skopeo_copies_an_index_to_it_and_back() -> Result<()> {
    let registry = FakeRegistry::builder()
        .login(Login::bearer("me", "secret"))
        .start()?;
    let image = Image::builder()
        .platforms(&["linux/amd64", "linux/arm64"])
        .build()?;
    image.push(&registry.access(), "team/app:1")?;
    assert_eq!(
        skopeo::digest(&registry.access(), "team/app:1")?,
        image.digest
    );
    // Skopeo checks every blob that it reads.
    let folder = temporary_folder("copy")?;
    skopeo::download(&registry.access(), "team/app:1", folder.path())?;
    assert_eq!(registry.open_uploads(), 0);
    assert!(registry.count(Step::Token) >= 2, "it had to log in");
    Ok(())
}

#[test]
fn skopeo_reads_what_was_put_there_without_a_push() -> Result<()> {
    let registry = FakeRegistry::start()?;
    let sample = Sample::index(5);
    registry.put("team/app", "1", &sample);
    let folder = temporary_folder("copy")?;
    skopeo::download(&registry.access(), "team/app:1", folder.path())?;
    assert_eq!(registry.difference("team/app", "1", &sample), None);
    Ok(())
}

#[test]
fn content_is_the_same_in_whatever_pieces_it_is_read() {
    let content = Content::seeded(7, 200_001);
    let whole = content.to_bytes();
    assert_eq!(whole.len(), 200_001);
    assert_eq!(Content::new(whole.clone()).digest(), content.digest());
    for (offset, limit) in [
        (0, 1),
        (65_535, 10),
        (65_536, 10),
        (199_999, 50),
        (200_001, 1),
    ] {
        let piece = content.read(offset, limit);
        let start = usize::try_from(offset).unwrap();
        assert_eq!(piece, whole.slice(start..start + piece.len()), "{offset}");
        assert!(piece.len() as u64 <= limit);
        assert_eq!(piece.is_empty(), offset == content.size());
    }
}

#[test]
fn every_data_set_is_what_its_digests_say() {
    let urls = vec!["https://elsewhere.example/layer".to_owned()];
    for sample in [
        Sample::image(1, &[10, 20]),
        Sample::index(1),
        Sample::nested_index(1),
        Sample::sparse_index(1),
        Sample::artifact(1),
        Sample::subject(1),
        Sample::artifact_list(1),
        Sample::data_field(1),
        Sample::nondistributable(1, &urls),
        Sample::custom_fields(1),
        Sample::empty_blob(1),
        Sample::sha512(1),
        Sample::odd_json(1),
    ] {
        let algorithm = sample.digest().split(':').next().unwrap();
        let root = Content::new(sample.root.1.bytes.clone());
        assert_eq!(root.digest_with(algorithm), sample.digest());
        let value: Value = serde_json::from_slice(&sample.root.1.bytes).unwrap();
        assert!(value.is_object());
        for (digest, content) in &sample.blobs {
            assert_eq!(content.digest_with(algorithm), *digest);
        }
    }
    assert_eq!(Sample::big_manifest(1, 5_000).root.1.bytes.len(), 5_000);
}

#[tokio::test]
async fn uploads_can_be_made_in_each_way_of_the_specification() -> Result<()> {
    let registry = FakeRegistry::start()?;
    let content = Content::new("0123456789");
    let digest = content.digest();
    let (uploads, blob) = ("/v2/a/b/blobs/uploads/", format!("/v2/a/b/blobs/{digest}"));

    // One POST (end-4b).
    let single = format!("{uploads}?digest={digest}");
    let posted = ask(&registry, Method::POST, &single, b"0123456789").await;
    assert_eq!(posted.status(), 201);
    assert_eq!(header(&posted, "location"), blob);
    assert_eq!(ask(&registry, Method::HEAD, &blob, b"").await.status(), 200);

    // In chunks, with a question in between (end-5, end-13) and one that does not fit.
    registry.remove_blob("a/b", &digest);
    let opened = ask(&registry, Method::POST, uploads, b"").await;
    let place = header(&opened, "location").to_owned();
    let chunk = ask(&registry, Method::PATCH, &place, b"01234").await;
    assert_eq!(
        (chunk.status().as_u16(), header(&chunk, "range")),
        (202, "0-4")
    );
    let place = header(&chunk, "location").to_owned();
    let status = ask(&registry, Method::GET, &place, b"").await;
    assert_eq!(
        (status.status().as_u16(), header(&status, "range")),
        (204, "0-4")
    );
    let wrong = ask(
        &registry,
        Method::PUT,
        &format!("{place}&digest={digest}"),
        b"5678",
    )
    .await;
    assert_eq!(
        wrong.status(),
        400,
        "these are not the bytes of that digest"
    );
    assert_eq!(ask(&registry, Method::HEAD, &blob, b"").await.status(), 404);

    // Cancelled (end-14), and mounted (end-11).
    let opened = ask(&registry, Method::POST, uploads, b"").await;
    let place = header(&opened, "location").to_owned();
    assert_eq!(
        ask(&registry, Method::DELETE, &place, b"").await.status(),
        204
    );
    assert_eq!(ask(&registry, Method::GET, &place, b"").await.status(), 404);
    registry.put_blob("c/d", &content);
    let mount = format!("{uploads}?mount={digest}&from=c/d");
    assert_eq!(
        ask(&registry, Method::POST, &mount, b"").await.status(),
        201
    );
    assert!(registry.has_blob("a/b", &digest));
    let unknown = format!("{uploads}?mount={}&from=c/d", Content::new("no").digest());
    assert_eq!(
        ask(&registry, Method::POST, &unknown, b"").await.status(),
        202
    );
    assert_eq!(registry.open_uploads(), 1);
    registry.forget_uploads();
    assert_eq!(registry.open_uploads(), 0);
    Ok(())
}

#[tokio::test]
async fn manifests_can_be_tagged_listed_as_referrers_and_deleted() -> Result<()> {
    let registry = FakeRegistry::start()?;
    let sample = Sample::subject(1);
    let (digest, root) = &sample.root;
    // By digest with tags (end-7b).
    let path = format!("/v2/a/b/manifests/{digest}");
    let put = ask(
        &registry,
        Method::PUT,
        &format!("{path}?tag=x&tag=y"),
        &root.bytes,
    )
    .await;
    assert_eq!(
        (put.status().as_u16(), header(&put, "oci-tag")),
        (201, "x,y")
    );
    let value: Value = serde_json::from_slice(&root.bytes).unwrap();
    let subject = value["subject"]["digest"].as_str().unwrap();
    assert_eq!(header(&put, "oci-subject"), subject);

    let referrers = format!("/v2/a/b/referrers/{subject}");
    let found = json(ask(&registry, Method::GET, &referrers, b"").await).await;
    assert_eq!(found["manifests"][0]["digest"], digest.as_str());
    let filtered = ask(
        &registry,
        Method::GET,
        &format!("{referrers}?artifactType=other"),
        b"",
    )
    .await;
    assert_eq!(header(&filtered, "oci-filters-applied"), "artifactType");
    assert_eq!(json(filtered).await["manifests"], serde_json::json!([]));

    assert_eq!(
        ask(&registry, Method::DELETE, "/v2/a/b/manifests/x", b"")
            .await
            .status(),
        202
    );
    assert_eq!(registry.tags("a/b"), ["y"]);
    assert_eq!(
        ask(&registry, Method::DELETE, &path, b"").await.status(),
        202
    );
    assert!(registry.tags("a/b").is_empty());
    assert_eq!(
        ask(&registry, Method::DELETE, &path, b"").await.status(),
        404
    );
    Ok(())
}

/// Switches of rules that the program does not have yet: they answer as the rules say.
#[tokio::test]
async fn lists_and_deletes_can_be_refused() -> Result<()> {
    let digest = Sample::image(1, &[9]).root.0;
    let fallback = format!("/v2/a/b/manifests/{}", digest.replacen(':', "-", 1));
    let (manifest, referrers) = (
        format!("/v2/a/b/manifests/{digest}"),
        format!("/v2/a/b/referrers/{digest}"),
    );
    let cases: [(Rule, Method, &str, u16); 6] = [
        (Fault::Catalog(403).into(), Method::GET, "/v2/_catalog", 403),
        (Fault::Delete(405).into(), Method::DELETE, &manifest, 405),
        (Fault::Referrers(303).into(), Method::GET, &referrers, 303),
        (Fault::Referrers(404).into(), Method::GET, &referrers, 404),
        (Fault::FallbackSelf.into(), Method::GET, &fallback, 200),
        (Fault::Goaway.on(Step::Ping), Method::GET, &fallback, 404),
    ];
    for (rule, method, path, status) in cases {
        let text = format!("{rule:?}");
        let registry = FakeRegistry::start()?.with(rule);
        registry.put("a/b", "1", &Sample::image(1, &[9]));
        assert_eq!(
            ask(&registry, method, path, b"").await.status(),
            status,
            "{text}"
        );
    }
    let registry = FakeRegistry::start()?;
    registry.put("a/b", "1", &Sample::image(1, &[9]));
    let catalog = json(ask(&registry, Method::GET, "/v2/_catalog", b"").await).await;
    assert_eq!(catalog["repositories"], serde_json::json!(["a/b"]));
    Ok(())
}

#[tokio::test]
async fn ranges_are_those_that_were_asked_for() -> Result<()> {
    let registry = FakeRegistry::start()?;
    let digest = registry.put_blob("a/b", &Content::seeded(3, 100_000));
    let client = plain_client();
    for (range, status, answer) in [
        ("bytes=10-19", 206, "bytes 10-19/100000"),
        ("bytes=99990-", 206, "bytes 99990-99999/100000"),
        ("bytes=100000-", 416, "bytes */100000"),
        ("lines=1-2", 200, ""),
    ] {
        let url = format!("{}/v2/a/b/blobs/{digest}", registry.url());
        let response = client.get(url).header("range", range).send().await.unwrap();
        assert_eq!(response.status(), status, "{range}");
        assert_eq!(header(&response, "content-range"), answer, "{range}");
    }
    Ok(())
}
