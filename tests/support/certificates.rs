//! Certificates for loopback and for the names that exist behind a proxy only, of a CA that nobody knows.

use std::net::Ipv4Addr;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};

use super::forward_proxy::REGISTRY_NAME;
use super::{Context, Result};

/// What servers of the bed are called, besides the address that each is at.
const NAMES: [&str; 2] = ["localhost", REGISTRY_NAME];

/// Makes a CA, and signs a server at `address` and a client with it, all in `folder`: `ca.crt`, `server.pem`, `server.key.pem`, and with
/// `with_client` also `client.cert` and `client.key`. Returns the CA's certificate.
///
/// skopeo takes every `*.crt` of such a folder for a CA, and every `*.cert` and `*.key` for a client's: so the server's have
/// other names.
pub fn write(folder: &Path, address: Ipv4Addr, with_client: bool) -> Result<String> {
    std::fs::create_dir(folder).context("could not make a folder for certificates")?;
    let mut authority = CertificateParams::new(Vec::new()).context("could not describe the CA")?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority
        .distinguished_name
        .push(DnType::CommonName, "image pusher test CA");
    let authority = CertifiedIssuer::self_signed(authority, new_key()?)
        .context("could not sign the CA's certificate")?;
    put(folder, "ca.crt", &authority.pem())?;

    let mut names = NAMES.map(str::to_owned).to_vec();
    names.push(address.to_string());
    let server =
        CertificateParams::new(names).context("could not describe the server's certificate")?;
    sign(
        folder,
        &authority,
        &server,
        ["server.pem", "server.key.pem"],
    )?;
    if with_client {
        let mut client = CertificateParams::default();
        client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        sign(folder, &authority, &client, ["client.cert", "client.key"])?;
    }
    Ok(authority.pem())
}

/// Signs a certificate, and writes it and its key.
fn sign(
    folder: &Path,
    authority: &CertifiedIssuer<'_, KeyPair>,
    description: &CertificateParams,
    [certificate_file, key_file]: [&str; 2],
) -> Result<()> {
    let key = new_key()?;
    let certificate = description
        .signed_by(&key, authority)
        .context(format!("could not sign {certificate_file}"))?;
    put(folder, certificate_file, &certificate.pem())?;
    put(folder, key_file, &key.serialize_pem())
}

fn new_key() -> Result<KeyPair> {
    KeyPair::generate().context("could not make a key")
}

fn put(folder: &Path, name: &str, content: &str) -> Result<()> {
    std::fs::write(folder.join(name), content).context(format!("could not write {name}"))
}
