//! Uploads that break off, in this process or with it, and are gone on with.

use std::sync::Mutex;

use futures::{FutureExt, future::BoxFuture};

use super::shelf::{Broken, Manners, Shelf, blob};
use crate::{
    error::{Class, Classified},
    output::{Direction, OutputManager},
    registry::{
        BlobUpload, RegistryClient, Result, UploadNotes, Uploaded,
        testing::{Recorder, descriptor, repository, source, upload, upload_progress},
    },
};

const MIB: usize = 1024 * 1024;

#[derive(Default)]
struct Notes(Mutex<Option<String>>);

impl UploadNotes for Notes {
    fn load(&self) -> BoxFuture<'_, Option<String>> {
        async { self.0.lock().unwrap().clone() }.boxed()
    }

    fn save(&self, note: Option<String>) -> BoxFuture<'_, ()> {
        async move { *self.0.lock().unwrap() = note }.boxed()
    }
}

impl Notes {
    fn text(&self) -> Option<String> {
        self.0.lock().unwrap().clone()
    }
}

async fn upload_noted(client: &RegistryClient, blob: &[u8], notes: &Notes) -> Result<Uploaded> {
    let upload = BlobUpload {
        repository: &repository(),
        descriptor: &descriptor(blob),
        source: &source(blob),
        progress: &upload_progress(),
        mount_from: None,
        notes: Some(notes),
    };
    client.upload_blob_with_token(&upload, None).await
}

fn sent(shelf: &Shelf) -> usize {
    shelf.bodies().iter().map(|line| line.bytes).sum()
}

#[tokio::test]
async fn a_blob_is_gone_on_with_where_the_connection_was_cut() {
    let shelf = Shelf::start(Manners::default()).await;
    let (client, _way) = shelf.behind(vec![10 * MIB, 4 * MIB]).await;
    let blob = blob(30 * MIB);
    upload(&client, &blob).await.unwrap();
    assert!(shelf.has(&blob));
    assert_eq!(shelf.count("POST"), 1);
    assert_eq!(sent(&shelf), blob.len());
}

#[tokio::test]
async fn progress_goes_on_from_what_the_registry_kept() {
    let shelf = Shelf::start(Manners::default()).await;
    let (client, _way) = shelf.behind(vec![20 * MIB]).await;
    let blob = blob(30 * MIB);
    let recorder = Recorder::default();
    let output = OutputManager::new(recorder.clone());
    let size = blob.len() as u64;
    let progress = output.transfer(Direction::Upload, &descriptor(&blob).digest, size);
    let upload = BlobUpload {
        repository: &repository(),
        descriptor: &descriptor(&blob),
        source: &source(&blob),
        progress: &progress,
        mount_from: None,
        notes: None,
    };
    client.upload_blob_with_token(&upload, None).await.unwrap();
    let told: i64 = recorder
        .0
        .lock()
        .unwrap()
        .iter()
        .map(|line| moved(line))
        .sum();
    assert_eq!(told, i64::try_from(blob.len()).unwrap());
    let twice = output.totals().bytes_uploaded - size;
    // Only what was in the buffers of the system.
    assert!(twice < 16 * MIB as u64, "{twice} bytes were taken twice");
}

/// What an event says about progress.
fn moved(event: &str) -> i64 {
    let number = |name: &str| -> i64 {
        let (_, rest) = event.split_once(name).unwrap();
        rest.trim_end_matches(" }").parse().unwrap()
    };
    if event.starts_with("Advanced") {
        number("bytes: ")
    } else if event.starts_with("Restarted") {
        -number("lost: ")
    } else {
        0
    }
}

/// Registry rule R21: as long as a mebibyte gets through at a time, nothing is given up, however often it breaks.
#[tokio::test]
async fn a_blob_arrives_over_connections_that_all_die_early() {
    let shelf = Shelf::start(Manners::default()).await;
    let (client, _way) = shelf.behind(vec![3 * MIB; 100]).await;
    let blob = blob(30 * MIB);
    upload(&client, &blob).await.unwrap();
    assert!(shelf.has(&blob));
    assert_eq!(shelf.count("POST"), 1);
}

#[tokio::test]
async fn connections_that_die_before_anything_got_through_are_given_up_on() {
    let shelf = Shelf::start(Manners::default()).await;
    let (client, _way) = shelf.behind(vec![20_000; 100]).await;
    let failed = upload(&client, &blob(3 * MIB)).await.unwrap_err();
    assert_eq!(failed.reason(), "ConnectionFailed");
}

/// Distribution 2.8.2 forgets an upload whose body breaks off: requests that fit into the life of a connection get through.
#[tokio::test]
async fn a_registry_that_keeps_nothing_gets_requests_that_a_connection_survives() {
    let shelf = Shelf::start(Manners {
        broken: Broken::Fatal,
        ..Manners::default()
    })
    .await;
    let (client, _way) = shelf.behind(vec![10 * MIB; 100]).await;
    let blob = blob(30 * MIB);
    upload(&client, &blob).await.unwrap();
    assert!(shelf.has(&blob));
    assert_eq!(shelf.count("POST"), 2, "{:?}", shelf.methods());
    assert!(sent(&shelf) <= blob.len() + 11 * MIB, "{}", sent(&shelf));
}

#[tokio::test]
async fn a_proxy_that_hangs_up_on_large_bodies_gets_smaller_ones() {
    let shelf = Shelf::start(Manners {
        broken: Broken::Dropped,
        ..Manners::default()
    })
    .await;
    let (client, _way) = shelf.behind(vec![10 * MIB; 100]).await;
    let blob = blob(20 * MIB);
    upload(&client, &blob).await.unwrap();
    assert!(shelf.has(&blob));
    assert_eq!(shelf.count("POST"), 1);
}

#[tokio::test]
async fn a_registry_that_takes_no_chunks_gets_the_whole_again() {
    let shelf = Shelf::start(Manners {
        broken: Broken::Fatal,
        no_patch: true,
        ..Manners::default()
    })
    .await;
    let (client, _way) = shelf.behind(vec![10 * MIB]).await;
    let blob = blob(20 * MIB);
    upload(&client, &blob).await.unwrap();
    assert!(shelf.has(&blob));
}

/// Begins an upload and gives it up once bytes have arrived, as a killed process does.
async fn die_in_the_middle(shelf: &Shelf, client: &RegistryClient, blob: &[u8], notes: &Notes) {
    let arrived = async {
        while sent(shelf) < 2 * MIB {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        done = upload_noted(client, blob, notes) => panic!("too fast: {done:?}"),
        () = arrived => {}
    }
}

#[tokio::test]
async fn the_next_process_goes_on_with_what_the_last_one_sent() {
    let shelf = Shelf::start(Manners::default()).await;
    let (client, _way) = shelf.behind_slowly().await;
    let (blob, notes) = (blob(30 * MIB), Notes::default());
    die_in_the_middle(&shelf, &client, &blob, &notes).await;
    assert!(notes.text().is_some());
    // What is still on its way arrives, as far as it was sent.
    while !shelf.keeps("1") {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let before = sent(&shelf);
    let uploaded = upload_noted(&shelf.client(), &blob, &notes).await.unwrap();
    assert!(shelf.has(&blob));
    assert_eq!(
        uploaded,
        Uploaded::Resumed {
            from: before as u64
        }
    );
    assert_eq!(sent(&shelf), blob.len());
    assert_eq!((shelf.count("POST"), shelf.count("DELETE")), (1, 0));
    assert_eq!(notes.text(), None);
}

#[tokio::test]
async fn a_note_that_leads_nowhere_is_forgotten() {
    let shelf = Shelf::start(Manners::default()).await;
    let blob = blob(9 * MIB);
    shelf.begin("wrong", &[0; 5]);
    shelf.begin("long", &vec![0; 10 * MIB]);
    for (place, methods) in [
        ("gone", &["GET", "POST", "PUT"][..]),
        ("long", &["GET", "POST", "PUT"]),
        // Other bytes than ours: the digest tells.
        ("wrong", &["GET", "PUT", "POST", "PUT"]),
    ] {
        let location = format!("http://{}/uploads/{place}", shelf.address());
        let note = format!(r#"{{"version":2,"account":null,"location":"{location}","offset":0}}"#);
        let notes = Notes(Mutex::new(Some(note)));
        let before = shelf.methods().len();
        let uploaded = upload_noted(&shelf.client(), &blob, &notes).await.unwrap();
        assert_eq!(uploaded, Uploaded::Sent, "{place}");
        let asked: Vec<_> = shelf.methods()[before..]
            .iter()
            .filter(|method| *method != "DELETE")
            .cloned()
            .collect();
        assert_eq!(asked, methods, "{place}");
        assert_eq!(notes.text(), None);
    }
}

#[tokio::test]
async fn an_upload_that_cannot_be_gone_on_with_is_cancelled_and_its_note_removed() {
    let shelf = Shelf::start(Manners {
        put_body: Some(403),
        ..Manners::default()
    })
    .await;
    let notes = Notes::default();
    let failed = upload_noted(&shelf.client(), &blob(9 * MIB), &notes).await;
    assert_eq!(failed.unwrap_err().reason(), "AccessDenied");
    assert_eq!(notes.text(), None);
    while shelf.keeps("1") {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn an_upload_that_only_the_network_ended_waits_for_the_next_process() {
    let shelf = Shelf::start(Manners::default()).await;
    let (client, way) = shelf.behind(vec![3 * MIB, 0, 0, 0, 0, 0, 0, 0]).await;
    let (blob, notes) = (blob(9 * MIB), Notes::default());
    let failed = upload_noted(&client, &blob, &notes).await;
    assert_eq!(failed.unwrap_err().class(), Class::Network);
    assert!(notes.text().is_some());
    // The way of the next process is another one.
    drop(way);
    let place = notes.text().unwrap();
    let near = client.address().to_owned();
    let far = format!("http://{}", shelf.address());
    *notes.0.lock().unwrap() = Some(place.replace(&near, &far));
    let uploaded = upload_noted(&shelf.client(), &blob, &notes).await.unwrap();
    assert!(matches!(uploaded, Uploaded::Resumed { from } if from > 2 * MIB as u64));
    assert!(shelf.has(&blob));
}

#[tokio::test]
async fn no_note_is_kept_of_a_small_blob() {
    let shelf = Shelf::start(Manners::default()).await;
    let notes = Notes(Mutex::new(Some("not read".to_owned())));
    upload_noted(&shelf.client(), b"layer", &notes)
        .await
        .unwrap();
    assert_eq!(notes.text().as_deref(), Some("not read"));
}
