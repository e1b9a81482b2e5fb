//! Debian's `docker-registry` (distribution 2.8.2) on loopback, or where pods reach it, in the flavours that clients meet:
//! open, with a password file, behind TLS of a private CA, wanting a certificate of the client, and with a token server.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use super::process::{Guarded, run, temporary_folder};
use super::token_server::{ISSUER, SERVICE, TokenAuth, TokenServer};
use super::{Context, Result, certificates};

/// Measured: 40 ms. The rest is for a machine that compiles at the same time.
const START_LIMIT: Duration = Duration::from_secs(30);

/// What a client needs to talk to a registry, or to a gateway before one.
#[derive(Debug, Clone)]
pub struct Access {
    /// `127.0.0.1:PORT`, or where it was told to listen.
    pub address: String,
    /// Set where TLS is spoken: a folder with `ca.crt`, as skopeo and docker take it.
    pub certificates: Option<PathBuf>,
    pub credentials: Option<(String, String)>,
}

/// A running registry. Deleting is enabled.
#[derive(Debug)]
pub struct Registry {
    process: Guarded,
    access: Access,
    ca_pem: Option<String>,
    token_server: Option<TokenServer>,
}

/// Flavours that can be combined; `htpasswd` and `token_auth` exclude each other, the later one wins.
#[derive(Debug, Clone, Default)]
pub struct RegistryBuilder {
    address: Option<Ipv4Addr>,
    tls: bool,
    wants_certificate: bool,
    authentication: Authentication,
    relative_locations: bool,
}

#[derive(Debug, Clone, Default)]
enum Authentication {
    #[default]
    Open,
    Htpasswd {
        user: String,
        password: String,
    },
    Token(TokenAuth),
}

/// One line of the registry's access log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedRequest {
    pub method: String,
    /// Without the query.
    pub path: String,
    pub query: Option<String>,
    pub status: u16,
    /// Of the answer's body.
    pub bytes: u64,
    pub user_agent: String,
}

impl Registry {
    pub fn builder() -> RegistryBuilder {
        RegistryBuilder::default()
    }

    /// Plain http, no login.
    pub fn open() -> Result<Self> {
        Self::builder().start()
    }

    /// Plain http, Basic login.
    pub fn with_htpasswd(user: &str, password: &str) -> Result<Self> {
        Self::builder().htpasswd(user, password).start()
    }

    /// From now on it takes this login and no other. It looks whether its file has changed at each request.
    pub fn change_password(&self, user: &str, password: &str) -> Result<()> {
        write_password(self.process.folder(), user, password).map(drop)
    }

    /// https with a certificate of a CA that nobody knows, see [`Registry::ca_pem`].
    pub fn with_tls() -> Result<Self> {
        Self::builder().tls().start()
    }

    /// Plain http, Bearer tokens from a server of our own, see [`Registry::token_server`].
    pub fn with_token_auth(options: TokenAuth) -> Result<Self> {
        Self::builder().token_auth(options).start()
    }

    /// `127.0.0.1:PORT`
    pub fn address(&self) -> &str {
        &self.access.address
    }

    /// `http://127.0.0.1:PORT` or `https://...`
    pub fn url(&self) -> String {
        let scheme = if self.access.certificates.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}", self.access.address)
    }

    pub fn access(&self) -> &Access {
        &self.access
    }

    /// The CA's certificate, with TLS.
    pub fn ca_pem(&self) -> Option<&str> {
        self.ca_pem.as_deref()
    }

    /// The same in a file.
    pub fn ca_file(&self) -> Option<PathBuf> {
        self.access
            .certificates
            .as_ref()
            .map(|folder| folder.join("ca.crt"))
    }

    /// The client's certificate and its key, where the registry wants one.
    pub fn client_files(&self) -> Option<(PathBuf, PathBuf)> {
        let folder = self.access.certificates.as_ref()?;
        let (certificate, key) = (folder.join("client.cert"), folder.join("client.key"));
        certificate.exists().then_some((certificate, key))
    }

    /// The token server, with token authentication.
    pub fn token_server(&self) -> Option<&TokenServer> {
        self.token_server.as_ref()
    }

    /// The running program, for tests that stop it, freeze it or read its log.
    pub fn process(&self) -> &Guarded {
        &self.process
    }

    /// Where the registry keeps a blob: tests look there, or damage it.
    pub fn blob_file(&self, digest: &str) -> PathBuf {
        let (algorithm, hex) = digest.split_once(':').unwrap_or(("sha256", digest));
        let start = hex.get(..2).unwrap_or(hex);
        self.process
            .folder()
            .join("data/docker/registry/v2/blobs")
            .join(algorithm)
            .join(start)
            .join(hex)
            .join("data")
    }

    /// Throws everything away that it holds, so that it is as new, at the same address. It keeps nothing in memory.
    pub fn empty(&self) -> Result<()> {
        let data = self.process.folder().join("data");
        std::fs::remove_dir_all(data).context("could not empty a registry")
    }

    /// All requests so far, in the order in which they were answered.
    pub fn requests(&self) -> Vec<LoggedRequest> {
        // A line is written just after the client got its answer: look again until nothing more comes.
        let mut log = self.process.log();
        loop {
            std::thread::sleep(Duration::from_millis(30));
            let now = self.process.log();
            if now.len() == log.len() {
                return now.lines().filter_map(parse_access_line).collect();
            }
            log = now;
        }
    }

    /// How many requests had this method and a path that contains `part`.
    pub fn count(&self, method: &str, part: &str) -> usize {
        self.requests()
            .iter()
            .filter(|request| request.method == method && request.path.contains(part))
            .count()
    }
}

impl RegistryBuilder {
    /// Listens at this address of the machine instead of loopback, where pods cannot reach it.
    #[must_use]
    pub fn at(mut self, address: Ipv4Addr) -> Self {
        self.address = Some(address);
        self
    }

    fn address(&self) -> Ipv4Addr {
        self.address.unwrap_or(Ipv4Addr::LOCALHOST)
    }

    #[must_use]
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// https, for clients with a certificate of the registry's own CA only, see [`Registry::client_files`].
    #[must_use]
    pub fn mutual_tls(mut self) -> Self {
        self.tls = true;
        self.wants_certificate = true;
        self
    }

    #[must_use]
    pub fn htpasswd(mut self, user: &str, password: &str) -> Self {
        self.authentication = Authentication::Htpasswd {
            user: user.to_owned(),
            password: password.to_owned(),
        };
        self
    }

    #[must_use]
    pub fn token_auth(mut self, options: TokenAuth) -> Self {
        self.authentication = Authentication::Token(options);
        self
    }

    /// Upload locations without scheme and host, as some registries send them.
    #[must_use]
    pub fn relative_locations(mut self) -> Self {
        self.relative_locations = true;
        self
    }

    pub fn start(self) -> Result<Registry> {
        let folder = temporary_folder("registry")?;
        let ca_pem = if self.tls {
            let certificates = folder.path().join("certificates");
            let address = self.address();
            Some(certificates::write(
                &certificates,
                address,
                self.wants_certificate,
            )?)
        } else {
            None
        };
        let (authentication, token_server) = self.prepare_authentication(folder.path())?;
        let config = folder.path().join("config.yml");
        std::fs::write(&config, self.config(folder.path(), &authentication))
            .context("could not write the registry's configuration")?;

        let process = Guarded::spawn("docker-registry", folder, "docker-registry", |command| {
            command.arg("serve").arg(config);
        })?;
        let address = process.wait_for("listening", START_LIMIT, || {
            listening_address(&process.log())
        })?;
        let access = Access {
            address,
            certificates: ca_pem
                .as_ref()
                .map(|_| process.folder().join("certificates")),
            credentials: self.credentials(),
        };
        Ok(Registry {
            process,
            access,
            ca_pem,
            token_server,
        })
    }

    fn credentials(&self) -> Option<(String, String)> {
        match &self.authentication {
            Authentication::Open => None,
            Authentication::Htpasswd { user, password } => Some((user.clone(), password.clone())),
            Authentication::Token(options) => options.credentials(),
        }
    }

    /// The configuration's `auth` section, with the files and the server that it names.
    fn prepare_authentication(&self, folder: &Path) -> Result<(Value, Option<TokenServer>)> {
        match &self.authentication {
            Authentication::Open => Ok((json!({}), None)),
            Authentication::Htpasswd { user, password } => {
                let file = write_password(folder, user, password)?;
                Ok((json!({"htpasswd": {"realm": "test", "path": file}}), None))
            }
            Authentication::Token(options) => {
                let server = TokenServer::start(options.clone())?;
                let roots = folder.join("token-roots.pem");
                std::fs::write(&roots, server.certificate_pem())
                    .context("could not write the token certificate")?;
                let realm = server.realm();
                let token = json!({"realm": realm, "service": SERVICE, "issuer": ISSUER, "rootcertbundle": roots});
                Ok((json!({"token": token}), Some(server)))
            }
        }
    }

    /// The registry reads YAML, of which JSON is a part.
    fn config(&self, folder: &Path, authentication: &Value) -> String {
        let mut config = json!({
            "version": 0.1,
            "log": {"level": "info", "formatter": "text"},
            // Without the cache of descriptors: with it a deleted blob is still announced.
            "storage": {"filesystem": {"rootdirectory": folder.join("data")}, "delete": {"enabled": true}},
            // Port 0: the registry takes a free one and logs which.
            "http": {"addr": format!("{}:0", self.address()), "relativeurls": self.relative_locations},
            "auth": authentication,
        });
        if self.tls {
            let certificates = folder.join("certificates");
            config["http"]["tls"] = json!({"certificate": certificates.join("server.pem"), "key": certificates.join("server.key.pem")});
            if self.wants_certificate {
                config["http"]["tls"]["clientcas"] = json!([certificates.join("ca.crt")]);
            }
        }
        config.to_string()
    }
}

/// The password file of a registry. It takes bcrypt only.
fn write_password(folder: &Path, user: &str, password: &str) -> Result<PathBuf> {
    let line = run(Command::new("htpasswd").args(["-Bbn", user, password]))?;
    let file = folder.join("htpasswd");
    std::fs::write(&file, line).context("could not write the password file")?;
    Ok(file)
}

/// From `msg="listening on 127.0.0.1:44123"`, which with TLS goes on with `, tls`.
fn listening_address(log: &str) -> Option<String> {
    let (_, rest) = log.split_once("listening on ")?;
    let address: String = rest
        .chars()
        .take_while(|char| char.is_ascii_digit() || matches!(char, '.' | ':'))
        .collect();
    // The line may be half written.
    rest.len().gt(&address.len()).then_some(address)
}

/// The combined log format: `HOST - USER [TIME] "METHOD TARGET PROTOCOL" STATUS BYTES "REFERER" "USER AGENT"`.
fn parse_access_line(line: &str) -> Option<LoggedRequest> {
    let mut quoted = line.split('"');
    let before = quoted.next()?;
    before.trim_end().ends_with(']').then_some(())?;
    let mut request = quoted.next()?.split(' ');
    let (method, target) = (request.next()?, request.next()?);
    let mut numbers = quoted.next()?.split_whitespace();
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query.to_owned())),
        None => (target, None),
    };
    Some(LoggedRequest {
        method: method.to_owned(),
        path: path.to_owned(),
        query,
        status: numbers.next()?.parse().ok()?,
        bytes: numbers.next()?.parse().ok()?,
        user_agent: quoted.nth(2).unwrap_or_default().to_owned(),
    })
}
