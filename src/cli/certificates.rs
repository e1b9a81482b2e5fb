//! Which certificates a registry is met with: from options, and from the folders where docker and podman keep them.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

use secrecy::SecretString;

use crate::{output::OutputManager, registry::Endpoint};

use super::{error::Usage, options::CertificateOptions};

type Result<T> = std::result::Result<T, Usage>;

/// Certificates for one registry.
#[derive(Default)]
pub(super) struct Certificates {
    /// Bundles of CA certificates.
    pub(super) authorities: Vec<Vec<u8>>,
    /// Our own certificate with its key.
    pub(super) identity: Option<SecretString>,
}

impl Certificates {
    /// Those that the options name, and those in the registry's folder. What an option names is used before what lies in a
    /// folder.
    ///
    /// # Errors
    /// When a file cannot be read, or a certificate comes without its key.
    pub(super) fn for_registry(
        options: &CertificateOptions,
        endpoint: &Endpoint,
        output: &OutputManager,
    ) -> Result<Self> {
        let given = Self::of_options(options)?;
        // Who speaks plain http shows and asks for none.
        if endpoint.is_plain_http() {
            return Ok(given);
        }
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let Some((folder, files)) = first_folder(&usual_folders(home.as_deref(), endpoint))? else {
            return Ok(given);
        };
        output.detail(format!("using the certificates in {}", folder.display()));
        let found = Self::of_files(&folder, &files)?;
        Ok(Self {
            authorities: [given.authorities, found.authorities].concat(),
            identity: given.identity.or(found.identity),
        })
    }

    fn of_options(options: &CertificateOptions) -> Result<Self> {
        let read = |path: &Option<PathBuf>, option| {
            path.as_deref()
                .map(|path| read_file(path, option))
                .transpose()
        };
        let certificate = read(&options.certificate, "--cert-file")?;
        let key = read(&options.key, "--key-file")?;
        let identity = match (certificate, key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some(identity(&certificate, &key)),
            (Some(_), None) => return Err(incomplete("--cert-file", "--key-file")),
            (None, Some(_)) => return Err(incomplete("--key-file", "--cert-file")),
        };
        Ok(Self {
            authorities: read(&options.authority, "--ca-file")?.into_iter().collect(),
            identity,
        })
    }

    /// Takes from a folder what its files' endings say they are: `.crt` a CA, `.cert` our own, `.key` its key. Of several
    /// own certificates the first by name is used.
    fn of_files(folder: &Path, files: &[PathBuf]) -> Result<Self> {
        let mut certificates = Self::default();
        for file in files {
            match file.extension().and_then(|ending| ending.to_str()) {
                Some("crt") => certificates.authorities.push(read_in_folder(file)?),
                Some("cert") => {
                    let key = partner(folder, file, "key", files)?;
                    if certificates.identity.is_none() {
                        let both = identity(&read_in_folder(file)?, &read_in_folder(&key)?);
                        certificates.identity = Some(both);
                    }
                }
                Some("key") => {
                    partner(folder, file, "cert", files)?;
                }
                _ => {}
            }
        }
        Ok(certificates)
    }
}

/// The file that belongs to `file`, with another ending.
fn partner(folder: &Path, file: &Path, ending: &str, files: &[PathBuf]) -> Result<PathBuf> {
    let partner = file.with_extension(ending);
    if files.contains(&partner) {
        return Ok(partner);
    }
    let name = |file: &Path| {
        let name = file.file_name().unwrap_or_default();
        folder.join(name).display().to_string()
    };
    Err(incomplete(&name(file), &name(&partner)))
}

/// A certificate and its key in one text, as the registry's client takes them. What is not text is no PEM either, and is
/// refused there.
fn identity(certificate: &[u8], key: &[u8]) -> SecretString {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    format!("{}\n{}", text(certificate), text(key)).into()
}

fn incomplete(given: &str, missing: &str) -> Usage {
    Usage::ClientCertificateIncomplete {
        given: given.to_owned(),
        missing: missing.to_owned(),
    }
}

/// Where skopeo, podman and docker look for a registry's certificates, in the order of skopeo and podman.
fn usual_folders(home: Option<&Path>, endpoint: &Endpoint) -> Vec<PathBuf> {
    let host = if endpoint.is_docker_hub() {
        "docker.io"
    } else {
        endpoint.host().as_str()
    };
    home.map(|home| home.join(".config/containers/certs.d"))
        .into_iter()
        .chain(["/etc/containers/certs.d", "/etc/docker/certs.d"].map(PathBuf::from))
        .map(|folder| folder.join(host))
        .collect()
}

/// The first folder that is there, and its files by name. One that we may not look into counts as not there, as it does for
/// podman: it belongs to somebody else.
fn first_folder(folders: &[PathBuf]) -> Result<Option<(PathBuf, Vec<PathBuf>)>> {
    for folder in folders {
        let unreadable = |source| Usage::CertificatesUnreadable {
            path: folder.clone(),
            source,
        };
        let entries = match std::fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::PermissionDenied
                ) =>
            {
                continue;
            }
            Err(source) => return Err(unreadable(source)),
        };
        let mut files = entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<std::io::Result<Vec<_>>>()
            .map_err(unreadable)?;
        files.sort();
        return Ok(Some((folder.clone(), files)));
    }
    Ok(None)
}

fn read_file(path: &Path, option: &'static str) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|source| Usage::FileUnreadable {
        path: path.to_owned(),
        option,
        source,
    })
}

fn read_in_folder(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|source| Usage::CertificatesUnreadable {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[expect(clippy::disallowed_methods, reason = "a test writes plain files")]
    fn folder_with(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            std::fs::write(folder.path().join(name), name).unwrap();
        }
        folder
    }

    fn found(folder: &tempfile::TempDir) -> Result<Certificates> {
        let (path, files) = first_folder(&[folder.path().join("none"), folder.path().to_owned()])?
            .expect("the folder is there");
        Certificates::of_files(&path, &files)
    }

    #[test]
    fn the_endings_of_a_folders_files_say_what_they_are() {
        let folder = folder_with(&[
            "b.cert", "b.key", "a.crt", "c.crt", "c.cert", "c.key", "README",
        ]);
        let certificates = found(&folder).unwrap();
        assert_eq!(certificates.authorities, [b"a.crt", b"c.crt"]);
        assert_eq!(
            certificates.identity.unwrap().expose_secret(),
            "b.cert\nb.key"
        );
    }

    #[test]
    fn half_an_identity_in_a_folder_names_the_other_half() {
        for (there, missing) in [("client.cert", "client.key"), ("client.key", "client.cert")] {
            let folder = folder_with(&[there]);
            let text = found(&folder).err().unwrap().to_string();
            let (there, missing) = (folder.path().join(there), folder.path().join(missing));
            let expected = format!("{} needs {} beside it", there.display(), missing.display());
            assert!(text.starts_with(&expected), "{text}");
        }
    }

    #[test]
    fn folders_are_named_after_host_and_port_and_the_users_own_comes_first() {
        let folders = |address: &str| {
            usual_folders(Some(Path::new("/home/user")), &address.parse().unwrap())
                .into_iter()
                .map(|folder| folder.display().to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            folders("https://r.example:5000"),
            [
                "/home/user/.config/containers/certs.d/r.example:5000",
                "/etc/containers/certs.d/r.example:5000",
                "/etc/docker/certs.d/r.example:5000",
            ]
        );
        assert!(folders("https://registry-1.docker.io")[1].ends_with("certs.d/docker.io"));
    }
}
