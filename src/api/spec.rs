//! What a user asks for. Only fields that are carried out exist; the descriptions hold bounds and defaults, because
//! `kubectl explain` shows neither (CRD finding F24).
//!
//! Lists of scalars are atomic and may hold duplicates, which the operator drops (F7). Every list and string is bounded,
//! or the API server refuses the rules on cost (F16).

#![expect(
    unreachable_pub,
    reason = "KubeSchema repeats each struct inside a function and keeps its visibility"
)]
#![expect(
    rustdoc::broken_intra_doc_links,
    reason = "comments on fields are the CRD's descriptions, and [:port] is how a user writes it"
)]
#![expect(
    clippy::duplicated_attributes,
    reason = "the columns are distinct, some of their attributes are not"
)]

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    names::{ArchivePath, ImageTag, PinnedDigest},
    status::ImageMirrorStatus,
};

/// Name of a destination that was given none.
const DEFAULT_DESTINATION: &str = "default";
/// Keep the tag of the source.
const DEFAULT_TAG: &str = "{tag}";
/// Enough to fill a link of 1 Gbit/s at 40 ms without being a burden on a registry.
const DEFAULT_MAX_CONCURRENT: i32 = 8;
/// Retries in a row, not in all.
const DEFAULT_RETRY_ATTEMPTS: i32 = 3;

/// What to copy, where to, and how often.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[kube(
    group = "imagepusher.io",
    version = "v1alpha1",
    kind = "ImageMirror",
    plural = "imagemirrors",
    namespaced,
    status = "ImageMirrorStatus",
    shortname = "imir",
    category = "imagepusher",
    doc = "ImageMirror copies container images from a registry, an archive or the cache to registries, byte for byte, and keeps them up to date.",
    derive = "PartialEq",
    selectable = ".spec.suspend",
    selectable = ".spec.source.registry.repository",
    selectable = ".status.ready",
    printcolumn(
        name = "Source",
        type_ = "string",
        json_path = ".spec.source['registry','archive','cache']['repository','path']",
        description = "where images come from"
    ),
    printcolumn(
        name = "Synced",
        type_ = "string",
        json_path = ".status.synced",
        description = "images that all destinations have, of all images"
    ),
    printcolumn(
        name = "Progress",
        type_ = "string",
        json_path = ".status.progress.text",
        description = "how far the running copy is"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#,
        description = "whether all images are at all destinations"
    ),
    printcolumn(
        name = "Status",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#,
        description = "what the operator says about it"
    ),
    printcolumn(
        name = "Next",
        type_ = "string",
        json_path = ".status.nextSyncTime",
        priority = 1,
        description = "when it is compared with the source again"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "time since the mirror was created"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct ImageMirrorSpec {
    /// Where images come from. Required.
    pub source: Source,
    /// Where images go to, at most 16 registries or repositories. Without any, images are only fetched into the cache.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub destinations: Vec<Destination>,
    /// How often the source is looked at again, at least 1m, for example 30m, 1h or 1h30m; 5 % of jitter are added.
    /// Without it images are copied once per change of the spec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new(r"self.matches('^([0-9]{1,6}(\\.[0-9]{1,6})?(ms|s|m|h))+$') && duration(self) >= duration('1m')").message("must be a duration of at least 1m, for example 30m, 1h or 1h30m"))]
    pub interval: Option<String>,
    /// How long one run may take, for example 90s, 30m or 6h. What was copied until then stays, and the rest is tried again.
    /// Default: 6h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new(r"self.matches('^([0-9]{1,6}(\\.[0-9]{1,6})?(ms|s|m|h))+$') && duration(self) >= duration('1s')").message("must be a duration such as 90s, 30m or 6h"))]
    pub timeout: Option<String>,
    /// Starts no new run while true; a running copy finishes. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
    /// How images travel. Each of its fields has a default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transfer: Option<Transfer>,
}

impl ImageMirrorSpec {
    /// How images travel, with the defaults where nothing is said.
    pub fn transfer(&self) -> Transfer {
        self.transfer.clone().unwrap_or_default()
    }

    /// Whether no new run may start.
    pub fn is_suspended(&self) -> bool {
        self.suspend.unwrap_or_default()
    }
}

/// Where images come from.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.registry), has(self.archive), has(self.cache)].exists_one(x, x)").message("exactly one of registry, archive and cache must be set"))]
pub struct Source {
    /// Images of one repository of a registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry: Option<RegistrySource>,
    /// Images of an archive: what docker save, podman save, skopeo or buildx wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<ArchiveSource>,
    /// One image that another mirror of this namespace brought into the cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheSource>,
}

/// Images of one repository of a registry.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(has(self.tags) && size(self.tags) > 0) || (has(self.digests) && size(self.digests) > 0)").message("nothing selected: set at least one of tags and digests"))]
pub struct RegistrySource {
    /// The repository as host[:port]/path, for example docker.io/library/nginx; at most 255 characters. Required.
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(validation = Rule::new(r"self.matches('^(localhost(:[0-9]{1,5})?|[A-Za-z0-9-]+(\\.[A-Za-z0-9-]+)+(:[0-9]{1,5})?|[A-Za-z0-9-]+:[0-9]{1,5}|\\[[0-9A-Fa-f:.]+\\](:[0-9]{1,5})?)(/[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*)+$')").message("must be host[:port]/path without scheme, tag or digest, for example docker.io/library/nginx"))]
    pub repository: String,
    /// Tags to copy, at most 500. At least one of tags and digests is needed; both together are united.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 500))]
    pub tags: Vec<ImageTag>,
    /// Digests to copy, at most 500, each as [tag@]digest. With a tag the image is pushed under that tag, without one
    /// under the tag digest-HEX unless the destination's template says otherwise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 500))]
    pub digests: Vec<PinnedDigest>,
    /// How to reach the registry.
    // Never an `x_kube` here: it would land on another property (CRD finding F1).
    #[serde(flatten)]
    pub access: Access,
}

/// Images of an archive.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ArchiveSource {
    /// The file, relative to the folder of this namespace on the volume for archives; at most 512 characters. A docker save
    /// or OCI archive, plain or compressed with gzip or zstd. It is read once it stood still for 10 s, and looked at again
    /// after each interval, or after 5 minutes without one. Required.
    pub path: ArchivePath,
    /// Which of its images, at most 100. Default: all that have a name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub images: Vec<ArchiveImage>,
    /// What happens to plain layers, as docker save writes them: None keeps them, Gzip and Zstd compress them, which gives the
    /// image another digest. Layers that are compressed already stay as they are. Default: None.
    #[serde(default, skip_serializing_if = "LayerCompression::is_none")]
    pub compression: LayerCompression,
}

/// What happens to plain layers of an archive.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LayerCompression {
    /// They stay as they are.
    #[default]
    None,
    /// They become gzip, at its default level.
    Gzip,
    /// They become zstd, at its default level.
    Zstd,
}

impl LayerCompression {
    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde passes a reference"
    )]
    const fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }
}

/// One image of an archive.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.name) != has(self.index)").message("exactly one of name and index must be set"))]
pub struct ArchiveImage {
    /// The image's name as the archive has it, for example app:1.2; at most 384 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 384))]
    pub name: Option<String>,
    /// The image's position in the archive, from 0: for images that have no name there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub index: Option<i32>,
    /// The name it goes by from here on, as [host/]repository:tag; at most 384 characters. A name without host counts as
    /// docker.io. Default: the name in the archive.
    #[serde(default, rename = "as", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 384))]
    #[x_kube(validation = Rule::new(r"self.matches('^([A-Za-z0-9.-]+(:[0-9]{1,5})?/)?[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*)*:[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$')").message("must be [host/]repository:tag, for example team/app:1.2"))]
    pub known_as: Option<String>,
}

/// One image of the cache.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CacheSource {
    /// The repository as host[:port]/path, as the mirror that brought it into the cache names it; an archive's image without
    /// host is found under docker.io. At most 255 characters. Required.
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(validation = Rule::new(r"self.matches('^(localhost(:[0-9]{1,5})?|[A-Za-z0-9-]+(\\.[A-Za-z0-9-]+)+(:[0-9]{1,5})?|[A-Za-z0-9-]+:[0-9]{1,5}|\\[[0-9A-Fa-f:.]+\\](:[0-9]{1,5})?)(/[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*)+$')").message("must be host[:port]/path without scheme, tag or digest, for example docker.io/library/nginx"))]
    pub repository: String,
    /// Tag or digest, at most 135 characters. Required.
    #[schemars(length(min = 1, max = 135))]
    #[x_kube(validation = Rule::new(r"self.matches('^([A-Za-z0-9_][A-Za-z0-9._-]{0,127}|sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128})$')").message("must be a tag or a digest"))]
    pub reference: String,
}

/// One place that images go to.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Destination {
    /// Name of this destination, unique in the list: lower-case letters, digits and inner '-', at most 63 characters.
    /// Default: default.
    #[serde(default = "default_destination")]
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?$')").message("must be lower-case letters, digits and inner '-', at most 63"))]
    pub name: String,
    /// The repository as host[:port]/path, at most 255 characters. The path may hold {registry} (host of the source),
    /// {repository} (path of the source) and {name} (last component of that path). Required.
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(validation = Rule::new(r"self.matches('^(localhost(:[0-9]{1,5})?|[A-Za-z0-9-]+(\\.[A-Za-z0-9-]+)+(:[0-9]{1,5})?|[A-Za-z0-9-]+:[0-9]{1,5}|\\[[0-9A-Fa-f:.]+\\](:[0-9]{1,5})?)(/([a-z0-9._-]|\\{registry\\}|\\{repository\\}|\\{name\\})+)+$')").message("repository must be host[:port]/path; the path may hold {registry}, {repository} and {name}"))]
    pub repository: String,
    /// The tag, at most 128 characters; it may hold {tag} (tag of the source) and {digest} (digest-HEX).
    /// Default: {tag}; an image selected by digest alone then gets {digest}.
    #[serde(default = "default_tag")]
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = Rule::new(r"self.matches('^([A-Za-z0-9_]|\\{tag\\}|\\{digest\\})([A-Za-z0-9._-]|\\{tag\\}|\\{digest\\})*$')").message("tag may hold letters, digits, '.', '_', '-' and the placeholders {tag} and {digest}"))]
    pub tag: String,
    /// How to reach the registry.
    #[serde(flatten)]
    pub access: Access,
}

fn default_destination() -> String {
    DEFAULT_DESTINATION.to_owned()
}

fn default_tag() -> String {
    DEFAULT_TAG.to_owned()
}

/// How to reach a registry; the same fields at the source and at each destination.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!(has(self.insecure) && self.insecure && has(self.skipTLSVerify) && self.skipTLSVerify)").message("insecure means plain http, skipTLSVerify cannot apply: set one of them"))]
#[x_kube(validation = Rule::new("!(has(self.secretRef) && has(self.serviceAccountName))").message("secretRef and serviceAccountName both name a login: set one of them"))]
pub struct Access {
    /// Secret of the same namespace with the login: type kubernetes.io/dockerconfigjson, kubernetes.io/basic-auth, or
    /// Opaque with username and password, or with token. Without it the registry is asked anonymously.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretReference>,
    /// ServiceAccount of the same namespace whose imagePullSecrets hold the login, at most 253 characters; a registry that
    /// none of them names is asked anonymously.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")
    )]
    pub service_account_name: Option<String>,
    /// Secret of the same namespace with address (URL of a proxy, http or https) and, where it asks for them, username and
    /// password; noProxy may list hosts that are reached without it. Without this field the proxy of the operator's environment is used, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_secret_ref: Option<SecretReference>,
    /// Secret of the same namespace with ca.crt (certificate authorities to trust besides the system's) and, for client
    /// certificates, tls.crt and tls.key; type Opaque or kubernetes.io/tls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert_secret_ref: Option<SecretReference>,
    /// Speak plain http. Default: false; https is never given up silently.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub insecure: Option<bool>,
    /// Accept any certificate. Default: false.
    #[serde(
        default,
        rename = "skipTLSVerify",
        skip_serializing_if = "Option::is_none"
    )]
    pub skip_tls_verify: Option<bool>,
}

impl Access {
    /// Whether the registry is spoken to without TLS.
    pub fn is_insecure(&self) -> bool {
        self.insecure.unwrap_or_default()
    }

    /// Whether any certificate is accepted.
    pub fn skips_tls_verification(&self) -> bool {
        self.skip_tls_verify.unwrap_or_default()
    }
}

/// Names a Secret of the same namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SecretReference {
    /// Name of the Secret, at most 253 characters. Required.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")
    )]
    pub name: String,
}

/// How images travel.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Transfer {
    /// Blob transfers of this mirror at once, 1 to 64. Default: 8.
    #[serde(default = "default_max_concurrent")]
    #[schemars(range(min = 1, max = 64))]
    pub max_concurrent: i32,
    /// Retries in a row of one request or transfer, 0 to 20. Default: 3.
    #[serde(default = "default_retry_attempts")]
    #[schemars(range(min = 0, max = 20))]
    pub retry_attempts: i32,
    /// What happens to blobs that a destination has already: Skip them, or Upload them anew. Default: Skip.
    #[serde(default)]
    pub existing_blobs: ExistingBlobs,
    /// Bytes per second that are read from the source, and as many that are sent to each destination, for example 500k, 50Mi
    /// or 1Gi. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new(r"self.matches('^[1-9][0-9]{0,11}(k|M|G|Ki|Mi|Gi)?$')").message("must be bytes per second such as 500k, 50Mi or 1Gi"))]
    pub bandwidth_limit: Option<String>,
}

impl Default for Transfer {
    fn default() -> Self {
        Self {
            max_concurrent: DEFAULT_MAX_CONCURRENT,
            retry_attempts: DEFAULT_RETRY_ATTEMPTS,
            existing_blobs: ExistingBlobs::default(),
            bandwidth_limit: None,
        }
    }
}

const fn default_max_concurrent() -> i32 {
    DEFAULT_MAX_CONCURRENT
}

const fn default_retry_attempts() -> i32 {
    DEFAULT_RETRY_ATTEMPTS
}

/// What happens to blobs that a destination has already.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ExistingBlobs {
    /// They stay.
    #[default]
    Skip,
    /// They are sent again.
    Upload,
}
