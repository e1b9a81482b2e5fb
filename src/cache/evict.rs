//! Making room: images that nobody needs here leave, the one first that was used longest ago.
//!
//! Only images that were on their way to other places go, and that no run works on: what somebody brought into the cache to
//! have it here stays, until `clean`.

use std::{collections::HashSet, ops::RangeInclusive, sync::Arc, time::Duration};

use crate::{error::handlers, image::Digest, output::ByteSize};

use super::{
    Cache,
    disk::blocking,
    error::{Error, Result},
    index::Entries,
    layout::{Layout, index_key},
    lease::Pinned,
    lock::Held,
    manifests::{Scan, scan},
    sweep::{Grace, Removal, Sweep},
};

/// How long the room-maker waits for who reads or extracts: they may be at it for long, and the image can be tried again.
pub(super) const LOCK_WAIT: Duration = Duration::from_secs(2);

/// Blobs that no image names may be those of a run that was killed and goes on.
const GRACE: Grace = Grace {
    blobs: Duration::from_hours(1),
    partials: Duration::from_hours(24),
    everything: false,
};

/// What may go from one cache, and the lock that it is held under.
pub(super) struct Planned {
    cache: Cache,
    pub(super) store: Held,
    pub(super) sweep: Sweep,
}

impl Cache {
    /// Removes what nobody needs until `needed` bytes are free that were not, from other tenants' caches too where they share
    /// the volume; `spared` are manifests and blobs that the caller needs. If all of it is not enough, nothing is removed. Tells
    /// whether anything was.
    ///
    /// # Errors
    /// When a manifest that stays in the own cache cannot be read, and when the disk fails.
    pub(super) async fn evict(&self, needed: u64, spared: HashSet<Digest>) -> Result<bool> {
        let needed = needed.max(1);
        let mut plans: Vec<Planned> = self
            .plan_eviction(needed, spared)
            .await?
            .into_iter()
            .collect();
        let found = |plans: &[Planned]| plans.iter().map(|plan| plan.sweep.bytes()).sum::<u64>();
        for other in self.others().await? {
            let rest = needed.saturating_sub(found(&plans));
            if rest == 0 {
                break;
            }
            match other.plan_eviction(rest, HashSet::new()).await {
                Ok(plan) => plans.extend(plan),
                // It is the others' trouble, of which their own runs tell them.
                Err(error) => tracing::warn!(
                    directory = %other.directory().display(),
                    error = handlers::message(&error),
                    "no room can be made in this cache"
                ),
            }
        }
        if found(&plans) < needed {
            return Ok(false);
        }
        for Planned {
            cache,
            store,
            sweep,
        } in plans
        {
            let report = sweep.report();
            self.output.detail(format!(
                "{} images that are needed nowhere here leave the cache, to make room: {}",
                report.images.len(),
                ByteSize(report.bytes)
            ));
            cache.sweep(sweep, store).await?;
        }
        Ok(true)
    }

    /// The caches of other tenants.
    async fn others(&self) -> Result<Vec<Self>> {
        let Some(tenants) = self.shared.tenants.upgrade() else {
            return Ok(Vec::new());
        };
        let mut others = tenants.all().await?;
        others.retain(|other| other.cache_dir != self.cache_dir);
        Ok(others)
    }

    /// What may go from this cache, up to `needed` bytes; none while somebody reads or extracts.
    async fn plan_eviction(&self, needed: u64, spared: HashSet<Digest>) -> Result<Option<Planned>> {
        let store = match self.shared.locks.use_alone(LOCK_WAIT, &self.output).await {
            Ok(store) => store,
            Err(Error::CacheInUse { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        self.plan_removal(store, needed, spared).await.map(Some)
    }

    /// The same under a lock that is held already. Without any need, only what nothing names and is old.
    pub(super) async fn plan_removal(
        &self,
        store: Held,
        needed: u64,
        spared: HashSet<Digest>,
    ) -> Result<Planned> {
        let entries = self
            .index
            .entries(&self.shared.layout, &self.output)
            .await?;
        let layout = self.shared.layout.clone();
        let of_a_tenant = self.shared.tenants.strong_count() > 0;
        let all = Arc::clone(&self.shared);
        let sweep = blocking(move || {
            let wanted = match needed {
                0 => 0,
                _ => needed.max(all.room.at_once(layout.root())),
            };
            plan(&layout, &entries, of_a_tenant, needed..=wanted, &spared)
        })
        .await?;
        Ok(Planned {
            cache: self.clone(),
            store,
            sweep,
        })
    }
}

/// As few images as will do for so many bytes, by powers of two: each attempt walks through the whole cache. Where there are not as
/// many as are wanted, the least of them will do.
fn plan(
    layout: &Layout,
    entries: &Entries,
    of_a_tenant: bool,
    bytes: RangeInclusive<u64>,
    spared: &HashSet<Digest>,
) -> Result<Sweep> {
    // Nothing of this changes while the lock is held.
    let found = scan(layout)?;
    let mut pinned = Pinned::read(layout)?;
    pinned.digests.extend(spared.iter().cloned());
    let evictable = evictable(&found, entries, of_a_tenant, &pinned);
    let attempt = |count: usize, grace| {
        let removal = Removal {
            doomed: evictable.iter().copied().take(count).collect(),
            grace,
        };
        Sweep::plan(layout, &found, entries, &pinned, &removal)
    };
    let mut count = 0;
    loop {
        let sweep = attempt(count, GRACE)?;
        let has_all = count >= evictable.len();
        if sweep.bytes() >= *bytes.end() || (has_all && sweep.bytes() >= *bytes.start()) {
            return Ok(sweep);
        }
        if has_all {
            break;
        }
        count = (count * 2).max(1);
    }
    // What a killed run left is worth less than what is asked for now.
    attempt(evictable.len(), Grace::nothing(false))
}

/// Positions of the images that may go, the longest unused first.
fn evictable(found: &Scan, entries: &Entries, of_a_tenant: bool, pinned: &Pinned) -> Vec<usize> {
    let mut evictable: Vec<usize> = (0..found.references.len())
        .filter(|position| {
            let reference = &found.references[*position];
            let name = &reference.name;
            // What the index does not know was being stored when its run was killed.
            let passes = entries
                .get(&index_key(&name.repository, &name.reference))
                .is_none_or(|entry| entry.may_leave(of_a_tenant));
            passes && !pinned.has(reference)
        })
        .collect();
    evictable.sort_by_key(|position| found.references[*position].modified);
    evictable
}
