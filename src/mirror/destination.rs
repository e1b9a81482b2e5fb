//! Where images go to: the templates of each destination, filled in for one image.

use crate::{
    api,
    image::{Host, Repository},
    transfer::TargetReference,
};

use super::{
    Error, Result,
    access::ValidatedAccess,
    plan::place_name,
    source::SelectedImage,
    template::{self, Unfilled},
    validate::invalid,
};

/// The registry host of an image whose name has none.
pub(super) const DEFAULT_HOST: &str = "docker.io";

/// One destination whose fields are right, as far as the spec can tell.
#[derive(Debug, Clone)]
pub(super) struct ValidatedDestination {
    pub(super) name: String,
    pub(super) access: ValidatedAccess,
    repository: String,
    tag: String,
}

/// A destination for one image.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) host: Host,
    pub(super) repository: Repository,
    pub(super) reference: TargetReference,
}

impl Place {
    /// Its full name, where it is known before anything is copied.
    pub(super) fn name(&self) -> Option<String> {
        place_name(&self.host, self.repository.path(), &self.reference)
    }
}

/// Checks the destinations of a spec.
pub(super) fn destinations(places: &[api::Destination]) -> Result<Vec<ValidatedDestination>> {
    let mut checked: Vec<ValidatedDestination> = Vec::with_capacity(places.len());
    for (position, place) in places.iter().enumerate() {
        let field = format!("spec.destinations[{position}]");
        let api::Destination {
            name,
            repository,
            tag,
            access,
        } = place;
        if !is_destination_name(name) {
            return Err(invalid(
                format!("{field}.name"),
                "must be lower-case letters, digits and inner '-', at most 63",
            ));
        }
        // Whatever {registry} stands for at the source must not decide who gets the login.
        if repository.starts_with('{') {
            return Err(no_host(&field));
        }
        if checked.iter().any(|earlier| earlier.name == *name) {
            return Err(invalid(
                format!("{field}.name"),
                format!("'{}' is used twice", name.escape_debug()),
            ));
        }
        checked.push(ValidatedDestination {
            name: name.clone(),
            access: ValidatedAccess::new(&field, access)?,
            repository: repository.clone(),
            tag: tag.clone(),
        });
    }
    Ok(checked)
}

impl ValidatedDestination {
    /// Fills the templates in for one image.
    pub(super) fn place(&self, image: &SelectedImage) -> Result<Place> {
        let field = &self.access.field;
        let source = &image.cached.repository;
        let registry = source.host().map_or(DEFAULT_HOST, Host::as_str);
        let repository = template::repository(&self.repository, registry, source.path())
            .map_err(|error| unfilled(format!("{field}.repository"), error))?;
        let host = repository.host().cloned().ok_or_else(|| no_host(field))?;
        let reference = template::tag(&self.tag, image.tag.as_ref(), image.digest.as_ref())
            .map_err(|error| unfilled(format!("{field}.tag"), error))?;
        Ok(Place {
            host,
            repository,
            reference,
        })
    }
}

fn no_host(field: &str) -> Error {
    invalid(
        format!("{field}.repository"),
        "must begin with a registry host, for example internal:5000/",
    )
}

/// A DNS label.
fn is_destination_name(name: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&name.len())
        && name.bytes().all(is_inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn unfilled(field: String, error: Unfilled) -> Error {
    match error {
        Unfilled::Placeholder(text) => invalid(
            field,
            format!("the placeholder {} is not known", text.escape_debug()),
        ),
        Unfilled::Name(source) => Error::InvalidName { field, source },
    }
}
