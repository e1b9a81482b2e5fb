//! The manifest of an image whose archive has none: always the same bytes for the same image (archive reference part 3).

use serde::Serialize;

use crate::image::{Algorithm, Descriptor, Digest, MediaType, RawManifest};

use super::{
    error::{Place, Result},
    outer::Form,
};

const PLAIN_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const GZIP_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// An OCI manifest. The order of the fields is that of the bytes, and thereby a part of the digest.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ImageManifest<'a> {
    schema_version: u8,
    media_type: MediaType,
    config: Entry<'a>,
    layers: Vec<Entry<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry<'a> {
    media_type: &'a MediaType,
    digest: &'a Digest,
    size: u64,
}

impl<'a> From<&'a Descriptor> for Entry<'a> {
    fn from(descriptor: &'a Descriptor) -> Self {
        Self {
            media_type: &descriptor.media_type,
            digest: &descriptor.digest,
            size: descriptor.size,
        }
    }
}

/// The descriptor of a configuration.
pub(super) fn config(digest: Digest, size: u64) -> Descriptor {
    descriptor(MediaType::OCI_CONFIG, digest, size)
}

/// The descriptor of a layer; its type follows from its own bytes, not from those of other layers or from a name.
pub(super) fn layer(form: Form, digest: Digest, size: u64, place: &Place) -> Result<Descriptor> {
    let media_type = layer_type(form).ok_or_else(|| {
        place.unsupported(format!(
            "a layer with compression {form}; save the image with gzip, zstd or plain layers"
        ))
    })?;
    Ok(descriptor(MediaType::from(media_type), digest, size))
}

/// The type of a layer of this form; none if there is no such type.
pub(super) const fn layer_type(form: Form) -> Option<&'static str> {
    match form {
        Form::Plain => Some(PLAIN_LAYER),
        Form::Gzip => Some(GZIP_LAYER),
        Form::Zstd => Some(ZSTD_LAYER),
        Form::Xz | Form::Bzip2 => None,
    }
}

fn descriptor(media_type: MediaType, digest: Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type,
        digest,
        size,
        urls: Vec::new(),
        platform: None,
    }
}

/// The manifest: compact JSON without newline, without annotations, without time.
pub(super) fn manifest(
    config: &Descriptor,
    layers: &[Descriptor],
    place: &Place,
) -> Result<RawManifest> {
    let manifest = ImageManifest {
        schema_version: 2,
        media_type: MediaType::OCI_MANIFEST,
        config: config.into(),
        layers: layers.iter().map(Entry::from).collect(),
    };
    let bytes = serde_json::to_vec(&manifest)
        .map_err(|error| place.invalid(format!("no manifest can be made of it: {error}")))?;
    RawManifest::new(bytes.into(), None, Algorithm::Sha256).map_err(|error| place.manifest(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_and_the_digest_of_a_rebuilt_manifest_never_change() {
        let place = Place::archive("app.tar");
        let layers: Vec<Descriptor> = [(Form::Plain, "a"), (Form::Gzip, "b"), (Form::Zstd, "c")]
            .into_iter()
            .map(|(form, content)| layer(form, Digest::of(content.as_bytes()), 1, &place).unwrap())
            .collect();
        let manifest = manifest(&config(Digest::of(b"{}"), 2), &layers, &place).unwrap();
        assert_eq!(
            std::str::from_utf8(manifest.bytes()).unwrap(),
            concat!(
                r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","#,
                r#""config":{"mediaType":"application/vnd.oci.image.config.v1+json","#,
                r#""digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"#,
                r#""layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","#,
                r#""digest":"sha256:ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb","size":1},"#,
                r#"{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","#,
                r#""digest":"sha256:3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d","size":1},"#,
                r#"{"mediaType":"application/vnd.oci.image.layer.v1.tar+zstd","#,
                r#""digest":"sha256:2e7d2c03a9507ae265ecf5b5356885a53393a2029d241394997265a1a25aefc6","size":1}]}"#,
            )
        );
        assert_eq!(
            manifest.digest().to_string(),
            "sha256:fd26070922df9d4f17bd1672573b822b48deaa2f0751a48e9e5c57600ec609bf"
        );
    }

    #[test]
    fn a_layer_that_no_manifest_can_name_is_refused() {
        let place = Place::archive("app.tar");
        for form in [Form::Xz, Form::Bzip2] {
            assert!(layer(form, Digest::of(b""), 0, &place).is_err());
        }
    }
}
