//! What must hold for any bytes that come as a manifest.

#![expect(
    clippy::expect_used,
    reason = "a property that does not hold ends the process"
)]

use bytes::Bytes;
use serde_json::Value;

use super::{Algorithm, Descriptor, Manifest, MediaType, RawManifest};

/// Under whatever type it comes, a manifest is refused, or its bytes are kept and its parts are those that stand in it. What
/// it is does not depend on the type it came under (CVE-2021-41190).
pub(crate) fn manifest(bytes: &[u8]) {
    let types = [
        None,
        Some(MediaType::OCI_MANIFEST),
        Some(MediaType::OCI_INDEX),
        Some(MediaType::DOCKER_LIST),
        Some(MediaType::OCI_ARTIFACT),
    ];
    let accepted: Vec<Manifest> = types
        .iter()
        .filter_map(|content_type| accepted(bytes, content_type.as_ref()))
        .collect();
    for pair in accepted.windows(2) {
        assert_eq!(is_index(&pair[0]), is_index(&pair[1]));
    }
}

const fn is_index(manifest: &Manifest) -> bool {
    matches!(manifest, Manifest::Index(_))
}

fn accepted(bytes: &[u8], content_type: Option<&MediaType>) -> Option<Manifest> {
    let bytes = Bytes::copy_from_slice(bytes);
    let raw = RawManifest::new(bytes.clone(), content_type, Algorithm::Sha256).ok()?;
    assert_eq!(*raw.bytes(), bytes);
    assert_eq!(raw.size(), bytes.len() as u64);
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        assert!(raw.has_digest(&super::Digest::with_algorithm(algorithm, &bytes)));
    }
    let manifest = raw.parse().expect("what was accepted parses again");
    // Deeper than the typed view looks, the document may hold what no value can.
    if let Ok(document) = serde_json::from_slice::<Value>(&bytes) {
        let own_type = document.get("mediaType").and_then(Value::as_str);
        assert!(own_type.is_none_or(|own| own == raw.media_type().as_str()));
        match &manifest {
            Manifest::Index(index) => agree(&index.manifests, &document["manifests"]),
            Manifest::Image(image) if *raw.media_type() == MediaType::OCI_ARTIFACT => {
                agree(&image.layers, &document["blobs"]);
            }
            Manifest::Image(image) => {
                agree(&image.layers, &document["layers"]);
                agree(
                    image.config.as_slice(),
                    &Value::Array(vec![document["config"].clone()]),
                );
            }
        }
    }
    Some(manifest)
}

/// Whether the descriptors are those of the list, in order.
fn agree(descriptors: &[Descriptor], list: &Value) {
    let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
    assert_eq!(descriptors.len(), list.len());
    for (descriptor, value) in descriptors.iter().zip(list) {
        assert_eq!(value["digest"], descriptor.digest.to_string());
        assert_eq!(value["size"], descriptor.size);
    }
}
