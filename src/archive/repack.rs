//! Manifests that the archive has, once some of their layers are compressed: everything they say stays but the descriptors of
//! what changed, and those of these manifests in the indexes above. Docker's types become OCI's (archive reference part 3).

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use crate::image::{Descriptor, Digest, Manifest, MediaType, RawManifest};

use super::{
    check::Packed,
    error::{Place, Result},
    json::is_tar_layer,
    rebuild::layer_type,
};

/// Where buildx says which image an attestation in the same index is about.
const REFERENCE: &str = "vnd.docker.reference.digest";

/// The types that have the same meaning in both formats. A list may hold manifests of either.
const OCI_TYPES: [(&str, &str); 6] = [
    (
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
    ),
    (
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.index.v1+json",
    ),
    (
        "application/vnd.docker.container.image.v1+json",
        "application/vnd.oci.image.config.v1+json",
    ),
    (
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.oci.image.layer.v1.tar",
    ),
    (
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.oci.image.layer.v1.tar+gzip",
    ),
    (
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    ),
];

/// A manifest with those below it, each before what names it.
type Tree = (RawManifest, Vec<RawManifest>);

/// The manifests with the compressed layers, by the digests of the plain ones; where nothing changed, the same bytes.
pub(super) fn repacked(
    (root, children): &Tree,
    packed: &HashMap<Digest, Packed>,
    archive: &Place,
) -> Result<Tree> {
    let mut changed: HashMap<Digest, RawManifest> = HashMap::new();
    let mut rewritten = Vec::with_capacity(children.len());
    for manifest in children.iter().chain([root]) {
        let parsed = manifest.parse().map_err(|error| archive.manifest(&error))?;
        let new = match parsed {
            Manifest::Image(image) => {
                let is_packed = |layer: &Descriptor| {
                    is_open_tar(&layer.media_type) && packed.contains_key(&layer.digest)
                };
                if image.layers.iter().any(is_packed) {
                    Some(with_layers(manifest, packed, archive)?)
                } else {
                    None
                }
            }
            Manifest::Index(index) => {
                let is_changed = |child: &Descriptor| changed.contains_key(&child.digest);
                if index.manifests.iter().any(is_changed) {
                    Some(with_children(manifest, &changed, archive)?)
                } else {
                    None
                }
            }
        };
        if let Some(new) = &new {
            changed.insert(manifest.digest().clone(), new.clone());
        }
        rewritten.push(new.unwrap_or_else(|| manifest.clone()));
    }
    let root = rewritten.pop().unwrap_or_else(|| root.clone());
    Ok((root, rewritten))
}

/// A layer that may be changed.
fn is_open_tar(media_type: &MediaType) -> bool {
    is_tar_layer(media_type) && !media_type.is_nondistributable()
}

fn with_layers(
    manifest: &RawManifest,
    packed: &HashMap<Digest, Packed>,
    archive: &Place,
) -> Result<RawManifest> {
    edited(manifest, archive, |fields| {
        for layer in list(fields, "layers") {
            let is_open = text(layer, "mediaType").is_some_and(|text| is_open_tar(&text.into()));
            let found = digest(layer).and_then(|digest| packed.get(&digest));
            if let Some(found) = found.filter(|_| is_open) {
                let media_type = layer_type(found.method.form());
                describe(
                    layer,
                    media_type.unwrap_or_default(),
                    &found.digest,
                    found.size,
                );
            } else {
                modernise(layer);
            }
        }
        if let Some(Value::Object(config)) = fields.get_mut("config") {
            modernise(config);
        }
    })
}

fn with_children(
    index: &RawManifest,
    changed: &HashMap<Digest, RawManifest>,
    archive: &Place,
) -> Result<RawManifest> {
    edited(index, archive, |fields| {
        for child in list(fields, "manifests") {
            if let Some(new) = digest(child).and_then(|digest| changed.get(&digest)) {
                describe(child, new.media_type().as_str(), new.digest(), new.size());
            }
            if let Some(Value::Object(annotations)) = child.get_mut("annotations")
                && let Some(Value::String(about)) = annotations.get_mut(REFERENCE)
                && let Some(new) = about.parse().ok().and_then(|digest| changed.get(&digest))
            {
                *about = new.digest().to_string();
            }
        }
    })
}

/// The manifest with other fields. Their order is that of their names: one manifest gives one digest.
fn edited(
    manifest: &RawManifest,
    archive: &Place,
    edit: impl FnOnce(&mut Map<String, Value>),
) -> Result<RawManifest> {
    let invalid = |error: serde_json::Error| {
        archive.invalid(format!("no manifest can be made of its own: {error}"))
    };
    let mut fields = serde_json::from_slice(manifest.bytes()).map_err(invalid)?;
    edit(&mut fields);
    modernise(&mut fields);
    let bytes = serde_json::to_vec(&fields).map_err(invalid)?;
    RawManifest::new(bytes.into(), None, manifest.digest().algorithm())
        .map_err(|error| archive.manifest(&error))
}

/// The descriptors of a list.
fn list<'a>(
    fields: &'a mut Map<String, Value>,
    name: &str,
) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    let list = fields.get_mut(name).and_then(Value::as_array_mut);
    list.into_iter().flatten().filter_map(Value::as_object_mut)
}

fn text<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    fields.get(name)?.as_str()
}

fn digest(descriptor: &Map<String, Value>) -> Option<Digest> {
    text(descriptor, "digest")?.parse().ok()
}

/// Lets a descriptor speak of something else. A copy of the content in it is no longer one.
fn describe(descriptor: &mut Map<String, Value>, media_type: &str, digest: &Digest, size: u64) {
    descriptor.insert("mediaType".to_owned(), json!(media_type));
    descriptor.insert("digest".to_owned(), json!(digest));
    descriptor.insert("size".to_owned(), json!(size));
    descriptor.remove("data");
}

/// Puts OCI's type in the place of Docker's.
fn modernise(fields: &mut Map<String, Value>) {
    let modern = text(fields, "mediaType").and_then(|old| {
        let known = OCI_TYPES.iter().find(|(docker, _)| *docker == old);
        known.map(|(_, oci)| *oci)
    });
    if let Some(modern) = modern {
        fields.insert("mediaType".to_owned(), json!(modern));
    }
}
