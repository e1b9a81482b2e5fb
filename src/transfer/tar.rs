//! Archives as the source of one operation: which tar, and which of its images.

use std::path::PathBuf;

use crate::{
    archive::{
        self, Archive, ArchiveImage, Choice, Chosen, Compression, Limits, StoredArchiveImage,
    },
    cache::Cache,
    image::ImageName,
    output::OutputManager,
};

/// Where a tar comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tar {
    /// A file.
    File(PathBuf),
    /// Standard input.
    Stdin,
}

/// Which images of a tar are taken, and under which names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TarImages {
    /// All that have a name, under their own names.
    Named,
    /// One image.
    One {
        /// Which; `None` = the only one.
        choice: Option<Choice>,
        /// The name it goes by; `None` = its own names.
        name: Option<ImageName>,
    },
    /// One image that is only to be sent on.
    OneToPush {
        /// Which; `None` = the only one.
        choice: Option<Choice>,
        /// The name it goes by if it has none.
        fallback: ImageName,
    },
}

impl Tar {
    /// The tar's name in messages.
    pub fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Stdin => "standard input".to_owned(),
        }
    }

    /// Brings the images into the cache.
    pub(super) async fn extract(
        &self,
        images: &TarImages,
        compression: Option<Compression>,
        cache: &Cache,
        output: &OutputManager,
    ) -> archive::Result<Vec<StoredArchiveImage>> {
        let name = self.name();
        let archive = match self {
            Self::File(path) => Archive::open(path)?,
            Self::Stdin => Archive::from_reader(std::io::stdin(), name.clone()),
        };
        let choose = |found: &[ArchiveImage]| images.choose(&name, found, output);
        archive::extract(
            archive,
            cache,
            &Limits::default(),
            compression,
            output,
            choose,
        )
        .await
    }
}

impl TarImages {
    fn choose(
        &self,
        archive: &str,
        found: &[ArchiveImage],
        output: &OutputManager,
    ) -> archive::Result<Chosen> {
        match self {
            Self::Named => {
                let chosen = archive::all_named(archive, found)?;
                for image in found.iter().filter(|image| image.names.is_empty()) {
                    output.warning(format!(
                        "the image @{} of {archive} has no name and is left out: --image @{} with --repository and \
                         --reference takes it",
                        image.position, image.position
                    ));
                }
                Ok(chosen)
            }
            Self::One { choice, name } => {
                let image = one(archive, found, choice.as_ref())?;
                match name {
                    Some(name) => Ok(vec![(image.position, vec![name.clone()])]),
                    None => archive::all_named(archive, std::slice::from_ref(image)),
                }
            }
            Self::OneToPush { choice, fallback } => {
                let image = one(archive, found, choice.as_ref())?;
                let names = if image.names.is_empty() {
                    vec![fallback.clone()]
                } else {
                    image.names.clone()
                };
                Ok(vec![(image.position, names)])
            }
        }
    }
}

fn one<'a>(
    archive: &str,
    found: &'a [ArchiveImage],
    choice: Option<&Choice>,
) -> archive::Result<&'a ArchiveImage> {
    match choice {
        Some(choice) => archive::find(archive, found, choice),
        None => archive::only(archive, found),
    }
}
