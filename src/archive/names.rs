//! Names in an archive are keys, never paths: they are compared, and links are followed as text. Nothing here touches a
//! file system.

use super::error::{Place, Result};

/// The canonical form of a name: components without `.` and empty ones, joined by `/`; empty for the root itself. A name
/// that another reader would take to another place is refused (row 1).
pub(super) fn normalise(name: &[u8], place: &Place) -> Result<Vec<u8>> {
    let leaves = |how: &str| place.unsafe_because(format!("name leaves the archive: {how}"));
    match name {
        [] => return Err(leaves("it is empty")),
        [b'/', ..] => return Err(leaves("it begins at the root of the file system")),
        _ if name.contains(&0) => return Err(leaves("it has a NUL inside")),
        _ => {}
    }
    let components: Vec<&[u8]> = components(name).collect();
    if components.contains(&&b".."[..]) {
        return Err(leaves("it has a component '..'"));
    }
    let key = components.join(&b'/');
    if matches!(key[..], [b'\\', b'\\', ..] | [_, b':', b'\\', ..]) {
        return Err(leaves("it is a Windows path"));
    }
    Ok(key)
}

/// The key a link leads to: a symlink's target is relative to its own folder, a hard link's to the root. None if it leads
/// outside (row 26).
pub(super) fn link_target(link: &[u8], target: &[u8], is_symlink: bool) -> Option<Vec<u8>> {
    let is_foreign = target.is_empty() || target.starts_with(b"/") || target.contains(&0);
    if is_foreign {
        return None;
    }
    let mut path: Vec<&[u8]> = Vec::new();
    if is_symlink {
        path.extend(components(link));
        path.pop();
    }
    for component in components(target) {
        if component == b".." {
            path.pop()?;
        } else {
            path.push(component);
        }
    }
    Some(path.join(&b'/'))
}

fn components(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    name.split(|byte| *byte == b'/')
        .filter(|component| !component.is_empty() && *component != b".")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(name: &[u8]) -> Option<String> {
        let name = normalise(name, &Place::archive("app.tar")).ok()?;
        Some(String::from_utf8(name).unwrap())
    }

    #[test]
    fn spellings_of_one_name_are_one_key() {
        for name in ["a/b", "./a/b", "a//b", "a/./b", "././/a/b/", "a/b/."] {
            assert_eq!(key(name.as_bytes()).as_deref(), Some("a/b"), "{name}");
        }
        for root in [".", "./", "./."] {
            assert_eq!(key(root.as_bytes()).as_deref(), Some(""));
        }
        for kept in ["sha256:abc", "a..b", "...", "C:", "a\\b", "c:d/e"] {
            assert_eq!(key(kept.as_bytes()).as_deref(), Some(kept));
        }
    }

    /// Row 1.
    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in [
            &b""[..],
            b"/",
            b"/etc/passwd",
            b"..",
            b"../x",
            b"a/../../x",
            b"a/..",
            b"./..",
            b"a\0b",
            b"C:\\x",
            b"c:\\windows",
            b"\\\\host\\share",
            b"./C:\\x",
        ] {
            assert_eq!(key(name), None, "{:?}", String::from_utf8_lossy(name));
        }
    }

    #[test]
    fn links_are_followed_as_text() {
        for (link, target, is_symlink, expected) in [
            (
                "id2/layer.tar",
                "../id1/layer.tar",
                true,
                Some("id1/layer.tar"),
            ),
            ("id2/layer.tar", "other.tar", true, Some("id2/other.tar")),
            (
                "id2/layer.tar",
                "id1/layer.tar",
                false,
                Some("id1/layer.tar"),
            ),
            ("link", "./a//b", true, Some("a/b")),
            ("a/link", "..", true, Some("")),
            ("link", "../x", true, None),
            ("a/link", "../../x", true, None),
            ("a/link", "../x", false, None),
            ("link", "/etc/passwd", true, None),
            ("link", "", true, None),
            ("link", "a\0", true, None),
        ] {
            let key = link_target(link.as_bytes(), target.as_bytes(), is_symlink);
            assert_eq!(
                key.as_deref(),
                expected.map(str::as_bytes),
                "{link} -> {target}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_key_is_its_own_canonical_form(name in proptest::collection::vec(any::<u8>(), 0..20), text in "[./\\\\a:]{0,12}") {
            let place = Place::archive("x");
            for name in [&name[..], text.as_bytes()] {
                let Ok(key) = normalise(name, &place) else { continue };
                let clean = key.split(|byte| *byte == b'/').all(|component| component != b".." && component != b".");
                prop_assert!(clean && !key.starts_with(b"/") && !key.ends_with(b"/"));
                if !key.is_empty() {
                    prop_assert_eq!(normalise(&key, &place).unwrap(), key);
                }
            }
        }
    }
}
