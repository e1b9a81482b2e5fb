//! What one process knows about the registries it speaks to, shared by all clients of one registry: when it may be asked
//! again, how many connections it bears, which kind of upload it takes.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    account::{Account, AccountKey},
    connect::ClientOptions,
    endpoint::Endpoint,
    gate::Gate,
    limiter::Limiter,
    notice::Notices,
    quirks::Quirks,
    upload::ladder::Ladder,
};
use crate::{
    image::{Digest, RepositoryPath},
    keyed_lock::KeyedLock,
};

/// Above so many registries, those that nobody speaks to are forgotten when another one comes: ways through proxies and
/// authorities of tenants come and go for as long as the operator runs.
const HOST_LIMIT: usize = 1024;

/// The registries a process speaks to. Clones share what they know; one value is made at start and handed to every client.
#[derive(Debug, Clone, Default)]
pub struct Hosts(Arc<Mutex<HashMap<HostKey, Arc<Host>>>>);

/// One registry, as reached in one way: what a tenant's own proxy, or a server behind a certificate of the tenant's own, says
/// about a registry must not slow the others down.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct HostKey {
    endpoint: Endpoint,
    /// A fingerprint of what the way there depends on; none for the usual way.
    way: Option<Digest>,
}

/// What is known of one registry.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) gate: Gate,
    /// Which kind of upload the registry takes.
    pub(super) ladder: Ladder,
    /// Who writes which list of referrers: that of a subject in a repository (registry rule T6).
    pub(super) referrers: KeyedLock<(RepositoryPath, Digest)>,
    /// Whether the registry was seen to keep lists of referrers itself.
    takes_subjects: AtomicBool,
    /// Whether the last part of a blob that was asked for came as such, and came from the registry itself.
    gives_ranges: AtomicBool,
    gives_itself: AtomicBool,
    /// Connections that bring the bytes of blobs.
    pub(super) downloads: Limiter,
    /// Connections that take them. They are apart, since an upload may hold its connection while it waits for the download
    /// that it follows: within one registry neither would ever end if both waited for the same ones.
    pub(super) uploads: Limiter,
    pub(super) notices: Notices,
    accounts: Mutex<HashMap<AccountKey, Arc<Account>>>,
}

impl Host {
    fn new(endpoint: &Endpoint) -> Self {
        let quirks = Quirks::of(endpoint.host());
        Self {
            gate: Gate::default(),
            ladder: Ladder::new(quirks.largest_chunk),
            referrers: KeyedLock::default(),
            takes_subjects: AtomicBool::new(false),
            gives_ranges: AtomicBool::new(false),
            gives_itself: AtomicBool::new(false),
            downloads: Limiter::new(quirks.connections),
            uploads: Limiter::new(quirks.connections),
            notices: Notices::default(),
            accounts: Mutex::default(),
        }
    }

    /// What is known of an account.
    pub(super) fn account(&self, key: AccountKey) -> Arc<Account> {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        // Logins that are made anew every few hours would pile up.
        accounts.retain(|_, account| {
            Arc::strong_count(account) > 1 || !account.gate.remaining().is_zero()
        });
        let account = accounts.entry(key).or_default();
        Arc::clone(account)
    }

    /// Remembers what came when a part of a blob was asked for: a part or not, from the registry itself or from a storage.
    pub(super) fn note_ranges(&self, given: bool, by_itself: bool) {
        self.gives_ranges.store(given, Ordering::Relaxed);
        self.gives_itself.store(by_itself, Ordering::Relaxed);
    }

    /// Whether the registry's blobs come in parts: the next one need not try with one part first (registry rule D9).
    pub(super) fn gives_ranges(&self) -> bool {
        self.gives_ranges.load(Ordering::Relaxed)
    }

    /// Whether they come from the registry itself: then there is no place to be found before many ask there.
    pub(super) fn gives_itself(&self) -> bool {
        self.gives_itself.load(Ordering::Relaxed)
    }

    /// Remembers that the registry keeps lists of referrers itself.
    pub(super) fn note_subjects(&self) {
        self.takes_subjects.store(true, Ordering::Relaxed);
    }

    /// Whether the registry was seen to keep lists of referrers itself.
    pub(super) fn takes_subjects(&self) -> bool {
        self.takes_subjects.load(Ordering::Relaxed)
    }
}

impl Hosts {
    /// What is known of the registry that a client with these options reaches.
    pub(super) fn host(&self, endpoint: &Endpoint, options: &ClientOptions) -> Arc<Host> {
        let key = HostKey {
            endpoint: endpoint.clone(),
            way: way(options),
        };
        // Entries are inserted whole: a panic elsewhere leaves the map as good as before.
        let mut hosts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // What was learned outlasts the runs that learned it: a pause is mostly longer than what it ended.
        if hosts.len() >= HOST_LIMIT && !hosts.contains_key(&key) {
            hosts.retain(|_, host| Arc::strong_count(host) > 1);
        }
        let host = hosts
            .entry(key)
            .or_insert_with(|| Arc::new(Host::new(endpoint)));
        Arc::clone(host)
    }
}

/// Whatever makes the way to a registry another one than everybody's.
fn way(options: &ClientOptions) -> Option<Digest> {
    (!options.is_everybodys()).then(|| {
        let mut text = format!("{:?} {}", options.proxy, options.skip_tls_verify).into_bytes();
        text.extend(options.ca_certificates.iter().flatten());
        Digest::of(&text)
    })
}
