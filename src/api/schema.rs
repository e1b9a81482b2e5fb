//! What the API server would let through, as schemas: for files that never meet one.

use k8s_openapi::{
    api::core::v1::{Secret, ServiceAccount},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::CustomResourceExt as _;
use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Value, json};

use super::ImageMirror;

/// An ImageMirror as a user writes it: the schema of the CRD, with what the server knows of metadata itself. Whatever stands
/// in a status is let through, since nobody reads it.
pub fn image_mirror_schema() -> Value {
    let definition = json!(ImageMirror::crd());
    let spec = definition
        .pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec")
        .cloned()
        .unwrap_or_default();
    json!({
        "type": "object",
        "required": ["metadata", "spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": schema_of::<ObjectMeta>(),
            "spec": spec,
            "status": {"type": "object"},
        },
    })
}

/// A Secret.
pub fn secret_schema() -> Value {
    schema_of::<Secret>()
}

/// A ServiceAccount.
pub fn service_account_schema() -> Value {
    schema_of::<ServiceAccount>()
}

/// The schema of a type of Kubernetes, with everything it consists of in place.
fn schema_of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| settings.inline_subschemas = true);
    json!(settings.into_generator().into_root_schema_for::<T>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_hold_the_fields_that_users_write() {
        for (schema, fields) in [
            (
                image_mirror_schema(),
                &[
                    "metadata/properties/labels",
                    "spec/properties/source/properties/registry",
                ][..],
            ),
            (
                secret_schema(),
                &["data", "stringData", "type", "metadata/properties/name"],
            ),
            (
                service_account_schema(),
                &["imagePullSecrets/items/properties/name"],
            ),
        ] {
            for field in fields {
                let found = schema.pointer(&format!("/properties/{field}"));
                assert!(found.is_some(), "{field} in {schema:#}");
            }
            assert!(!schema.to_string().contains("$ref"));
        }
    }
}
