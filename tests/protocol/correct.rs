//! The fake registry without faults is a correct one: a client that is known to do it right says so.

use serde_json::Value;

use crate::support::fake::{Content, FakeRegistry, Login, Sample, Step};
use crate::support::images::Image;
use crate::support::{Result, process::temporary_folder, skopeo};

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
