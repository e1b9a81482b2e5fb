//! Which images of an archive are meant, and under which names they go on. The command line, resources and `sync` ask here,
//! so all give the same answer.

use std::{collections::HashMap, fmt, str::FromStr};

use crate::image::{self, Host, ImageName, Reference};

use super::{ArchiveImage, Error, Result};

/// One image of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Choice {
    /// The one with this name in the archive; `docker.io/library/` may be left out or added.
    Named(ImageName),
    /// The one at this position, from 0.
    At(usize),
}

/// Written as a name, or as `@0` for a position, as skopeo writes it.
impl FromStr for Choice {
    type Err = image::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix('@').map(str::parse) {
            Some(Ok(position)) => Ok(Self::At(position)),
            _ => text.parse().map(Self::Named),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => name.fmt(formatter),
            Self::At(position) => write!(formatter, "@{position}"),
        }
    }
}

/// Images by position, each with the names it goes by.
pub type Chosen = Vec<(usize, Vec<ImageName>)>;

/// The image that `choice` means.
///
/// # Errors
/// [`Error::ArchiveImageUnknown`], which lists what is there.
pub fn find<'a>(
    archive: &str,
    images: &'a [ArchiveImage],
    choice: &Choice,
) -> Result<&'a ArchiveImage> {
    let found = match choice {
        Choice::At(position) => images.get(*position),
        Choice::Named(name) => images.iter().find(|image| has_name(image, name)),
    };
    found.ok_or_else(|| Error::ArchiveImageUnknown {
        archive: archive.to_owned(),
        wanted: choice.to_string(),
        images: listed(images),
    })
}

/// Every image that has a name, under its own names.
///
/// # Errors
/// [`Error::ArchiveImageUnnamed`] when none has.
pub fn all_named(archive: &str, images: &[ArchiveImage]) -> Result<Chosen> {
    let named: Chosen = images
        .iter()
        .filter(|image| !image.names.is_empty())
        .map(|image| (image.position, image.names.clone()))
        .collect();
    if named.is_empty() {
        return Err(Error::ArchiveImageUnnamed {
            archive: archive.to_owned(),
            images: listed(images),
        });
    }
    refuse_shared_names(archive, &named)?;
    Ok(named)
}

/// The only image of an archive.
///
/// # Errors
/// [`Error::ArchiveImageAmbiguous`], which lists what is there.
pub fn only<'a>(archive: &str, images: &'a [ArchiveImage]) -> Result<&'a ArchiveImage> {
    match images {
        [image] => Ok(image),
        _ => Err(Error::ArchiveImageAmbiguous {
            archive: archive.to_owned(),
            images: listed(images),
        }),
    }
}

/// Two images under one name would replace each other.
///
/// # Errors
/// [`Error::ArchiveNameShared`].
pub fn refuse_shared_names(archive: &str, chosen: &Chosen) -> Result<()> {
    let mut owners = HashMap::new();
    for (position, names) in chosen {
        for name in names {
            let first = *owners.entry(name).or_insert(*position);
            if first != *position {
                return Err(Error::ArchiveNameShared {
                    archive: archive.to_owned(),
                    name: name.clone(),
                    first,
                    second: *position,
                });
            }
        }
    }
    Ok(())
}

/// The images as a user tells them apart: `@0 app:1.2, @1 without a name`.
fn listed(images: &[ArchiveImage]) -> String {
    const SHOWN: usize = 20;
    let mut entries: Vec<String> = images
        .iter()
        .take(SHOWN)
        .map(|image| {
            let names: Vec<String> = image.names.iter().map(ToString::to_string).collect();
            let names = match &image.tag_only {
                _ if !names.is_empty() => names.join(" "),
                Some(tag) => format!("with the tag {tag} alone"),
                None => "without a name".to_owned(),
            };
            format!("@{} {names}", image.position)
        })
        .collect();
    if images.len() > SHOWN {
        entries.push(format!("and {} more", images.len() - SHOWN));
    }
    entries.join(", ")
}

/// Whether the image has this name, in the short form of Docker Hub or in the long one.
fn has_name(image: &ArchiveImage, wanted: &ImageName) -> bool {
    let wanted = in_full(wanted);
    image.names.iter().any(|name| in_full(name) == wanted)
}

/// A name as Docker reads it: without host it is one of Docker Hub, without folder one of its library.
pub(super) fn in_full(name: &ImageName) -> (String, &Reference) {
    let ImageName {
        repository,
        reference,
    } = name;
    let host = repository.host().map_or("docker.io", Host::as_str);
    let path = repository.path().as_str();
    let library = if host == "docker.io" && !path.contains('/') {
        "library/"
    } else {
        ""
    };
    (format!("{host}/{library}{path}"), reference)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Classified;

    fn images() -> Vec<ArchiveImage> {
        let named = [
            vec!["app:1", "registry.example/team/app:1"],
            vec!["docker.io/library/tool:2"],
            vec![],
        ];
        let named = named.iter().enumerate();
        named
            .map(|(position, names)| ArchiveImage {
                position,
                names: names.iter().map(|name| name.parse().unwrap()).collect(),
                tag_only: None,
                digest: None,
                platforms: Vec::new(),
            })
            .collect()
    }

    #[test]
    fn an_image_is_found_by_any_form_of_its_name_or_by_its_position() {
        let images = images();
        for (text, position) in [
            ("app:1", 0),
            ("docker.io/library/app:1", 0),
            ("docker.io/app:1", 0),
            ("registry.example/team/app:1", 0),
            ("tool:2", 1),
            ("library/tool:2", 1),
            ("@2", 2),
        ] {
            let choice: Choice = text.parse().unwrap();
            assert_eq!(choice.to_string(), text);
            let image = find("a.tar", &images, &choice).unwrap();
            assert_eq!(image.position, position, "{text}");
        }
    }

    #[test]
    fn what_is_there_is_listed_where_the_choice_fails() {
        let images = images();
        let unknown = find("a.tar", &images, &"app:2".parse().unwrap()).unwrap_err();
        let ambiguous = only("a.tar", &images).unwrap_err();
        let unnamed = all_named("a.tar", &images[2..]).unwrap_err();
        for (error, reason) in [
            (unknown, "ArchiveImageUnknown"),
            (ambiguous, "ArchiveImageAmbiguous"),
            (unnamed, "ArchiveImageUnnamed"),
        ] {
            assert_eq!(error.reason(), reason);
            let text = error.to_string();
            assert!(text.contains("@2 without a name"), "{text}");
        }
    }

    #[test]
    fn two_images_of_one_name_are_refused() {
        let mut images = images();
        images[1].names = images[0].names.clone();
        let error = all_named("a.tar", &images).unwrap_err();
        assert_eq!(error.reason(), "ArchiveNameShared");
    }
}
