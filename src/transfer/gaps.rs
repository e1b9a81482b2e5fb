//! What an index names and its source does not have: one platform that was deleted does not keep the others from being copied,
//! but whoever looks at the copy is told (registry rule M10).

use crate::{
    image::{ImageName, shown},
    registry,
};

use super::{Error, Result, tree::ImageTree};

/// Platforms that a message names; the others are counted.
const SHOWN_MISSING: usize = 8;

impl ImageTree {
    /// An index of nothing that is there is no image, whatever a registry would say to it.
    pub(super) fn unless_hollow(self, image: &ImageName) -> Result<Self> {
        let is_hollow = self.children.is_empty() && self.layers.is_empty();
        if is_hollow && !self.missing.is_empty() {
            return Err(Error::IndexWithoutImages {
                image: image.clone(),
                missing: self.missing_names(),
            });
        }
        Ok(self)
    }

    /// What is missing, as platforms where they are known, for messages.
    pub(super) fn missing_names(&self) -> String {
        let mut names: Vec<String> = self
            .missing
            .iter()
            .take(SHOWN_MISSING)
            .map(|child| match &child.platform {
                Some(platform) => shown(&platform.to_string()),
                None => child.digest.to_string(),
            })
            .collect();
        if self.missing.len() > SHOWN_MISSING {
            names.push(format!("{} more", self.missing.len() - SHOWN_MISSING));
        }
        names.join(", ")
    }

    /// Why a destination did not take a manifest of this image: mostly what it says, but an index with gaps is refused for its
    /// gaps (registry rule M10). `target` is the image's name there.
    pub(super) fn refused(&self, target: String, source: registry::Error) -> Error {
        let is_for_gaps = match &source {
            registry::Error::ManifestBlobUnknown { missing, .. } => missing
                .iter()
                .all(|digest| self.missing.iter().any(|child| child.digest == *digest)),
            registry::Error::ManifestRejected { .. } => true,
            _ => false,
        };
        if self.missing.is_empty() || !is_for_gaps {
            return Error::Push {
                image: target,
                source,
            };
        }
        Error::SparseIndexRefused {
            image: target,
            missing: self.missing_names(),
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        error::Classified,
        image::Digest,
        transfer::tree::tests::{collect, image, index, raw},
    };

    fn upload_refused(missing: Vec<Digest>) -> registry::Error {
        registry::Error::ManifestBlobUnknown {
            operation: registry::Operation::new("write"),
            answer: registry::Answer::of_status(http::StatusCode::BAD_REQUEST),
            missing,
        }
    }

    #[tokio::test]
    async fn what_the_source_of_an_index_does_not_have_is_left_out_and_named() {
        let (amd, arm) = (image("amd", &["a"]), image("arm", &["b"]));
        let mut root: Value = serde_json::from_slice(index(&[&amd, &arm]).bytes()).unwrap();
        root["manifests"][1]["platform"] = json!({"os": "linux", "architecture": "arm64"});
        let root = raw(&root);
        let tree = collect(&root, &[&amd]).await.unwrap();
        assert_eq!(tree.root, root);
        assert_eq!((tree.children.len(), tree.layers.len()), (1, 1));
        assert_eq!(tree.missing_names(), "linux/arm64");

        let hollow = collect(&root, &[]).await.unwrap_err();
        assert!(matches!(hollow, Error::IndexWithoutImages { .. }));
        assert!(hollow.to_string().contains("linux/arm64"), "{hollow}");
    }

    #[tokio::test]
    async fn a_destination_that_takes_no_gaps_is_told_from_one_that_lost_a_blob() {
        let (amd, arm) = (image("amd", &["a"]), image("arm", &["b"]));
        let whole = collect(&index(&[&amd, &arm]), &[&amd, &arm]).await.unwrap();
        let sparse = collect(&index(&[&amd, &arm]), &[&amd]).await.unwrap();
        for (tree, missing, reason) in [
            (&sparse, vec![arm.digest().clone()], "SparseIndexRefused"),
            (&sparse, vec![], "SparseIndexRefused"),
            (
                &sparse,
                vec![arm.digest().clone(), Digest::of(b"a")],
                "ManifestBlobUnknown",
            ),
            (&whole, vec![arm.digest().clone()], "ManifestBlobUnknown"),
            (&whole, vec![], "ManifestBlobUnknown"),
        ] {
            let error = tree.refused("r.example/app:1".into(), upload_refused(missing));
            assert_eq!(error.reason(), reason);
        }
    }
}
