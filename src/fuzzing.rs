//! What must hold for any bytes that strangers send, one property for each parser. A property that does not hold ends the
//! process or the test.
//!
//! The fuzzer (`fuzz/`, `make fuzz`) looks for bytes that break one, guided by what the code does with them. The tests below
//! try every seed of `fuzz/corpus/`, whole and changed a few hundred times, so that each `make test` asks the same.
//! Built for these two only; the program has nothing of it.

#![expect(
    clippy::expect_used,
    reason = "a property that does not hold ends the process"
)]

use crate::{archive, cache, image, registry};

/// Panics if it does not hold for these bytes.
pub type Property = fn(&[u8]);

/// The properties by the names of their targets in `fuzz/`, which are those of the folders in `fuzz/corpus/`.
pub const TARGETS: [(&str, Property); 9] = [
    ("answers", registry::fuzzing::answers),
    ("archive", archive::fuzzing::archive),
    ("cache_index", cache::fuzzing::index),
    ("challenge", registry::fuzzing::challenge),
    ("documents", archive::fuzzing::documents),
    ("manifest", image::fuzzing::manifest),
    ("packed", archive::fuzzing::packed),
    ("pax", archive::fuzzing::pax),
    ("reference", cache::fuzzing::reference),
];

/// Checks the property of a target.
pub fn check(target: &str, bytes: &[u8]) {
    let property = TARGETS.iter().find(|(name, _)| *name == target);
    let (_, check) = property.expect("the name of a target");
    check(bytes);
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        fs,
        io::Write,
        panic::{self, AssertUnwindSafe},
        path::{Path, PathBuf},
        time::{Duration, Instant},
    };

    use fastrand::Rng;

    use super::*;

    /// Always the same changes; another number tries others.
    const SEED: u64 = 20_260_101;

    /// Changed inputs of each target, as far as they fit into the time.
    const CHANGED: usize = 3000;

    /// The time of a target, all seeds apart: a slow machine tries less, but it always tries.
    const TIME: Duration = Duration::from_millis(1500);

    fn folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
    }

    /// The seeds of a target by their names, in order.
    fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
        let folder = folder().join("corpus").join(target);
        let mut found: Vec<(String, Vec<u8>)> = fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
            .map(|file| {
                let file = file.unwrap();
                let name = file.file_name().into_string().unwrap();
                (name, fs::read(file.path()).unwrap())
            })
            .collect();
        found.sort();
        assert!(!found.is_empty(), "{} is empty", folder.display());
        found
    }

    /// Changes some bytes as damage, cuts and forgers do.
    fn change(bytes: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
        const BLOCK: usize = 512;
        if bytes.is_empty() {
            bytes.extend(other);
            return;
        }
        let position = rng.usize(..bytes.len());
        match rng.u8(..7) {
            0 => bytes[position] ^= 1 << rng.u8(..8),
            1 => bytes[position] = rng.u8(..),
            2 => bytes.truncate(position),
            // A part of it once more, or a part of another one.
            3 | 4 => {
                let source: &[u8] = if rng.bool() { other } else { &*bytes };
                let start = rng.usize(..=source.len());
                let end = rng.usize(start..=source.len().min(start + 64));
                let part = source[start..end].to_vec();
                bytes.splice(position..position, part);
            }
            5 => {
                let end = rng.usize(position..bytes.len().min(position + 64)) + 1;
                bytes.drain(position..end);
            }
            _ => {
                let blocks = bytes.len() / BLOCK;
                if blocks > 1 {
                    let (one, two) = (rng.usize(..blocks), rng.usize(..blocks));
                    for at in 0..BLOCK {
                        bytes.swap(one * BLOCK + at, two * BLOCK + at);
                    }
                }
            }
        }
    }

    /// Fails with the name of a file that has the bytes, from which a seed can be made.
    fn check_or_keep(target: &str, property: Property, bytes: &[u8], what: &str) {
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| property(bytes)));
        if let Err(cause) = outcome {
            let prefix = format!("fuzz-{target}-");
            let mut file = tempfile::Builder::new().prefix(&prefix).tempfile().unwrap();
            file.write_all(bytes).unwrap();
            let (_, path) = file.keep().unwrap();
            eprintln!(
                "{target}: {what} breaks the property; the bytes are in {}",
                path.display()
            );
            panic::resume_unwind(cause);
        }
    }

    fn try_target(target: &str) {
        let (_, property) = *TARGETS.iter().find(|(name, _)| *name == target).unwrap();
        let seeds = seeds(target);
        for (name, bytes) in &seeds {
            check_or_keep(target, property, bytes, &format!("the seed {name}"));
        }
        let mut rng = Rng::with_seed(SEED);
        let started = Instant::now();
        let mut tried = 0;
        while tried < CHANGED && started.elapsed() < TIME {
            let (name, bytes) = &seeds[rng.usize(..seeds.len())];
            let (_, other) = &seeds[rng.usize(..seeds.len())];
            let mut bytes = bytes.clone();
            for _ in 0..=rng.u8(..4) {
                change(&mut bytes, other, &mut rng);
            }
            let what = format!("{name}, changed with the seed {SEED}, number {tried},");
            check_or_keep(target, property, &bytes, &what);
            tried += 1;
        }
        println!("{target}: tried {tried} changed inputs; the seed of the changes is {SEED}");
    }

    #[test]
    fn any_answer_of_a_registry_is_survived_and_means_what_it_says() {
        try_target("answers");
    }

    #[test]
    fn any_archive_is_refused_or_read_as_others_read_it() {
        try_target("archive");
    }

    #[test]
    fn any_index_of_the_cache_is_used_or_rebuilt() {
        try_target("cache_index");
    }

    #[test]
    fn any_challenge_is_read_as_the_grammar_says() {
        try_target("challenge");
    }

    #[test]
    fn any_document_of_an_archive_is_refused_or_taken_as_it_is() {
        try_target("documents");
    }

    #[test]
    fn any_manifest_is_refused_or_kept_byte_for_byte() {
        try_target("manifest");
    }

    #[test]
    fn any_packed_bytes_are_refused_or_expand_within_limits() {
        try_target("packed");
    }

    #[test]
    fn any_pax_records_are_refused_or_used_up() {
        try_target("pax");
    }

    #[test]
    fn any_name_is_refused_or_kept_and_leads_into_the_cache() {
        try_target("reference");
    }

    /// A target that is missing somewhere would never be tried.
    #[test]
    fn every_target_is_a_program_of_the_fuzzer_and_has_seeds() {
        let names = |folder: &str| -> BTreeSet<String> {
            let entries = fs::read_dir(self::folder().join(folder)).unwrap();
            let names = entries.map(|entry| {
                let path = entry.unwrap().path();
                path.file_stem().unwrap().to_str().unwrap().to_owned()
            });
            names.collect()
        };
        let expected: BTreeSet<String> = TARGETS.map(|(name, _)| name.to_owned()).into();
        assert_eq!(names("fuzz_targets"), expected);
        assert_eq!(names("corpus"), expected);
        let manifest = fs::read_to_string(folder().join("Cargo.toml")).unwrap();
        let this_file = include_str!("fuzzing.rs");
        for name in &expected {
            assert!(
                manifest.contains(&format!("\nname = \"{name}\"\n")),
                "{name}"
            );
            assert!(
                this_file.contains(&format!("try_target(\"{name}\")")),
                "{name}"
            );
        }
    }
}
