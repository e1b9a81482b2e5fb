//! An archive in files of a size that fits a medium: `NAME.000`, `NAME.001` and so on, joined by `cat`, and `NAME.sha256`, which
//! `sha256sum -c` reads.
//!
//! All parts are written under temporary names. When the last one is on the disk they get their names, and the checksums get
//! theirs behind them: where these are, the parts are whole.

use std::{
    fs, io,
    num::NonZeroU64,
    path::{Path, PathBuf},
};

use crate::image::{Algorithm, Hasher};

use super::{
    super::part_names::{MOST_PARTS, checksums, checksums_path, part_path, parts_beside},
    Result, SaveError, SavedPart,
    target::{Named, NewFile, WholeFile, failure, sync_folder_of},
};

/// Writes the parts. Dropped before [`PartsWriter::finish`], it leaves no file.
#[derive(Debug)]
pub(super) struct PartsWriter {
    /// What the names begin with.
    name: PathBuf,
    /// The most bytes of a part.
    size: u64,
    replace: bool,
    /// Bytes of all parts.
    expected: u64,
    whole: Vec<(WholeFile, SavedPart)>,
    current: Option<Current>,
}

/// The part that is being written.
#[derive(Debug)]
struct Current {
    path: PathBuf,
    file: NewFile,
    hasher: Hasher,
    written: u64,
}

impl PartsWriter {
    /// Begins the first part.
    ///
    /// # Errors
    /// When there would be too many parts, when parts or checksums of this name are there and are not to be replaced, and
    /// when there is no room for all parts.
    pub(super) fn open(
        name: PathBuf,
        size: NonZeroU64,
        replace: bool,
        expected: u64,
    ) -> Result<Self> {
        // The names of parts begin with that of a file.
        if name.file_name().is_none() || name.as_os_str().as_encoded_bytes().ends_with(b"/") {
            return Err(SaveError::ArchiveTarget { path: name });
        }
        let count = expected.div_ceil(size.get());
        if count > MOST_PARTS {
            return Err(SaveError::PartsTooMany {
                count,
                least: expected.div_ceil(MOST_PARTS),
            });
        }
        let mut writer = Self {
            name,
            size: size.get(),
            replace,
            expected,
            whole: Vec::new(),
            current: None,
        };
        writer.require_room()?;
        writer.current = Some(writer.part(0, expected)?);
        Ok(writer)
    }

    /// Writes all of it, into as many parts as that takes.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let mut current = match self.current.take() {
                Some(current) if current.written < self.size => current,
                Some(full) => {
                    self.close(full)?;
                    self.part(self.whole.len(), 0)?
                }
                None => self.part(self.whole.len(), 0)?,
            };
            let left = usize::try_from(self.size - current.written).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(left.min(bytes.len()));
            let written = current.file.write(now);
            written.map_err(|source| failure(&current.path, self.expected, source))?;
            current.hasher.update(now);
            current.written += now.len() as u64;
            self.current = Some(current);
            bytes = later;
        }
        Ok(())
    }

    /// Gives all files their names; on the disk, the checksums have theirs only behind all parts.
    pub(super) fn finish(mut self) -> Result<Vec<SavedPart>> {
        if let Some(last) = self.current.take() {
            self.close(last)?;
        }
        let checksums = self.checksums()?;
        self.require_room()?;
        let Self {
            name,
            replace,
            expected,
            whole,
            ..
        } = self;
        let failed = |source| failure(&name, expected, source);
        let count = whole.len();
        if replace {
            // Old checksums may not stand beside new parts, nor old parts beside new checksums.
            remove(&checksums_path(&name)).map_err(failed)?;
            for (path, number) in parts_beside(&name).map_err(failed)? {
                if number >= count {
                    remove(&path).map_err(failed)?;
                }
            }
        }
        let mut named: Vec<Named> = Vec::with_capacity(count + 1);
        let mut parts = Vec::with_capacity(count);
        for (file, part) in whole {
            named.push(file.name().map_err(failed)?);
            parts.push(part);
        }
        sync_folder_of(&name).map_err(failed)?;
        named.push(checksums.name().map_err(failed)?);
        sync_folder_of(&name).map_err(failed)?;
        named.into_iter().for_each(Named::keep);
        Ok(parts)
    }

    /// A new part; all that follow, `expected` bytes, must find room beside it.
    fn part(&self, number: usize, expected: u64) -> Result<Current> {
        let path = part_path(&self.name, number);
        Ok(Current {
            file: NewFile::create(&path, self.replace, expected)?,
            path,
            hasher: Hasher::new(Algorithm::Sha256),
            written: 0,
        })
    }

    fn close(&mut self, part: Current) -> Result<()> {
        let Current {
            path,
            file,
            hasher,
            written,
        } = part;
        let file = file.finish();
        let file = file.map_err(|source| failure(&path, self.expected, source))?;
        let part = SavedPart {
            file: path.display().to_string(),
            digest: hasher.finish(),
            size: written,
        };
        self.whole.push((file, part));
        Ok(())
    }

    /// The file of the checksums, still without its name.
    fn checksums(&self) -> Result<WholeFile> {
        let path = checksums_path(&self.name);
        let parts = self.whole.iter().map(|(_, part)| part);
        let text = checksums(parts.map(|part| (Path::new(&part.file), &part.digest)));
        let mut file = NewFile::create(&path, self.replace, 0)?;
        let written = file.write(text.as_bytes());
        written
            .and_then(|()| file.finish())
            .map_err(|source| failure(&path, self.expected, source))
    }

    /// Fails if there are parts or checksums of this name, unless they are to be replaced. Of another archive's parts one
    /// would be taken for ours.
    fn require_room(&self) -> Result<()> {
        if self.replace {
            return Ok(());
        }
        let sums = checksums_path(&self.name);
        if sums.symlink_metadata().is_ok() {
            return Err(SaveError::ArchiveExists { path: sums });
        }
        let beside = parts_beside(&self.name);
        let beside = beside.map_err(|source| failure(&self.name, self.expected, source))?;
        match beside.into_iter().min() {
            Some((path, _)) => Err(SaveError::ArchiveExists { path }),
            None => Ok(()),
        }
    }
}

/// Removes a file that may be there.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, process::Command};

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;
    use crate::archive::{parts::Parts, testing::put};

    fn size(bytes: u64) -> NonZeroU64 {
        NonZeroU64::new(bytes).unwrap()
    }

    fn open(folder: &TempDir, bytes: u64, replace: bool, expected: usize) -> Result<PartsWriter> {
        let name = folder.path().join("a.tar");
        PartsWriter::open(name, size(bytes), replace, expected as u64)
    }

    fn written(folder: &TempDir, bytes: u64, replace: bool, content: &[u8]) -> Vec<SavedPart> {
        let mut writer = open(folder, bytes, replace, content.len()).unwrap();
        writer.write(content).unwrap();
        writer.finish().unwrap()
    }

    fn files(folder: &TempDir) -> Vec<String> {
        let names = fs::read_dir(folder.path()).unwrap();
        let mut names: Vec<_> = names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        /// Whatever the sizes, and however it is written: all parts but the last are full, none is empty, and joined they are
        /// what was written, for `cat` and for our own reader.
        #[test]
        fn parts_joined_are_what_was_written(
            content in proptest::collection::vec(any::<u8>(), 1..3000),
            bytes in 3_u64..4000,
            steps in proptest::collection::vec(1_usize..700, 1..8),
            step in 1_usize..700,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let mut writer = open(&folder, bytes, false, content.len()).unwrap();
            let (mut rest, mut steps_left) = (content.as_slice(), steps.iter().cycle());
            while !rest.is_empty() {
                let step = (*steps_left.next().unwrap()).min(rest.len());
                let (now, later) = rest.split_at(step);
                writer.write(now).unwrap();
                rest = later;
            }
            let parts = writer.finish().unwrap();
            let (last, full) = parts.split_last().unwrap();
            prop_assert!(full.iter().all(|part| part.size == bytes));
            prop_assert!((1..=bytes).contains(&last.size));
            let files: Vec<Vec<u8>> =
                parts.iter().map(|part| fs::read(&part.file).unwrap()).collect();
            let sizes: Vec<u64> = files.iter().map(|file| file.len() as u64).collect();
            prop_assert_eq!(sizes, parts.iter().map(|part| part.size).collect::<Vec<_>>());
            prop_assert_eq!(&files.concat(), &content);
            for ending in [".000", ".sha256"] {
                let path = folder.path().join(format!("a.tar{ending}"));
                let mut reader = Parts::find(&path).unwrap().unwrap().reader();
                let (mut read, mut buffer) = (Vec::<u8>::new(), vec![0; step]);
                loop {
                    let count = reader.read(&mut buffer).unwrap();
                    if count == 0 {
                        break;
                    }
                    read.extend(&buffer[..count]);
                }
                prop_assert_eq!(&read, &content);
            }
        }
    }

    #[test]
    fn a_name_that_no_file_can_have_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["", "..", "/"] {
            let name = PathBuf::from(format!("{}/{name}", folder.path().display()));
            let error = PartsWriter::open(name, size(4), true, 10).unwrap_err();
            assert!(matches!(error, SaveError::ArchiveTarget { .. }), "{error}");
        }
        assert_eq!(files(&folder), Vec::<String>::new());
    }

    #[test]
    fn sha256sum_verifies_the_parts_whatever_their_name() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.tar", "with space", "back\\slash", "new\nline"] {
            let name = folder.path().join(name);
            let mut writer = PartsWriter::open(name.clone(), size(4), false, 10).unwrap();
            writer.write(b"0123456789").unwrap();
            writer.finish().unwrap();
            let checked = Command::new("sha256sum")
                .args(["--check", "--strict", "--quiet"])
                .arg(checksums_path(&name))
                .current_dir(folder.path())
                .status();
            assert!(checked.unwrap().success(), "{}", name.display());
            assert_eq!(
                Parts::find(&checksums_path(&name))
                    .unwrap()
                    .unwrap()
                    .total(),
                10
            );
        }
    }

    #[test]
    fn nothing_has_its_name_before_all_is_whole_and_nothing_is_left_otherwise() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = open(&folder, 4, false, 10).unwrap();
        writer.write(b"012345678").unwrap();
        assert!(
            files(&folder)
                .iter()
                .all(|file| file.starts_with(".a.tar."))
        );
        drop(writer);
        assert_eq!(files(&folder), Vec::<String>::new());
    }

    #[test]
    fn parts_that_are_there_stay_unless_they_are_to_be_replaced() {
        for there in ["a.tar.000", "a.tar.007", "a.tar.sha256"] {
            let folder = tempfile::tempdir().unwrap();
            put(&folder.path().join(there), "theirs");
            let refused = open(&folder, 4, false, 10).unwrap_err();
            let SaveError::ArchiveExists { path } = refused else {
                panic!("{refused}");
            };
            assert!(path.ends_with(there), "{}", path.display());
            assert_eq!(files(&folder), [there]);
            // Of the old ones none is left that would be taken for one of ours.
            written(&folder, 4, true, b"0123456789");
            let expected = ["a.tar.000", "a.tar.001", "a.tar.002", "a.tar.sha256"];
            assert_eq!(files(&folder), expected);
        }
    }

    #[test]
    fn a_part_that_somebody_made_meanwhile_stays_alone() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = open(&folder, 4, false, 10).unwrap();
        writer.write(b"0123456789").unwrap();
        put(&folder.path().join("a.tar.001"), "theirs");
        let error = writer.finish().unwrap_err();
        assert!(matches!(error, SaveError::ArchiveExists { .. }), "{error}");
        assert_eq!(files(&folder), ["a.tar.001"]);
    }

    #[test]
    fn what_cannot_get_its_name_takes_the_others_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = open(&folder, 4, true, 10).unwrap();
        writer.write(b"0123456789").unwrap();
        // No file is renamed over a folder.
        fs::create_dir(folder.path().join("a.tar.002")).unwrap();
        writer.finish().unwrap_err();
        assert_eq!(files(&folder), ["a.tar.002"]);
    }

    #[test]
    fn more_parts_than_numbers_are_refused_with_the_size_that_will_do() {
        let folder = tempfile::tempdir().unwrap();
        let error = open(&folder, 4, false, 4001).unwrap_err();
        let SaveError::PartsTooMany { count: 1001, least } = error else {
            panic!("{error}");
        };
        assert_eq!(files(&folder), Vec::<String>::new());
        let content = vec![7; 4001];
        assert_eq!(written(&folder, least, false, &content).len(), 801);
    }

    #[test]
    fn more_than_any_disk_has_is_refused_before_the_first_byte() {
        let folder = tempfile::tempdir().unwrap();
        let error = open(&folder, 1 << 52, false, 1 << 60).unwrap_err();
        assert!(
            matches!(error, SaveError::ArchiveVolumeFull { .. }),
            "{error}"
        );
        assert_eq!(files(&folder), Vec::<String>::new());
    }
}
