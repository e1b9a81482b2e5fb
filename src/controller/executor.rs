//! The real engine: `mirror` judges and prepares, `transfer` copies.
//!
//! Every namespace has a cache of its own below the cache folder: what one tenant fetched with its credentials must not be
//! served to another one unasked. Where the registry vouches for it, they share the files (`cache::Tenants`).

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use futures::future::BoxFuture;

use crate::{
    api::ImageMirrorSpec,
    cache::Tenants,
    mirror::{self, ArchiveFolder, RefusedArchives, ValidatedMirror},
    output::OutputManager,
    registry::{Hosts, Loopback},
};

use super::{
    engine::{Engine, Failure, Given, Needs, Prepared, RunReport},
    target::Name,
};

/// How long an archive must have stood still before it is read: whoever copies it there writes in bursts.
const SETTLE_TIME: Duration = Duration::from_secs(10);

/// Carries mirrors out with the caches below one folder, and the archives below another.
#[derive(Debug)]
pub(super) struct Executor {
    caches: Arc<Tenants>,
    archives: Option<Archives>,
    ways: Ways,
}

/// What all runs share on their ways to registries.
#[derive(Debug, Clone)]
struct Ways {
    /// What the runs of all namespaces know of registries.
    hosts: Hosts,
    /// Which registries of this machine they may ask.
    loopback: Loopback,
}

/// The folder of archives, and what is known of those that were refused.
#[derive(Debug, Clone)]
struct Archives {
    folder: PathBuf,
    refused: RefusedArchives,
}

/// A judged spec, where its images are kept, and where archives lie.
struct Judged {
    mirror: ValidatedMirror,
    caches: Arc<Tenants>,
    archives: Option<Archives>,
    ways: Ways,
}

impl Executor {
    /// Keeps images in `caches`, and looks for archives below `archives`, if there is such a folder.
    pub(super) fn new(caches: Arc<Tenants>, archives: Option<PathBuf>, loopback: Loopback) -> Self {
        Self {
            caches,
            archives: archives.map(|folder| Archives {
                folder,
                refused: RefusedArchives::default(),
            }),
            ways: Ways {
                hosts: Hosts::default(),
                loopback,
            },
        }
    }
}

impl Archives {
    /// Those of a namespace: no tenant reads those of another. The name of a namespace is a DNS label: it cannot leave the
    /// folder.
    fn of(self, namespace: &str) -> ArchiveFolder {
        ArchiveFolder {
            path: self.folder.join(namespace),
            settle: SETTLE_TIME,
            refused: self.refused,
        }
    }
}

impl Engine for Executor {
    fn prepare(&self, spec: &ImageMirrorSpec) -> Result<Box<dyn Prepared>, Failure> {
        let mirror = mirror::validate(spec).map_err(|error| Failure::from(&error))?;
        Ok(Box::new(Judged {
            mirror,
            caches: Arc::clone(&self.caches),
            archives: self.archives.clone(),
            ways: self.ways.clone(),
        }))
    }

    fn release(&self, mirror: &Name) -> BoxFuture<'static, ()> {
        let cache = self.caches.of(&mirror.namespace);
        let owner = mirror.name.clone();
        Box::pin(async move {
            // Without a cache nothing is kept.
            if let Ok(cache) = cache {
                cache.keep_only(&owner, &[]).await;
                cache.flush_index().await;
            }
        })
    }
}

impl Prepared for Judged {
    fn needs(&self) -> Needs {
        Needs {
            secrets: self.mirror.secret_names(),
            accounts: self.mirror.service_accounts(),
        }
    }

    fn run_key(&self) -> String {
        self.mirror.run_key()
    }

    fn interval(&self) -> Option<Duration> {
        self.mirror.interval()
    }

    fn places(&self) -> BTreeSet<String> {
        let targets = self.mirror.targets().into_iter();
        targets.map(|(target, _)| target).collect()
    }

    fn image_count(&self) -> Option<usize> {
        self.mirror.image_count()
    }

    fn run(
        self: Box<Self>,
        mirror: &Name,
        given: Given,
        output: OutputManager,
    ) -> BoxFuture<'static, Result<RunReport, Failure>> {
        let Self {
            mirror: judged,
            caches,
            archives,
            ways: Ways { hosts, loopback },
        } = *self;
        let Name { namespace, name } = mirror;
        let cache = caches.of(namespace).map_err(|error| Failure::of(&error));
        let given = Given {
            archives: archives.map(|archives| archives.of(namespace)),
            hosts,
            tenant: namespace.as_str().into(),
            owner: Some(name.as_str().into()),
            loopback,
            ..given
        };
        Box::pin(async move {
            let cache = cache?.with_output(output.clone());
            let request = judged
                .into_request(given, &output)
                .map_err(|error| Failure::from(&error))?;
            let report = request.run(&cache).await;
            report.map_err(|error| Failure::from(&error))
        })
    }
}
