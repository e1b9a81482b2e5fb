//! One holder per key: two tasks that want the same blob do not both move it, two that write one list of referrers do not
//! lose an entry.

use std::{collections::HashMap, hash::Hash, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// Locks by key, made when asked for and forgotten when nobody holds or awaits them.
#[derive(Debug)]
pub(crate) struct KeyedLock<K> {
    locks: Mutex<HashMap<K, Arc<AsyncMutex<()>>>>,
}

impl<K> Default for KeyedLock<K> {
    fn default() -> Self {
        Self {
            locks: Mutex::default(),
        }
    }
}

impl<K: Eq + Hash + Clone> KeyedLock<K> {
    /// Waits until nobody else holds `key`.
    pub(crate) async fn lock(&self, key: &K) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock();
            // Counted under the map's own lock: nobody can pick one up while it is being dropped here.
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(locks.entry(key.clone()).or_default())
        };
        lock.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::join_all;

    use super::*;

    #[tokio::test]
    async fn one_key_has_one_holder_and_other_keys_do_not_wait() {
        let lock = KeyedLock::default();
        let holders = AtomicUsize::new(0);
        let other = lock.lock(&"other").await;
        join_all((0..8).map(|_| async {
            let _guard = lock.lock(&"key").await;
            assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0);
            tokio::task::yield_now().await;
            holders.fetch_sub(1, Ordering::SeqCst);
        }))
        .await;
        drop(other);
        drop(lock.lock(&"last").await);
        assert_eq!(lock.locks.lock().len(), 1);
    }
}
