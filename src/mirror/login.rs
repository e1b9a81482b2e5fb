//! Who a mirror is to its registries: the login in its Secrets, and in them again once a registry refuses it.

use std::{fmt, sync::Arc};

use futures::{FutureExt, future::BoxFuture};

use crate::{
    error::handlers,
    image::{Host, RepositoryPath},
    output::OutputManager,
    registry::{self, Credential, CredentialSource, Login},
};

use super::{Error, Given, Result, SecretDocument, access::RegistryAccess, secret::NamedSecret};

/// Reads the Secrets of the mirror's namespace while a run goes on (registry rule A20).
pub trait SecretReader: Send + Sync + fmt::Debug {
    /// The Secret as it is now; nothing when it cannot be read, which is told by whoever reads.
    fn secret<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Option<SecretDocument>>;
    /// The imagePullSecrets that a ServiceAccount has now.
    fn pull_secrets<'a>(&'a self, account: &'a str) -> BoxFuture<'a, Option<Vec<SecretDocument>>>;
}

/// Finds the login for a repository outside of all Secrets: on the command line, among those of docker and podman.
#[derive(Clone)]
pub struct Logins(Arc<Finder>);

/// The login for a repository, if there is one.
type Finder = dyn Fn(&Host, &RepositoryPath) -> registry::Result<Option<Login>> + Send + Sync;

impl Logins {
    /// Logins that `find` knows.
    pub fn new(
        find: impl Fn(&Host, &RepositoryPath) -> registry::Result<Option<Login>> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(find))
    }
}

impl fmt::Debug for Logins {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Logins")
    }
}

impl RegistryAccess {
    /// The login for this registry. That of Secrets that may change meanwhile is looked for there again when it is refused.
    pub(super) fn login(&self, given: &Given, output: &OutputManager) -> Result<Login> {
        let credential = match (&self.how.service_account, &self.how.secret) {
            (Some(account), _) => match given.pull_secrets.get(account) {
                Some(documents) => self.pull_credential(account, documents, output)?,
                None => return self.login_outside(account, given),
            },
            (None, Some(name)) => self.credential_in(self.required(given, name)?)?,
            (None, None) => return Ok(Login::default()),
        };
        let source = given
            .reader
            .as_ref()
            .map(|reader| -> Arc<dyn CredentialSource> {
                Arc::new(InSecrets {
                    reader: Arc::clone(reader),
                    access: self.clone(),
                    output: output.clone(),
                })
            });
        Ok(Login { credential, source })
    }

    /// What the surroundings know of an account that has no document.
    fn login_outside(&self, account: &str, given: &Given) -> Result<Login> {
        let field = self.account_field();
        let Some(Logins(find)) = &given.logins else {
            return Err(Error::ServiceAccountNotFound {
                account: account.to_owned(),
                field,
            });
        };
        match find(&self.host, &self.repository) {
            Ok(login) => Ok(login.unwrap_or_default()),
            Err(source) => Err(Error::AccessInvalid { field, source }),
        }
    }

    /// The login that a Secret has for this registry.
    fn credential_in(&self, document: &SecretDocument) -> Result<Credential> {
        let field = format!("{}.secretRef", self.how.field);
        NamedSecret { document, field }.credential(&self.host, &self.repository)
    }

    /// The login that a ServiceAccount has. A registry that none of its Secrets names is asked anonymously, as the kubelet
    /// does.
    fn pull_credential(
        &self,
        account: &str,
        documents: &[SecretDocument],
        output: &OutputManager,
    ) -> Result<Credential> {
        for document in documents {
            let secret = NamedSecret {
                document,
                field: self.account_field(),
            };
            if !secret.can_pull() {
                output.detail(format!(
                    "Secret {} of ServiceAccount {account} is passed over: its type is {}",
                    document.name,
                    document.kind.escape_debug()
                ));
            }
            if let Some(credential) = secret.pull_credential(&self.host, &self.repository)? {
                return Ok(credential);
            }
        }
        Ok(Credential::Anonymous)
    }

    fn required<'a>(&self, given: &'a Given, name: &str) -> Result<&'a SecretDocument> {
        given
            .secrets
            .get(name)
            .ok_or_else(|| Error::SecretNotFound {
                secret: name.to_owned(),
                field: format!("{}.secretRef", self.how.field),
            })
    }

    fn account_field(&self) -> String {
        format!("{}.serviceAccountName", self.how.field)
    }
}

/// The place of a login, to be looked at again.
#[derive(Debug)]
struct InSecrets {
    reader: Arc<dyn SecretReader>,
    access: RegistryAccess,
    output: OutputManager,
}

impl InSecrets {
    async fn look_again(&self) -> Option<Result<Credential>> {
        let how = &self.access.how;
        match (&how.service_account, &how.secret) {
            (Some(account), _) => {
                let documents = self.reader.pull_secrets(account).await?;
                let found = self
                    .access
                    .pull_credential(account, &documents, &self.output);
                Some(found)
            }
            (None, Some(name)) => {
                let document = self.reader.secret(name).await?;
                Some(self.access.credential_in(&document))
            }
            (None, None) => None,
        }
    }
}

impl CredentialSource for InSecrets {
    fn reread(&self) -> BoxFuture<'_, Option<Credential>> {
        async {
            match self.look_again().await? {
                Ok(credential) => Some(credential),
                // The run fails by what the registry said; this is only why nothing better was found.
                Err(error) => {
                    self.output.warning(handlers::message(&error));
                    None
                }
            }
        }
        .boxed()
    }
}
