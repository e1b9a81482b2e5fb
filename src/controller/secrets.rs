//! Reads the Secrets of a run, each by name and anew for every run (operator rules K12 and R2): no list, no watch, nothing
//! kept. What cannot be read is told by name and by the permission that is missing, never by content.

use std::{collections::BTreeMap, fmt, sync::Arc};

use futures::{FutureExt as _, future::BoxFuture};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::{Api, Client};

use crate::{
    error::Class,
    mirror::{ONLY_REGISTRY, SecretDocument, SecretReader, is_object_name},
};

use super::{
    call::{CALL_LIMIT, CallError, within},
    engine::{Failure, Given, Needs},
    error::api_text,
};

/// Where Secrets come from.
pub(super) trait SecretSource: Send + Sync + 'static {
    /// Reads what a run in this namespace needs.
    fn read<'a>(
        &'a self,
        namespace: &'a str,
        needs: &'a Needs,
    ) -> BoxFuture<'a, Result<Given, Failure>>;
}

/// The Secrets of the cluster.
pub(super) struct ClusterSecrets {
    client: Client,
}

impl ClusterSecrets {
    pub(super) const fn new(client: Client) -> Self {
        Self { client }
    }
}

impl SecretSource for ClusterSecrets {
    fn read<'a>(
        &'a self,
        namespace: &'a str,
        needs: &'a Needs,
    ) -> BoxFuture<'a, Result<Given, Failure>> {
        let reader = Reader {
            namespace: namespace.to_owned(),
            secrets: Api::namespaced(self.client.clone(), namespace),
            accounts: Api::namespaced(self.client.clone(), namespace),
        };
        async move {
            let given = reader.read(needs).await?;
            // A run may outlast its logins; it reads them again in its own namespace only (registry rule A20).
            Ok(Given {
                reader: Some(Arc::new(reader)),
                ..given
            })
        }
        .boxed()
    }
}

/// Reads in one namespace.
struct Reader {
    namespace: String,
    secrets: Api<Secret>,
    accounts: Api<ServiceAccount>,
}

impl fmt::Debug for Reader {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Reader")
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

impl SecretReader for Reader {
    fn secret<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Option<SecretDocument>> {
        async move { told(Self::secret(self, name).await) }.boxed()
    }

    fn pull_secrets<'a>(&'a self, account: &'a str) -> BoxFuture<'a, Option<Vec<SecretDocument>>> {
        async move {
            let mut known = BTreeMap::new();
            told(Self::pull_secrets(self, account, &mut known).await)
        }
        .boxed()
    }
}

/// What was read. The run fails by what the registry said; why no other login was found stands in the log.
fn told<T>(read: Result<T, Failure>) -> Option<T> {
    read.inspect_err(|failure| {
        tracing::warn!("a refused login is not read again: {}", failure.message);
    })
    .ok()
}

impl Reader {
    async fn read(&self, needs: &Needs) -> Result<Given, Failure> {
        let mut given = Given::default();
        for name in &needs.secrets {
            let document = self.secret(name).await?;
            given.secrets.insert(name.clone(), document);
        }
        // Accounts of one namespace mostly name the same Secrets.
        let mut known = BTreeMap::new();
        for account in &needs.accounts {
            let documents = self.pull_secrets(account, &mut known).await?;
            given.pull_secrets.insert(account.clone(), documents);
        }
        Ok(given)
    }

    async fn secret(&self, name: &str) -> Result<SecretDocument, Failure> {
        match within(CALL_LIMIT, self.secrets.get(name)).await {
            Ok(secret) => Ok(document(name, secret)),
            Err(error) => Err(self.failure(Kind::Secret, name, &error)),
        }
    }

    /// The imagePullSecrets of an account. As for the kubelet, one that does not exist is as good as not named.
    async fn pull_secrets(
        &self,
        account: &str,
        known: &mut BTreeMap<String, Option<SecretDocument>>,
    ) -> Result<Vec<SecretDocument>, Failure> {
        let answer = within(CALL_LIMIT, self.accounts.get(account)).await;
        let answer = answer.map_err(|error| self.failure(Kind::Account, account, &error))?;
        let mut documents = Vec::new();
        for reference in answer.image_pull_secrets.unwrap_or_default() {
            let name = reference.name;
            // The API server lets any text through here, and it becomes part of a path (operator rule R5).
            if !is_object_name(&name) {
                continue;
            }
            if !known.contains_key(&name) {
                let document = self.pull_secret(&name).await?;
                known.insert(name.clone(), document);
            }
            documents.extend(known.get(&name).cloned().flatten());
        }
        Ok(documents)
    }

    async fn pull_secret(&self, name: &str) -> Result<Option<SecretDocument>, Failure> {
        match within(CALL_LIMIT, self.secrets.get(name)).await {
            Ok(secret) => Ok(Some(document(name, secret))),
            Err(error) if is_not_found(&error) => Ok(None),
            Err(error) => Err(self.failure(Kind::Secret, name, &error)),
        }
    }

    /// Why an object could not be read, as reason and words for the user.
    fn failure(&self, kind: Kind, name: &str, error: &CallError) -> Failure {
        let Words {
            noun,
            resource,
            missing,
        } = kind.words();
        let namespace = &self.namespace;
        if is_not_found(error) {
            return Failure::new(
                missing,
                Class::NotFound,
                format!("{noun} {name} does not exist in namespace {namespace}"),
            );
        }
        if error.status().is_some_and(kube::core::Status::is_forbidden) {
            return Failure::new(
                "AccessDenied",
                Class::Auth,
                format!(
                    "the operator may not read {noun} {name}: its ServiceAccount lacks the verb get on {resource} in \
                     namespace {namespace}"
                ),
            );
        }
        let text = match error {
            CallError::Refused(error) => api_text(error),
            CallError::Silent(_) => error.to_string(),
        };
        Failure::new(
            "ApiServerUnavailable",
            Class::Network,
            format!("{noun} {name} could not be read: {text}"),
        )
    }
}

/// What kind of object is read.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Secret,
    Account,
}

/// How failures speak of a kind.
struct Words {
    noun: &'static str,
    resource: &'static str,
    /// The reason where it is missing.
    missing: &'static str,
}

impl Kind {
    const fn words(self) -> Words {
        match self {
            Self::Secret => Words {
                noun: "Secret",
                resource: "secrets",
                missing: "SecretNotFound",
            },
            Self::Account => Words {
                noun: "ServiceAccount",
                resource: "serviceaccounts",
                missing: "ServiceAccountNotFound",
            },
        }
    }
}

fn is_not_found(error: &CallError) -> bool {
    error.status().is_some_and(kube::core::Status::is_not_found)
}

fn document(name: &str, secret: Secret) -> SecretDocument {
    let annotations = secret.metadata.annotations.unwrap_or_default();
    SecretDocument {
        name: name.to_owned(),
        kind: secret.type_.unwrap_or_default(),
        registry: annotations.get(ONLY_REGISTRY).cloned(),
        data: secret
            .data
            .unwrap_or_default()
            .into_iter()
            .map(|(key, value)| (key, value.0))
            .collect(),
    }
}
