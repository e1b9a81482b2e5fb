//! From images and destinations to the jobs of a run.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    fmt,
};

use crate::{
    image::{Digest, ImageName},
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

/// The image that templates are tried with before the real ones are known.
const REHEARSAL: &str = "docker.io/library/rehearsal:latest";

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
        let Ok(cached) = REHEARSAL.parse::<ImageName>() else {
            return Ok(());
        };
        let image = SelectedImage {
            tag: cached.reference.tag().cloned(),
            digest: Some(Digest::of(REHEARSAL.as_bytes())),
            cached,
        };
        for destination in destinations {
            destination.place(&image)?;
        }
        Ok(())
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
                let TargetReference::Known(reference) = &destination.reference else {
                    return None;
                };
                let host = self.accesses.get(&destination.registry)?.host.as_str();
                let (host, repository) = (host.to_ascii_lowercase(), &destination.repository);
                let target = format!("{host}/{repository}:{reference}");
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
