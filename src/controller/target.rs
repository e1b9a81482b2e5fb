//! Names one object: what runs, statuses and events are kept under.

use std::fmt;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{Resource, runtime::reflector::ObjectRef};

use crate::api::ImageMirror;

use super::guard::Guarded;

/// The name of a mirror in the cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Name {
    /// Its namespace.
    pub(super) namespace: String,
    /// Its name there.
    pub(super) name: String,
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.namespace, self.name)
    }
}

impl From<&Name> for ObjectRef<Guarded> {
    fn from(name: &Name) -> Self {
        Self::new(&name.name).within(&name.namespace)
    }
}

/// One object: a later one of the same name is another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Target {
    /// Its name.
    pub(super) name: Name,
    /// Its uid.
    pub(super) uid: String,
}

impl Target {
    /// The object's own names; `None` for something that did not come from an API server.
    pub(super) fn of(object: &Guarded) -> Option<Self> {
        let meta = object.meta();
        Some(Self {
            name: Name {
                namespace: meta.namespace.clone()?,
                name: meta.name.clone()?,
            },
            uid: meta.uid.clone()?,
        })
    }

    /// What an event is about. Without the resource version, or no two events were ever about the same.
    pub(super) fn reference(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some(ImageMirror::api_version(&()).into_owned()),
            kind: Some(ImageMirror::kind(&()).into_owned()),
            namespace: Some(self.name.namespace.clone()),
            name: Some(self.name.name.clone()),
            uid: Some(self.uid.clone()),
            ..ObjectReference::default()
        }
    }
}
