//! Which layers were compressed, and into which blobs: compressing costs far more than looking here. A note says nothing about
//! content: the blob must be there, with its size, and be one that may be used as it is; and who asks has hashed the plain bytes
//! himself. One that is damaged, or of another version, counts as none.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{error::handlers, image::Digest};

use super::{
    Cache, Shared,
    disk::{blocking, files_in, make_folder, read_small, remove_leftover, replace},
    error::Result,
    notes::{sealed, unsealed},
    trust::open_sized,
};

/// A note has three hundred bytes.
const MAX_SIZE: u64 = 4096;

/// A layer in its compressed form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackedLayer {
    /// The digest of the blob.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Note {
    /// Of the plain bytes.
    diff_id: Digest,
    /// Everything that decides what they become.
    form: String,
    packed: PackedLayer,
}

impl Shared {
    /// What a layer became when it was compressed in this way; none if that is not known, or not there any more. Blocks.
    pub(super) fn packed(&self, diff_id: &Digest, form: &str) -> Result<Option<PackedLayer>> {
        let note = read(&self.layout.packed(diff_id, form))?;
        let note = note.filter(|note| note.diff_id == *diff_id && note.form == form);
        let Some(Note { packed, .. }) = note else {
            return Ok(None);
        };
        let is_there = self.trusts(&packed.digest, packed.size)?;
        Ok(is_there.then_some(packed))
    }
}

impl Cache {
    /// Notes what layers became: each by the digest of its plain bytes and the way it was compressed. A failure only warns:
    /// the layers are compressed again next time. Notes of blobs that are gone go too.
    pub async fn remember_packed(&self, layers: Vec<(Digest, String, PackedLayer)>) {
        if layers.is_empty() {
            return;
        }
        let layout = self.shared.layout.clone();
        let written = blocking(move || {
            let folder = layout.packed_layers();
            make_folder(&folder)?;
            for (path, _) in files_in(&folder, |_| true)? {
                let is_of_use = read(&path)?.is_some_and(|Note { packed, .. }| {
                    let blob = layout.blob(&packed.digest);
                    open_sized(&blob, packed.size).is_ok_and(|found| found.is_some())
                });
                if !is_of_use {
                    remove_leftover(&path);
                }
            }
            for (diff_id, form, packed) in layers {
                let path = layout.packed(&diff_id, &form);
                let note = Note {
                    diff_id,
                    form,
                    packed,
                };
                // Names and digests only: this cannot fail.
                let text = serde_json::to_string(&note).unwrap_or_default();
                replace(&path, sealed(&text).as_bytes())?;
            }
            Ok(())
        })
        .await;
        if let Err(error) = written {
            self.output.warning(format!(
                "layers will be compressed again next time, since no note of them could be written: {}",
                handlers::message(&error)
            ));
        }
    }
}

/// A note; none if there is none that is whole.
fn read(path: &Path) -> Result<Option<Note>> {
    let Some(Ok(bytes)) = read_small(path, MAX_SIZE)? else {
        return Ok(None);
    };
    Ok(unsealed(&bytes).and_then(|text| serde_json::from_str(text).ok()))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Write;

    use super::super::testing::{Fixture, fixture, layer, put};
    use super::*;

    const FORM: &str = "gzip level 4";

    async fn remembered(fixture: &Fixture, plain: &[u8], packed: &[u8]) {
        put(&fixture.cache, &layer(packed), packed).await.unwrap();
        let packed = PackedLayer {
            digest: Digest::of(packed),
            size: packed.len() as u64,
        };
        let layers = vec![(Digest::of(plain), FORM.to_owned(), packed)];
        fixture.cache.remember_packed(layers).await;
    }

    fn known(fixture: &Fixture, plain: &[u8], form: &str) -> Option<PackedLayer> {
        let shared = &fixture.cache.shared;
        shared.packed(&Digest::of(plain), form).unwrap()
    }

    #[tokio::test]
    async fn a_layer_is_known_by_its_plain_bytes_and_the_way_it_was_compressed() {
        let fixture = fixture();
        assert_eq!(known(&fixture, b"plain", FORM), None);
        remembered(&fixture, b"plain", b"packed").await;
        let found = known(&fixture, b"plain", FORM).unwrap();
        assert_eq!((found.digest, found.size), (Digest::of(b"packed"), 6));
        assert_eq!(known(&fixture, b"plain", "zstd level 3"), None);
        assert_eq!(known(&fixture, b"other", FORM), None);
    }

    #[tokio::test]
    async fn a_note_counts_only_while_its_blob_may_be_used_as_it_is() {
        let fixture = fixture();
        remembered(&fixture, b"plain", b"packed").await;
        let blob = fixture.cache.shared.layout.blob(&Digest::of(b"packed"));
        // Another run does not know whether a barrier has covered it.
        let reopened = fixture.reopened();
        let again = reopened.shared.packed(&Digest::of(b"plain"), FORM).unwrap();
        assert_eq!(again, None);
        File::create(&blob).unwrap().write_all(b"pack").unwrap();
        assert_eq!(known(&fixture, b"plain", FORM), None);
        fs::remove_file(&blob).unwrap();
        assert_eq!(known(&fixture, b"plain", FORM), None);
    }

    #[tokio::test]
    async fn a_damaged_note_is_none_and_notes_of_lost_blobs_go() {
        let fixture = fixture();
        remembered(&fixture, b"one", b"packed one").await;
        remembered(&fixture, b"two", b"packed two").await;
        let layout = &fixture.cache.shared.layout;
        let note = layout.packed(&Digest::of(b"one"), FORM);
        let mut bytes = fs::read(&note).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        File::create(&note).unwrap().write_all(&bytes).unwrap();
        assert_eq!(known(&fixture, b"one", FORM), None);
        fs::remove_file(layout.blob(&Digest::of(b"packed two"))).unwrap();
        remembered(&fixture, b"three", b"packed three").await;
        let left = files_in(&layout.packed_layers(), |_| true).unwrap();
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(known(&fixture, b"three", FORM).is_some());
    }

    #[tokio::test]
    async fn a_note_that_cannot_be_written_is_only_warned_of() {
        let fixture = fixture();
        fixture.cache.ensure_writable().await.unwrap();
        File::create(fixture.cache.directory().join(".state")).unwrap();
        remembered(&fixture, b"plain", b"packed").await;
        assert_eq!(fixture.messages.count("will be compressed again"), 1);
    }
}
