//! The real engine: `mirror` judges and prepares, `transfer` copies.
//!
//! Every namespace has a cache of its own below the cache folder: what one tenant fetched with its credentials must not be
//! served to another one unasked (design part 4).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::BoxFuture;

use crate::{
    api::ImageMirrorSpec,
    cache::Cache,
    mirror::{self, Given, SecretDocument, ValidatedMirror},
    output::OutputManager,
};

use super::engine::{Engine, Failure, Prepared, RunReport};

/// Carries mirrors out with the caches below one folder.
#[derive(Debug)]
pub(super) struct Executor {
    caches: Arc<Caches>,
}

#[derive(Debug)]
struct Caches {
    folder: PathBuf,
    by_namespace: Mutex<HashMap<String, Cache>>,
}

/// A judged spec, and where its images are kept.
struct Judged {
    mirror: ValidatedMirror,
    caches: Arc<Caches>,
}

impl Executor {
    /// Keeps images below `folder`.
    pub(super) fn new(folder: PathBuf) -> Self {
        Self {
            caches: Arc::new(Caches {
                folder,
                by_namespace: Mutex::default(),
            }),
        }
    }
}

impl Caches {
    /// The cache of a namespace. Opened once, because its tasks fetch each blob once by what they share in it. The name of a
    /// namespace is a DNS label: it cannot leave the folder.
    fn of(&self, namespace: &str) -> Result<Cache, Failure> {
        // Entries are inserted whole: a panic elsewhere leaves the map as good as before.
        let mut caches = self
            .by_namespace
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(cache) = caches.get(namespace) {
            return Ok(cache.clone());
        }
        let cache = Cache::open(self.folder.join(namespace), OutputManager::silent())
            .map_err(|error| Failure::of(&error))?;
        caches.insert(namespace.to_owned(), cache.clone());
        Ok(cache)
    }
}

impl Engine for Executor {
    fn prepare(&self, spec: &ImageMirrorSpec) -> Result<Box<dyn Prepared>, Failure> {
        let mirror = mirror::validate(spec).map_err(|error| Failure::of(&error))?;
        Ok(Box::new(Judged {
            mirror,
            caches: Arc::clone(&self.caches),
        }))
    }
}

impl Prepared for Judged {
    fn secret_names(&self) -> BTreeSet<String> {
        self.mirror.secret_names()
    }

    fn run_key(&self) -> String {
        self.mirror.run_key()
    }

    fn interval(&self) -> Option<Duration> {
        self.mirror.interval()
    }

    fn image_count(&self) -> usize {
        self.mirror.image_count().unwrap_or_default()
    }

    fn run(
        self: Box<Self>,
        namespace: &str,
        secrets: BTreeMap<String, SecretDocument>,
        output: OutputManager,
    ) -> BoxFuture<'static, Result<RunReport, Failure>> {
        let Self { mirror, caches } = *self;
        let cache = caches.of(namespace);
        Box::pin(async move {
            let cache = cache?.with_output(output.clone());
            let given = Given {
                secrets,
                ..Given::default()
            };
            let request = mirror
                .into_request(given, &output)
                .map_err(|error| Failure::of(&error))?;
            let report = request.run(&cache).await;
            report.map_err(|error| Failure::of(&error))
        })
    }
}
