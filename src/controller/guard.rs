//! One object that cannot be read must not stop the others (operator rule K11): a typed list or watch fails as a whole. An
//! object is therefore taken in as JSON first; what does not fit our types becomes [`Malformed`], with the path of the
//! field that is wrong (CRD finding F39). A status that does not fit, say one of a newer operator, is no fault of the user:
//! it counts as none.

use std::borrow::Cow;

use kube::{Resource, api::ObjectMeta, core::object::HasStatus as _};
use serde::{Deserialize, Deserializer, de};
use serde_json::Value;

use crate::api::{ImageMirror, ImageMirrorStatus};

/// An object as it came from the API server.
#[derive(Debug, Clone)]
pub(super) enum Guarded {
    /// It fits our types.
    Valid(Box<ImageMirror>),
    /// It does not.
    Malformed(Box<Malformed>),
}

/// What can be known of an object that does not fit.
#[derive(Debug, Clone)]
pub(super) struct Malformed {
    metadata: ObjectMeta,
    status: Option<ImageMirrorStatus>,
    /// Which field is wrong, and how.
    pub(super) problem: String,
}

impl Guarded {
    /// The status that stands in the object.
    pub(super) fn status(&self) -> Option<&ImageMirrorStatus> {
        match self {
            Self::Valid(mirror) => mirror.status(),
            Self::Malformed(malformed) => malformed.status.as_ref(),
        }
    }
}

impl<'de> Deserialize<'de> for Guarded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(deserializer)?;
        if ImageMirrorStatus::deserialize(&value["status"]).is_err()
            && let Some(object) = value.as_object_mut()
        {
            object.remove("status");
        }
        match serde_path_to_error::deserialize::<_, ImageMirror>(&value) {
            Ok(mirror) => Ok(Self::Valid(Box::new(mirror))),
            Err(error) => {
                let metadata =
                    ObjectMeta::deserialize(&value["metadata"]).map_err(de::Error::custom)?;
                let status = ImageMirrorStatus::deserialize(&value["status"]).ok();
                let problem = format!("{}: {}", error.path(), error.inner());
                Ok(Self::Malformed(Box::new(Malformed {
                    metadata,
                    status,
                    problem,
                })))
            }
        }
    }
}

impl Resource for Guarded {
    type DynamicType = ();
    type Scope = <ImageMirror as Resource>::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        ImageMirror::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        ImageMirror::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        ImageMirror::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        ImageMirror::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        match self {
            Self::Valid(mirror) => mirror.meta(),
            Self::Malformed(malformed) => &malformed.metadata,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Self::Valid(mirror) => mirror.meta_mut(),
            Self::Malformed(malformed) => &mut malformed.metadata,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(spec: &Value) -> Guarded {
        serde_json::from_value(json!({
            "apiVersion": "imagepusher.io/v1alpha1",
            "kind": "ImageMirror",
            "metadata": {"name": "a", "namespace": "n", "generation": 3},
            "spec": spec,
            "status": {"observedGeneration": 2},
        }))
        .unwrap()
    }

    #[test]
    fn a_malformed_object_names_the_field_and_keeps_what_can_be_known() {
        let guarded = read(&json!({
            "source": {"registry": {"repository": "localhost:5000/a", "tags": ["1"]}},
            "transfer": {"existingBlobs": "Sideways"},
        }));
        let Guarded::Malformed(malformed) = &guarded else {
            panic!("{guarded:?}")
        };
        assert!(
            malformed
                .problem
                .starts_with("spec.transfer.existingBlobs: unknown variant `Sideways`"),
            "{}",
            malformed.problem
        );
        assert_eq!(guarded.meta().generation, Some(3));
        assert_eq!(guarded.status().unwrap().observed_generation, 2);
    }

    /// Nobody would look at it again: the write that mends the status leaves the generation as it is.
    #[test]
    fn a_status_of_a_newer_operator_is_no_reason_to_refuse_the_spec() {
        let mut value = serde_json::to_value(crate::controller::fixtures::mirror()).unwrap();
        value["status"] =
            json!({"observedGeneration": 1, "images": [{"source": "a", "outcome": "Teleported"}]});
        let guarded: Guarded = serde_json::from_value(value).unwrap();
        assert!(matches!(guarded, Guarded::Valid(_)), "{guarded:?}");
        assert_eq!(guarded.status(), None);
    }

    #[test]
    fn a_field_of_a_newer_crd_is_no_reason_to_refuse() {
        let guarded = read(&json!({
            "source": {"registry": {"repository": "localhost:5000/a", "tags": ["1"], "later": true}},
        }));
        assert!(matches!(guarded, Guarded::Valid(_)), "{guarded:?}");
    }
}
