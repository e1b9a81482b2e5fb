//! The configurations of an archive's images. Many images may name one: each is read, hashed and parsed once.

use std::{
    collections::{HashMap, hash_map},
    sync::Arc,
};

use crate::{
    cache::Spool,
    image::{Algorithm, Digest, Platform},
};

use super::{
    entries::{Content, Entries},
    error::Result,
    json::{Config, parse},
    limits::Limits,
};

/// What everybody needs who plans.
#[derive(Debug, Clone, Copy)]
pub(super) struct Planning<'a> {
    pub(super) entries: &'a Entries,
    pub(super) limits: &'a Limits,
    /// Knows whether somebody still waits for the plan.
    pub(super) spool: &'a Spool,
}

impl Planning<'_> {
    /// Refuses an archive that lists more images than anybody saves at once: planning takes time for each.
    pub(super) fn require_images(&self, count: usize) -> Result<()> {
        let most = self.limits.images;
        if count <= most {
            return Ok(());
        }
        let reason = format!("it has more than {most}; save them into several archives");
        Err(self.entries.archive().limit("images", reason))
    }

    /// Counts descriptors, or what stands for them, on top of those that were counted before.
    pub(super) fn count(&self, descriptors: &mut usize, more: usize) -> Result<()> {
        *descriptors += more;
        if *descriptors > self.limits.descriptors {
            let reason = format!("it has more than {} descriptors", self.limits.descriptors);
            return Err(self.entries.archive().limit("descriptors", reason));
        }
        Ok(())
    }

    /// Fails when nobody waits for the plan any more.
    pub(super) fn ensure_going_on(&self) -> Result<()> {
        Ok(self.spool.ensure_going_on()?)
    }
}

/// What matters of a configuration.
#[derive(Debug)]
pub(super) struct KnownConfig {
    /// Of its bytes.
    pub(super) digest: Digest,
    pub(super) platform: Option<Platform>,
    /// The digests of the layers before compression; none if the configuration has no such list.
    pub(super) diff_ids: Option<Vec<Digest>>,
}

/// All configurations that were read.
#[derive(Debug)]
pub(super) struct Configs<'a> {
    planning: Planning<'a>,
    known: HashMap<(u64, Algorithm), Arc<KnownConfig>>,
    /// Bytes that were read; those of what turned out to be broken count each time.
    bytes: u64,
}

impl<'a> Configs<'a> {
    pub(super) fn new(planning: Planning<'a>) -> Self {
        Self {
            planning,
            known: HashMap::new(),
            bytes: 0,
        }
    }

    /// The configuration in this content, with its digest by this algorithm.
    pub(super) fn get(
        &mut self,
        content: &Content,
        algorithm: Algorithm,
    ) -> Result<Arc<KnownConfig>> {
        self.planning.ensure_going_on()?;
        let vacant = match self.known.entry((content.number, algorithm)) {
            hash_map::Entry::Occupied(known) => return Ok(Arc::clone(known.get())),
            hash_map::Entry::Vacant(vacant) => vacant,
        };
        let Planning {
            entries, limits, ..
        } = self.planning;
        let (archive, place) = (entries.archive(), entries.place(content));
        self.bytes += content.size.min(limits.config_json);
        if self.bytes > limits.config_bytes {
            let reason = format!(
                "its configurations have more than {} bytes",
                limits.config_bytes
            );
            return Err(archive.limit("config_bytes", reason));
        }
        let bytes = content.read_small(archive, limits.config_json, "config_json")?;
        let config: Config = parse(&bytes, &place)?;
        let known = Arc::new(KnownConfig {
            digest: Digest::with_algorithm(algorithm, &bytes),
            platform: config.platform(&place)?,
            diff_ids: config.diff_ids(&place)?,
        });
        Ok(Arc::clone(vacant.insert(known)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::{
        archive::{
            error::{Error, Place},
            plan::plan,
            testing::{Tar, bed},
            walk::Tape,
        },
        cache::{self, Import},
    };

    fn entries(tar: Tar, import: &Import) -> Entries {
        let tape = Tape::Stream(Box::new(Cursor::new(tar.end())));
        let (place, limits) = (Place::archive("app.tar"), Limits::default());
        Entries::read(tape, &place, &limits, &import.spool(), &mut || {}).unwrap()
    }

    #[tokio::test]
    async fn a_configuration_is_read_once_and_all_of_them_have_a_limit() {
        let bed = bed();
        let import = bed.cache.import().await.unwrap();
        let tar = Tar::default()
            .file("a", r#"{"os":"linux"}"#)
            .file("b", r#"{"os":"plan9"}"#)
            .file("broken", "no configura");
        let entries = entries(tar, &import);
        let limits = Limits {
            config_bytes: 40,
            ..Limits::default()
        };
        let spool = import.spool();
        let mut configs = Configs::new(Planning {
            entries: &entries,
            limits: &limits,
            spool: &spool,
        });
        let mut get = |name| {
            let content = entries.find(name).unwrap().unwrap();
            configs.get(content, Algorithm::Sha256)
        };
        let first = get("a").unwrap();
        for _ in 0..1000 {
            assert!(Arc::ptr_eq(&first, &get("a").unwrap()));
        }
        let error = get("broken").unwrap_err();
        assert!(matches!(error, Error::ArchiveInvalid { .. }), "{error}");
        get("b").unwrap();
        let error = get("broken").unwrap_err();
        assert!(matches!(error, Error::ArchiveLimit { .. }), "{error}");
        assert!(error.to_string().contains("limit config_bytes"), "{error}");
    }

    #[tokio::test]
    async fn planning_ends_when_nobody_waits_any_more() {
        let image = crate::archive::testing::sample();
        for tar in [image.docker(), image.oci_archive()] {
            let bed = bed();
            let import = bed.cache.import().await.unwrap();
            let entries = entries(tar, &import);
            let (limits, spool) = (Limits::default(), import.spool());
            let planning = Planning {
                entries: &entries,
                limits: &limits,
                spool: &spool,
            };
            assert_eq!(plan(planning).unwrap().0.len(), 1);
            import.stop();
            let error = plan(planning).unwrap_err();
            let is_stopped = matches!(error, Error::Cache(cache::Error::CacheInterrupted));
            assert!(is_stopped, "{error}");
        }
    }
}
