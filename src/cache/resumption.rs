//! Tests of blobs that one run began and another one finishes (archive reference, part 6, rows 2 to 5 and 14).

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    image::{Algorithm, Descriptor, Digest},
    output::OutputManager,
};

use super::{
    BlobWriter, Cache, Claim, CleanRequest, Error,
    notes::{sealed, unsealed},
    testing::{Fixture, fixture, layer, put},
};

const MIB: usize = 1024 * 1024;

/// What befalls a file.
type Damage = fn(&Path);

/// Bytes of which no two blocks of 4 KiB are alike.
fn content(length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    for (number, block) in bytes.chunks_mut(4096).enumerate() {
        block.fill(u8::try_from(number & 0xff).unwrap());
        let number = number.to_be_bytes();
        let length = block.len().min(number.len());
        block[..length].copy_from_slice(&number[number.len() - length..]);
    }
    bytes.into()
}

async fn claim(cache: &Cache, descriptor: &Descriptor) -> BlobWriter {
    match cache.claim_blob(descriptor).await.unwrap() {
        Claim::Fetch(writer) => writer,
        Claim::Present => panic!("{} is present", descriptor.digest),
    }
}

/// Writes what is missing and finishes.
async fn complete(writer: BlobWriter, content: &Bytes) {
    for gap in writer.missing() {
        let piece = content.slice(to_range(&gap));
        writer.write_at(gap.start, piece).await.unwrap();
    }
    writer.finish().await.unwrap();
}

fn to_range(range: &std::ops::Range<u64>) -> std::ops::Range<usize> {
    usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()
}

/// Begins a blob of four MiB and a bit, and drops it when the first and the third are there.
async fn interrupted(fixture: &Fixture) -> (Bytes, Descriptor) {
    let content = content(4 * MIB + 5);
    let descriptor = layer(&content);
    let writer = claim(&fixture.cache, &descriptor).await;
    for start in [2 * MIB, 0] {
        let piece = content.slice(start..start + MIB);
        writer.write_at(start as u64, piece).await.unwrap();
    }
    work_off(&writer).await;
    drop(writer);
    // The lock is released when everything is in order.
    let name = super::lock::LockName::Blob(&descriptor.digest);
    let silent = OutputManager::silent();
    drop(fixture.cache.shared.locks.exclusive(name, &silent).await);
    (content, descriptor)
}

async fn work_off(writer: &BlobWriter) {
    while !writer.is_worked_off() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn assert_stored(fixture: &Fixture, descriptor: &Descriptor, content: &Bytes) {
    let reader = fixture.cache.read_blob(descriptor).await.unwrap().unwrap();
    let mut read = Vec::new();
    while (read.len() as u64) < reader.size() {
        read.extend(reader.read(read.len() as u64, MIB).await.unwrap());
    }
    assert!(read == *content, "other bytes were stored");
    let path = fixture.cache.shared.layout.blob(&descriptor.digest);
    let root = fixture.cache.directory();
    let expected = path.strip_prefix(root).unwrap().display().to_string();
    assert_eq!(fixture.files(), [expected]);
}

fn state_file(fixture: &Fixture, descriptor: &Descriptor) -> std::path::PathBuf {
    fixture
        .cache
        .shared
        .layout
        .partial_state(&descriptor.digest)
}

fn write_file(path: &Path, bytes: &[u8]) {
    File::create(path).unwrap().write_all(bytes).unwrap();
}

/// Changes the checkpoint, leaving it whole.
fn edit_header(path: &Path, edit: impl FnOnce(&mut Value)) {
    let text = std::fs::read_to_string(path).unwrap();
    let (header, lines) = text.split_at(text.find('\n').unwrap() + 1);
    let mut header = serde_json::from_str(unsealed(header.as_bytes()).unwrap()).unwrap();
    edit(&mut header);
    write_file(
        path,
        format!("{}{lines}", sealed(&header.to_string())).as_bytes(),
    );
}

#[tokio::test]
async fn an_interrupted_blob_is_gone_on_with() {
    let fixture = fixture();
    let (content, descriptor) = interrupted(&fixture).await;
    assert_eq!(
        fixture.files(),
        [
            format!("blobs/.partial/{}", descriptor.digest),
            format!("blobs/.partial/{}.state", descriptor.digest),
        ]
    );
    let writer = claim(&fixture.reopened(), &descriptor).await;
    let mib = MIB as u64;
    assert_eq!(writer.kept(), 2 * mib);
    assert_eq!(writer.missing(), [mib..2 * mib, 3 * mib..4 * mib + 5]);
    complete(writer, &content).await;
    assert_stored(&fixture, &descriptor, &content).await;
}

#[tokio::test]
async fn a_whole_partial_is_finished_without_another_byte() {
    let fixture = fixture();
    let content = content(2 * MIB);
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let mut descriptor = layer(&content);
        descriptor.digest = Digest::with_algorithm(algorithm, &content);
        let writer = claim(&fixture.cache, &descriptor).await;
        writer.write_at(0, content.clone()).await.unwrap();
        drop(writer);
        let writer = claim(&fixture.cache, &descriptor).await;
        assert_eq!(writer.missing(), []);
        writer.finish().await.unwrap();
        assert!(fixture.cache.has_blob(&descriptor).await.unwrap());
    }
}

#[tokio::test]
async fn wrong_bytes_of_an_earlier_run_are_removed_and_come_only_once() {
    let fixture = fixture();
    let content = content(3 * MIB);
    let descriptor = layer(&content);
    let writer = claim(&fixture.cache, &descriptor).await;
    writer.write_at(0, vec![9; 2 * MIB].into()).await.unwrap();
    drop(writer);
    let writer = claim(&fixture.cache, &descriptor).await;
    assert_eq!(writer.kept(), 2 * MIB as u64);
    let reader = writer.reader();
    let rest = content.slice(2 * MIB..);
    writer.write_at(2 * MIB as u64, rest).await.unwrap();
    let error = writer.finish().await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
    assert_eq!(fixture.files(), Vec::<String>::new());
    assert!(reader.read(0, 1).await.is_err());
    let writer = claim(&fixture.cache, &descriptor).await;
    assert_eq!(writer.kept(), 0);
    complete(writer, &content).await;
    assert_stored(&fixture, &descriptor, &content).await;
}

#[tokio::test]
async fn after_a_new_start_of_the_system_only_what_was_synced_counts() {
    let fixture = fixture();
    let (content, descriptor) = interrupted(&fixture).await;
    let path = state_file(&fixture, &descriptor);
    // Noted after the checkpoint, without a sync.
    let line = sealed(&format!("{} {}", MIB, 2 * MIB));
    let mut notes = File::options().append(true).open(&path).unwrap();
    notes.write_all(line.as_bytes()).unwrap();
    edit_header(&path, |header| header["boot"] = json!("another"));
    let writer = claim(&fixture.cache, &descriptor).await;
    assert_eq!(writer.kept(), 2 * MIB as u64);
    // The notes are of this start now.
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(!text.contains("another"), "{text}");
    complete(writer, &content).await;
    assert_stored(&fixture, &descriptor, &content).await;
}

#[tokio::test]
async fn the_hash_of_another_version_is_not_gone_on_with() {
    let fixture = fixture();
    let (content, descriptor) = interrupted(&fixture).await;
    edit_header(&state_file(&fixture, &descriptor), |header| {
        assert!(header["hashed"].as_u64() > Some(0), "{header}");
        header["hasher"] = json!("something else 1.0");
        header["state"] = json!("bm90IGEgc3RhdGU=");
    });
    let writer = claim(&fixture.cache, &descriptor).await;
    assert_eq!(writer.kept(), 2 * MIB as u64);
    complete(writer, &content).await;
    assert_stored(&fixture, &descriptor, &content).await;
}

/// A power loss, or a disk that was too slow for checkpoints, leaves more bytes than hash. Whoever waits for the hash hands over
/// nothing meanwhile: nobody else would start it.
#[tokio::test]
async fn what_was_kept_is_hashed_before_the_next_byte_comes() {
    let fixture = fixture();
    let (content, descriptor) = interrupted(&fixture).await;
    edit_header(&state_file(&fixture, &descriptor), |header| {
        header["hasher"] = json!("something else 1.0");
    });
    let writer = claim(&fixture.cache, &descriptor).await;
    let is_hashed = async {
        while writer.hashed() < MIB as u64 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let is_hashed = tokio::time::timeout(Duration::from_secs(30), is_hashed).await;
    is_hashed.expect("the hash stands still");
    complete(writer, &content).await;
    assert_stored(&fixture, &descriptor, &content).await;
}

#[tokio::test]
async fn an_intact_checkpoint_spares_reading_its_part_again() {
    let fixture = fixture();
    let (content, descriptor) = interrupted(&fixture).await;
    let mut hashed = None;
    edit_header(&state_file(&fixture, &descriptor), |header| {
        hashed = header["hashed"].as_u64();
    });
    assert!(hashed > Some(0));
    let writer = claim(&fixture.cache, &descriptor).await;
    assert_eq!(Some(writer.hashed()), hashed);
    complete(writer, &content).await;
}

#[tokio::test]
async fn torn_and_foreign_notes_never_lead_to_wrong_bytes() {
    let mib = MIB as u64;
    let cases: [(Damage, u64); 7] = [
        (|path| write_file(path, b""), 0),
        (|path| write_file(path, b"0123456789abcdef {}\n"), 0),
        (
            |path| {
                let length = path.metadata().unwrap().len();
                let file = File::options().write(true).open(path).unwrap();
                file.set_len(length / 2).unwrap();
            },
            0,
        ),
        // Half a line, then a whole one: what is behind a hole is not believed.
        (
            |path| {
                let mut file = File::options().append(true).open(path).unwrap();
                let line = sealed("1048576 2097152");
                file.write_all(&line.as_bytes()[..20]).unwrap();
                file.write_all(line.as_bytes()).unwrap();
            },
            2 * mib,
        ),
        (
            |path| edit_header(path, |header| header["size"] = json!(1)),
            0,
        ),
        (
            |path| edit_header(path, |header| header["ranges"] = json!([[0, u64::MAX]])),
            0,
        ),
        (
            |path| {
                edit_header(path, |header| {
                    header["digest"] = json!(Digest::of(b"another"));
                });
            },
            0,
        ),
    ];
    for (number, (damage, kept)) in cases.into_iter().enumerate() {
        let fixture = fixture();
        let (content, descriptor) = interrupted(&fixture).await;
        damage(&state_file(&fixture, &descriptor));
        let writer = claim(&fixture.cache, &descriptor).await;
        assert_eq!(writer.kept(), kept, "case {number}");
        complete(writer, &content).await;
        assert_stored(&fixture, &descriptor, &content).await;
    }
}

#[tokio::test]
async fn a_partial_that_was_cut_or_planted_is_not_used() {
    let cases: [Damage; 5] = [
        |path| {
            let file = File::options().write(true).open(path).unwrap();
            file.set_len(3 * MIB as u64).unwrap();
        },
        |path| {
            let elsewhere = path.parent().unwrap().join("../../elsewhere");
            std::fs::rename(path, &elsewhere).unwrap();
            std::os::unix::fs::symlink("../../elsewhere", path).unwrap();
        },
        |path| {
            std::fs::remove_file(path).unwrap();
            assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
        },
        |path| {
            let second = path.parent().unwrap().join("../../elsewhere");
            std::fs::hard_link(path, second).unwrap();
        },
        // Nobody but root can give a file away.
        |path| match std::os::unix::fs::chown(path, Some(12_345), None) {
            Ok(()) => {}
            Err(_) => std::fs::remove_file(path).unwrap(),
        },
    ];
    for (number, damage) in cases.into_iter().enumerate() {
        let fixture = fixture();
        let (content, descriptor) = interrupted(&fixture).await;
        damage(&fixture.cache.shared.layout.partial(&descriptor.digest));
        let elsewhere = fixture.cache.directory().join("elsewhere");
        let before = std::fs::read(&elsewhere).unwrap_or_default();
        let writer = claim(&fixture.cache, &descriptor).await;
        assert_eq!(writer.kept(), 0, "case {number}");
        complete(writer, &content).await;
        assert_eq!(std::fs::read(&elsewhere).unwrap_or_default(), before);
        drop(std::fs::remove_file(&elsewhere));
        assert_stored(&fixture, &descriptor, &content).await;
    }
}

#[tokio::test]
async fn clean_removes_what_was_interrupted() {
    let fixture = fixture();
    let (_, descriptor) = interrupted(&fixture).await;
    let report = fixture.cache.clean(&CleanRequest::default()).await.unwrap();
    assert_eq!(report.blobs, 1);
    assert!(report.bytes > descriptor.size);
    assert_eq!(fixture.files(), Vec::<String>::new());
}

#[tokio::test]
async fn what_an_archive_brings_makes_the_interrupted_download_needless() {
    let fixture = fixture();
    let (content, descriptor) = interrupted(&fixture).await;
    let import = fixture.cache.import().await.unwrap();
    let mut blob = import.spool().create(Algorithm::Sha256, 0).unwrap();
    blob.write(&content).unwrap();
    let blob = blob.finish();
    assert!(import.keep(std::sync::Arc::new(blob)).await.unwrap());
    drop(import);
    assert_stored(&fixture, &descriptor, &content).await;
}

/// In the second process of a test: the folder of the cache it shares with the first.
const FOLDER: &str = "IMAGE_PUSHER_TEST_SHARED_CACHE";

/// The size of the blob that the second process begins: enough for a checkpoint, with enough behind it.
const LARGE: usize = 84 * MIB;

/// Runs a test again as a process of its own.
fn second_process(test: &str, folder: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture"])
        .arg(format!("cache::resumption::{test}"))
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn wait_for(child: &mut Child, word: &str) {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(
        lines.any(|line| line.unwrap().contains(word)),
        "the second process did not get that far"
    );
}

/// Never returns: the second process writes two parts of the blob, says so, and waits to be killed.
async fn write_until_killed(folder: &Path, parts: &[std::ops::Range<usize>]) {
    let content = content(LARGE);
    let cache = Cache::open(folder, OutputManager::silent()).unwrap();
    let writer = claim(&cache, &layer(&content)).await;
    for part in parts {
        let piece = content.slice(part.clone());
        writer.write_at(part.start as u64, piece).await.unwrap();
    }
    // What is worked off is known to the file; what is left is less than a batch.
    work_off(&writer).await;
    println!("written");
    let mut end = Vec::new();
    std::io::stdin().read_to_end(&mut end).unwrap();
    tokio::time::sleep(Duration::from_mins(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_one_who_waits_goes_on_where_a_killed_process_stopped() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        return write_until_killed(folder.as_ref(), &[0..66 * MIB, 68 * MIB..69 * MIB]).await;
    }
    let fixture = fixture();
    let content = content(LARGE);
    let descriptor = layer(&content);
    let mut child = second_process(
        "the_one_who_waits_goes_on_where_a_killed_process_stopped",
        fixture.cache.directory(),
    );
    wait_for(&mut child, "written");
    let (cache, wanted) = (fixture.cache.clone(), descriptor.clone());
    let mut waiter = JoinSet::new();
    waiter.spawn(async move { claim(&cache, &wanted).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(waiter.try_join_next().is_none(), "the lock was ignored");
    child.kill().unwrap();
    child.wait().unwrap();
    let writer = waiter.join_next().await.unwrap().unwrap();
    // At most one note, of a MiB, is lost.
    assert!(writer.kept() >= 66 * MIB as u64, "{}", writer.kept());
    assert!(writer.hashed() >= 64 * MIB as u64, "{}", writer.hashed());
    complete(writer, &content).await;
    assert_stored(&fixture, &descriptor, &content).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_kill_and_a_new_start_the_checkpoint_serves() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        return write_until_killed(folder.as_ref(), std::slice::from_ref(&(0..66 * MIB))).await;
    }
    let fixture = fixture();
    let content = content(LARGE);
    let descriptor = layer(&content);
    let mut child = second_process(
        "after_a_kill_and_a_new_start_the_checkpoint_serves",
        fixture.cache.directory(),
    );
    wait_for(&mut child, "written");
    child.kill().unwrap();
    child.wait().unwrap();
    edit_header(&state_file(&fixture, &descriptor), |header| {
        header["boot"] = json!("another");
    });
    let writer = claim(&fixture.cache, &descriptor).await;
    assert!(writer.kept() >= 64 * MIB as u64, "{}", writer.kept());
    assert!(writer.hashed() >= 64 * MIB as u64, "{}", writer.hashed());
    complete(writer, &content).await;
    assert_stored(&fixture, &descriptor, &content).await;
}

#[tokio::test]
async fn a_file_without_notes_is_of_no_use_however_long_it_is() {
    let fixture = fixture();
    let (content, descriptor) = interrupted(&fixture).await;
    std::fs::remove_file(state_file(&fixture, &descriptor)).unwrap();
    let writer = claim(&fixture.cache, &descriptor).await;
    assert_eq!(writer.kept(), 0);
    complete(writer, &content).await;
    assert_stored(&fixture, &descriptor, &content).await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn whatever_the_order_and_the_interruptions_the_bytes_are_the_same(
        runs in prop::collection::vec(prop::collection::vec((0_usize..3 * MIB, 1_usize..MIB), 0..6), 0..4),
        seed: u8,
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let fixture = fixture();
            let content: Bytes = content(3 * MIB + usize::from(seed)).iter().map(|byte| byte ^ seed).collect();
            let descriptor = layer(&content);
            let mut written = 0;
            for run in runs {
                let writer = claim(&fixture.cache, &descriptor).await;
                let kept = if written >= MIB as u64 { written } else { 0 };
                assert_eq!(writer.kept(), kept);
                for (start, length) in run {
                    let piece = content.slice(start..content.len().min(start + length));
                    writer.write_at(start as u64, piece).await.unwrap();
                }
                let missing: u64 = writer.missing().iter().map(|gap| gap.end - gap.start).sum();
                written = descriptor.size - missing;
            }
            complete(claim(&fixture.cache, &descriptor).await, &content).await;
            assert_stored(&fixture, &descriptor, &content).await;
        });
    }
}

#[tokio::test]
async fn a_download_that_another_process_may_begin_is_put_whole() {
    let fixture = fixture();
    let (content, descriptor) = interrupted(&fixture).await;
    // The bytes that are there already are skipped.
    put(&fixture.cache, &descriptor, &content).await.unwrap();
    assert_stored(&fixture, &descriptor, &content).await;
}
