//! From options to a registry client: which address, which certificates, which credential.

use std::{
    io::{ErrorKind, Read},
    path::PathBuf,
};

use secrecy::SecretString;

use crate::{
    image::{Host, RepositoryPath},
    mirror::Logins,
    output::OutputManager,
    registry::{ClientOptions, Credential, DockerConfig, Endpoint, RegistryClient},
};

use super::{
    certificates::Certificates,
    error::Usage,
    options::{PasswordOptions, RegistryOptions},
};

/// Everything that goes wrong here does so before anything starts.
type Result<T> = std::result::Result<T, Usage>;

/// Longer input is no password, but a file given by mistake.
const MAX_PASSWORD_LENGTH: u64 = 64 * 1024;

/// Builds the client that the options describe.
pub(super) fn client(
    options: &RegistryOptions,
    retry_attempts: u32,
    output: &OutputManager,
) -> Result<RegistryClient> {
    let endpoint = endpoint(options)?;
    let credential = credential(options, &endpoint, output)?;
    let certificates = Certificates::for_registry(&options.certificates, &endpoint, output)?;
    let client_options = ClientOptions {
        credential,
        ca_certificates: certificates.authorities,
        client_identity: certificates.identity,
        skip_tls_verify: options.skip_tls,
        retry_attempts,
        ..ClientOptions::default()
    };
    RegistryClient::new(endpoint, client_options, output.clone()).map_err(Usage::Access)
}

/// `--registry` where it is given, else the host of the repository, else Docker Hub.
fn endpoint(options: &RegistryOptions) -> Result<Endpoint> {
    let named = options.repository.host();
    let Some(address) = &options.registry else {
        return named.map_or_else(
            || Endpoint::parse("https://registry-1.docker.io").map_err(Usage::Access),
            |host| Ok(Endpoint::for_host(host, host.is_loopback())),
        );
    };
    let endpoint = Endpoint::parse(address).map_err(Usage::Access)?;
    match named {
        Some(host)
            if Endpoint::for_host(host, endpoint.is_plain_http()).host() != endpoint.host() =>
        {
            Err(Usage::RegistryConflict {
                host: host.clone(),
                registry: endpoint.host().clone(),
            })
        }
        _ => Ok(endpoint),
    }
}

/// User name and password where they are given, else what the login files hold for this repository, else none.
fn credential(
    options: &RegistryOptions,
    endpoint: &Endpoint,
    output: &OutputManager,
) -> Result<Credential> {
    let password = password(&options.password)?;
    match (&options.username, password) {
        (Some(username), Some(password)) => Ok(Credential::from_login(username.clone(), password)),
        (Some(_), None) => Err(Usage::PasswordMissing),
        (None, Some(_)) => Err(Usage::UsernameMissing),
        (None, None) => from_login_files(endpoint.host(), options.repository.path(), output),
    }
}

/// The password from its option or from standard input, where one line end is cut off.
fn password(options: &PasswordOptions) -> Result<Option<SecretString>> {
    if !options.password_stdin {
        return Ok(options.password.clone());
    }
    let unreadable = |reason: String| Usage::PasswordUnreadable { reason };
    let mut text = String::new();
    let mut input = std::io::stdin().lock().take(MAX_PASSWORD_LENGTH + 1);
    input
        .read_to_string(&mut text)
        .map_err(|error| unreadable(error.to_string()))?;
    if text.len() as u64 > MAX_PASSWORD_LENGTH {
        return Err(unreadable(format!(
            "there are more than {MAX_PASSWORD_LENGTH} bytes"
        )));
    }
    let password = text.strip_suffix('\n').unwrap_or(&text);
    let password = password.strip_suffix('\r').unwrap_or(password);
    if password.is_empty() {
        return Err(unreadable("it is empty".to_owned()));
    }
    Ok(Some(password.into()))
}

/// The first login file that knows the registry wins.
fn from_login_files(
    host: &Host,
    repository: &RepositoryPath,
    output: &OutputManager,
) -> Result<Credential> {
    for file in login_files() {
        if let Some(credential) = file?.credential(host, repository, output) {
            return Ok(credential);
        }
    }
    Ok(Credential::Anonymous)
}

/// The logins of the user, for mirrors that name a ServiceAccount.
pub(super) fn logins(output: &OutputManager) -> Result<Logins> {
    let files = login_files().collect::<Result<Vec<_>>>()?;
    let output = output.clone();
    Ok(Logins::new(move |host, repository| {
        files
            .iter()
            .find_map(|file| file.credential(host, repository, &output))
    }))
}

/// A login file of docker or podman.
struct LoginFile {
    path: PathBuf,
    config: DockerConfig,
}

impl LoginFile {
    fn credential(
        &self,
        host: &Host,
        repository: &RepositoryPath,
        output: &OutputManager,
    ) -> Option<Credential> {
        let credential = self.config.credential_for(host, repository)?;
        output.detail(format!(
            "using the login for {host} from {}",
            self.path.display()
        ));
        Some(credential)
    }
}

/// The login files there are, in the order in which they count, each read when it is asked for. Files at their usual places
/// need not exist; one that is named must.
fn login_files() -> impl Iterator<Item = Result<LoginFile>> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let named = variable(AUTH_FILE_VARIABLE);
    let paths = named.iter().cloned().chain(usual_login_files(variable));
    let paths: Vec<_> = paths.collect();
    paths.into_iter().filter_map(move |path| {
        let content = match std::fs::read(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == ErrorKind::NotFound && Some(&path) != named.as_ref() => {
                return None;
            }
            Err(source) => return Some(Err(Usage::LoginFileUnreadable { path, source })),
        };
        Some(match DockerConfig::parse(&content) {
            Ok(config) => Ok(LoginFile { path, config }),
            Err(source) => Err(Usage::CredentialsUnreadable { path, source }),
        })
    })
}

/// Names a login file, as podman and skopeo know it.
const AUTH_FILE_VARIABLE: &str = "REGISTRY_AUTH_FILE";

/// Where docker and podman keep logins, in the order skopeo and podman look: podman's file of this session, its lasting one,
/// docker's.
fn usual_login_files(variable: impl Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    let session = variable("XDG_RUNTIME_DIR").map(|folder| folder.join("containers/auth.json"));
    let home = variable("HOME");
    let config =
        variable("XDG_CONFIG_HOME").or_else(|| home.as_ref().map(|home| home.join(".config")));
    let podman = config.map(|folder| folder.join("containers/auth.json"));
    let docker = variable("DOCKER_CONFIG").or_else(|| home.map(|home| home.join(".docker")));
    let docker = docker.map(|folder| folder.join("config.json"));
    [session, podman, docker].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::options::CertificateOptions;

    fn options(repository: &str, registry: Option<&str>) -> RegistryOptions {
        RegistryOptions {
            repository: repository.parse().unwrap(),
            reference: "1".parse().unwrap(),
            registry: registry.map(str::to_owned),
            username: None,
            password: PasswordOptions {
                password: None,
                password_stdin: false,
            },
            skip_tls: false,
            certificates: CertificateOptions::default(),
        }
    }

    #[test]
    fn the_address_comes_from_the_option_then_the_name_then_docker_hub() {
        for (repository, registry, expected) in [
            ("ubuntu", None, "https://registry-1.docker.io"),
            (
                "docker.io/library/ubuntu",
                None,
                "https://registry-1.docker.io",
            ),
            (
                "docker.io/library/ubuntu",
                Some("https://registry-1.docker.io"),
                "https://registry-1.docker.io",
            ),
            (
                "team/app",
                Some("registry.example"),
                "https://registry.example",
            ),
            ("team/app", Some("localhost:5000"), "http://localhost:5000"),
            (
                "team/app",
                Some("https://localhost:5000"),
                "https://localhost:5000",
            ),
            ("localhost:5000/team/app", None, "http://localhost:5000"),
            (
                "registry.example/team/app",
                None,
                "https://registry.example",
            ),
            (
                "registry.example/team/app",
                Some("http://registry.example"),
                "http://registry.example",
            ),
        ] {
            assert_eq!(
                endpoint(&options(repository, registry))
                    .unwrap()
                    .to_string(),
                expected,
                "{repository} {registry:?}"
            );
        }
    }

    #[test]
    fn a_name_and_an_address_that_disagree_are_refused() {
        let error = endpoint(&options(
            "registry.example/app",
            Some("https://other.example"),
        ))
        .unwrap_err();
        assert!(
            error.to_string().contains("leave one of them out"),
            "{error}"
        );
    }

    #[test]
    fn login_files_are_looked_for_where_docker_and_podman_put_them() {
        let files = usual_login_files(|name| match name {
            "HOME" => Some("/home/user".into()),
            "XDG_RUNTIME_DIR" => Some("/run/user/1".into()),
            _ => None,
        });
        let expected: Vec<PathBuf> = [
            "/run/user/1/containers/auth.json",
            "/home/user/.config/containers/auth.json",
            "/home/user/.docker/config.json",
        ]
        .map(PathBuf::from)
        .into();
        assert_eq!(files, expected);
    }
}
