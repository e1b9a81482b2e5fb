//! How a registry is reached, as a spec says it, and the client that follows from it.

use std::sync::Arc;

use crate::{
    api::{Access, SecretReference},
    image::{Host, RepositoryPath},
    output::OutputManager,
    registry::{ClientOptions, Endpoint, ProxyChoice, RegistryClient},
};

use super::{Error, Given, Result, secret::NamedSecret, validate::invalid};

/// How one registry of the mirror is reached.
#[derive(Debug, Clone)]
pub(super) struct ValidatedAccess {
    /// Path of the source or destination in the spec, for messages.
    pub(super) field: String,
    pub(super) service_account: Option<String>,
    pub(super) secret: Option<String>,
    cert_secret: Option<String>,
    proxy_secret: Option<String>,
    insecure: bool,
    skip_tls_verify: bool,
}

/// An access at a certain place.
#[derive(Debug, Clone)]
pub(super) struct RegistryAccess {
    pub(super) host: Host,
    /// Logins may differ by repository.
    pub(super) repository: RepositoryPath,
    pub(super) how: ValidatedAccess,
}

impl ValidatedAccess {
    /// Checks the access fields of the source or destination at `field`.
    pub(super) fn new(field: &str, access: &Access) -> Result<Self> {
        if access.is_insecure() && access.skips_tls_verification() {
            return Err(invalid(
                field,
                "insecure means plain http, skipTLSVerify cannot apply: set one of them",
            ));
        }
        if access.secret_ref.is_some() && access.service_account_name.is_some() {
            return Err(invalid(
                field,
                "secretRef and serviceAccountName both name a login: set one of them",
            ));
        }
        let secret = |reference: &Option<SecretReference>, part: &str| {
            let name = reference.as_ref().map(|reference| reference.name.as_str());
            object_name(name, || format!("{field}.{part}.name"), "a Secret")
        };
        Ok(Self {
            service_account: object_name(
                access.service_account_name.as_deref(),
                || format!("{field}.serviceAccountName"),
                "a ServiceAccount",
            )?,
            secret: secret(&access.secret_ref, "secretRef")?,
            cert_secret: secret(&access.cert_secret_ref, "certSecretRef")?,
            proxy_secret: secret(&access.proxy_secret_ref, "proxySecretRef")?,
            insecure: access.is_insecure(),
            skip_tls_verify: access.skips_tls_verification(),
            field: field.to_owned(),
        })
    }

    /// The Secrets it names.
    pub(super) fn secrets(&self) -> impl Iterator<Item = &String> {
        [&self.secret, &self.cert_secret, &self.proxy_secret]
            .into_iter()
            .flatten()
    }
}

impl RegistryAccess {
    /// Where the registry is.
    pub(super) fn endpoint(&self) -> Endpoint {
        Endpoint::for_host(&self.host, self.how.insecure)
    }

    /// The client for it.
    pub(super) fn client(
        &self,
        given: &Given,
        retry_attempts: u32,
        output: &OutputManager,
    ) -> Result<RegistryClient> {
        let login = self.login(given, output)?;
        let mut options = ClientOptions {
            credential: login.credential,
            credential_source: login.source,
            skip_tls_verify: self.how.skip_tls_verify,
            retry_attempts,
            hosts: given.hosts.clone(),
            tenant: Arc::clone(&given.tenant),
            loopback: given.loopback,
            ..ClientOptions::default()
        };
        if let Some(secret) =
            self.secret(given, self.how.cert_secret.as_deref(), "certSecretRef")?
        {
            secret.require_certificates()?;
            options.ca_certificates = secret.certificate_authorities()?.into_iter().collect();
            options.client_identity = secret.client_identity()?;
        }
        if let Some(secret) =
            self.secret(given, self.how.proxy_secret.as_deref(), "proxySecretRef")?
        {
            options.proxy = ProxyChoice::Through(secret.proxy()?);
        }
        RegistryClient::new(self.endpoint(), options, output.clone()).map_err(|source| {
            Error::AccessInvalid {
                field: self.how.field.clone(),
                source,
            }
        })
    }

    /// The Secret that the field `part` names, if it names one.
    fn secret<'a>(
        &self,
        given: &'a Given,
        name: Option<&str>,
        part: &str,
    ) -> Result<Option<NamedSecret<'a>>> {
        let Some(name) = name else { return Ok(None) };
        let field = format!("{}.{part}", self.how.field);
        match given.secrets.get(name) {
            Some(document) => Ok(Some(NamedSecret { document, field })),
            None => Err(Error::SecretNotFound {
                secret: name.to_owned(),
                field,
            }),
        }
    }
}

/// The name of an object. It becomes part of an API path (operator rule R5).
fn object_name(
    name: Option<&str>,
    field: impl FnOnce() -> String,
    of: &str,
) -> Result<Option<String>> {
    match name {
        Some(name) if !is_object_name(name) => Err(invalid(
            field(),
            format!(
                "must be the name of {of}: lower-case letters, digits, '.' and '-', at most 253"
            ),
        )),
        name => Ok(name.map(str::to_owned)),
    }
}

/// A DNS subdomain, as names of Secrets are.
pub(crate) fn is_object_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    !name.is_empty()
        && name.len() <= 253
        && name.split('.').all(|label| {
            label.bytes().all(|byte| inner(byte) || byte == b'-')
                && label.bytes().next().is_some_and(inner)
                && label.bytes().last().is_some_and(inner)
        })
}
