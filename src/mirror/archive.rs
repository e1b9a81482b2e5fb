//! An archive as source: finding the file, choosing its images, and bringing them into the cache.

use crate::{
    api::{ArchiveImage, ArchiveSource},
    cache::Cache,
    output::OutputManager,
};

use super::{ArchiveFolder, Error, Result, source::SelectedImage, validate::invalid};

/// An archive that can be looked for, as far as the spec can tell.
#[derive(Debug, Clone)]
pub(super) struct ValidatedArchive {
    path: String,
    images: Vec<ArchiveImage>,
}

impl ValidatedArchive {
    /// Checks the source of a spec.
    pub(super) fn new(source: &ArchiveSource) -> Result<Self> {
        let ArchiveSource { path, images } = source;
        if path.0.is_empty()
            || path
                .0
                .split('/')
                .any(|part| matches!(part, "" | "." | ".."))
        {
            return Err(invalid(
                "spec.source.archive.path",
                "must be relative and without empty, . and .. segments",
            ));
        }
        Ok(Self {
            path: path.0.clone(),
            images: images.clone(),
        })
    }

    /// Brings the chosen images into the cache.
    #[expect(clippy::unused_async, reason = "the archive room is on its way")]
    pub(super) async fn extract(
        &self,
        _folder: Option<&ArchiveFolder>,
        _cache: &Cache,
        _output: &OutputManager,
    ) -> Result<Vec<SelectedImage>> {
        Err(Error::InvalidSpec {
            field: "spec.source.archive".into(),
            reason: format!("{} {:?}", self.path, self.images),
        })
    }
}
