//! A scripted registry in memory. Without faults it is a correct one by the distribution specification 1.1, with the optional
//! signals that came after it; each [`Fault`] makes it behave as some registry of the world does (registry reference, X1, X2).
//! Several can run side by side: a source, a target, a token service, a storage, an evil one.
//!
//! Start with [`FakeRegistry`]; what was asked is in [`Seen`], what goes wrong in `fault.rs`.
#![allow(
    unused_imports,
    reason = "what a fake registry offers is used by some test binaries only"
)]

mod auth;
mod blobs;
mod call;
mod content;
mod fault;
mod lists;
mod log;
mod manifests;
mod reply;
mod rule;
mod samples;
mod server;
mod storage;
mod uploads;

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use super::Result;
use super::registry::Access;

pub use auth::{Login, QUOTED_SERVICE, SERVICE};
pub use content::Content;
pub use fault::{
    ChallengeForm, ContentType, DigestHeader, ErrorBody, Fault, Location, Lost, Packed,
    RangeAnswer, RetryAfter, Step, StorageTrouble, TagList, TokenForm, UploadRange, WrongBlob,
};
pub use log::Seen;
pub use rule::Rule;
pub use samples::Sample;
pub use storage::{Document, Storage};

use auth::Accounts;
use log::Log;
use server::{Server, Tls};
use uploads::Uploads;

/// A running fake registry.
#[derive(Debug)]
pub struct FakeRegistry {
    server: Server,
    state: Arc<State>,
    tls: Option<Tls>,
}

/// How a fake registry shall be reached, and by whom.
#[derive(Debug, Clone, Default)]
pub struct FakeBuilder {
    address: Option<Ipv4Addr>,
    tls: bool,
    login: Option<Login>,
    world: Option<Arc<World>>,
}

/// What servers that belong together share: a registry, its storage, its token service.
#[derive(Debug, Default)]
struct World {
    storage: Mutex<Storage>,
    accounts: Mutex<Accounts>,
    uploads: Mutex<Uploads>,
    /// How often each signed URL was used.
    signatures: Mutex<HashMap<String, usize>>,
    /// Blobs that are being committed, with their repository.
    commits: Mutex<HashSet<(String, String)>>,
}

impl World {
    fn storage(&self) -> MutexGuard<'_, Storage> {
        lock(&self.storage)
    }

    fn accounts(&self) -> MutexGuard<'_, Accounts> {
        lock(&self.accounts)
    }

    fn uploads(&self) -> MutexGuard<'_, Uploads> {
        lock(&self.uploads)
    }
}

#[derive(Debug)]
struct State {
    world: Arc<World>,
    rules: Mutex<Vec<Rule>>,
    log: Log,
    /// Scheme, host and port.
    url: OnceLock<String>,
    is_tls: bool,
    asks_for_login: bool,
    manifests_read: AtomicUsize,
    transfers: AtomicUsize,
}

impl FakeRegistry {
    /// Plain http on loopback, nobody has to log in.
    pub fn start() -> Result<Self> {
        Self::builder().start()
    }

    pub fn builder() -> FakeBuilder {
        FakeBuilder::default()
    }

    /// One more server of the same registry, without login: its storage, or its token service.
    pub fn beside(&self) -> Result<Self> {
        self.beside_builder().start()
    }

    pub fn beside_builder(&self) -> FakeBuilder {
        FakeBuilder {
            world: Some(Arc::clone(&self.state.world)),
            ..FakeBuilder::default()
        }
    }

    /// The same registry with one more fault.
    #[must_use]
    pub fn with(self, rule: impl Into<Rule>) -> Self {
        self.add(rule);
        self
    }

    /// Adds a fault while it runs.
    pub fn add(&self, rule: impl Into<Rule>) {
        lock(&self.state.rules).push(rule.into());
    }

    /// Ends all faults.
    pub fn heal(&self) {
        lock(&self.state.rules).clear();
    }

    /// `127.0.0.1:PORT`, or where it was told to listen.
    pub fn address(&self) -> String {
        self.server.address.to_string()
    }

    /// Scheme, host and port.
    pub fn url(&self) -> String {
        self.state.url.get().cloned().unwrap_or_default()
    }

    /// The CA's certificate, with TLS.
    pub fn ca_pem(&self) -> Option<&str> {
        self.tls.as_ref().map(|tls| tls.ca_pem.as_str())
    }

    /// How skopeo gets there, without TLS.
    pub fn access(&self) -> Access {
        let login = self.state.world.accounts().login.clone();
        Access {
            address: self.address(),
            certificates: None,
            credentials: login.map(|login| (login.user, login.password)),
        }
    }

    /// Puts an image there, as if somebody had pushed it.
    pub fn put(&self, repository: &str, tag: &str, sample: &Sample) {
        let mut storage = self.state.world.storage();
        let repository = storage.repository(repository);
        for (digest, content) in &sample.blobs {
            repository.blobs.insert(digest.clone(), content.clone());
        }
        for (digest, document) in sample.manifests.iter().chain([&sample.root]) {
            repository
                .manifests
                .insert(digest.clone(), document.clone());
        }
        repository
            .tags
            .insert(tag.to_owned(), sample.root.0.clone());
    }

    /// Puts one manifest there under a tag, whatever it names.
    pub fn put_document(&self, repository: &str, tag: &str, document: Document) -> String {
        let digest = Content::new(document.bytes.clone()).digest();
        let mut storage = self.state.world.storage();
        let repository = storage.repository(repository);
        repository.manifests.insert(digest.clone(), document);
        repository.tags.insert(tag.to_owned(), digest.clone());
        digest
    }

    /// One more name for what a tag stands for.
    pub fn put_tags(&self, repository: &str, of: &str, tags: impl IntoIterator<Item = String>) {
        let mut storage = self.state.world.storage();
        let repository = storage.repository(repository);
        let Some(digest) = repository.tags.get(of).cloned() else {
            return;
        };
        for tag in tags {
            repository.tags.insert(tag, digest.clone());
        }
    }

    pub fn put_blob(&self, repository: &str, content: &Content) -> String {
        let digest = content.digest();
        let mut storage = self.state.world.storage();
        let blobs = &mut storage.repository(repository).blobs;
        blobs.insert(digest.clone(), content.clone());
        digest
    }

    pub fn remove_blob(&self, repository: &str, digest: &str) {
        let mut storage = self.state.world.storage();
        storage.repository(repository).blobs.remove(digest);
    }

    /// A manifest by tag or digest.
    pub fn manifest(&self, repository: &str, reference: &str) -> Option<Document> {
        let storage = self.state.world.storage();
        let (_, document) = storage.find(repository)?.manifest(reference)?;
        Some(document)
    }

    pub fn has_blob(&self, repository: &str, digest: &str) -> bool {
        let storage = self.state.world.storage();
        storage
            .find(repository)
            .is_some_and(|repository| repository.blobs.contains_key(digest))
    }

    pub fn tags(&self, repository: &str) -> Vec<String> {
        let storage = self.state.world.storage();
        let repository = storage.find(repository);
        repository.map_or_else(Vec::new, |repository| {
            repository.tags.keys().cloned().collect()
        })
    }

    /// What is missing or other than in the sample, as a sentence; nothing when the whole image is there, byte for byte.
    pub fn difference(&self, repository: &str, tag: &str, sample: &Sample) -> Option<String> {
        let storage = self.state.world.storage();
        let Some(found) = storage.find(repository) else {
            return Some(format!("there is no repository {repository}"));
        };
        let Some((digest, document)) = found.manifest(tag) else {
            return Some(format!("there is no tag {tag}"));
        };
        let (expected, root) = &sample.root;
        if document.bytes != root.bytes || document.media_type != root.media_type {
            return Some(format!(
                "{tag} is {digest}, not {expected}, or of another type"
            ));
        }
        for (digest, document) in &sample.manifests {
            if found.manifests.get(digest) != Some(document) {
                return Some(format!("manifest {digest} is missing or another one"));
            }
        }
        let travelling = sample
            .blobs
            .iter()
            .filter(|(digest, _)| !sample.staying.contains(digest));
        for (digest, content) in travelling {
            let Some(there) = found.blobs.get(digest) else {
                return Some(format!("blob {digest} is missing"));
            };
            let algorithm = digest.split(':').next().unwrap_or_default();
            if there.digest_with(algorithm) != *digest || there.size() != content.size() {
                return Some(format!("blob {digest} is another one"));
            }
        }
        None
    }

    /// Everything since the start or the last [`FakeRegistry::forget`], in the order of arrival.
    pub fn requests(&self) -> Vec<Seen> {
        self.state.log.all()
    }

    /// The requests of one step.
    pub fn of_step(&self, step: Step) -> Vec<Seen> {
        let mut seen = self.requests();
        seen.retain(|seen| seen.step == step);
        seen
    }

    pub fn count(&self, step: Step) -> usize {
        self.of_step(step).len()
    }

    /// Empties the log.
    pub fn forget(&self) {
        self.state.log.clear();
    }

    /// Bytes of bodies that were sent in this step.
    pub fn answer_bytes(&self, step: Step) -> u64 {
        self.of_step(step)
            .iter()
            .map(|seen| seen.answer_bytes)
            .sum()
    }

    /// How many requests of these steps were under way at one moment.
    pub fn max_overlap(&self, steps: &[Step]) -> usize {
        let mut seen = self.requests();
        seen.retain(|seen| steps.contains(&seen.step));
        let at = |moment: Instant| {
            seen.iter()
                .filter(|one| one.started <= moment && one.ended.is_none_or(|end| end > moment))
                .count()
        };
        seen.iter().map(|one| at(one.started)).max().unwrap_or(0)
    }

    /// Every token that was given out, and the password: what a stranger must not see.
    pub fn secrets(&self) -> Vec<String> {
        let accounts = self.state.world.accounts();
        let password = accounts
            .login
            .iter()
            .flat_map(|login| [login.password.clone(), login.identity_token.clone()]);
        accounts.tokens().into_iter().chain(password).collect()
    }

    pub fn change_password(&self, password: &str) {
        if let Some(login) = &mut self.state.world.accounts().login {
            password.clone_into(&mut login.password);
        }
    }
}

impl FakeBuilder {
    /// Listens at this address of the machine instead of loopback.
    #[must_use]
    pub fn at(mut self, address: Ipv4Addr) -> Self {
        self.address = Some(address);
        self
    }

    #[must_use]
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    #[must_use]
    pub fn login(mut self, login: Login) -> Self {
        self.login = Some(login);
        self
    }

    pub fn start(self) -> Result<FakeRegistry> {
        let address = self.address.unwrap_or(Ipv4Addr::LOCALHOST);
        let tls = self.tls.then(|| Tls::new(address)).transpose()?;
        let world = self.world.unwrap_or_default();
        let asks_for_login = self.login.is_some();
        if let Some(login) = self.login {
            world.accounts().login = Some(login);
        }
        let state = Arc::new(State {
            world,
            rules: Mutex::default(),
            log: Log::default(),
            url: OnceLock::new(),
            is_tls: tls.is_some(),
            asks_for_login,
            manifests_read: AtomicUsize::new(0),
            transfers: AtomicUsize::new(0),
        });
        let shared = Arc::clone(&state);
        let server = Server::start(address, tls.clone(), move |request, connection| {
            let state = Arc::clone(&shared);
            async move { state.handle(request, connection).await }
        })?;
        let scheme = if state.is_tls { "https" } else { "http" };
        state
            .url
            .get_or_init(|| format!("{scheme}://{}", server.address));
        Ok(FakeRegistry { server, state, tls })
    }
}

/// What is behind these locks stays whole even if a holder panics: entries are only added, removed or replaced.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
