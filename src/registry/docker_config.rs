//! Credentials as docker, podman and Kubernetes keep them: `config.json`, `auth.json`, `.dockerconfigjson`, `.dockercfg`.
//!
//! This reads the text and answers for a host and repository (registry rule A18). Where the text comes from, and whether the
//! helpers it names are called, is for those above. No error shows anything of the text.

use std::{collections::BTreeMap, fmt};

use base64::{
    Engine as _,
    engine::{
        DecodePaddingMode,
        general_purpose::{GeneralPurpose, GeneralPurposeConfig},
    },
};
use serde::{Deserialize, de::DeserializeOwned};

use crate::image::{Host, RepositoryPath};

use super::{
    credential::Credential,
    credential_helper::CredentialHelper,
    endpoint::is_docker_hub_name,
    error::{Error, Result},
};

/// The host under which Docker Hub is compared, whatever it is called.
const HUB: &str = "docker.io";

/// The name under which docker keeps the login for its hub.
const HUB_SERVER: &str = "https://index.docker.io/v1/";

/// Base64 as docker writes it, with or without padding.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The credentials of several registries.
#[derive(Clone, Default)]
pub struct DockerConfig {
    /// Longest path first, exact hosts before patterns.
    entries: Vec<(Place, Credential)>,
    helpers: BTreeMap<String, String>,
    store: Option<String>,
}

/// Entries by the registry that they are for.
type Entries = BTreeMap<String, Option<Entry>>;

#[derive(Deserialize, Default)]
struct ConfigFile {
    #[serde(default)]
    auths: Option<Entries>,
    #[serde(default, rename = "credHelpers")]
    helpers: Option<BTreeMap<String, String>>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "lowercase")]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

/// What an entry is for: a host or a pattern of hosts, and a prefix of repositories.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    /// Labels of the host, each perhaps with `*`.
    labels: Vec<String>,
    port: Option<String>,
    /// Components of the path; none for the whole host.
    path: Vec<String>,
}

impl fmt::Debug for DockerConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("DockerConfig")
            .field("entries", &self.entries.len())
            .finish_non_exhaustive()
    }
}

impl DockerConfig {
    /// Reads a configuration. Entries without a credential, as docker leaves them behind for its helpers, count for nothing.
    ///
    /// # Errors
    /// When the text is not JSON of that form, or when an entry's `auth` is not `user:password` in base64.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        Self::new(read(bytes)?)
    }

    /// Reads a configuration of the old format, `.dockercfg`: it holds what is `auths` today, and nothing else.
    ///
    /// # Errors
    /// As for [`parse`](Self::parse).
    pub fn parse_old(bytes: &[u8]) -> Result<Self> {
        Self::new(ConfigFile {
            auths: read(bytes)?,
            ..ConfigFile::default()
        })
    }

    fn new(file: ConfigFile) -> Result<Self> {
        let mut entries = Vec::new();
        for (number, (key, entry)) in file.auths.unwrap_or_default().into_iter().enumerate() {
            let credential = entry
                .unwrap_or_default()
                .credential()
                .map_err(|reason| invalid(format!("entry {} {reason}", number + 1)))?;
            if let Some(credential) = credential {
                entries.push((Place::parse(&key), credential));
            }
        }
        entries.sort_by_key(|(place, _)| (usize::MAX - place.path.len(), place.is_pattern()));
        Ok(Self {
            entries,
            helpers: file.helpers.unwrap_or_default(),
            store: file.store.filter(|store| !store.is_empty()),
        })
    }

    /// The credential for a repository: that of the longest path that leads to it.
    pub fn credential_for(&self, host: &Host, repository: &RepositoryPath) -> Option<Credential> {
        self.entries
            .iter()
            .find(|(place, _)| place.holds(host, repository))
            .map(|(_, credential)| credential.clone())
    }

    /// The program that knows the credential of a host, where one is configured. As with docker it counts before what is
    /// written in the configuration itself.
    pub fn helper_for(&self, host: &Host) -> Option<CredentialHelper> {
        let wanted = Place::parse(host.as_str());
        let own = self
            .helpers
            .iter()
            .find(|(key, _)| Place::parse(key) == wanted)
            .map(|(_, helper)| helper.as_str());
        // An empty name says that this host has none.
        let name = own
            .or(self.store.as_deref())
            .filter(|name| !name.is_empty())?;
        let server = if is_docker_hub_name(host.as_str()) {
            HUB_SERVER
        } else {
            host.as_str()
        };
        Some(CredentialHelper::new(name, server))
    }
}

const fn invalid(reason: String) -> Error {
    Error::InvalidDockerConfig { reason }
}

/// Reads JSON. The parser's own text is not passed on, since it repeats what it found.
fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        invalid(format!(
            "line {}, column {} is not what belongs there",
            error.line(),
            error.column()
        ))
    })
}

impl Entry {
    /// What the entry holds; a better kind of credential wins.
    fn credential(self) -> std::result::Result<Option<Credential>, &'static str> {
        let present = |text: Option<String>| text.filter(|text| !text.is_empty());
        if let Some(token) = present(self.registrytoken) {
            return Ok(Some(Credential::RegistryToken(token.into())));
        }
        if let Some(token) = present(self.identitytoken) {
            return Ok(Some(Credential::IdentityToken(token.into())));
        }
        let (username, password) = match present(self.auth) {
            Some(auth) => decode(&auth)?,
            None => (
                self.username.unwrap_or_default(),
                self.password.unwrap_or_default(),
            ),
        };
        // A name without a password is what docker leaves behind when a helper has the rest.
        Ok((!password.is_empty()).then(|| Credential::from_login(username, password.into())))
    }
}

/// `user:password` from base64; the password may hold colons, and some tools end it with zeros.
fn decode(auth: &str) -> std::result::Result<(String, String), &'static str> {
    let bytes = LENIENT
        .decode(auth.trim())
        .map_err(|_| "has an auth that is not base64")?;
    let text = String::from_utf8(bytes).map_err(|_| "has an auth that is not text")?;
    let (username, password) = text
        .split_once(':')
        .ok_or("has an auth without a colon between user and password")?;
    Ok((
        username.to_owned(),
        password.trim_end_matches('\0').to_owned(),
    ))
}

impl Place {
    /// Reads a key: `host`, `host:port/path`, `https://host/v1/`, `*.host`.
    fn parse(key: &str) -> Self {
        let rest = key
            .split_once("://")
            .map_or(key, |(_, rest)| rest)
            .trim_end_matches('/');
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        // The API's own path is no repository: `https://index.docker.io/v1/` is how docker writes its hub.
        let path = match path.split_once('/') {
            _ if path == "v1" || path == "v2" => "",
            Some(("v1" | "v2", rest)) => rest,
            _ => path,
        };
        let (name, port) = split_port(authority);
        let labels = if is_docker_hub_name(name) { HUB } else { name };
        Self {
            labels: labels.split('.').map(str::to_ascii_lowercase).collect(),
            port: port.map(str::to_owned),
            path: path
                .split('/')
                .filter(|component| !component.is_empty())
                .map(str::to_owned)
                .collect(),
        }
    }

    fn is_pattern(&self) -> bool {
        self.labels.iter().any(|label| label.contains('*'))
    }

    /// Whether a repository lies here: each label of the host fits, the port is equal, the path is a prefix.
    fn holds(&self, host: &Host, repository: &RepositoryPath) -> bool {
        let asked = Self::parse(host.as_str());
        if asked.port != self.port || asked.labels.len() != self.labels.len() {
            return false;
        }
        let labels_fit = self
            .labels
            .iter()
            .zip(&asked.labels)
            .all(|(pattern, label)| fits(pattern, label));
        if !labels_fit {
            return false;
        }
        let in_library = asked.labels.join(".") == HUB && repository.is_single_component();
        let path = in_library
            .then_some("library")
            .into_iter()
            .chain(repository.as_str().split('/'));
        self.path.len() <= path.clone().count()
            && self.path.iter().zip(path).all(|(own, asked)| own == asked)
    }
}

/// Host name and port; the colons of an IPv6 address are none.
fn split_port(authority: &str) -> (&str, Option<&str>) {
    if authority.ends_with(']') {
        return (authority, None);
    }
    match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => (name, Some(port)),
        _ => (authority, None),
    }
}

/// Whether a label fits a pattern in which `*` stands for any characters.
fn fits(pattern: &str, label: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else {
        return pattern == label;
    };
    let Some(label) = label.strip_prefix(start) else {
        return false;
    };
    (0..=label.len()).any(|skipped| label.get(skipped..).is_some_and(|label| fits(rest, label)))
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;
    use secrecy::ExposeSecret;
    use serde_json::json;

    use super::*;
    const AZURE_USER: &str = "00000000-0000-0000-0000-000000000000";

    fn shown(credential: Option<Credential>) -> String {
        match credential {
            None => "none".to_owned(),
            Some(Credential::Anonymous) => "anonymous".to_owned(),
            Some(Credential::Basic { username, password }) => {
                format!("{username}:{}", password.expose_secret())
            }
            Some(Credential::IdentityToken(token)) => format!("identity {}", token.expose_secret()),
            Some(Credential::RegistryToken(token)) => format!("registry {}", token.expose_secret()),
        }
    }

    /// What a configuration with these keys, each with its own name as user, gives for a repository.
    fn user_for(keys: &[&str], host: &str, repository: &str) -> String {
        let auths: serde_json::Map<_, _> = keys
            .iter()
            .map(|key| ((*key).to_owned(), json!({"username": key, "password": "x"})))
            .collect();
        let config = DockerConfig::parse(json!({"auths": auths}).to_string().as_bytes()).unwrap();
        let found = config.credential_for(&host.parse().unwrap(), &repository.parse().unwrap());
        shown(found).trim_end_matches(":x").to_owned()
    }

    #[test]
    fn the_longest_path_that_leads_to_a_repository_wins() {
        let hub = "https://index.docker.io/v1/";
        for (keys, host, repository, expected) in [
            (&[hub][..], "docker.io", "ubuntu", hub),
            (&[hub], "registry-1.docker.io", "team/app", hub),
            (&["docker.io"], "docker.io", "ubuntu", "docker.io"),
            (
                &["docker.io/library", hub],
                "docker.io",
                "ubuntu",
                "docker.io/library",
            ),
            (&["docker.io/library", hub], "docker.io", "team/app", hub),
            (&[hub], "quay.io", "team/app", "none"),
            (&["quay.io"], "quay.io", "team/app", "quay.io"),
            (
                &["https://quay.io"],
                "quay.io",
                "team/app",
                "https://quay.io",
            ),
            (
                &["https://quay.io/v2/"],
                "quay.io",
                "team/app",
                "https://quay.io/v2/",
            ),
            (
                &["quay.io", "quay.io/team", "quay.io/team/app"],
                "quay.io",
                "team/app",
                "quay.io/team/app",
            ),
            (
                &["quay.io", "quay.io/team", "quay.io/team/app"],
                "quay.io",
                "team/application",
                "quay.io/team",
            ),
            (
                &["quay.io", "quay.io/team"],
                "quay.io",
                "teams/app",
                "quay.io",
            ),
            (&["quay.io/team/app/deep"], "quay.io", "team/app", "none"),
            (&["QUAY.io"], "quay.IO", "team/app", "QUAY.io"),
            (&["r.example:5000"], "r.example:5000", "a", "r.example:5000"),
            (&["r.example"], "r.example:5000", "a", "none"),
            (&["r.example:5000"], "r.example", "a", "none"),
            (&["[::1]:5000"], "[::1]:5000", "a", "[::1]:5000"),
            (&["*.azurecr.io"], "me.azurecr.io", "a", "*.azurecr.io"),
            (&["*.azurecr.io"], "azurecr.io", "a", "none"),
            (&["*.azurecr.io"], "deep.me.azurecr.io", "a", "none"),
            (
                &["*.dkr.ecr.*.amazonaws.com"],
                "1.dkr.ecr.eu-west-1.amazonaws.com",
                "a",
                "*.dkr.ecr.*.amazonaws.com",
            ),
            (&["me*.example"], "meyou.example", "a", "me*.example"),
            (&["*.example:5000"], "r.example:5000", "a", "*.example:5000"),
            (&["*.example", "r.example"], "r.example", "a", "r.example"),
            (
                &["*.example/team", "r.example"],
                "r.example",
                "team/a",
                "*.example/team",
            ),
        ] {
            assert_eq!(
                user_for(keys, host, repository),
                expected,
                "{keys:?} {host}/{repository}"
            );
        }
    }

    #[test]
    fn an_entry_is_the_best_credential_it_holds() {
        let auth = |text: &str| STANDARD.encode(text);
        for (entry, expected) in [
            (json!({"auth": auth("me:pass:word")}), "me:pass:word"),
            (
                json!({"auth": auth("me:pass").trim_end_matches('=')}),
                "me:pass",
            ),
            (json!({"auth": auth("me:pass\0\0")}), "me:pass"),
            (
                json!({"auth": auth("a:b"), "username": "c", "password": "d"}),
                "a:b",
            ),
            (
                json!({"username": "c", "password": "d", "email": "e"}),
                "c:d",
            ),
            (
                json!({"auth": auth("a:b"), "identitytoken": "t"}),
                "identity t",
            ),
            (
                json!({"auth": auth(&format!("{AZURE_USER}:")), "identitytoken": "t"}),
                "identity t",
            ),
            (
                json!({"auth": auth(&format!("{AZURE_USER}:t"))}),
                "identity t",
            ),
            (
                json!({"username": "<token>", "password": "t"}),
                "identity t",
            ),
            (
                json!({"identitytoken": "a", "registrytoken": "t"}),
                "registry t",
            ),
            (json!({}), "none"),
            (json!(null), "none"),
            (json!({"auth": ""}), "none"),
            (json!({"auth": auth("me:")}), "none"),
        ] {
            let config = json!({"auths": {"r.example": entry}}).to_string();
            let config = DockerConfig::parse(config.as_bytes()).unwrap();
            let found = config.credential_for(&"r.example".parse().unwrap(), &"a".parse().unwrap());
            assert_eq!(shown(found), expected, "{entry}");
        }
    }

    #[test]
    fn helpers_are_named_per_host_or_for_all() {
        let config = |store: Option<&str>| {
            let helpers = json!({"gcr.io": "gcloud", "https://index.docker.io/v1/": "hub", "r.example:5000": ""});
            let text = json!({"credHelpers": helpers, "credsStore": store});
            DockerConfig::parse(text.to_string().as_bytes()).unwrap()
        };
        for (store, host, expected) in [
            (None, "gcr.io", Some(("gcloud", "gcr.io"))),
            (None, "docker.io", Some(("hub", HUB_SERVER))),
            (None, "registry-1.docker.io", Some(("hub", HUB_SERVER))),
            (None, "quay.io", None),
            (Some("pass"), "quay.io", Some(("pass", "quay.io"))),
            (Some("pass"), "gcr.io", Some(("gcloud", "gcr.io"))),
            (Some("pass"), "r.example:5000", None),
            (Some("pass"), "r.example", Some(("pass", "r.example"))),
            (Some(""), "quay.io", None),
        ] {
            assert_eq!(
                config(store).helper_for(&host.parse().unwrap()),
                expected.map(|(name, server)| CredentialHelper::new(name, server)),
                "{host}"
            );
        }
    }

    #[test]
    fn no_error_shows_what_the_text_holds() {
        for text in [
            "hunter2",
            r#"{"auths": "hunter2"}"#,
            r#"{"auths": {"hunter2": "hunter2"}}"#,
            r#"{"auths": {"hunter2": {"auth": "hunter2!"}}}"#,
            &json!({"auths": {"hunter2": {"auth": STANDARD.encode("hunter2")}}}).to_string(),
        ] {
            let error = DockerConfig::parse(text.as_bytes()).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in r#"\{"auths":\{"[a-z*.:/\[\]]{0,12}":\{"auth":"[A-Za-z0-9+/=]{0,12}"\}\}\}"#) {
            if let Ok(config) = DockerConfig::parse(text.as_bytes()) {
                config.credential_for(&"r.example".parse().unwrap(), &"a/b".parse().unwrap());
            }
        }
    }
}
