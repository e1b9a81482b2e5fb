//! The client of one registry, and what its clones share.

use std::{
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use reqwest::Response;
use tokio::{runtime::Handle, task::JoinSet};
use url::Url;

use crate::{image::RepositoryPath, output::OutputManager};

use super::{
    Answer, Endpoint, Quota, Retry,
    account::{Account, AccountKey},
    auth::Auth,
    body,
    connect::{self, Client, ClientOptions},
    error::Result,
    hosts::Host,
    limiter::{Limiter, Slot},
    retry::LONGEST_WAIT,
    scope::{Access, Scope},
};

/// Every registry of the protocol's second version says so in each answer; other servers do not.
const API_VERSION_HEADER: &str = "docker-distribution-api-version";

/// Speaks to one registry with one credential. Clones are cheap and share connections, tokens and what was learned about the
/// registry.
#[derive(Debug, Clone)]
pub struct RegistryClient {
    pub(super) client: Client,
    pub(super) auth: Auth,
    pub(super) address: String,
    pub(super) output: OutputManager,
    pub(super) shared: Arc<Shared>,
}

/// What the clones of a client know together.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) endpoint: Endpoint,
    /// The root of the API.
    pub(super) base: Url,
    /// What all clients of this registry in this process know.
    pub(super) host: Arc<Host>,
    /// For whom connections are waited for.
    pub(super) tenant: Arc<str>,
    /// Who we are to the registry.
    pub(super) account_key: AccountKey,
    /// What those with this credential know.
    pub(super) account: Arc<Account>,
    retry_attempts: u32,
    /// Whether what answers is the registry of that name, whoever made the client.
    vouches: bool,
    /// Whether a registry was seen to answer there.
    is_reached: AtomicBool,
    /// Whether the registry was seen to name itself without its TLS.
    has_forgotten_tls: AtomicBool,
    /// What the registry said when it refused the login. A client lives for one run, which reads its Secrets anew.
    refused_login: OnceLock<Answer>,
    /// Requests that nobody waits for; each ends by itself within seconds.
    background: Mutex<JoinSet<()>>,
}

impl Shared {
    /// Remembers that what answers is a registry, so that later failures need no diagnosis.
    pub(super) fn note_answer(&self, response: &Response) {
        let is_registry = response.headers().contains_key(API_VERSION_HEADER)
            || (response.status().is_success() && !body::is_web_page(response));
        if is_registry {
            self.note_registry();
        }
    }

    /// The same, from a body that only a registry sends.
    pub(super) fn note_registry(&self) {
        self.is_reached.store(true, Ordering::Relaxed);
    }

    /// Remembers that the registry names itself without TLS; whether that is news.
    pub(super) fn note_forgotten_tls(&self) -> bool {
        !self.has_forgotten_tls.swap(true, Ordering::Relaxed)
    }

    pub(super) fn note_refused_login(&self, answer: &Answer) {
        self.refused_login.get_or_init(|| answer.clone());
    }

    pub(super) fn refused_login(&self) -> Option<Answer> {
        self.refused_login.get().cloned()
    }

    pub(super) fn is_reached(&self) -> bool {
        self.is_reached.load(Ordering::Relaxed)
    }

    /// Waits until the registry may be asked again, if that is soon. What is left of the wait where it is not.
    pub(super) async fn reopened(&self) -> Duration {
        loop {
            let remaining = self.closed_for();
            if remaining.is_zero() || remaining > LONGEST_WAIT {
                return remaining;
            }
            // Meanwhile somebody else may have been sent away for longer.
            tokio::time::sleep(remaining).await;
        }
    }

    /// Waits for a connection at a time when the registry may be asked: whoever has to wait anyway leaves the connections to
    /// others, whose account may be a more welcome one.
    pub(super) async fn slot(&self, limiter: &Limiter) -> Slot {
        loop {
            self.reopened().await;
            let slot = limiter.slot(&self.tenant).await;
            let remaining = self.closed_for();
            if remaining.is_zero() || remaining > LONGEST_WAIT {
                return slot;
            }
        }
    }

    fn closed_for(&self) -> Duration {
        let (host, account) = (&self.host.gate, &self.account.gate);
        host.remaining().max(account.remaining())
    }

    /// Does something that nobody waits for. Without a runtime it is left out.
    pub(super) fn in_background(&self, work: impl Future<Output = ()> + Send + 'static) {
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let mut tasks = self
            .background
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn_on(work, &runtime);
    }
}

impl RegistryClient {
    /// A client for the registry at `endpoint`. Nothing is sent before the first operation.
    ///
    /// # Errors
    /// When the certificates cannot be used, or when there are none at all to trust.
    pub fn new(endpoint: Endpoint, options: ClientOptions, output: OutputManager) -> Result<Self> {
        let vouches = !endpoint.is_plain_http() && options.is_everybodys();
        let client = connect::build(&endpoint, &options)?;
        let base = endpoint.base_url()?;
        let host = options.hosts.host(&endpoint, &options);
        let account_key = AccountKey::of(&options.credential);
        let account = host.account(account_key.clone());
        let auth = Auth::new(
            client.clone(),
            base.clone(),
            options.credential,
            options.credential_source,
        );
        let address = endpoint.to_string();
        let shared = Shared {
            endpoint,
            base,
            host,
            tenant: options.tenant,
            account_key,
            account,
            retry_attempts: options.retry_attempts,
            vouches,
            is_reached: AtomicBool::new(false),
            has_forgotten_tls: AtomicBool::new(false),
            refused_login: OnceLock::new(),
            background: Mutex::default(),
        };
        Ok(Self {
            client,
            auth,
            address,
            output,
            shared: Arc::new(shared),
        })
    }

    /// Where the registry answers.
    pub fn endpoint(&self) -> &Endpoint {
        &self.shared.endpoint
    }

    /// What a blob of `repository` comes from, where that is no matter of whoever made this client: over TLS that the program's
    /// own certificate authorities vouch for, and through no proxy of the caller's choice. Else nothing (archive reference 5.7).
    pub fn origin(&self, repository: &RepositoryPath) -> Option<String> {
        let Shared { endpoint, .. } = &*self.shared;
        let name = || format!("{endpoint}/{}", endpoint.name_of(repository));
        self.shared.vouches.then(name)
    }

    /// The endpoint as text.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The same client with a token to begin with. When the registry refuses it, a token is negotiated as usual.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self {
            auth: self.auth.with_seed(token),
            ..self.clone()
        }
    }

    /// The same client, speaking to another listener. Connections, tokens and limits stay shared: many runs may use one
    /// client.
    #[must_use]
    pub fn with_output(&self, output: OutputManager) -> Self {
        Self {
            output,
            ..self.clone()
        }
    }

    /// How often the registry may still be asked, as it last said; nothing for one that has no such limit. The answer holds
    /// for the credential of this client (registry rule R3).
    pub fn quota(&self) -> Option<Quota> {
        self.shared.account.quota()
    }

    /// Counts the failures of one operation; also for those that read a body themselves and begin again.
    pub fn retry(&self) -> Retry {
        Retry::new(self.shared.retry_attempts)
    }

    /// The seed's token where one is given, else what is negotiated.
    pub(super) fn with_optional_token(&self, token: Option<&str>) -> Self {
        token.map_or_else(|| self.clone(), |token| self.with_token(token))
    }

    /// What a request on a repository needs.
    pub(super) fn scope(&self, repository: &RepositoryPath, access: Access) -> Scope {
        Scope {
            repository: self.shared.endpoint.name_of(repository),
            access,
            source: None,
        }
    }

    /// The URL of something in a repository.
    pub(super) fn url(&self, repository: &RepositoryPath, rest: &str) -> Url {
        let name = self.shared.endpoint.name_of(repository);
        let mut url = self.shared.base.clone();
        url.set_path(&format!("/v2/{name}/{rest}"));
        url
    }
}

#[cfg(test)]
mod tests {
    use crate::registry::testing::{
        client_at, descriptor, manifest, repository, tag, upload_progress,
    };
    use crate::registry::{BlobSource, BlobUpload, ClientOptions, Credential, Endpoint};

    /// Only has to compile: the work is spread over threads.
    #[test]
    fn every_operation_can_run_on_any_thread() {
        fn check<T: Send>(_: T) {}
        let client = client_at("https://r.example", ClientOptions::default());
        let source = BlobSource::open(std::path::Path::new("/dev/null")).unwrap();
        let (repository, tag, blob, progress) =
            (repository(), tag(), descriptor(b""), upload_progress());
        check(client.head_manifest(&repository, &tag));
        check(client.find_manifest(&repository, &tag));
        check(client.get_manifest(&repository, &tag));
        check(client.upload_manifest_with_token(&repository, &tag, &manifest(), None));
        check(client.has_blob(&repository, &blob));
        let upload = BlobUpload {
            repository: &repository,
            descriptor: &blob,
            source: &source,
            progress: &progress,
            mount_from: Some(&repository),
            notes: None,
        };
        check(client.upload_blob_with_token(&upload, None));
        let download = client.blob_download(&repository, &blob);
        check(download.range(0..1));
        check(download.decoded());
        check(client.list_tags(&repository));
    }

    #[test]
    fn no_debug_output_of_a_client_shows_its_credential() {
        let options = ClientOptions {
            credential: Credential::from_login("me".to_owned(), "hunter2".into()),
            ..ClientOptions::default()
        };
        assert!(!format!("{options:?}").contains("hunter2"));
        let client = client_at("https://r.example", options).with_token("hunter2");
        assert_eq!(*client.endpoint(), Endpoint::parse("r.example").unwrap());
        assert!(!format!("{client:?}").contains("hunter2"));
    }
}
