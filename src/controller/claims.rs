//! Which mirror writes which place, as far as specs tell. Two that write one place would overwrite each other on every run,
//! so only the older one may (design part 3); the younger is looked at again when the older lets go.

use std::collections::{BTreeSet, HashMap};

use k8s_openapi::jiff::Timestamp;

use super::target::Name;

/// A mirror that writes places. The order is that of age; of two that were made in one second the uid decides, so that
/// every operator decides alike.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claimant {
    /// When the mirror was made.
    pub(super) created: Option<Timestamp>,
    /// Its uid.
    pub(super) uid: String,
    /// Its name.
    pub(super) name: Name,
}

/// All claims.
#[derive(Debug, Default)]
pub(super) struct Claims {
    by_place: HashMap<String, BTreeSet<Claimant>>,
    by_name: HashMap<Name, (Claimant, BTreeSet<String>)>,
}

impl Claims {
    /// Lets a mirror claim these places, in place of those it had. Returns the younger ones that this may matter to.
    pub(super) fn put(&mut self, claimant: &Claimant, places: BTreeSet<String>) -> BTreeSet<Name> {
        let standing = self.by_name.get(&claimant.name);
        if standing.is_some_and(|(by, held)| by == claimant && *held == places) {
            return BTreeSet::new();
        }
        let mut concerned = self.remove(&claimant.name);
        for place in &places {
            let claimants = self.by_place.entry(place.clone()).or_default();
            claimants.insert(claimant.clone());
            concerned.extend(younger(claimants, claimant));
        }
        let held = (claimant.clone(), places);
        self.by_name.insert(claimant.name.clone(), held);
        concerned
    }

    /// Drops what a mirror claims. Returns the younger ones that this may matter to.
    pub(super) fn remove(&mut self, name: &Name) -> BTreeSet<Name> {
        let Some((claimant, places)) = self.by_name.remove(name) else {
            return BTreeSet::new();
        };
        let mut concerned = BTreeSet::new();
        for place in &places {
            let Some(claimants) = self.by_place.get_mut(place) else {
                continue;
            };
            claimants.remove(&claimant);
            concerned.extend(younger(claimants, &claimant));
            if claimants.is_empty() {
                self.by_place.remove(place);
            }
        }
        concerned
    }

    /// A place of this mirror that an older one claims too, and which.
    pub(super) fn older(&self, name: &Name) -> Option<(&str, &Name)> {
        let (claimant, places) = self.by_name.get(name)?;
        places.iter().find_map(|place| {
            let first = self.by_place.get(place)?.first()?;
            (first != claimant).then_some((place.as_str(), &first.name))
        })
    }
}

/// The names of those that are younger.
fn younger(claimants: &BTreeSet<Claimant>, than: &Claimant) -> impl Iterator<Item = Name> {
    claimants
        .range(than..)
        .filter(move |each| *each != than)
        .map(|each| each.name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> Name {
        Name {
            namespace: "n".to_owned(),
            name: name.to_owned(),
        }
    }

    /// A mirror that was made at this second.
    fn made(at: i64, text: &str) -> Claimant {
        Claimant {
            created: Timestamp::from_second(at).ok(),
            uid: format!("uid-of-{text}"),
            name: name(text),
        }
    }

    fn set<const N: usize>(places: [&str; N]) -> BTreeSet<String> {
        places.map(str::to_owned).into()
    }

    fn names<const N: usize>(texts: [&str; N]) -> BTreeSet<Name> {
        texts.map(name).into()
    }

    #[test]
    fn the_older_of_two_has_the_place_in_whatever_order_they_come() {
        for order in [["old", "young"], ["young", "old"]] {
            let mut claims = Claims::default();
            for text in order {
                let at = if text == "old" { 1 } else { 2 };
                claims.put(&made(at, text), set(["r/a:1", &format!("r/{text}:1")]));
            }
            assert_eq!(claims.older(&name("old")), None);
            assert_eq!(claims.older(&name("young")), Some(("r/a:1", &name("old"))));
        }
        let mut claims = Claims::default();
        claims.put(&made(1, "b"), set(["r/a:1"]));
        claims.put(&made(1, "a"), set(["r/a:1"]));
        assert_eq!(claims.older(&name("b")), Some(("r/a:1", &name("a"))));
    }

    #[test]
    fn the_younger_are_told_when_something_changes_for_them_and_nobody_else_is() {
        let mut claims = Claims::default();
        assert_eq!(
            claims.put(&made(2, "b"), set(["r/a:1", "r/b:1"])),
            names([])
        );
        assert_eq!(claims.put(&made(3, "c"), set(["r/b:1"])), names([]));
        assert_eq!(claims.put(&made(1, "a"), set(["r/a:1"])), names(["b"]));
        assert_eq!(
            claims.put(&made(1, "a"), set(["r/a:1"])),
            names([]),
            "nothing new"
        );
        assert_eq!(
            claims.put(&made(1, "a"), set(["r/b:1"])),
            names(["b", "c"]),
            "an edit lets go of one place and takes another"
        );
        assert_eq!(claims.remove(&name("a")), names(["b", "c"]));
        assert_eq!(claims.older(&name("b")), None);
        assert_eq!(claims.remove(&name("c")), names([]));
        claims.remove(&name("b"));
        assert!(claims.by_place.is_empty() && claims.by_name.is_empty());
    }

    #[test]
    fn a_mirror_that_was_made_anew_is_a_younger_one() {
        let mut claims = Claims::default();
        claims.put(&made(1, "a"), set(["r/a:1"]));
        claims.put(&made(2, "b"), set(["r/a:1"]));
        let anew = Claimant {
            uid: "another".to_owned(),
            ..made(3, "a")
        };
        assert_eq!(claims.put(&anew, set(["r/a:1"])), names(["b"]));
        assert_eq!(claims.older(&name("a")), Some(("r/a:1", &name("b"))));
        assert_eq!(claims.older(&name("b")), None);
    }
}
