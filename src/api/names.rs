//! Items of lists in the spec. Each is a type of its own, because only so the API server names the wrong item (`tags[1]`)
//! together with a message in words (CRD finding F3).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A tag: letters, digits, '.', '_' and '-', at most 128 characters.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord,
)]
#[serde(transparent)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "self.matches('^[A-Za-z0-9_][A-Za-z0-9._-]*$')",
    "message": "must be a tag: letters, digits, '.', '_' and '-', at most 128"
}]))]
pub struct ImageTag(#[schemars(length(min = 1, max = 128))] pub String);

/// A digest, with or without the tag it is pinned for: `[tag@]sha256:...` or `[tag@]sha512:...`.
// 264 characters: a tag of 128, '@', "sha512:" and 128 hex digits.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord,
)]
#[serde(transparent)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "self.matches('^([A-Za-z0-9_][A-Za-z0-9._-]{0,127}@)?(sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128})$')",
    "message": "must be [tag@]sha256:<64 hex digits> or [tag@]sha512:<128 hex digits>"
}]))]
pub struct PinnedDigest(#[schemars(length(min = 1, max = 264))] pub String);

/// A file below a folder: relative, without `..`.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(transparent)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!self.startsWith('/') && !self.split('/').exists(part, part in ['', '.', '..'])",
    "message": "path must be relative and without empty, . and .. segments"
}]))]
pub struct ArchivePath(#[schemars(length(min = 1, max = 512))] pub String);
