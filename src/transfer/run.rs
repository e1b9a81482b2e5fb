//! One run: all jobs at once, each image looked up, fetched and sent to its destinations, nothing moved twice.

use std::time::Duration;

use futures::{
    FutureExt,
    future::{join, join_all},
};
use tokio::{sync::Semaphore, time::Instant};

use crate::{
    cache::{self, Cache, Lease},
    image::{Descriptor, Digest, Reference, RepositoryPath},
    keyed_lock::KeyedLock,
    output::OutputManager,
    registry::{FoundManifest, RegistryClient},
};

use super::{
    Destination, DestinationReport, Error, Failure, ImageJob, ImageReport, Outcome, Registries,
    RegistryId, RegistryImage, Result, RunReport, TransferOptions,
    arrival::{self, Arrival},
    copied::{Copied, SoFar},
    known::KnownBlobs,
    pull::Pull,
    push::{NotSent, Push},
    road::Roads,
    tree::ImageTree,
};

/// A shorter pause was waited for already, within the operation that was asked to.
const SHORTEST_PARKING: Duration = Duration::from_mins(5);

/// Images a run asks about at once: questions are small, but each costs a round trip.
const QUESTIONS_AT_ONCE: usize = 64;

/// Images a run moves at once. Blobs have their own limit; this one bounds manifests in memory and requests in flight.
const IMAGES_AT_ONCE: usize = 16;

/// A blob at its destination: address, repository, digest.
type UploadKey = (String, RepositoryPath, Digest);

/// The state that the jobs of a run share. Dropping a running [`Run::execute`] cancels it: partial downloads stay for the
/// next run, and no half image becomes visible anywhere.
#[derive(Debug)]
pub struct Run {
    pub(super) cache: Cache,
    pub(super) output: OutputManager,
    pub(super) options: TransferOptions,
    registries: Registries,
    deadline: Option<Deadline>,
    parks: bool,
    /// One permit per image that is asked about or moved.
    asking: Semaphore,
    /// One permit per image that is moved.
    moving: Semaphore,
    /// Slots and bandwidth, per direction.
    pub(super) roads: Roads,
    /// Who fetches which blob: images of one run often share layers.
    pub(super) downloads: KeyedLock<Digest>,
    /// Who sends which blob where; two uploads of one blob to one repository disturb each other (registry rule U13).
    pub(super) uploads: KeyedLock<UploadKey>,
    /// What this run fetched, sent or found where.
    pub(super) known: KnownBlobs,
}

/// When a run is over, whatever it has left to do.
#[derive(Debug, Clone, Copy)]
struct Deadline {
    at: Instant,
    timeout: Duration,
}

impl Run {
    /// A run over `cache` with the clients its jobs name.
    pub fn new(
        cache: &Cache,
        registries: Registries,
        options: TransferOptions,
        output: OutputManager,
    ) -> Self {
        Self {
            cache: cache.with_output(output.clone()),
            output,
            options,
            registries,
            deadline: None,
            parks: false,
            asking: Semaphore::new(QUESTIONS_AT_ONCE),
            moving: Semaphore::new(IMAGES_AT_ONCE),
            roads: Roads::new(options),
            downloads: KeyedLock::default(),
            uploads: KeyedLock::default(),
            known: KnownBlobs::default(),
        }
    }

    /// Gives up on images that are not through at `at`; `timeout` is what the user said.
    #[must_use]
    pub const fn until(mut self, at: Instant, timeout: Duration) -> Self {
        self.deadline = Some(Deadline { at, timeout });
        self
    }

    /// Whether it waits when a registry's quota is used up, instead of leaving its images to a later run. The time counts for no timeout.
    #[must_use]
    pub const fn parking(mut self, parks: bool) -> Self {
        self.parks = parks;
        self
    }

    /// Works on all jobs and tells what became of each, in their order. Never fails as a whole.
    pub async fn execute(&self, jobs: &[ImageJob]) -> RunReport {
        // Images begin as others end, in whatever order: one that waits for its registry must not hold up the rest.
        let running: Vec<_> = jobs.iter().map(|job| self.image_report(job)).collect();
        let images = join_all(running).await;
        RunReport { images }
    }

    /// Works on one job; every error becomes an outcome.
    async fn image_report(&self, job: &ImageJob) -> ImageReport {
        let copied = self.copy_in_time(job).await;
        let fetched = match copied.fetched {
            Ok(true) => Outcome::Copied,
            Ok(false) => Outcome::UpToDate,
            Err(error) => Outcome::Failed(Failure::from(&error)),
        };
        let outcomes = copied
            .destinations
            .into_iter()
            .map(|outcome| match outcome {
                Some(Ok(true)) => Some(Outcome::Copied),
                Some(Ok(false)) => Some(Outcome::UpToDate),
                Some(Err(error)) => Some(Outcome::Failed(Failure::from(&error))),
                None => None,
            });
        self.report(job, copied.digest, fetched, outcomes.collect())
    }

    /// Puts names to outcomes. A destination without an outcome of its own shares the fate of the fetch.
    fn report(
        &self,
        job: &ImageJob,
        digest: Option<Digest>,
        fetched: Outcome,
        outcomes: Vec<Option<Outcome>>,
    ) -> ImageReport {
        let outcomes = outcomes.into_iter().chain(std::iter::repeat(None));
        let destinations = job
            .destinations
            .iter()
            .zip(outcomes)
            .map(|(destination, outcome)| DestinationReport {
                name: destination.name.clone(),
                target: self.target_name(destination, digest.as_ref()),
                outcome: outcome.unwrap_or_else(|| fetched.clone()),
            })
            .collect();
        let source = job
            .source
            .as_ref()
            .map_or_else(|| job.cached.to_string(), |source| self.source_name(source));
        ImageReport {
            source,
            digest,
            fetched,
            destinations,
        }
    }

    /// Copies one image within the run's time, and waits for quota where that is wanted.
    pub(super) async fn copy_in_time(&self, job: &ImageJob) -> Copied {
        let mut parked = Duration::ZERO;
        loop {
            let copied = self.copy_until(job, parked).await;
            let pause = copied.quota_wait();
            let Some(pause) = pause.filter(|pause| self.parks && *pause > SHORTEST_PARKING) else {
                return copied;
            };
            self.output.info(format!(
                "{}: the registry's quota is used up; it may be asked again in {} s, which is waited for",
                job.cached,
                pause.as_secs()
            ));
            tokio::time::sleep(pause).await;
            parked += pause;
        }
    }

    async fn copy_until(&self, job: &ImageJob, parked: Duration) -> Copied {
        let so_far = SoFar::of(job);
        // Boxed when its turn comes, and given up before a pause: a list of a thousand images holds few that are at work.
        let copy = async {
            let _asking = self.asking.acquire().await;
            self.copy(job, &so_far).boxed().await;
        };
        match self.deadline {
            None => copy.await,
            Some(Deadline { at, timeout }) => {
                let copied = tokio::time::timeout_at(at + parked, copy).await;
                if copied.is_err() {
                    let image = &job.cached;
                    so_far.give_up(|| Error::RunTimedOut {
                        image: image.clone(),
                        timeout,
                    });
                }
            }
        }
        so_far.ended()
    }

    /// Copies one image, with typed errors. `Ok(true)` means that something moved.
    async fn copy(&self, job: &ImageJob, so_far: &SoFar) {
        let copied = match &job.source {
            Some(source) => self.copy_from_registry(job, source, so_far).await,
            None => self.copy_from_cache(job, so_far).await,
        };
        if let Err(error) = copied {
            so_far.fetched(Err(error));
        }
    }

    /// Fails where there is nothing to send.
    async fn copy_from_registry(
        &self,
        job: &ImageJob,
        source: &RegistryImage,
        so_far: &SoFar,
    ) -> Result<()> {
        let pull = Pull {
            run: self,
            client: self.client(&source.registry)?,
            source,
            cached: &job.cached,
        };
        if job.destinations.is_empty() {
            let (digest, moved) = self.fill(job, &pull).await?;
            so_far.found(&digest);
            so_far.fetched(Ok(moved));
            return Ok(());
        }
        let there = self.ask_destinations(job).await;
        // A destination without any image needs the manifest, whatever its digest: to ask for that would be a request more.
        if there.iter().any(There::is_nothing) {
            return self.move_image(job, &pull, None, there, so_far).await;
        }
        let found = pull.look_up().await?;
        let there = self.ask_the_others(job, there, found.digest()).await;
        if there.iter().all(|there| !there.needs(found.digest())) {
            // Nobody needs the bytes: they are there, or the destination cannot be asked.
            so_far.found(found.digest());
            for (number, answer) in answers(there, found.digest()).into_iter().enumerate() {
                so_far.settled(number, answer.map(|_| false));
            }
            return Ok(());
        }
        self.move_image(job, &pull, Some(found), there, so_far)
            .await
    }

    /// Brings an image to the destinations that need it. `found` is what the source was found to have, if it was asked.
    async fn move_image(
        &self,
        job: &ImageJob,
        pull: &Pull<'_>,
        found: Option<FoundManifest>,
        there: Vec<There>,
        so_far: &SoFar,
    ) -> Result<()> {
        let _moving = self.moving.acquire().await;
        if let Some(found) = &found {
            so_far.found(found.digest());
        }
        let prepared = async {
            let tree = pull.tree(found).await?;
            let lease = self.make_room(job, &tree).await?;
            Ok((tree, lease))
        };
        let (tree, lease) = match prepared.await {
            Ok(prepared) => prepared,
            Err(error) => {
                for (number, there) in there.into_iter().enumerate() {
                    if let There::Failed(error) = there {
                        so_far.settled(number, Err(error));
                    }
                }
                return Err(error);
            }
        };
        let digest = tree.root.digest();
        so_far.found(digest);
        let there = answers(self.ask_the_others(job, there, digest).await, digest);
        pull.tell_of_foreign_layers(&tree);
        tree.plan(1 + missing(&there), &self.output);
        let (announcers, arrivals): (Vec<_>, Vec<_>) =
            tree.blobs().map(|_| arrival::expected()).unzip();
        let kept = async { so_far.fetched(pull.keep(&tree, announcers, &lease).await) };
        let sent = self.send_where_missing(job, there, &tree, arrivals, so_far);
        join(kept, sent).await;
        Ok(())
    }

    /// Fills the cache, and nothing else.
    async fn fill(&self, job: &ImageJob, pull: &Pull<'_>) -> Result<(Digest, bool)> {
        let _moving = self.moving.acquire().await;
        // What a mirror leaves with its publisher is to be here for whoever has nothing but the cache (registry rule D7).
        let tree = pull.tree(None).await?.with_foreign();
        let lease = self.make_room(job, &tree).await?;
        tree.plan(1, &self.output);
        let announcers = tree.blobs().map(|_| arrival::expected().0).collect();
        let moved = pull.keep(&tree, announcers, &lease).await?;
        Ok((tree.root.digest().clone(), moved))
    }

    /// Keeps what the image needs, and sees that there is room for what is missing of it.
    async fn make_room(&self, job: &ImageJob, tree: &ImageTree) -> Result<Lease> {
        let blobs: Vec<Descriptor> = tree.blobs().cloned().collect();
        let leased = async {
            let mut lease = self.cache.lease([&job.cached], tree.digests()).await?;
            lease.reserve(&job.cached, &blobs).await?;
            Ok(lease)
        };
        leased.await.map_err(|source| cache_error(job, source))
    }

    async fn copy_from_cache(&self, job: &ImageJob, so_far: &SoFar) -> Result<()> {
        let tree = self.cached_tree(job).await?;
        let digest = tree.root.digest();
        let pinned = self
            .cache
            .lease_to_read(&job.cached_names().collect::<Vec<_>>(), tree.digests())
            .await;
        let _lease = pinned.map_err(|source| cache_error(job, source))?;
        so_far.found(digest);
        so_far.fetched(Ok(false));
        let there = self.ask_destinations(job).await;
        let there = answers(self.ask_the_others(job, there, digest).await, digest);
        tree.plan(missing(&there), &self.output);
        let _moving = self.moving.acquire().await;
        let arrivals = tree.blobs().map(|_| Arrival::here()).collect();
        self.send_where_missing(job, there, &tree, arrivals, so_far)
            .await;
        Ok(())
    }

    /// Reads an image with everything below it from the cache.
    async fn cached_tree(&self, job: &ImageJob) -> Result<ImageTree> {
        let image = &job.cached;
        let read = async |reference: Reference| {
            let manifest = self.cache.manifest(&image.repository, &reference).await;
            manifest.map_err(|source| cache_error(job, source))
        };
        let pinned = job.pinned.clone().map(Reference::Digest);
        let reference = pinned.unwrap_or_else(|| image.reference.clone());
        let root = read(reference.clone()).await?;
        let root = root.ok_or_else(|| Error::CachedImageUnknown {
            image: image.clone(),
        })?;
        // What the source did not have is not to be found here either.
        let missing = self.cache.missing(&image.repository, &reference).await;
        ImageTree::collect(image, root, async |child: Descriptor| {
            let found = read(Reference::Digest(child.digest.clone())).await?;
            let is_expected =
                child.media_type.names_a_manifest() && !missing.contains(&child.digest);
            if found.is_none() && is_expected {
                return Err(Error::CachedImageIncomplete {
                    image: image.clone(),
                    digest: child.digest,
                });
            }
            Ok(found)
        })
        .await
    }

    /// Asks every destination what it has under the image's name there, as far as that is known.
    async fn ask_destinations(&self, job: &ImageJob) -> Vec<There> {
        join_all(job.destinations.iter().map(async |destination| {
            let Some(target) = destination.known_image() else {
                return There::Unasked;
            };
            There::from(self.digest_at(job, target).await)
        }))
        .await
    }

    /// Asks those whose name for the image depends on its digest.
    async fn ask_the_others(
        &self,
        job: &ImageJob,
        there: Vec<There>,
        digest: &Digest,
    ) -> Vec<There> {
        let answers = job.destinations.iter().zip(there);
        join_all(answers.map(async |(destination, there)| {
            if !matches!(there, There::Unasked) {
                return there;
            }
            let asked = async {
                let target = target(job, destination, digest)?;
                self.digest_at(job, target).await
            };
            There::from(asked.await)
        }))
        .await
    }

    async fn digest_at(&self, job: &ImageJob, target: RegistryImage) -> Result<Option<Digest>> {
        self.push_to(job, target)?.digest_there().await
    }

    /// Sends an image to every destination that said it does not have it, while it comes or from the cache.
    async fn send_where_missing(
        &self,
        job: &ImageJob,
        there: Vec<Result<bool>>,
        tree: &ImageTree,
        arrivals: Vec<Arrival>,
        so_far: &SoFar,
    ) {
        let arrivals = &arrivals;
        let destinations = job.destinations.iter().zip(there).enumerate();
        join_all(destinations.map(async |(number, (destination, there))| {
            let sent = self.send_to(job, destination, there, tree, arrivals).await;
            match sent {
                Ok(moved) => so_far.settled(number, Ok(moved)),
                Err(NotSent::Lost) => {}
                Err(NotSent::Failed(error)) => so_far.settled(number, Err(*error)),
            }
        }))
        .await;
    }

    async fn send_to(
        &self,
        job: &ImageJob,
        destination: &Destination,
        there: Result<bool>,
        tree: &ImageTree,
        arrivals: &[Arrival],
    ) -> Result<bool, NotSent> {
        let push = self.push_to(job, target(job, destination, tree.root.digest())?)?;
        if there? {
            push.count_existing(tree);
            return Ok(false);
        }
        push.push_from_cache(tree, arrivals).await?;
        Ok(true)
    }

    /// One image on its way to one destination.
    fn push_to<'a>(&'a self, job: &'a ImageJob, target: RegistryImage) -> Result<Push<'a>> {
        let client = self.client(&target.registry)?;
        let origin = job.source.as_ref().filter(|source| {
            let source = self.client(&source.registry);
            source.is_ok_and(|source| source.address() == client.address())
        });
        Ok(Push {
            run: self,
            client,
            origin: origin.map(|origin| &origin.repository),
            target,
            cached: &job.cached,
        })
    }

    fn client(&self, id: &RegistryId) -> Result<&RegistryClient> {
        self.registries
            .get(id)
            .ok_or_else(|| Error::RegistryMissing {
                name: id.to_string(),
            })
    }

    fn source_name(&self, source: &RegistryImage) -> String {
        let client = self.registries.get(&source.registry);
        client.map_or_else(
            || format!("{}:{}", source.repository, source.reference),
            |client| source.full_name(client.endpoint().host()),
        )
    }

    /// The full name at a destination; while the digest is unknown, a tag made of it stays a template.
    fn target_name(&self, destination: &Destination, digest: Option<&Digest>) -> String {
        let Destination {
            name: _,
            registry,
            repository,
            reference,
        } = destination;
        let host = self.registries.get(registry).map_or_else(
            || registry.to_string(),
            |client| client.endpoint().host().to_string(),
        );
        match digest.and_then(|digest| reference.resolve(digest).ok()) {
            Some(reference) => format!("{host}/{repository}{}{reference}", reference.separator()),
            None => format!("{host}/{repository}:{reference}"),
        }
    }
}

/// What a destination has under the name that the image is to get there.
enum There {
    /// The name depends on the image.
    Unasked,
    /// The image with this digest, or none.
    Has(Option<Digest>),
    /// It cannot be asked.
    Failed(Error),
}

impl There {
    const fn is_nothing(&self) -> bool {
        matches!(self, Self::Has(None))
    }

    /// Whether it lacks this image.
    fn needs(&self, digest: &Digest) -> bool {
        match self {
            Self::Unasked => true,
            Self::Has(there) => there.as_ref() != Some(digest),
            Self::Failed(_) => false,
        }
    }
}

impl From<Result<Option<Digest>>> for There {
    fn from(answer: Result<Option<Digest>>) -> Self {
        answer.map_or_else(Self::Failed, Self::Has)
    }
}

fn cache_error(job: &ImageJob, source: cache::Error) -> Error {
    Error::Cache {
        image: job.cached.clone(),
        source,
    }
}

/// Whether each destination has this image.
fn answers(there: Vec<There>, digest: &Digest) -> Vec<Result<bool>> {
    let answer = |there| match there {
        There::Failed(error) => Err(error),
        There::Unasked | There::Has(_) => Ok(!there.needs(digest)),
    };
    there.into_iter().map(answer).collect()
}

/// The place of an image at a destination.
fn target(job: &ImageJob, destination: &Destination, digest: &Digest) -> Result<RegistryImage> {
    destination
        .image(digest)
        .map_err(|source| Error::TargetInvalid {
            destination: destination.name.clone(),
            image: job.cached.clone(),
            source,
        })
}

/// How many destinations lack the image.
fn missing(answers: &[Result<bool>]) -> u64 {
    answers
        .iter()
        .map(|answer| u64::from(matches!(answer, Ok(false))))
        .sum()
}
