//! Debian's nginx before a registry, as it is put there to end TLS: right, with the usual mistakes, and with limits.

use std::net::Ipv4Addr;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::ports::free_port;
use super::process::{Guarded, temporary_folder};
use super::registry::{Access, Registry};
use super::{Context, Result, certificates};

/// Measured: 30 ms. The rest is for a machine that compiles at the same time.
const START_LIMIT: Duration = Duration::from_secs(30);

/// A running nginx with TLS of a private CA.
#[derive(Debug)]
pub struct ReverseProxy {
    process: Guarded,
    access: Access,
}

/// How nginx shall be set up.
#[derive(Debug, Clone)]
pub struct ReverseProxyBuilder {
    upstream: String,
    /// What the registry is told, as lines of the configuration.
    headers: Vec<String>,
    body_limit: String,
    wants_certificate: bool,
}

impl ReverseProxy {
    /// As the registry's documentation has it: with the address that the client used, and without a limit.
    pub fn before(registry: &Registry) -> ReverseProxyBuilder {
        ReverseProxyBuilder {
            upstream: registry.url(),
            headers: vec![
                "Host $http_host".to_owned(),
                "X-Forwarded-Proto $scheme".to_owned(),
            ],
            body_limit: "0".to_owned(),
            wants_certificate: false,
        }
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.access.address)
    }

    pub fn access(&self) -> &Access {
        &self.access
    }

    /// A file of its folder of certificates.
    pub fn certificate_file(&self, name: &str) -> PathBuf {
        certificates_folder(self.process.folder()).join(name)
    }
}

impl ReverseProxyBuilder {
    /// Tells the registry these headers only; without any, it has to guess how it was called.
    #[must_use]
    pub fn headers(mut self, headers: &[&str]) -> Self {
        self.headers = headers.iter().map(|&header| header.to_owned()).collect();
        self
    }

    /// Takes no larger bodies, in nginx's spelling: `10k`.
    #[must_use]
    pub fn body_limit(mut self, limit: &str) -> Self {
        limit.clone_into(&mut self.body_limit);
        self
    }

    /// Asks for a certificate of its own CA; one is in `client.cert` and `client.key`.
    #[must_use]
    pub fn wants_certificate(mut self) -> Self {
        self.wants_certificate = true;
        self
    }

    pub fn start(self) -> Result<ReverseProxy> {
        let folder = temporary_folder("nginx")?;
        let certificates = certificates_folder(folder.path());
        certificates::write(&certificates, Ipv4Addr::LOCALHOST, self.wants_certificate)?;
        let address = format!("127.0.0.1:{}", free_port()?);
        let config = folder.path().join("nginx.conf");
        std::fs::write(&config, self.config(folder.path(), &address))
            .context("could not write nginx's configuration")?;
        let process = Guarded::spawn("nginx", folder, "nginx", |command| {
            // Before it has read its configuration it would write to the system's log.
            command.args(["-e", "stderr", "-c"]).arg(config);
        })?;
        process.wait_for("listening", START_LIMIT, || {
            TcpStream::connect(&address).ok()
        })?;
        Ok(ReverseProxy {
            process,
            access: Access {
                address,
                certificates: Some(certificates),
                credentials: None,
            },
        })
    }

    fn config(&self, folder: &Path, address: &str) -> String {
        let certificates = certificates_folder(folder);
        let file = |name: &str| certificates.join(name).display().to_string();
        let headers = self.headers.iter().fold(String::new(), |text, header| {
            text + &format!("proxy_set_header {header}; ")
        });
        let verify = if self.wants_certificate {
            format!(
                "ssl_verify_client on; ssl_client_certificate {};",
                file("ca.crt")
            )
        } else {
            String::new()
        };
        let names = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let folders = names.iter().fold(String::new(), |text, name| {
            text + &format!("{name}_temp_path {}; ", folder.join(name).display())
        });
        // One process: it stays the user that it is, and ends with the signal that the guard sends.
        format!(
            "daemon off; master_process off; error_log stderr; pid {pid};\n\
             events {{}}\n\
             http {{ access_log off; {folders}\n\
               server {{ listen {address} ssl; ssl_certificate {certificate}; ssl_certificate_key {key}; {verify}\n\
                 client_max_body_size {limit};\n\
                 location / {{ proxy_pass {upstream}; {headers} }} }} }}\n",
            pid = folder.join("nginx.pid").display(),
            certificate = file("server.pem"),
            key = file("server.key.pem"),
            limit = self.body_limit,
            upstream = self.upstream,
        )
    }
}

fn certificates_folder(folder: &Path) -> PathBuf {
    folder.join("certificates")
}
