//! Which blobs are known to be where: they are not asked about again, and another repository of the same registry can take
//! them from there.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::image::{Digest, RepositoryPath};

/// Blobs by the registry's address and their digest, with the repositories that have them.
#[derive(Debug, Default)]
pub(super) struct KnownBlobs(Mutex<HashMap<(String, Digest), Vec<RepositoryPath>>>);

impl KnownBlobs {
    /// Remembers that a repository has a blob.
    pub(super) fn note(&self, address: &str, repository: &RepositoryPath, digest: &Digest) {
        let mut known = self.0.lock();
        let repositories = known
            .entry((address.to_owned(), digest.clone()))
            .or_default();
        if !repositories.contains(repository) {
            repositories.push(repository.clone());
        }
    }

    /// Forgets what turned out to be wrong.
    pub(super) fn forget(&self, address: &str, repository: &RepositoryPath, digest: &Digest) {
        let mut known = self.0.lock();
        if let Some(repositories) = known.get_mut(&(address.to_owned(), digest.clone())) {
            repositories.retain(|there| there != repository);
        }
    }

    /// Whether a repository is known to have a blob.
    pub(super) fn has(&self, address: &str, repository: &RepositoryPath, digest: &Digest) -> bool {
        let known = self.0.lock();
        known
            .get(&(address.to_owned(), digest.clone()))
            .is_some_and(|repositories| repositories.contains(repository))
    }

    /// Another repository of the registry that has the blob.
    pub(super) fn elsewhere(
        &self,
        address: &str,
        repository: &RepositoryPath,
        digest: &Digest,
    ) -> Option<RepositoryPath> {
        let known = self.0.lock();
        let repositories = known.get(&(address.to_owned(), digest.clone()))?;
        repositories
            .iter()
            .find(|there| *there != repository)
            .cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_found_in_another_repository_of_the_same_registry_only() {
        let known = KnownBlobs::default();
        let (here, there) = ("team/a".parse().unwrap(), "team/b".parse().unwrap());
        let digest = Digest::of(b"x");
        known.note("https://r.example", &there, &digest);
        let elsewhere = |address| known.elsewhere(address, &here, &digest);
        assert_eq!(elsewhere("https://r.example"), Some(there.clone()));
        assert_eq!(elsewhere("https://other.example"), None);
        assert_eq!(known.elsewhere("https://r.example", &there, &digest), None);
        known.forget("https://r.example", &there, &digest);
        assert!(!known.has("https://r.example", &there, &digest));
        assert_eq!(elsewhere("https://r.example"), None);
    }
}
