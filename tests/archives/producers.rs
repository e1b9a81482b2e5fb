//! Every layout of archive reference part 1, from one image.

use std::collections::BTreeMap;
use std::io::Cursor;

use super::bed::bed;
use super::support::archives::{Parts, Producer, gzip};
use super::support::skopeo::sha256;

/// One layer comes twice.
fn parts() -> Parts {
    Parts::of(&["base", "application", "base"]).unwrap()
}

/// Those whose archive has no OCI manifest get one that depends on the layers' bytes only.
const PLAIN_WITHOUT_MANIFEST: [Producer; 2] = [Producer::DockerClassic, Producer::Nix];
const GZIP_WITHOUT_MANIFEST: [Producer; 2] = [Producer::Crane, Producer::Jib];

async fn digest_of(producer: Producer, packed: bool, streamed: bool) -> String {
    let bed = bed();
    let mut bytes = parts().archive(producer).unwrap();
    if packed {
        bytes = gzip(&bytes).unwrap();
    }
    let (images, stored) = if streamed {
        bed.extract_stream(Cursor::new(bytes)).await
    } else {
        let file = bed.folder.path().join("app.tar");
        std::fs::write(&file, bytes).unwrap();
        bed.extract_file(&file).await
    };
    assert_eq!((images.len(), stored.len()), (1, 1), "{producer:?}");
    assert_eq!(images[0].platforms[0].to_string(), "linux/amd64");
    let expected = if producer == Producer::BuildxOci {
        "tagged:1"
    } else {
        "app:1"
    };
    assert_eq!(stored[0].names[0].to_string(), expected);
    let image = bed.image(&stored[0].names[0]).await;
    assert_eq!(
        image.config.unwrap().digest.to_string(),
        sha256(&parts().config)
    );
    assert_eq!(image.layers.len(), 3);
    bed.assert_whole().await;
    stored[0].digest.to_string()
}

#[tokio::test]
async fn every_producers_layout_is_read_by_every_way_with_one_digest() {
    let mut digests: BTreeMap<String, Vec<Producer>> = BTreeMap::new();
    for producer in [
        Producer::DockerClassic,
        Producer::DockerHybrid,
        Producer::ContainerdStore,
        Producer::Crane,
        Producer::Jib,
        Producer::Nix,
        Producer::BuildxOci,
    ] {
        let digest = digest_of(producer, false, false).await;
        for (packed, streamed) in [(true, false), (false, true), (true, true)] {
            assert_eq!(
                digest_of(producer, packed, streamed).await,
                digest,
                "{producer:?}"
            );
        }
        digests.entry(digest).or_default().push(producer);
    }
    let of = |wanted: &[Producer]| digests.values().any(|producers| producers == wanted);
    assert!(of(&PLAIN_WITHOUT_MANIFEST), "{digests:?}");
    assert!(of(&GZIP_WITHOUT_MANIFEST), "{digests:?}");
    let parts = parts();
    let plain = sha256(&parts.manifest(&parts.layers));
    let compressed = sha256(&parts.manifest(&parts.compressed().unwrap()));
    assert_eq!(digests[&plain], [Producer::DockerHybrid]);
    assert_eq!(
        digests[&compressed],
        [Producer::ContainerdStore, Producer::BuildxOci]
    );
}
