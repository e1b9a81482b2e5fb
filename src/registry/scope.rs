//! What a token is asked for: repositories and what may be done with them.

use super::challenge::Challenge;

/// What a request is for, in the terms of token services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Pull,
    Push,
}

/// What a request needs: a repository and what is done with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Scope {
    /// The name as the registry knows it.
    pub(super) repository: String,
    pub(super) access: Access,
    /// Another repository that is read for it, where a blob is mounted from there (A13).
    pub(super) source: Option<String>,
}

/// The scopes to ask for: what the request needs, with what the challenge asked for beyond, the request's own repository
/// first, since some registries read only the first (A12; `docker_auth#67`). Where a challenge names only another repository
/// it knows better what ours is called there.
pub(super) fn merged_scopes(
    asked: &[String],
    needed: Option<&Scope>,
    is_pushed: bool,
) -> Vec<String> {
    let Some(needed) = needed else {
        return asked.to_vec();
    };
    let mut actions = vec!["pull"];
    if is_pushed || needed.access == Access::Push {
        actions.push("push");
    }
    let mut name = needed.repository.as_str();
    let repositories: Vec<_> = asked
        .iter()
        .filter_map(|scope| split_scope(scope))
        .collect();
    if !repositories.is_empty() && !repositories.iter().any(|(other, _)| *other == name) {
        name = repositories[0].0;
    }
    for (other, more) in &repositories {
        if *other == name {
            for action in more.split(',').filter(|action| !action.is_empty()) {
                if !actions.contains(&action) {
                    actions.push(action);
                }
            }
        }
    }
    let own = format!("repository:{name}:{}", actions.join(","));
    let source = needed
        .source
        .as_ref()
        .map(|source| format!("repository:{source}:pull"));
    let others = asked
        .iter()
        .filter(|scope| split_scope(scope).is_none_or(|(other, _)| other != name))
        .filter(|scope| source.as_ref() != Some(*scope))
        .cloned();
    std::iter::once(own)
        .chain(source.clone())
        .chain(others)
        .collect()
}

/// Name and actions of a `repository:name:actions`; the name may hold a colon, so it is split from both ends (A11).
fn split_scope(scope: &str) -> Option<(&str, &str)> {
    scope.strip_prefix("repository:")?.rsplit_once(':')
}

/// Whether a challenge asks for more than the scope anybody would compute.
pub(super) fn asks_for_more(challenge: &Challenge, scope: &Scope) -> bool {
    match challenge {
        Challenge::Basic => false,
        Challenge::Bearer { scopes, .. } => {
            merged_scopes(scopes, Some(scope), true) != merged_scopes(&[], Some(scope), true)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(access: Access) -> Scope {
        Scope {
            repository: "team/app".to_owned(),
            access,
            source: None,
        }
    }

    #[test]
    fn a_mount_asks_for_both_repositories_and_the_own_one_first() {
        let mount = Scope {
            source: Some("other/x".to_owned()),
            ..scope(Access::Push)
        };
        let (own, other) = ("repository:team/app:pull,push", "repository:other/x:pull");
        for asked in [vec![], vec![own], vec![other, own], vec![own, other]] {
            let asked: Vec<_> = asked.into_iter().map(str::to_owned).collect();
            assert_eq!(merged_scopes(&asked, Some(&mount), false), [own, other]);
        }
    }

    #[test]
    fn scopes_are_merged_with_the_own_repository_first() {
        use Access::{Pull, Push};
        for (asked, access, is_pushed, expected) in [
            ("", Pull, false, "repository:team/app:pull"),
            ("", Push, false, "repository:team/app:pull,push"),
            ("", Pull, true, "repository:team/app:pull,push"),
            (
                "repository:team/app:pull",
                Push,
                false,
                "repository:team/app:pull,push",
            ),
            (
                "repository:team/app:delete",
                Pull,
                false,
                "repository:team/app:pull,delete",
            ),
            (
                "repository:h:5000/x:pull",
                Pull,
                false,
                "repository:h:5000/x:pull",
            ),
            (
                "registry:catalog:* repository:team/app:pull",
                Pull,
                false,
                "repository:team/app:pull registry:catalog:*",
            ),
            (
                "repository:other/x:pull repository:team/app:pull",
                Push,
                false,
                "repository:team/app:pull,push repository:other/x:pull",
            ),
        ] {
            let asked: Vec<_> = asked.split_ascii_whitespace().map(str::to_owned).collect();
            assert_eq!(
                merged_scopes(&asked, Some(&scope(access)), is_pushed).join(" "),
                expected
            );
        }
    }
}
