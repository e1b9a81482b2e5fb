//! What a registry asks for with a 401: the `WWW-Authenticate` header.
//!
//! The parser takes what it understands and skips the rest, because what registries send is not always what RFC 9110
//! allows: schemes in capitals, several challenges in one line or several lines, commas inside quotes, parameters without
//! quotes (registry rule A2; oras-py#103, ggcr#1075).

use http::{HeaderMap, header::WWW_AUTHENTICATE};

/// One way to log in that the registry offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A token, to be fetched from the service at `realm`.
    Bearer {
        realm: String,
        service: Option<String>,
        scopes: Vec<String>,
        error: Option<String>,
    },
    /// User name and password with each request.
    Basic,
}

impl Challenge {
    /// All challenges of an answer that we know how to meet, the better ones first: a password is sent only where no token
    /// will do.
    pub(super) fn all(headers: &HeaderMap) -> Vec<Self> {
        let mut challenges: Vec<Self> = headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            // Names of realms come in UTF-8 and Latin-1 too; what we use of a challenge is ASCII.
            .flat_map(|value| parse(&String::from_utf8_lossy(value.as_bytes())))
            .filter_map(Self::from_raw)
            .collect();
        challenges.sort_by_key(|challenge| matches!(challenge, Self::Basic));
        challenges
    }

    /// Whether it says that the token sent is good, but not for this.
    pub(super) fn is_insufficient_scope(&self) -> bool {
        matches!(self, Self::Bearer { error: Some(error), .. } if error == "insufficient_scope")
    }

    fn from_raw(raw: RawChallenge) -> Option<Self> {
        if raw.scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !raw.scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut realm = None;
        let mut service = None;
        let mut error = None;
        let mut scopes = Vec::new();
        for (name, value) in raw.parameters {
            match name.to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value),
                "service" => service = Some(value),
                "error" => error = Some(value),
                "scope" => scopes.extend(value.split_ascii_whitespace().map(str::to_owned)),
                _ => {}
            }
        }
        Some(Self::Bearer {
            realm: realm.filter(|realm| !realm.is_empty())?,
            // Some registries refuse a service they did not ask for (A3; keppel#731).
            service: service.filter(|service| !service.is_empty()),
            scopes,
            error,
        })
    }
}

/// A challenge before it is known what it means.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RawChallenge {
    pub(super) scheme: String,
    pub(super) parameters: Vec<(String, String)>,
}

/// Splits one header line into challenges. A word followed by `=` is a parameter, any other word begins a challenge; what is
/// neither is skipped.
pub(super) fn parse(line: &str) -> Vec<RawChallenge> {
    let mut rest = line;
    let mut challenges: Vec<RawChallenge> = Vec::new();
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            return challenges;
        }
        let end = rest.find(|c: char| !is_word(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            rest = skip_character(rest);
            continue;
        }
        let spaced = after.trim_start_matches([' ', '\t']);
        if let Some(value) = spaced.strip_prefix('=') {
            let (value, remaining) = take_value(value.trim_start_matches([' ', '\t']));
            if let Some(challenge) = challenges.last_mut() {
                challenge.parameters.push((word.to_owned(), value));
            }
            rest = remaining;
        } else {
            challenges.push(RawChallenge {
                scheme: word.to_owned(),
                parameters: Vec::new(),
            });
            rest = after;
        }
    }
}

/// Characters of schemes and parameter names ("token" of RFC 9110).
const fn is_word(character: char) -> bool {
    character.is_ascii_alphanumeric()
        || matches!(
            character,
            '!' | '#'
                | '$'
                | '%'
                | '&'
                | '\''
                | '*'
                | '+'
                | '-'
                | '.'
                | '^'
                | '_'
                | '`'
                | '|'
                | '~'
        )
}

fn skip_character(text: &str) -> &str {
    let mut characters = text.chars();
    // A quoted string that belongs to nothing is skipped as a whole: its commas and words mean nothing.
    if text.starts_with('"') {
        return take_value(text).1;
    }
    characters.next();
    characters.as_str()
}

/// A parameter's value, quoted or not, and what follows it.
fn take_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => break,
            '\\' => value.extend(characters.next()),
            other => value.push(other),
        }
    }
    (value, characters.as_str())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn all(lines: &[&str]) -> Vec<Challenge> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(
                WWW_AUTHENTICATE,
                HeaderValue::from_bytes(line.as_bytes()).unwrap(),
            );
        }
        Challenge::all(&headers)
    }

    fn bearer(realm: &str, service: Option<&str>, scopes: &[&str]) -> Challenge {
        Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scopes: scopes.iter().map(ToString::to_string).collect(),
            error: None,
        }
    }

    #[test]
    fn challenges_are_read_as_registries_send_them() {
        let hub = bearer(
            "https://auth.docker.io/token",
            Some("registry.docker.io"),
            &["repository:library/ubuntu:pull,push"],
        );
        let bare = bearer("https://a/t", None, &[]);
        let cases: &[(&[&str], Vec<Challenge>)] = &[
            (
                &[
                    r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/ubuntu:pull,push""#,
                ],
                vec![hub.clone()],
            ),
            (
                &[
                    r#"bearer Realm = "https://auth.docker.io/token" , SERVICE="registry.docker.io" scope="repository:library/ubuntu:pull,push""#,
                ],
                vec![hub],
            ),
            (
                &[r#"BASIC realm="Sonatype Nexus Repository Manager""#],
                vec![Challenge::Basic],
            ),
            (&[r#"Basic realm="Dépôt d'images""#], vec![Challenge::Basic]),
            (&["Negotiate", r#"Basic realm="x""#], vec![Challenge::Basic]),
            (
                &[r#"Negotiate, Basic realm="x", Bearer realm="https://a/t""#],
                vec![bare.clone(), Challenge::Basic],
            ),
            (
                &[r#"Basic realm="x\", Bearer realm=\"evil""#],
                vec![Challenge::Basic],
            ),
            (&["Bearer realm=https://a/t,x=y"], vec![bare.clone()]),
            (
                &[r#"Bearer realm="https://a/t",unknown="a,b",another"#],
                vec![bare.clone()],
            ),
            (
                &[r#"Bearer realm="https://a/t",service="""#],
                vec![bare.clone()],
            ),
            (&[r#"Bearer realm="https://a/t"#], vec![bare.clone()]),
            (
                &[r#"NTLM TlRMTVNTUAAC==, Bearer realm="https://a/t""#],
                vec![bare],
            ),
            (&["Bearer"], vec![]),
            (&[r#"Bearer realm="""#], vec![]),
            (&["", ",,", "=", "\"", "=\"a, Basic\""], vec![]),
        ];
        for (lines, expected) in cases {
            assert_eq!(all(lines), *expected, "{lines:?}");
        }
    }

    #[test]
    fn the_error_of_a_challenge_is_kept() {
        let [Challenge::Bearer { error, scopes, .. }] =
            &all(&[r#"Bearer realm="https://a/t",scope="a:b:c d:e:f",error="insufficient_scope""#])
                [..]
        else {
            panic!("not one bearer challenge")
        };
        assert_eq!(error.as_deref(), Some("insufficient_scope"));
        assert_eq!(scopes, &["a:b:c", "d:e:f"]);
    }

    proptest! {
        #[test]
        fn any_line_is_survived(line in r#"([a-zA-Z]{0,6}|[ ,="\\\t]|realm="[^"]{0,5}"?){0,30}"#) {
            crate::registry::fuzzing::challenge(line.as_bytes());
        }

        /// Where the line is correct, a parser of the grammar agrees.
        #[test]
        fn correct_lines_are_read_as_the_grammar_says(
            challenges in proptest::collection::vec(
                ("[A-Z][a-z]{1,5}", proptest::collection::vec(("[a-z]{1,5}", "[a-zA-Z0-9 ,:/=.-]{0,12}"), 1..4)),
                1..4,
            )
        ) {
            let line = challenges
                .iter()
                .map(|(scheme, parameters)| {
                    let parameters: Vec<_> = parameters.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
                    format!("{scheme} {}", parameters.join(", "))
                })
                .collect::<Vec<_>>()
                .join(", ");
            prop_assert!(http_auth::parse_challenges(&line).is_ok());
            crate::registry::fuzzing::challenge(line.as_bytes());
        }
    }
}
