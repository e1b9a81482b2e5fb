//! Placeholders in the names of destinations: `{registry}`, `{repository}` and `{name}` in repositories, `{tag}` and
//! `{digest}` in tags.
//!
//! The result is validated, not the template: `{registry}` may hold a port, which a path must not.

use crate::{
    image::{self, Digest, Repository, RepositoryPath, Tag},
    transfer::{TargetReference, digest_tag},
};

/// Puts the source's names into a destination's repository.
pub(super) fn repository(
    template: &str,
    registry: &str,
    path: &RepositoryPath,
) -> Result<Repository, Unfilled> {
    let text = fill(template, |name| match name {
        "registry" => Some(registry.to_owned()),
        "repository" => Some(path.as_str().to_owned()),
        "name" => Some(path.last_component().to_owned()),
        _ => None,
    })?;
    Ok(text.parse()?)
}

/// Puts the source's tag and digest into a destination's tag. An image selected by digest alone has no tag: `{tag}` then
/// stands for the digest, so that it is not collected as untagged. A digest that is not known yet stays in the template.
pub(super) fn tag(
    template: &str,
    tag: Option<&Tag>,
    digest: Option<&Digest>,
) -> Result<TargetReference, Unfilled> {
    let digest_text = digest.map_or_else(
        || TargetReference::DIGEST.to_owned(),
        |digest| digest_tag(digest).as_str().to_owned(),
    );
    let text = fill(template, |name| match name {
        "tag" => Some(tag.map_or_else(|| digest_text.clone(), |tag| tag.as_str().to_owned())),
        "digest" => Some(digest_text.clone()),
        _ => None,
    })?;
    if text.contains(TargetReference::DIGEST) {
        let reference = TargetReference::WithDigest(text);
        // Every digest makes a tag of the same length: what is right for one is right for all.
        reference.resolve(&Digest::of(b""))?;
        return Ok(reference);
    }
    Ok(TargetReference::Known(image::Reference::Tag(text.parse()?)))
}

/// Why a template gives no name.
#[derive(Debug)]
pub(super) enum Unfilled {
    /// There is no such placeholder, or a brace stands alone.
    Placeholder(String),
    /// The filled template is no name.
    Name(image::Error),
}

impl From<image::Error> for Unfilled {
    fn from(error: image::Error) -> Self {
        Self::Name(error)
    }
}

/// Replaces each `{name}` by its value.
fn fill(template: &str, value: impl Fn(&str) -> Option<String>) -> Result<String, Unfilled> {
    let mut text = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(open) = rest.find('{') {
        let (before, after) = rest.split_at(open);
        let close = after
            .find('}')
            .ok_or_else(|| Unfilled::Placeholder(after.to_owned()))?;
        let placeholder = &after[..=close];
        text.push_str(before);
        text.push_str(
            &value(&after[1..close])
                .ok_or_else(|| Unfilled::Placeholder(placeholder.to_owned()))?,
        );
        rest = &after[close + 1..];
    }
    text.push_str(rest);
    Ok(text)
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::unwrap_in_result,
        reason = "what the tests themselves write can be read"
    )]

    use super::*;
    use crate::image::Algorithm;

    fn filled(template: &str) -> Result<String, Unfilled> {
        let path = "prometheus/node-exporter".parse().unwrap();
        repository(template, "quay.io", &path).map(|repository| repository.to_string())
    }

    #[test]
    fn repositories_take_the_names_of_the_source() {
        for (template, expected) in [
            (
                "internal:5000/mirror/{repository}",
                "internal:5000/mirror/prometheus/node-exporter",
            ),
            (
                "internal:5000/{registry}/{name}",
                "internal:5000/quay.io/node-exporter",
            ),
            ("internal:5000/fixed", "internal:5000/fixed"),
        ] {
            assert_eq!(filled(template).unwrap(), expected);
        }
    }

    #[test]
    fn unknown_placeholders_and_impossible_names_are_refused() {
        for template in ["a.b/{tag}", "a.b/{repository", "a.b/{}", "a.b/{Repository}"] {
            assert!(
                matches!(filled(template), Err(Unfilled::Placeholder(_))),
                "{template}"
            );
        }
        let (host, path) = ("registry:5000", "app".parse().unwrap());
        assert!(matches!(
            repository("a.b/{registry}/app", host, &path),
            Err(Unfilled::Name(_))
        ));
    }

    #[test]
    fn tags_take_the_tag_or_the_digest_of_the_source() {
        let (release, digest): (Tag, _) = ("1.27".parse().unwrap(), Digest::of(b"x"));
        let by_digest = digest_tag(&digest).as_str().to_owned();
        for (template, tag_of_source, digest_of_source, expected) in [
            ("{tag}", Some(&release), None, "1.27".to_owned()),
            (
                "v{tag}-mirrored",
                Some(&release),
                Some(&digest),
                "v1.27-mirrored".to_owned(),
            ),
            ("{tag}", None, Some(&digest), by_digest.clone()),
            (
                "{tag}-{digest}",
                Some(&release),
                Some(&digest),
                format!("1.27-{by_digest}"),
            ),
            ("{digest}", Some(&release), None, "{digest}".to_owned()),
        ] {
            assert_eq!(
                tag(template, tag_of_source, digest_of_source)
                    .unwrap()
                    .to_string(),
                expected,
                "{template}"
            );
        }
    }

    #[test]
    fn a_tag_that_becomes_too_long_is_refused_before_anything_runs() {
        let long: Tag = "x".repeat(100).parse().unwrap();
        assert!(tag("{tag}-{digest}", Some(&long), None).is_err());
        let digest = Digest::with_algorithm(Algorithm::Sha512, b"");
        assert!(tag("{tag}-{tag}", None, Some(&digest)).is_err());
    }
}
