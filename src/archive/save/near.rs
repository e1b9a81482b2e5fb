//! Names like one that is not there.

use crate::image::ImageName;

use super::super::choose::in_full;

/// More would hide the right one.
const SHOWN: usize = 3;

/// So many letters are mistyped at most.
const MISTYPED: usize = 2;

/// Names that the user may have meant, the likeliest first.
pub(super) fn near(wanted: &ImageName, names: Vec<ImageName>) -> Vec<ImageName> {
    let mut near: Vec<(usize, ImageName)> = names
        .into_iter()
        .filter_map(|name| distance(wanted, &name).map(|distance| (distance, name)))
        .collect();
    near.sort();
    near.truncate(SHOWN);
    near.into_iter().map(|(_, name)| name).collect()
}

/// How far apart two names are; none if nobody would take one for the other.
fn distance(wanted: &ImageName, name: &ImageName) -> Option<usize> {
    let text = |name: &ImageName| {
        let (repository, reference) = in_full(name);
        format!("{repository}{}{reference}", reference.separator())
    };
    let typing = strsim::damerau_levenshtein(&text(wanted), &text(name));
    let last = |name: &ImageName| name.repository.path().last_component().to_owned();
    (typing <= MISTYPED || last(wanted) == last(name)).then_some(typing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_near_by_typing_by_form_and_by_their_last_part() {
        let names = |texts: &[&str]| -> Vec<ImageName> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let there = names(&[
            "docker.io/team/app:1",
            "team/app:2",
            "team/other:1",
            "team/tool:1",
            "registry.example/far/away/app:7",
        ]);
        for (wanted, expected) in [
            (
                "team/app:1",
                &[
                    "docker.io/team/app:1",
                    "team/app:2",
                    "registry.example/far/away/app:7",
                ][..],
            ),
            ("team/toll:1", &["team/tool:1"]),
            ("nothing/like/it:1", &[]),
        ] {
            let wanted = wanted.parse().unwrap();
            assert_eq!(near(&wanted, there.clone()), names(expected), "{wanted}");
        }
    }
}
