//! For whose sake images are in the cache: what decides which of them leave when room is needed.

use std::{collections::HashSet, sync::Arc};

use crate::image::{ImageName, Reference, Repository};

use super::{Cache, entry::CacheEntry, index::Change, layout::index_key};

/// Why an image is brought into the cache.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Keep {
    /// Somebody wants to have it here, until it is cleaned by name.
    #[default]
    OnRequest,
    /// It is here for the sake of this owner, until [`Cache::keep_only`] says that it is not.
    For(Arc<str>),
    /// It is on its way to other places.
    Passing,
}

impl Keep {
    /// Notes it in the entry of an image.
    pub(super) fn note(&self, entry: &mut CacheEntry) {
        entry.transit = *self != Self::OnRequest;
        entry.kept_by = match self {
            Self::For(owner) => vec![owner.to_string()],
            Self::OnRequest | Self::Passing => Vec::new(),
        };
    }

    /// Whether an entry says it already.
    fn is_noted(&self, entry: &CacheEntry) -> bool {
        match self {
            Self::OnRequest => !entry.transit,
            Self::For(owner) => entry.kept_by.iter().any(|known| **known == **owner),
            Self::Passing => true,
        }
    }
}

impl CacheEntry {
    /// Whether the image may leave when its room is needed. In a cache of a tenant all that stays has an owner.
    pub(super) fn may_leave(&self, of_a_tenant: bool) -> bool {
        !self.child && self.kept_by.is_empty() && (self.transit || of_a_tenant)
    }

    /// Ends what an owner wanted; tells whether that was anything.
    pub(super) fn release(&mut self, owner: &str) -> bool {
        let before = self.kept_by.len();
        self.kept_by.retain(|known| known != owner);
        self.kept_by.len() < before
    }
}

impl Cache {
    /// The same cache, for who brings images for this reason.
    #[must_use]
    pub fn keeping(&self, keep: Keep) -> Self {
        Self {
            keep,
            ..self.clone()
        }
    }

    /// Whether the image is known to be here for the reason that this handle has.
    pub async fn keeps(&self, repository: &Repository, reference: &Reference) -> bool {
        // Whatever the entry says.
        if self.keep == Keep::Passing {
            return true;
        }
        let entry = self.entry(repository, reference).await;
        entry.is_some_and(|entry| self.keep.is_noted(&entry))
    }

    /// Ends the wish of an owner for all images but these.
    pub async fn keep_only(&self, owner: &str, names: &[ImageName]) {
        let wanted: HashSet<String> = names
            .iter()
            .map(|name| index_key(&name.repository, &name.reference))
            .collect();
        let is_released = |key: &String, entry: &CacheEntry| {
            !wanted.contains(key) && entry.kept_by.iter().any(|known| known == owner)
        };
        let (layout, output) = (&self.shared.layout, &self.output);
        let released = match self.index.keys(layout, output, is_released).await {
            Ok(released) => released.into_iter(),
            Err(error) => return self.warn_of_the_index(&error),
        };
        let changes: Vec<_> = released
            .map(|key| Change::Release {
                key,
                owner: owner.to_owned(),
            })
            .collect();
        if !changes.is_empty() {
            self.update_index(changes).await;
        }
    }
}
