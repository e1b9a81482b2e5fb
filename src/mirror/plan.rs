//! From images and destinations to the jobs of a run.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
    fmt,
};

use crate::{
    image::{Digest, Host, ImageName, RepositoryPath},
    output::OutputManager,
    transfer::{Destination, ImageJob, Registries, RegistryId, RegistryImage, TargetReference},
};

use super::{
    Error, Given, Result,
    access::{RegistryAccess, ValidatedAccess},
    destination::{Place, ValidatedDestination},
    source::SelectedImage,
};

/// The jobs of a run, and how the registries they name are reached.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) jobs: Vec<ImageJob>,
    pub(super) accesses: BTreeMap<RegistryId, RegistryAccess>,
}

/// Images that templates are tried with before the real ones are known; they have nothing in common.
const REHEARSALS: [&str; 2] = ["docker.io/library/one:1", "rehearsal.example/other/two:2"];

fn rehearsals() -> impl Iterator<Item = SelectedImage> {
    let names = REHEARSALS.iter().filter_map(|name| name.parse().ok());
    names.map(|name: ImageName| SelectedImage {
        digest: Some(Digest::of(name.to_string().as_bytes())),
        ..SelectedImage::named(name)
    })
}

impl Plan {
    /// Sends each image to each destination. `source` is how the images' own registry is reached, if they come from one.
    ///
    /// # Errors
    /// A template that gives no name, and [`Error::DestinationConflict`].
    pub(super) fn new(
        images: &[SelectedImage],
        source: Option<&ValidatedAccess>,
        destinations: &[ValidatedDestination],
    ) -> Result<Self> {
        let mut plan = Self {
            jobs: Vec::with_capacity(images.len()),
            accesses: BTreeMap::new(),
        };
        let mut writers = HashMap::new();
        for image in images {
            let mut job = ImageJob {
                cached: image.cached.clone(),
                pinned: image.digest.clone().filter(|_| source.is_none()),
                source: source.and_then(|access| plan.source(image, access)),
                destinations: Vec::with_capacity(destinations.len()),
            };
            for destination in destinations {
                let place = destination.place(image)?;
                refuse_conflict(&mut writers, image, &destination.name, &place)?;
                job.destinations.push(plan.destination(destination, place));
            }
            plan.jobs.push(job);
        }
        Ok(plan)
    }

    /// Fills the templates in for an image that does not exist, so that a wrong one shows before an archive is read.
    pub(super) fn rehearse(destinations: &[ValidatedDestination]) -> Result<()> {
        for image in rehearsals() {
            for destination in destinations {
                destination.place(&image)?;
            }
        }
        Ok(())
    }

    /// The places that an archive is sent to, as far as they are known before it is read: those of images that the spec
    /// names, and those whose templates give one name for every image.
    pub(super) fn expected_places(
        named: &[ImageName],
        destinations: &[ValidatedDestination],
    ) -> BTreeSet<String> {
        let place = |destination: &ValidatedDestination, image: &SelectedImage| {
            let place = destination.place(image).ok()?;
            place.name()
        };
        let named = named.iter().flat_map(|name| {
            let image = SelectedImage::named(name.clone());
            let places = destinations
                .iter()
                .filter_map(move |destination| place(destination, &image));
            places.collect::<Vec<_>>()
        });
        let fixed = destinations.iter().filter_map(|destination| {
            let mut places = rehearsals().map(|image| place(destination, &image));
            let first = places.next()??;
            places
                .all(|other| other.as_ref() == Some(&first))
                .then_some(first)
        });
        named.chain(fixed).collect()
    }

    /// The clients of the jobs.
    pub(super) fn registries(
        &self,
        given: &Given,
        retry_attempts: u32,
        output: &OutputManager,
    ) -> Result<Registries> {
        self.accesses
            .iter()
            .map(|(id, access)| Ok((id.clone(), access.client(given, retry_attempts, output)?)))
            .collect()
    }

    /// Every place that is known to be written, as its full name, with what is written there: the digest of a pinned image,
    /// the name of any other. Tags made of digests that are not known yet differ for each image.
    pub(super) fn targets(&self) -> impl Iterator<Item = (String, String)> {
        self.jobs.iter().flat_map(move |job| {
            let digest = job.cached.reference.digest();
            let written = digest.map_or_else(|| job.cached.to_string(), ToString::to_string);
            job.destinations.iter().filter_map(move |destination| {
                let host = &self.accesses.get(&destination.registry)?.host;
                let target = place_name(host, &destination.repository, &destination.reference)?;
                Some((target, written.clone()))
            })
        })
    }

    fn source(&mut self, image: &SelectedImage, how: &ValidatedAccess) -> Option<RegistryImage> {
        let ImageName {
            repository,
            reference,
        } = &image.cached;
        let registry = RegistryId("source".to_owned());
        let access = RegistryAccess {
            host: repository.host()?.clone(),
            repository: repository.path().clone(),
            how: how.clone(),
        };
        self.accesses.insert(registry.clone(), access);
        Some(RegistryImage {
            registry,
            repository: repository.path().clone(),
            reference: reference.clone(),
        })
    }

    fn destination(&mut self, destination: &ValidatedDestination, place: Place) -> Destination {
        let Place {
            host,
            repository,
            reference,
        } = place;
        // Logins may differ by repository, and the images of an archive have many.
        let registry = RegistryId(format!("destination {} at {repository}", destination.name));
        self.accesses
            .entry(registry.clone())
            .or_insert_with(|| RegistryAccess {
                host,
                repository: repository.path().clone(),
                how: destination.access.clone(),
            });
        Destination {
            name: destination.name.clone(),
            registry,
            repository: repository.path().clone(),
            reference,
        }
    }
}

/// The full name of a place, where it is known before anything is copied.
pub(super) fn place_name(
    host: &Host,
    repository: &RepositoryPath,
    reference: &TargetReference,
) -> Option<String> {
    let TargetReference::Known(reference) = reference else {
        return None;
    };
    let host = host.as_str().to_ascii_lowercase();
    Some(format!("{host}/{repository}:{reference}"))
}

/// Who writes a place.
struct Writer {
    /// The destination's name.
    destination: String,
    /// What it writes there: the digest where it is known, else the image's name.
    written: String,
    /// The image's name.
    image: String,
}

impl Writer {
    /// Whether both do the same: one image that was selected twice.
    fn is_same(&self, other: &Self) -> bool {
        (&self.destination, &self.written) == (&other.destination, &other.written)
    }
}

impl fmt::Display for Writer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "destination {} with {}",
            self.destination, self.image
        )
    }
}

/// Two images for one place would overwrite each other on every run.
fn refuse_conflict(
    writers: &mut HashMap<String, Writer>,
    image: &SelectedImage,
    destination: &str,
    place: &Place,
) -> Result<()> {
    let cached = &image.cached;
    // One digest selected under two names is one image.
    let written = image
        .digest
        .as_ref()
        .map_or_else(|| cached.to_string(), ToString::to_string);
    let Place {
        host: _,
        repository,
        reference,
    } = place;
    let mut target = format!("{repository}:{reference}");
    if matches!(reference, TargetReference::WithDigest(_)) {
        // Not known yet, but another one for each image.
        target = format!("{target} of {written}");
    }
    let writer = Writer {
        destination: destination.to_owned(),
        written,
        image: cached.to_string(),
    };
    match writers.entry(target) {
        Entry::Occupied(place) if !place.get().is_same(&writer) => {
            Err(Error::DestinationConflict {
                target: place.key().clone(),
                first: place.get().to_string(),
                second: writer.to_string(),
            })
        }
        place => {
            place.or_insert(writer);
            Ok(())
        }
    }
}
