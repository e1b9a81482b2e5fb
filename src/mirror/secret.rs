//! What Secrets hold: logins and certificates. Contents never reach an error or a log.

use std::{collections::BTreeMap, fmt};

use secrecy::SecretString;

use crate::{
    image::{Host, RepositoryPath},
    registry::{Credential, DockerConfig, Proxy},
};

use super::{Error, Result};

/// Annotation of a Secret that names the only registry its login may go to.
pub const ONLY_REGISTRY: &str = "imagepusher.io/registry";

/// The type of a Secret with a docker configuration.
const DOCKER_CONFIG: &str = "kubernetes.io/dockerconfigjson";
/// The type of a Secret with a docker configuration as it was before there were other things in it than logins.
const OLD_DOCKER_CONFIG: &str = "kubernetes.io/dockercfg";

/// A Secret as it was read, without Kubernetes types.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretDocument {
    /// Its name.
    pub name: String,
    /// Its type, for example `kubernetes.io/basic-auth`.
    pub kind: String,
    /// The only registry its login may go to, as `host[:port]`, where it says so itself.
    pub registry: Option<String>,
    /// Its decoded data.
    pub data: BTreeMap<String, Vec<u8>>,
}

impl fmt::Debug for SecretDocument {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            kind,
            registry,
            data,
        } = self;
        formatter
            .debug_struct("SecretDocument")
            .field("name", name)
            .field("kind", kind)
            .field("registry", registry)
            .field("keys", &data.keys())
            .finish()
    }
}

/// A Secret with the field that names it, for messages.
#[derive(Clone)]
pub(super) struct NamedSecret<'a> {
    pub(super) document: &'a SecretDocument,
    pub(super) field: String,
}

impl NamedSecret<'_> {
    fn invalid(&self, reason: impl Into<String>) -> Error {
        Error::SecretInvalid {
            secret: self.document.name.clone(),
            field: self.field.clone(),
            reason: reason.into(),
        }
    }

    /// The value under `key` as text; a missing, empty or binary one is told by the key's name alone.
    fn text(&self, key: &str) -> Result<String> {
        let value = self
            .document
            .data
            .get(key)
            .filter(|value| !value.is_empty());
        let value =
            value.ok_or_else(|| self.invalid(format!("the key {key} is missing or empty")))?;
        String::from_utf8(value.clone())
            .map_err(|_| self.invalid(format!("the value of the key {key} is not UTF-8 text")))
    }

    /// Whether the Secret leaves its login to this registry.
    fn may_go_to(&self, host: &Host) -> bool {
        let only = self.document.registry.as_deref();
        only.is_none_or(|only| only.eq_ignore_ascii_case(host.as_str()))
    }

    /// The login for a repository.
    pub(super) fn credential(
        &self,
        host: &Host,
        repository: &RepositoryPath,
    ) -> Result<Credential> {
        if !self.may_go_to(host) {
            return Err(self.invalid(format!(
                "its annotation imagepusher.io/registry keeps it from {host}: name the Secret for that registry, or \
                 change the annotation"
            )));
        }
        match self.document.kind.as_str() {
            DOCKER_CONFIG => self.docker_config(host, repository),
            "Opaque" if self.document.data.contains_key("token") => {
                Ok(Credential::RegistryToken(self.text("token")?.into()))
            }
            "kubernetes.io/basic-auth" | "Opaque" => self.user_and_password(),
            other => Err(self.invalid(format!(
                "its type is {}; use kubernetes.io/dockerconfigjson, kubernetes.io/basic-auth, or Opaque with the keys \
                 username and password, or token",
                other.escape_debug()
            ))),
        }
    }

    fn user_and_password(&self) -> Result<Credential> {
        let (username, password) = (self.text("username")?, self.text("password")?);
        Ok(Credential::from_login(username, password.into()))
    }

    fn docker_config(&self, host: &Host, repository: &RepositoryPath) -> Result<Credential> {
        let credential = self.pull_credential(host, repository)?;
        credential.ok_or_else(|| {
            self.invalid(format!(
                "its .dockerconfigjson holds no login for {host}/{repository}"
            ))
        })
    }

    /// Whether an imagePullSecret of this type can hold a login. A kubelet takes no notice of the others, and ServiceAccounts
    /// of old clusters name some.
    pub(super) fn can_pull(&self) -> bool {
        matches!(
            self.document.kind.as_str(),
            DOCKER_CONFIG | OLD_DOCKER_CONFIG
        )
    }

    /// The login for a repository, if the Secret, which is an imagePullSecret, has one. Some distributions still make those of
    /// the old format.
    pub(super) fn pull_credential(
        &self,
        host: &Host,
        repository: &RepositoryPath,
    ) -> Result<Option<Credential>> {
        if !self.can_pull() || !self.may_go_to(host) {
            return Ok(None);
        }
        let config = if self.document.kind == OLD_DOCKER_CONFIG {
            DockerConfig::parse_old(self.text(".dockercfg")?.as_bytes())
        } else {
            DockerConfig::parse(self.text(".dockerconfigjson")?.as_bytes())
        };
        let config = config.map_err(|source| Error::SecretUnreadable {
            secret: self.document.name.clone(),
            field: self.field.clone(),
            source,
        })?;
        Ok(config.credential_for(host, repository))
    }

    /// The certificate authorities to trust, PEM.
    pub(super) fn certificate_authorities(&self) -> Result<Option<Vec<u8>>> {
        self.document
            .data
            .get("ca.crt")
            .map(|_| self.text("ca.crt").map(String::into_bytes))
            .transpose()
    }

    /// Client certificate and key, PEM, one after the other.
    pub(super) fn client_identity(&self) -> Result<Option<SecretString>> {
        let has = |key| self.document.data.contains_key(key);
        if !has("tls.crt") && !has("tls.key") {
            return Ok(None);
        }
        Ok(Some(
            format!("{}\n{}", self.text("tls.crt")?, self.text("tls.key")?).into(),
        ))
    }

    /// The proxy: its address and, where it asks for them, user name and password, as Flux writes them.
    pub(super) fn proxy(&self) -> Result<Proxy> {
        let address = self.text("address")?;
        let has = |key| self.document.data.contains_key(key);
        let login = if has("username") || has("password") {
            Some((self.text("username")?, self.text("password")?.into()))
        } else {
            None
        };
        // The error may hold the address, which is a value of the Secret: an address that cannot be read may be a login.
        let proxy = Proxy::new(&address, login).map_err(|_| {
            self.invalid(
                "the value of the key address must be http://host[:port] or https://host[:port]; a login stands in the keys \
                 username and password",
            )
        })?;
        if has("noProxy") {
            return Ok(proxy.except(&self.text("noProxy")?));
        }
        Ok(proxy)
    }

    /// Refuses a Secret that says nothing about certificates.
    pub(super) fn require_certificates(&self) -> Result<()> {
        let keys = ["ca.crt", "tls.crt", "tls.key"];
        if keys.iter().any(|key| self.document.data.contains_key(*key)) {
            return Ok(());
        }
        Err(self.invalid("it has none of the keys ca.crt, tls.crt and tls.key"))
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;
    use crate::error::{Classified, handlers};

    fn document(kind: &str, data: &[(&str, &str)]) -> SecretDocument {
        let data = data
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec()))
            .collect();
        SecretDocument {
            name: "login".into(),
            kind: kind.into(),
            registry: None,
            data,
        }
    }

    fn host() -> Host {
        "registry.example:5000".parse().unwrap()
    }

    fn path() -> RepositoryPath {
        "team/app".parse().unwrap()
    }

    fn credential(document: &SecretDocument) -> Result<Credential> {
        let named = NamedSecret {
            document,
            field: "spec.source.registry.secretRef".to_owned(),
        };
        named.credential(&host(), &path())
    }

    #[test]
    fn every_supported_type_gives_its_login() {
        // dXNlcjpzM2NyZXQ= is user:s3cret
        let config = r#"{"auths": {"registry.example:5000": {"auth": "dXNlcjpzM2NyZXQ="}}}"#;
        for document in [
            document(
                "kubernetes.io/basic-auth",
                &[("username", "user"), ("password", "s3cret")],
            ),
            document("Opaque", &[("username", "user"), ("password", "s3cret")]),
            document(
                "kubernetes.io/dockerconfigjson",
                &[(".dockerconfigjson", config)],
            ),
        ] {
            let Ok(Credential::Basic { username, password }) = credential(&document) else {
                panic!("{}", document.kind)
            };
            assert_eq!(
                (username.as_str(), password.expose_secret()),
                ("user", "s3cret")
            );
        }
        let token = document("Opaque", &[("token", "s3cret")]);
        assert!(matches!(
            credential(&token),
            Ok(Credential::RegistryToken(_))
        ));
    }

    #[test]
    fn a_secret_that_names_its_registry_goes_to_that_one_only() {
        let config = r#"{"auths": {"registry.example:5000": {"auth": "dXNlcjpzM2NyZXQ="}}}"#;
        for (registry, goes) in [
            (None, true),
            (Some("registry.example:5000"), true),
            (Some("Registry.Example:5000"), true),
            (Some("registry.example"), false),
            (Some("evil.example"), false),
            (Some(""), false),
        ] {
            let document = SecretDocument {
                registry: registry.map(str::to_owned),
                ..document(
                    "kubernetes.io/dockerconfigjson",
                    &[(".dockerconfigjson", config)],
                )
            };
            let named = NamedSecret {
                document: &document,
                field: "spec.source.registry.serviceAccountName".to_owned(),
            };
            let pulled = named.pull_credential(&host(), &path()).unwrap();
            assert_eq!(pulled.is_some(), goes, "{registry:?}");
            match credential(&document) {
                Ok(_) => assert!(goes, "{registry:?}"),
                Err(error) => {
                    let text = error.to_string();
                    let expected = "imagepusher.io/registry keeps it from registry.example:5000";
                    assert!(!goes && text.contains(expected), "{registry:?}: {text}");
                }
            }
        }
    }

    #[test]
    fn a_pull_secret_of_the_old_format_is_read_and_one_of_another_type_is_passed_over() {
        // An OpenShift ServiceAccount names both beside each other.
        let old = r#"{"registry.example:5000": {"username": "user", "password": "s3cret", "email": "e"}}"#;
        let pulled = |document: &SecretDocument| {
            let named = NamedSecret {
                document,
                field: "spec.source.registry.serviceAccountName".to_owned(),
            };
            named.pull_credential(&host(), &path())
        };
        let old = document("kubernetes.io/dockercfg", &[(".dockercfg", old)]);
        let found = pulled(&old);
        let Ok(Some(Credential::Basic { username, password })) = found else {
            panic!("no login: {found:?}")
        };
        assert_eq!(
            (username.as_str(), password.expose_secret()),
            ("user", "s3cret")
        );
        let elsewhere = document("kubernetes.io/dockercfg", &[(".dockercfg", "{}")]);
        assert!(matches!(pulled(&elsewhere), Ok(None)));
        for kind in [
            "Opaque",
            "kubernetes.io/basic-auth",
            "kubernetes.io/service-account-token",
        ] {
            let login = [("username", "user"), ("password", "p"), ("token", "t")];
            let found = pulled(&document(kind, &login));
            assert!(matches!(found, Ok(None)), "{kind}: {found:?}");
        }
        for broken in ["{s3cret", r#"{"auths": "s3cret"}"#] {
            let broken = document("kubernetes.io/dockercfg", &[(".dockercfg", broken)]);
            let error = pulled(&broken).unwrap_err();
            let text = format!("{} {error:?}", handlers::message(&error));
            assert!(!text.contains("s3cret"), "{text}");
        }
    }

    #[test]
    fn a_secret_that_cannot_be_used_is_named_with_the_remedy_and_without_its_content() {
        for (document, expected) in [
            (
                document("Opaque", &[("user", "s3cret")]),
                "the key username is missing",
            ),
            (
                document(
                    "kubernetes.io/basic-auth",
                    &[("username", "s3cret"), ("password", "")],
                ),
                "the key password is missing or empty",
            ),
            (
                document(
                    "kubernetes.io/dockerconfigjson",
                    &[(".dockerconfigjson", "{s3cret")],
                ),
                "login",
            ),
            (
                document(
                    "kubernetes.io/dockerconfigjson",
                    &[(".dockerconfigjson", r#"{"auths":{}}"#)],
                ),
                "no login for registry.example:5000/team/app",
            ),
            (
                document(
                    "kubernetes.io/service-account-token",
                    &[("token", "s3cret")],
                ),
                "its type is kubernetes.io/service-account-token",
            ),
        ] {
            let error = credential(&document).unwrap_err();
            let text = format!("{} {error:?}", crate::error::handlers::message(&error));
            assert!(text.contains(expected), "{text}");
            assert!(
                text.contains("spec.source.registry.secretRef") && !text.contains("s3cret"),
                "{text}"
            );
            assert!(!format!("{document:?}").contains("s3cret"));
        }
    }

    #[test]
    fn a_proxy_is_read_and_a_wrong_one_is_refused_without_its_value() {
        let proxy = |entries: &[(&str, &str)]| {
            let named = NamedSecret {
                document: &document("Opaque", entries),
                field: "spec.source.registry.proxySecretRef".to_owned(),
            };
            named.proxy()
        };
        let login = ("username", "robot");
        assert!(proxy(&[("address", "http://proxy.example:3128")]).is_ok());
        assert!(
            proxy(&[
                ("address", "https://proxy.example"),
                login,
                ("password", "canary")
            ])
            .is_ok()
        );
        for entries in [
            vec![],
            vec![("address", "socks5://proxy.example/canary")],
            vec![("address", "http://robot:canary@proxy.example")],
            vec![("address", "http://proxy.example"), login],
        ] {
            let error = proxy(&entries).unwrap_err();
            assert_eq!(error.reason(), "SecretInvalid");
            let text = handlers::message(&error);
            assert!(!text.contains("canary"), "{text}");
        }
    }
}
