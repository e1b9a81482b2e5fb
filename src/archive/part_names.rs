//! What parts of an archive and their checksums are called, and how the checksums are written: as `sha256sum` does it.

use std::{
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
};

use crate::image::Digest;

/// How many parts there may be: their numbers have three digits.
pub(super) const MOST_PARTS: u64 = 1000;

/// The ending of the checksums' name.
pub(super) const CHECKSUMS: &str = ".sha256";

/// The path of a part.
pub(super) fn part_path(name: &Path, number: usize) -> PathBuf {
    with_ending(name, &format!(".{number:03}"))
}

/// The path of the checksums.
pub(super) fn checksums_path(name: &Path) -> PathBuf {
    with_ending(name, CHECKSUMS)
}

/// The path and number of every part that lies beside `name`, in no order.
pub(super) fn parts_beside(name: &Path) -> io::Result<Vec<(PathBuf, usize)>> {
    let mut found = Vec::new();
    let stem = file_name(name);
    for entry in fs::read_dir(folder_of(name))? {
        let entry = entry?;
        let other = entry.file_name().into_string().unwrap_or_default();
        let number = other
            .strip_prefix(&stem)
            .and_then(|rest| rest.strip_prefix('.'));
        if let Some(number) = number.and_then(part_number) {
            found.push((name.with_file_name(other), number));
        }
    }
    Ok(found)
}

/// The folder that a path lies in.
pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or_else(|| Path::new("."))
}

/// The number in the ending of a part's name.
fn part_number(digits: &str) -> Option<usize> {
    let is_number = digits.len() == 3 && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().ok()).flatten()
}

fn with_ending(name: &Path, ending: &str) -> PathBuf {
    let mut path = name.as_os_str().to_owned();
    path.push(ending);
    path.into()
}

/// The name of a file in its folder.
pub(super) fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// The checksums of files as `sha256sum` prints them, by the names the files have in their folder.
pub(super) fn checksums<'a>(files: impl Iterator<Item = (&'a Path, &'a Digest)>) -> String {
    let mut text = String::new();
    for (path, digest) in files {
        let (mark, name) = marked(&file_name(path));
        // A string takes everything.
        writeln!(text, "{mark}{}  {name}", digest.hex()).ok();
    }
    text
}

/// A name as `sha256sum` writes it: where it would break the line, it is escaped, and the line marked.
fn marked(name: &str) -> (&'static str, String) {
    if !name.contains(['\\', '\n', '\r']) {
        return ("", name.to_owned());
    }
    let name = name
        .replace('\\', "\\\\")
        .replace('\n', "\\n")
        .replace('\r', "\\r");
    ("\\", name)
}

/// The digest in a line of checksums, if it is that of this file.
pub(super) fn digest_of(line: &str, name: &str) -> Option<Digest> {
    let (mark, name) = marked(name);
    let (hex, rest) = line.strip_prefix(mark)?.split_once(' ')?;
    // A star stands there for a file that was read as it is, which on Unix is every file.
    let listed = rest.strip_prefix([' ', '*'])?;
    (listed == name)
        .then(|| format!("sha256:{}", hex.to_ascii_lowercase()).parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// What we write we read, whatever the name; whatever else a line says is not taken for it.
        #[test]
        fn a_line_is_the_checksum_of_one_file_only(
            name in "a[^/\\x00]{0,20}", other in "a[^/\\x00]{0,20}", content in any::<u64>(), line in ".{0,100}",
        ) {
            let digest = Digest::of(&content.to_le_bytes());
            let text = checksums(std::iter::once((Path::new(&name), &digest)));
            let mut lines = text.lines();
            let first = lines.next().unwrap();
            prop_assert_eq!(lines.next(), None);
            prop_assert_eq!(digest_of(first, &name), Some(digest));
            if other != name {
                prop_assert_eq!(digest_of(first, &other), None);
            }
            prop_assert_eq!(digest_of(&line, &name), None);
        }
    }

    #[test]
    fn the_names_in_the_checksums_are_compared_and_not_followed() {
        let hex = "a".repeat(64);
        let digest: Digest = format!("sha256:{hex}").parse().unwrap();
        for (line, expected) in [
            (format!("{hex}  a.tar.000"), true),
            (format!("{hex} *a.tar.000"), true),
            (format!("{}  a.tar.000", hex.to_uppercase()), true),
            (format!("{hex}  ../a.tar.000"), false),
            (format!("{hex}  /a.tar.000"), false),
            (format!("{hex}  a.tar.001"), false),
            (format!("{hex} a.tar.000"), false),
            (format!("{hex}  a.tar.000 "), false),
            (format!("{}  a.tar.000", &hex[1..]), false),
            ("a.tar.000".to_owned(), false),
            (String::new(), false),
        ] {
            let found = digest_of(&line, "a.tar.000");
            assert_eq!(found, expected.then(|| digest.clone()), "{line}");
        }
    }
}
