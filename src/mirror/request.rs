//! A validated mirror with its Secrets: clients and jobs, ready to run.

use std::collections::BTreeMap;

use crate::{
    cache::Cache,
    output::OutputManager,
    registry::{ClientOptions, Credential, RegistryClient},
    transfer::{ImageJob, Registries, Run, RunReport, TransferOptions},
};

use super::{
    Error, Result, SecretDocument,
    secret::NamedSecret,
    validate::{ValidatedAccess, ValidatedMirror},
};

/// A run that only needs a cache.
#[derive(Debug)]
pub struct MirrorRequest {
    jobs: Vec<ImageJob>,
    registries: Registries,
    options: TransferOptions,
    output: OutputManager,
}

impl MirrorRequest {
    /// Carries the mirror out. Dropping the future cancels it.
    pub async fn run(self, cache: &Cache) -> RunReport {
        let Self {
            jobs,
            registries,
            options,
            output,
        } = self;
        Run::new(cache, registries, options, output)
            .execute(&jobs)
            .await
    }
}

/// Makes a client for every registry access of the mirror.
pub(super) fn build(
    mirror: ValidatedMirror,
    secrets: &BTreeMap<String, SecretDocument>,
    output: &OutputManager,
) -> Result<MirrorRequest> {
    let mut registries = Registries::new();
    for (id, access) in &mirror.accesses {
        registries.insert(
            id.clone(),
            client(access, mirror.retry_attempts, secrets, output)?,
        );
    }
    Ok(MirrorRequest {
        jobs: mirror.jobs,
        registries,
        options: mirror.options,
        output: output.clone(),
    })
}

fn client(
    access: &ValidatedAccess,
    retry_attempts: u32,
    secrets: &BTreeMap<String, SecretDocument>,
    output: &OutputManager,
) -> Result<RegistryClient> {
    let mut options = ClientOptions {
        skip_tls_verify: access.skip_tls_verify,
        retry_attempts,
        ..ClientOptions::default()
    };
    if let Some(name) = &access.secret {
        let field = format!("{}.secretRef", access.field);
        let secret = NamedSecret {
            document: find(secrets, name, &field)?,
            field: &field,
        };
        options.credential = secret.credential(&access.host, &access.repository)?;
    } else {
        options.credential = Credential::Anonymous;
    }
    if let Some(name) = &access.cert_secret {
        let field = format!("{}.certSecretRef", access.field);
        let secret = NamedSecret {
            document: find(secrets, name, &field)?,
            field: &field,
        };
        secret.require_certificates()?;
        options.ca_certificates = secret.certificate_authorities()?.into_iter().collect();
        options.client_identity = secret.client_identity()?;
    }
    let invalid = |source| Error::AccessInvalid {
        field: access.field.clone(),
        source,
    };
    RegistryClient::new(access.endpoint.clone(), options, output.clone()).map_err(invalid)
}

fn find<'a>(
    secrets: &'a BTreeMap<String, SecretDocument>,
    name: &str,
    field: &str,
) -> Result<&'a SecretDocument> {
    secrets.get(name).ok_or_else(|| Error::SecretNotFound {
        secret: name.to_owned(),
        field: field.to_owned(),
    })
}
