//! The logins of the user: what docker and podman keep in their files, and what the programs named there know.

use std::{io::ErrorKind, path::PathBuf};

use futures::future::BoxFuture;
use tokio::runtime::Handle;

use crate::{
    image::{Host, RepositoryPath},
    mirror::Logins,
    output::OutputManager,
    registry::{self, Credential, CredentialSource, DockerConfig, Login},
};

use super::error::Usage;

/// Everything that goes wrong here does so before anything starts.
type Result<T> = std::result::Result<T, Usage>;

/// The login for a repository: that of the first file that has one.
pub(super) fn login(
    host: &Host,
    repository: &RepositoryPath,
    output: &OutputManager,
) -> Result<Login> {
    let place = Place {
        host: host.clone(),
        repository: repository.clone(),
        output: output.clone(),
    };
    let found = wait_for(place.look_up())?;
    Ok(place.login(found).unwrap_or_default())
}

/// The logins of the user, for mirrors that name a ServiceAccount.
pub(super) fn logins(output: &OutputManager) -> Result<Logins> {
    let files = login_files().collect::<Result<Vec<_>>>()?;
    let output = output.clone();
    Ok(Logins::new(move |host, repository| {
        let place = Place {
            host: host.clone(),
            repository: repository.clone(),
            output: output.clone(),
        };
        let found = wait_for(async {
            for file in &files {
                if let Some(found) = file.credential(&place).await? {
                    return registry::Result::Ok(Some(found));
                }
            }
            Ok(None)
        })?;
        Ok(place.login(found))
    }))
}

/// Asking a helper takes as long as its user does. Whoever builds a client waits for it, and nobody else.
fn wait_for<T>(work: impl Future<Output = T>) -> T {
    tokio::task::block_in_place(|| Handle::current().block_on(work))
}

/// A repository that a login is looked for.
#[derive(Debug, Clone)]
struct Place {
    host: Host,
    repository: RepositoryPath,
    output: OutputManager,
}

impl Place {
    async fn look_up(&self) -> Result<Option<Credential>> {
        for file in login_files() {
            let file = file?;
            match file.credential(self).await {
                Ok(None) => {}
                Ok(found) => return Ok(found),
                Err(source) => {
                    let path = file.path;
                    return Err(Usage::CredentialsUnreadable { path, source });
                }
            }
        }
        Ok(None)
    }

    /// What was found, to be looked for here again once it is refused.
    fn login(self, found: Option<Credential>) -> Option<Login> {
        found.map(|credential| Login {
            credential,
            source: Some(std::sync::Arc::new(self)),
        })
    }
}

impl CredentialSource for Place {
    fn reread(&self) -> BoxFuture<'_, Option<Credential>> {
        Box::pin(async { self.look_up().await.ok().flatten() })
    }
}

/// A login file of docker or podman.
struct LoginFile {
    path: PathBuf,
    config: DockerConfig,
}

impl LoginFile {
    /// The credential for a place: the helper's, where one is named for it, else what is written here.
    async fn credential(&self, place: &Place) -> registry::Result<Option<Credential>> {
        let Place {
            host,
            repository,
            output,
        } = place;
        let path = self.path.display();
        if let Some(helper) = self.config.helper_for(host) {
            if let Some(credential) = helper.credential().await? {
                output.detail(format!(
                    "using the login for {host} from {helper}, which {path} names"
                ));
                return Ok(Some(credential));
            }
            output.detail(format!(
                "{helper}, which {path} names, knows no login for {host}"
            ));
        }
        let Some(credential) = self.config.credential_for(host, repository) else {
            return Ok(None);
        };
        output.detail(format!("using the login for {host} from {path}"));
        Ok(Some(credential))
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
