//! Blobs by their digest: are they here, and who fetches them.
//!
//! A blob that has its name was verified before it got it. What can happen to it later (cut, replaced by a symlink) is
//! caught where it is cheap: only regular files of the right size count, and [`trust`](super::trust) tells when to look twice.

use std::{collections::HashSet, fs::File, sync::Arc};

use crate::image::Descriptor;

use super::{
    Cache,
    disk::blocking,
    error::{Error, Result},
    lock::LockName,
    reader::BlobReader,
    trust::Found,
    writer::BlobWriter,
};

/// What became of the wish to have a blob.
#[derive(Debug)]
pub enum Claim {
    /// It is in the cache.
    Present,
    /// It is not, and nobody else fetches it: the caller does, now.
    Fetch(BlobWriter),
}

impl Cache {
    /// Whether the blob is in the cache.
    pub async fn has_blob(&self, descriptor: &Descriptor) -> Result<bool> {
        Ok(self.open_blob(descriptor).await?.is_some())
    }

    /// Opens a blob for reading. A file of another size, one that a power loss damaged, or one that is not regular, counts
    /// as absent.
    pub async fn open_blob(&self, descriptor: &Descriptor) -> Result<Option<File>> {
        let (shared, descriptor) = (Arc::clone(&self.shared), descriptor.clone());
        blocking(move || {
            Ok(match shared.find_blob(&descriptor)? {
                Found::Whole(file) => Some(file),
                Found::Damaged(_) | Found::Absent => None,
            })
        })
        .await
    }

    /// Opens a blob for reading at any offset; none if it is not in the cache.
    pub async fn read_blob(&self, descriptor: &Descriptor) -> Result<Option<BlobReader>> {
        let file = self.open_blob(descriptor).await?;
        Ok(file.map(|file| BlobReader::of_file(file, descriptor.size, &self.memory)))
    }

    /// Makes sure that a blob is fetched once: waits while another task or process fetches it, then finds it present. If
    /// the other one fails, the caller gets its turn, and goes on where the other one stopped.
    ///
    /// One claim per task: two tasks that each hold what the other waits for would wait forever.
    ///
    /// # Errors
    /// When there is no room for it, also after everything left that nobody needs here.
    pub async fn claim_blob(&self, descriptor: &Descriptor) -> Result<Claim> {
        if self.has_blob(descriptor).await? {
            return Ok(Claim::Present);
        }
        match self.claim_absent(descriptor).await {
            Err(Error::CacheFull { needed, .. }) => {
                let spared = HashSet::from([descriptor.digest.clone()]);
                self.evict(needed, spared).await?;
                self.claim_absent(descriptor).await
            }
            claimed => claimed,
        }
    }

    async fn claim_absent(&self, descriptor: &Descriptor) -> Result<Claim> {
        let name = LockName::Blob(&descriptor.digest);
        let lock = self.shared.locks.exclusive(name, &self.output).await?;
        let (shared, output) = (Arc::clone(&self.shared), self.output.clone());
        let (descriptor, memory) = (descriptor.clone(), self.memory.clone());
        blocking(move || {
            match shared.find_blob(&descriptor)? {
                Found::Whole(_) => return Ok(Claim::Present),
                Found::Damaged(how) => output.warning(format!(
                    "the cached blob {} {how}: it is fetched again",
                    descriptor.digest
                )),
                Found::Absent => {}
            }
            shared.barrier.prepare(&shared.layout)?;
            BlobWriter::begin(descriptor, shared, memory, lock).map(Claim::Fetch)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, Read},
        process::{Command, Stdio},
        time::Duration,
    };

    use bytes::Bytes;
    use tokio::task::JoinSet;

    use super::super::testing::{fixture, layer, put};
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_blob_that_many_tasks_want_is_fetched_once() {
        let fixture = fixture();
        let descriptor = layer(b"wanted");
        let mut tasks = JoinSet::new();
        for cache in [fixture.cache.clone(), fixture.reopened()] {
            for _ in 0..8 {
                let (cache, descriptor) = (cache.clone(), descriptor.clone());
                tasks.spawn(async move {
                    match cache.claim_blob(&descriptor).await.unwrap() {
                        Claim::Present => 0,
                        Claim::Fetch(writer) => {
                            tokio::time::sleep(Duration::from_millis(50)).await;
                            writer
                                .write_at(0, Bytes::from_static(b"wanted"))
                                .await
                                .unwrap();
                            writer.finish().await.unwrap();
                            1
                        }
                    }
                });
            }
        }
        assert_eq!(tasks.join_all().await.iter().sum::<u32>(), 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn when_the_one_who_fetches_fails_the_next_takes_over() {
        let fixture = fixture();
        let descriptor = layer(b"wanted");
        let Claim::Fetch(first) = fixture.cache.claim_blob(&descriptor).await.unwrap() else {
            panic!("nobody has fetched it")
        };
        let cache = fixture.cache.clone();
        let mut second = JoinSet::new();
        second.spawn(async move { put(&cache, &layer(b"wanted"), b"wanted").await });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(second.try_join_next().is_none(), "both fetch at once");
        drop(first);
        second.join_next().await.unwrap().unwrap().unwrap();
        assert!(fixture.cache.has_blob(&descriptor).await.unwrap());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_blob_that_another_process_fetches_is_waited_for() {
        let fixture = fixture();
        fixture.cache.ensure_writable().await.unwrap();
        let descriptor = layer(b"wanted");
        let locks = fixture.cache.directory().join(".locks");
        let mut other = Command::new("flock")
            .arg(locks.join(descriptor.digest.to_string()))
            .args(["sh", "-c", "echo locked; read end"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(other.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let cache = fixture.cache.clone();
        let mut waiter = JoinSet::new();
        waiter.spawn(async move { put(&cache, &layer(b"wanted"), b"wanted").await });
        let said = format!(
            "waiting for another run that fetches blob {}",
            descriptor.digest
        );
        let is_said = async {
            while fixture.messages.count(&said) == 0 && waiter.try_join_next().is_none() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let told = tokio::time::timeout(Duration::from_secs(30), is_said).await;
        told.expect("it tells what it waits for");
        // Long enough for it to look, and to tell, again.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert_eq!(waiter.len(), 1, "the lock was ignored");
        assert!(waiter.try_join_next().is_none(), "the lock was ignored");
        assert_eq!(
            fixture.messages.count(&said),
            1,
            "{:?}",
            fixture.messages.all()
        );
        drop(other.stdin.take());
        waiter.join_next().await.unwrap().unwrap().unwrap();
        other.wait().unwrap();
    }

    #[tokio::test]
    async fn what_is_no_regular_file_of_the_right_size_is_no_blob() {
        let fixture = fixture();
        let secret = fixture.folder.path().join("secret");
        std::fs::copy("/etc/hostname", &secret).unwrap();
        let mut content = Vec::new();
        std::fs::File::open(&secret)
            .unwrap()
            .read_to_end(&mut content)
            .unwrap();
        let descriptor = layer(&content);
        put(&fixture.cache, &descriptor, &content).await.unwrap();
        let path = fixture.cache.shared.layout.blob(&descriptor.digest);

        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&secret, &path).unwrap();
        assert!(!fixture.cache.has_blob(&descriptor).await.unwrap());
        put(&fixture.cache, &descriptor, &content).await.unwrap();
        assert!(path.symlink_metadata().unwrap().is_file());
        assert!(secret.exists());

        std::fs::remove_file(&path).unwrap();
        let made = Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        assert!(!fixture.cache.has_blob(&descriptor).await.unwrap());

        std::fs::remove_file(&path).unwrap();
        std::fs::copy(&secret, &path).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(descriptor.size - 1).unwrap();
        assert!(!fixture.cache.has_blob(&descriptor).await.unwrap());
        put(&fixture.cache, &descriptor, &content).await.unwrap();
        assert_eq!(fixture.messages.count("is fetched again"), 1);
    }

    #[tokio::test]
    async fn what_was_planted_as_a_partial_is_not_written_through() {
        let fixture = fixture();
        fixture.cache.ensure_writable().await.unwrap();
        let victim = fixture.folder.path().join("victim");
        std::fs::File::create(&victim).unwrap();
        let descriptor = layer(b"bytes");
        let partial = fixture.cache.shared.layout.partial(&descriptor.digest);
        std::os::unix::fs::symlink(&victim, &partial).unwrap();
        put(&fixture.cache, &descriptor, b"bytes").await.unwrap();
        assert_eq!(victim.metadata().unwrap().len(), 0);
    }
}
