//! From options to a registry client: which address, which certificates, which credential.

use std::io::Read;

use secrecy::SecretString;

use crate::{
    output::OutputManager,
    registry::{ClientOptions, Credential, Endpoint, Login, RegistryClient},
};

use super::{
    certificates::Certificates,
    error::Usage,
    logins,
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
    let login = login(options, &endpoint, output)?;
    let certificates = Certificates::for_registry(&options.certificates, &endpoint, output)?;
    let client_options = ClientOptions {
        credential: login.credential,
        credential_source: login.source,
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
fn login(options: &RegistryOptions, endpoint: &Endpoint, output: &OutputManager) -> Result<Login> {
    let password = password(&options.password)?;
    match (&options.username, password) {
        (Some(username), Some(password)) => {
            Ok(Credential::from_login(username.clone(), password).into())
        }
        (Some(_), None) => Err(Usage::PasswordMissing),
        (None, Some(_)) => Err(Usage::UsernameMissing),
        (None, None) => logins::login(endpoint.host(), options.repository.path(), output),
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
}
