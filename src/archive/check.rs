//! One blob of an archive: copied, hashed, and if it is compressed also expanded and hashed, all in one pass over its bytes.
//! A plain layer that is to be compressed is hashed and compressed in that pass, and its plain bytes are not kept.

use std::{
    io::{self, Read},
    sync::Arc,
};

use crate::{
    cache::{HashedBlob, PackedLayer, Spool, UnnamedBlob},
    error::{Class, Classified},
    image::{Algorithm, Digest, Hasher},
    output::Transfer,
};

use super::{
    compression::{Compression, Method},
    entries::{At, CHUNK, Content, ContentReader, became_shorter},
    error::{Error, Place, Result},
    limits::Limits,
    outer::{Form, judge, read_full},
    pack::{self, pack},
    plan::presumed,
    windows::Room,
};

/// How an image uses a content, and what it must therefore be.
#[derive(Debug, Clone)]
pub(super) struct BlobUse {
    pub(super) content: Arc<Content>,
    /// Its part in the image: `the configuration`, `layer 3 of 7`.
    pub(super) part: String,
    /// What its bytes must hash to, where somebody says so.
    pub(super) digest: Option<Digest>,
    /// What its bytes must hash to when they are expanded.
    pub(super) diff_id: Option<Digest>,
    /// Whether it is a layer that may be compressed: what only its publisher may serve has to stay as it is.
    pub(super) may_be_packed: bool,
}

impl BlobUse {
    /// What its bytes must hash to before they are compressed; none if they stay as they are.
    pub(super) fn to_pack(&self, archive: &Place) -> Result<Option<&Digest>> {
        let diff_id = self.diff_id.as_ref().filter(|_| self.may_be_packed);
        Ok(match diff_id {
            Some(_) if self.content.form(archive)? == Form::Plain => diff_id,
            _ => None,
        })
    }
}

/// What a content turned out to be.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) digest: Digest,
    pub(super) form: Form,
    /// Of the expanded bytes, where that was asked for.
    pub(super) diff_id: Option<Digest>,
    /// What becomes of it in the cache.
    pub(super) packed: Option<Packed>,
    /// The bytes in the import, compressed if it was; none if the cache has the blob.
    pub(super) blob: Option<Arc<HashedBlob>>,
}

/// A layer that was plain in the archive.
#[derive(Debug, Clone)]
pub(super) struct Packed {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) method: Method,
}

/// Reads a content once.
#[derive(Debug)]
pub(super) struct Check {
    pub(super) wanted: BlobUse,
    pub(super) archive: Place,
    pub(super) spool: Spool,
    pub(super) limits: Arc<Limits>,
    /// What plain layers become.
    pub(super) compression: Option<Compression>,
    /// Told of every piece; a content in the import was read and told of before.
    pub(super) reading: Option<Arc<Transfer>>,
}

impl Check {
    /// Does the work. Blocks.
    pub(super) fn run(&self) -> Result<Checked> {
        let checked = self.read();
        let is_doubtful = match &checked {
            Ok(checked) => self.wanted.content.named_digest().as_ref() != Some(&checked.digest),
            Err(error) => error.class() == Class::Archive,
        };
        if let At::Cached(cached) = &self.wanted.content.at
            && is_doubtful
        {
            // What rotted in the cache is not the archive's fault.
            cached.require_right()?;
        }
        checked
    }

    fn read(&self) -> Result<Checked> {
        let form = self.wanted.content.form(&self.archive)?;
        let to_pack = self.wanted.to_pack(&self.archive)?;
        let (Some(compression), Some(diff_id)) = (self.compression, to_pack) else {
            return self.keep(form, false);
        };
        // What is noted of an earlier run is compared with our own hash of the plain bytes as everything else is.
        let known = self.spool.packed(diff_id, &compression.fingerprint())?;
        let Some(PackedLayer { digest, size }) = known else {
            return self.pack(compression);
        };
        let method = compression.method();
        let packed = Packed {
            digest,
            size,
            method,
        };
        Ok(Checked {
            blob: None,
            packed: Some(packed),
            ..self.keep(form, true)?
        })
    }

    /// Takes the bytes as they are, or only looks whether they are right.
    fn keep(&self, form: Form, only_hash: bool) -> Result<Checked> {
        match &self.wanted.content.at {
            At::Spooled(blob) => {
                let digest = blob.digest().clone();
                let wanted = self.expansion(form, digest.algorithm());
                let diff_id = match wanted {
                    Some(algorithm) => {
                        let mut reader = self.wanted.content.open()?;
                        Some(self.expand(form, algorithm, &mut reader)?)
                    }
                    None => self.wanted.diff_id.as_ref().map(|_| digest.clone()),
                };
                let blob = Some(Arc::clone(blob));
                Ok(Checked {
                    digest,
                    form,
                    diff_id,
                    packed: None,
                    blob,
                })
            }
            At::Archive { .. } | At::Gathered { .. } | At::Cached(_) => self.take(form, only_hash),
        }
    }

    /// The algorithm of a second hash, unless the first one serves for both.
    fn expansion(&self, form: Form, raw: Algorithm) -> Option<Algorithm> {
        self.wanted
            .diff_id
            .as_ref()
            .map(Digest::algorithm)
            .filter(|algorithm| form != Form::Plain || *algorithm != raw)
    }

    /// Compresses a plain layer, and hashes it before and behind.
    fn pack(&self, compression: Compression) -> Result<Checked> {
        let raw = self.raw_algorithm();
        let mut layer = Layer {
            reader: self.wanted.content.open()?,
            place: self.wanted.content.place(&self.archive),
            hasher: Hasher::new(raw),
            second: self.expansion(Form::Plain, raw).map(Hasher::new),
            // Nobody knows yet how many bytes it will be.
            blob: self.spool.create(Algorithm::Sha256, 0)?,
            spool: &self.spool,
            reading: self.reading.as_deref(),
        };
        let size = self.wanted.content.size;
        pack(&mut layer, size, compression, pack::workers())?;
        let digest = layer.hasher.finish();
        let diff_id = layer.second.map_or_else(|| digest.clone(), Hasher::finish);
        let blob = layer.blob.finish();
        let packed = Packed {
            digest: blob.digest().clone(),
            size: blob.size(),
            method: compression.method(),
        };
        Ok(Checked {
            digest,
            form: Form::Plain,
            diff_id: Some(diff_id),
            packed: Some(packed),
            blob: Some(Arc::new(blob)),
        })
    }

    /// The algorithm by which the archive names the bytes.
    fn raw_algorithm(&self) -> Algorithm {
        let named = self.wanted.content.named_digest();
        named.as_ref().map_or(Algorithm::Sha256, Digest::algorithm)
    }

    /// Copies a content out of the archive or the file of small ones, or only hashes it where the cache has it.
    fn take(&self, form: Form, only_hash: bool) -> Result<Checked> {
        let raw = self.raw_algorithm();
        let is_present = match presumed(&self.wanted, form) {
            _ if only_hash => true,
            Some(digest) if digest.algorithm() == raw => {
                self.spool.has(&digest, self.wanted.content.size)?
            }
            _ => false,
        };
        let sink = if is_present {
            Sink::Hash(Hasher::new(raw))
        } else {
            Sink::Copy(self.spool.create(raw, self.wanted.content.size)?)
        };
        let mut intake = Intake {
            reader: self.wanted.content.open()?,
            sink,
            spool: &self.spool,
            reading: self.reading.as_deref(),
            failure: None,
        };
        let expanded = match self.expansion(form, raw) {
            Some(algorithm) => {
                let expanded = self.expand(form, algorithm, &mut intake);
                // What the cache says is the cause of what the decoder saw.
                if let Some(failure) = intake.failure.take() {
                    return Err(failure);
                }
                Some(expanded?)
            }
            None => None,
        };
        intake.take_rest(&self.wanted.content.place(&self.archive))?;
        let (digest, blob) = match intake.sink {
            Sink::Hash(hasher) => (hasher.finish(), None),
            Sink::Copy(blob) => {
                let blob = blob.finish();
                (blob.digest().clone(), Some(Arc::new(blob)))
            }
        };
        let diff_id = self.wanted.diff_id.as_ref();
        let diff_id = diff_id.map(|_| expanded.unwrap_or_else(|| digest.clone()));
        Ok(Checked {
            digest,
            form,
            diff_id,
            packed: None,
            blob,
        })
    }

    /// Hashes the expanded bytes.
    fn expand(
        &self,
        form: Form,
        algorithm: Algorithm,
        packed: &mut (impl Read + Send),
    ) -> Result<Digest> {
        let place = self.wanted.content.place(&self.archive);
        let failed = |error| judge(error, &place);
        let going_on = || Ok(self.spool.ensure_going_on()?);
        let room = Room::of(form, &self.limits, going_on)?;
        let size = Some(self.wanted.content.size);
        let mut decoder = form
            .decoder(packed, size, &self.limits, room)
            .map_err(failed)?;
        let mut hasher = Hasher::new(algorithm);
        let mut buffer = vec![0; CHUNK];
        let mut is_first = true;
        loop {
            self.spool.ensure_going_on()?;
            let read = read_full(&mut decoder, &mut buffer).map_err(failed)?;
            if is_first && form != Form::Plain && Form::of(&buffer[..read]) != Form::Plain {
                return Err(place.invalid("layer compressed twice"));
            }
            is_first = false;
            if read == 0 {
                return Ok(hasher.finish());
            }
            hasher.update(&buffer[..read]);
        }
    }
}

impl Checked {
    /// Compares what a content is with what an image says about it (rows 34 and 35).
    pub(super) fn fits(&self, wanted: &BlobUse, archive: &Place) -> Result<()> {
        let place = wanted.content.place(archive);
        let part = &wanted.part;
        let named = wanted.content.named_digest();
        for expected in named.iter().chain(&wanted.digest) {
            if *expected != self.digest {
                return Err(place.mismatch(part, expected, &self.digest));
            }
        }
        match (&wanted.diff_id, &self.diff_id) {
            (Some(expected), Some(actual)) if expected != actual => {
                Err(place.mismatch(format!("{part}, uncompressed,"), expected, actual))
            }
            _ => Ok(()),
        }
    }
}

/// A layer on its way through the compression.
struct Layer<'a> {
    reader: ContentReader,
    place: Place,
    hasher: Hasher,
    /// Where the names in the archive and the configuration have different algorithms.
    second: Option<Hasher>,
    blob: UnnamedBlob,
    spool: &'a Spool,
    reading: Option<&'a Transfer>,
}

impl pack::Layer for Layer<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<()> {
        let read = self.reader.read_exact(buffer);
        read.map_err(|error| judge(error, &self.place))?;
        self.hasher.update(buffer);
        if let Some(second) = &mut self.second {
            second.update(buffer);
        }
        if let Some(reading) = self.reading {
            reading.advance(buffer.len() as u64);
        }
        Ok(())
    }

    fn write(&mut self, packed: &[u8]) -> Result<()> {
        Ok(self.blob.write(packed)?)
    }

    fn ensure_going_on(&self) -> Result<()> {
        Ok(self.spool.ensure_going_on()?)
    }

    fn failed(&self, source: io::Error) -> Error {
        let place = self.place.clone();
        Error::CompressionFailed { place, source }
    }
}

/// Where the bytes go besides their hash.
enum Sink {
    Copy(UnnamedBlob),
    Hash(Hasher),
}

/// Reads a content and hands every byte on to the sink.
struct Intake<'a> {
    reader: ContentReader,
    sink: Sink,
    spool: &'a Spool,
    reading: Option<&'a Transfer>,
    /// What the cache said, when a decoder above could only be told that something failed.
    failure: Option<Error>,
}

impl Intake<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.sink {
            Sink::Copy(blob) => blob.write(bytes)?,
            Sink::Hash(hasher) => {
                self.spool.ensure_going_on()?;
                hasher.update(bytes);
            }
        }
        self.tell(bytes.len() as u64);
        Ok(())
    }

    fn tell(&self, bytes: u64) {
        if let Some(reading) = self.reading {
            reading.advance(bytes);
        }
    }

    /// Takes what no decoder has asked for: everything, where there is none.
    fn take_rest(&mut self, place: &Place) -> Result<()> {
        let mut buffer = Vec::new();
        while self.reader.left() > 0 {
            let (position, left) = (self.reader.position, self.reader.left());
            if let Sink::Copy(blob) = &mut self.sink
                && let Some(copied) = blob.copy(&self.reader.file, position, left)?
            {
                if copied == 0 {
                    return Err(judge(became_shorter(), place));
                }
                self.reader.position += copied;
                self.tell(copied);
                continue;
            }
            buffer.resize(CHUNK, 0);
            let read = self
                .reader
                .read(&mut buffer)
                .map_err(|error| judge(error, place))?;
            self.put(&buffer[..read])?;
        }
        Ok(())
    }
}

impl Read for Intake<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        if let Err(failure) = self.put(&buffer[..read]) {
            self.failure = Some(failure);
            return Err(io::Error::other("the cache failed"));
        }
        Ok(read)
    }
}
