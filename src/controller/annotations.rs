//! What the annotations of a mirror ask for: a run at once, or that the running one be stopped. Their values are opaque
//! (operator rule G3): a value that the status does not echo yet is a request.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use kube::{Resource as _, api::ObjectMeta};

use crate::api::{CANCEL, REQUESTED_AT, REQUESTED_AT_OF_FLUX};

use super::guard::Guarded;

/// Bytes of a value that count: the status holds no more, and people use times.
const MAX_TOKEN_LENGTH: usize = 256;

/// The values of our annotations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Wishes {
    /// A value other than the one echoed in `lastHandledReconcileAt` asks for a run.
    pub(super) run: Option<String>,
    /// A value other than the one echoed in `lastHandledCancelAt` asks that the running copy be stopped.
    pub(super) cancel: Option<String>,
}

impl Wishes {
    /// What the annotations of this object say.
    pub(super) fn of(meta: &ObjectMeta) -> Self {
        Self {
            run: token(meta, REQUESTED_AT).or_else(|| token(meta, REQUESTED_AT_OF_FLUX)),
            cancel: token(meta, CANCEL),
        }
    }
}

/// The value of an annotation as the status can hold it; an empty one is none.
fn token(meta: &ObjectMeta, annotation: &str) -> Option<String> {
    let value = meta.annotations.as_ref()?.get(annotation)?;
    let end = value.floor_char_boundary(MAX_TOKEN_LENGTH);
    value
        .get(..end)
        .filter(|text| !text.is_empty())
        .map(str::to_owned)
}

/// Changes when one of our annotations does, so that the watch lets the change through (operator rule K8).
#[expect(clippy::unnecessary_wraps, reason = "the signature of a predicate")]
pub(super) fn fingerprint(object: &Guarded) -> Option<u64> {
    let annotations = object.meta().annotations.as_ref();
    let mut hasher = DefaultHasher::new();
    for name in [REQUESTED_AT, REQUESTED_AT_OF_FLUX, CANCEL] {
        annotations.and_then(|all| all.get(name)).hash(&mut hasher);
    }
    Some(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::fixtures;

    fn annotated(annotations: &[(&str, &str)]) -> Guarded {
        let mut mirror = fixtures::mirror();
        let pairs = annotations
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        mirror.metadata.annotations = Some(pairs.collect());
        Guarded::Valid(Box::new(mirror))
    }

    #[test]
    fn the_annotation_of_flux_counts_where_ours_is_absent() {
        for (annotations, run, cancel) in [
            (vec![], None, None),
            (vec![("other", "x")], None, None),
            (vec![(REQUESTED_AT_OF_FLUX, "flux")], Some("flux"), None),
            (
                vec![(REQUESTED_AT_OF_FLUX, "flux"), (REQUESTED_AT, "ours")],
                Some("ours"),
                None,
            ),
            (
                vec![(CANCEL, "stop"), (REQUESTED_AT, "")],
                None,
                Some("stop"),
            ),
        ] {
            let wishes = Wishes::of(annotated(&annotations).meta());
            assert_eq!(
                (wishes.run.as_deref(), wishes.cancel.as_deref()),
                (run, cancel),
                "{annotations:?}"
            );
        }
    }

    #[test]
    fn a_value_of_any_length_fits_into_the_status() {
        let long = "ü".repeat(1_000);
        let wishes = Wishes::of(annotated(&[(REQUESTED_AT, &long), (CANCEL, &long)]).meta());
        assert_eq!(wishes.run.as_deref(), Some("ü".repeat(128).as_str()));
        assert_eq!(wishes.cancel, wishes.run);
    }

    /// Operator rule K8.
    #[test]
    fn every_annotation_of_ours_gets_through_the_watch_and_no_other() {
        let plain = fingerprint(&annotated(&[]));
        assert_eq!(fingerprint(&annotated(&[("other", "x")])), plain);
        let mut seen = vec![plain];
        for name in [REQUESTED_AT, REQUESTED_AT_OF_FLUX, CANCEL] {
            for value in ["1", "2"] {
                let print = fingerprint(&annotated(&[(name, value)]));
                assert!(!seen.contains(&print), "{name}={value}");
                seen.push(print);
            }
        }
    }
}
