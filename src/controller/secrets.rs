//! Reads the Secrets of a run, each by name and anew for every run (operator rules K12 and R2): no list, no watch, nothing
//! kept. What cannot be read is told by name and by the permission that is missing, never by content.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};

use crate::{error::Class, mirror::SecretDocument};

use super::{
    call::{CALL_LIMIT, CallError, within},
    engine::Failure,
    error::api_text,
};

/// Where Secrets come from.
pub(super) trait SecretSource: Send + Sync + 'static {
    /// Reads these Secrets of this namespace.
    fn read<'a>(
        &'a self,
        namespace: &'a str,
        names: &'a BTreeSet<String>,
    ) -> BoxFuture<'a, Result<BTreeMap<String, SecretDocument>, Failure>>;
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
        names: &'a BTreeSet<String>,
    ) -> BoxFuture<'a, Result<BTreeMap<String, SecretDocument>, Failure>> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        Box::pin(async move {
            let mut documents = BTreeMap::new();
            for name in names {
                let secret = within(CALL_LIMIT, api.get(name))
                    .await
                    .map_err(|error| failure(namespace, name, &error))?;
                documents.insert(name.clone(), document(name, secret));
            }
            Ok(documents)
        })
    }
}

fn document(name: &str, secret: Secret) -> SecretDocument {
    SecretDocument {
        name: name.to_owned(),
        kind: secret.type_.unwrap_or_default(),
        data: secret
            .data
            .unwrap_or_default()
            .into_iter()
            .map(|(key, value)| (key, value.0))
            .collect(),
    }
}

/// Why a Secret could not be read, as reason and words for the user.
fn failure(namespace: &str, name: &str, error: &CallError) -> Failure {
    let status = error.status();
    if status.is_some_and(kube::core::Status::is_not_found) {
        return Failure::new(
            "SecretNotFound",
            Class::NotFound,
            format!("Secret {name} does not exist in namespace {namespace}"),
        );
    }
    if status.is_some_and(kube::core::Status::is_forbidden) {
        return Failure::new(
            "AccessDenied",
            Class::Auth,
            format!(
                "the operator may not read Secret {name}: its ServiceAccount lacks the verb get on secrets in namespace \
                 {namespace}"
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
        format!("Secret {name} could not be read: {text}"),
    )
}
