//! The refuse list of archive reference part 4, row by row, through the door that every archive takes: as a file, as a
//! stream, packed with gzip and with zstd. What a row accepts stands beside what it refuses.

use serde_json::{Value, json};

use super::{
    Limits,
    header::BLOCK,
    testing::{
        GZIP, PLAIN, Sample, Tar, Way, accepted, bed, blob, descriptor, gzip, layout, refused,
        refused_within, sample, set_size, zstd,
    },
};
use crate::{
    error::{Class, Classified},
    image::{Digest, MediaType},
};

const INVALID: &str = "ArchiveInvalid";
const UNSAFE: &str = "ArchiveUnsafe";
const UNSUPPORTED: &str = "ArchiveUnsupported";
const LIMIT: &str = "ArchiveLimit";
const TRUNCATED: &str = "ArchiveTruncated";
const DIGEST: &str = "DigestMismatch";

/// A good image behind the entries of a test.
fn with(tar: Tar) -> Vec<u8> {
    tar.and(sample().docker()).end()
}

fn file(name: &[u8]) -> Tar {
    Tar::default().entry(b'0', name, b"x", |_| {})
}

#[tokio::test]
async fn row_1_names_that_leave_the_archive() {
    for name in [
        &b"../x"[..],
        b"a/../../x",
        b"/etc/passwd",
        b"C:\\x",
        b"\\\\host\\x",
        b"",
        b".",
    ] {
        refused(&with(file(name)), UNSAFE, "name leaves the archive").await;
    }
    let long = Tar::default().extension(b'L', b"a\0b\0").and(file(b"x"));
    refused(&with(long), UNSAFE, "NUL").await;
    let pax = Tar::default().pax(&[("path", "../x")]).and(file(b"x"));
    refused(&with(pax), UNSAFE, "entry 2 '../x'").await;
}

#[tokio::test]
async fn row_2_names_and_targets_that_are_too_long() {
    let long = "n".repeat(4097);
    for (key, kind) in [("path", b'0'), ("linkpath", b'2')] {
        let tar = Tar::default()
            .pax(&[(key, &long)])
            .entry(kind, b"x", b"", |_| {});
        refused(&with(tar), LIMIT, "name_length: name too long: 4097 bytes").await;
    }
    let longest = Tar::default().pax(&[("path", &long[1..])]).and(file(b"x"));
    accepted(&with(longest)).await;
    let limits = Limits {
        name_bytes: 40,
        ..Limits::default()
    };
    refused_within(&limits, &with(file(&[b'n'; 41])), LIMIT, "name_bytes").await;
}

#[tokio::test]
async fn row_3_a_referenced_name_is_utf_8() {
    let config = sample().config;
    let manifest = json!([{"Config": "config\u{fffd}", "Layers": ["layer-0", "layer-1"]}]);
    let tar = sample()
        .parts()
        .entry(b'0', b"config\xff", &config, |_| {})
        .file("manifest.json", manifest.to_string());
    refused(&tar.end(), INVALID, "is not UTF-8").await;
    // One that nobody refers to does no harm.
    accepted(&with(file(b"caf\xe9"))).await;
    let link = Tar::default()
        .and(file(b"caf\xe9"))
        .entry(b'1', b"link", b"", |header| {
            header[157..161].copy_from_slice(b"caf\xe9");
        });
    refused(&with(link), INVALID, "is not UTF-8").await;
}

#[tokio::test]
async fn row_4_kinds_of_entries_that_no_image_needs() {
    for kind in *b"346VMD7X\xff" {
        let tar = Tar::default().entry(kind, b"x", b"", |_| {});
        refused(&with(tar), UNSUPPORTED, "entry type").await;
    }
}

#[tokio::test]
async fn row_5_a_name_of_a_folder_with_data() {
    refused(&with(file(b"folder/")), UNSAFE, "directory carries data").await;
    accepted(&with(Tar::default().entry(b'0', b"folder/", b"", |_| {}))).await;
}

#[tokio::test]
async fn row_6_links_and_folders_with_data() {
    for kind in *b"125" {
        let tar = Tar::default().entry(kind, b"x", b"hidden", |_| {});
        refused(&with(tar), UNSAFE, "link or directory carries data").await;
        let tar = Tar::default()
            .pax(&[("size", "6")])
            .entry(kind, b"x", b"", |_| {})
            .data(b"hidden");
        refused(&with(tar), UNSAFE, "link or directory carries data").await;
    }
}

#[tokio::test]
async fn row_7_sparse_entries() {
    let tar = Tar::default().entry(b'S', b"x", b"", |header| {
        header[257..265].copy_from_slice(b"ustar  \0");
    });
    refused(&with(tar), UNSUPPORTED, "sparse entry").await;
    let tar = Tar::default()
        .pax(&[("GNU.sparse.major", "1")])
        .and(file(b"x"));
    refused(&with(tar), UNSUPPORTED, "sparse entry").await;
}

#[tokio::test]
async fn row_8_two_different_sizes() {
    for (pax, content) in [("512", &b"x"[..]), ("0", b"x"), ("2", b"x")] {
        let tar = Tar::default().pax(&[("size", pax)]).file("x", content);
        refused(&with(tar), UNSAFE, "two different sizes").await;
    }
}

#[tokio::test]
async fn row_9_a_pax_size_fills_in_for_the_header() {
    let content = vec![7; 3 * BLOCK + 1];
    let size = content.len().to_string();
    let hidden = Tar::default()
        .pax(&[("size", &size)])
        .entry(b'0', b"x", b"", |_| {})
        .data(&content);
    accepted(&with(hidden)).await;
    let equal = Tar::default().pax(&[("size", "1")]).and(file(b"x"));
    accepted(&with(equal)).await;
    let binary = Tar::default().entry(b'0', b"x", b"x", |header| {
        header[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    });
    accepted(&with(binary)).await;
}

/// Row 9, beyond what octal digits can say; the file has a hole there.
#[tokio::test]
async fn row_9_entries_of_more_than_8_gib() {
    use std::os::unix::fs::FileExt;
    const HUGE: u64 = 9 << 30;
    let pax = Tar::default()
        .pax(&[("size", &HUGE.to_string())])
        .entry(b'0', b"x", b"", |_| {});
    let binary = Tar::default().entry(b'0', b"x", b"", |header| {
        header[124..128].copy_from_slice(&[0x80, 0, 0, 0]);
        header[128..136].copy_from_slice(&HUGE.to_be_bytes());
    });
    for head in [pax, binary] {
        let bed = bed();
        let head = head.open_end();
        let path = bed.write("huge.tar", &head);
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        let rest = sample().docker().end();
        file.write_all_at(&rest, head.len() as u64 + HUGE).unwrap();
        let archive = super::Archive::open(&path).unwrap();
        let contents =
            super::TarUtils::parse_image_info(archive, &bed.cache, &bed.limits, &bed.output)
                .await
                .unwrap();
        assert_eq!(contents.images()[0].names[0].to_string(), "app:1");
    }
}

#[tokio::test]
async fn row_10_a_global_header_that_changes_entries() {
    for key in ["size", "path", "linkpath", "GNU.sparse.name"] {
        let tar = Tar::default().extension(b'g', &super::testing::pax_record(key, b"1"));
        refused(&with(tar), UNSAFE, "global header changes entries").await;
    }
    let comment = super::testing::pax_record("comment", b"made by git");
    accepted(&with(Tar::default().extension(b'g', &comment))).await;
    let between = Tar::default()
        .pax(&[("mtime", "1")])
        .extension(b'g', &comment)
        .and(file(b"x"));
    refused(&with(between), UNSAFE, "global header changes entries").await;
}

#[tokio::test]
async fn row_11_malformed_pax_records() {
    for payload in [
        "11 path=a/b\n",
        "12 path=a/b",
        "12 path=a/b\n\n",
        "+12 path=a/b\n",
    ] {
        for kind in *b"xg" {
            let tar = Tar::default()
                .extension(kind, payload.as_bytes())
                .and(file(b"x"));
            refused(&with(tar), INVALID, "malformed PAX record").await;
        }
    }
    for size in ["", "-1", "1 ", "01", "0x1", "9223372036854775808"] {
        let tar = Tar::default().pax(&[("size", size)]).and(file(b"x"));
        refused(&with(tar), INVALID, "malformed PAX record").await;
    }
}

#[tokio::test]
async fn row_12_a_pax_key_twice() {
    let tar = Tar::default()
        .pax(&[("path", "a"), ("path", "a")])
        .and(file(b"x"));
    refused(&with(tar), UNSAFE, "duplicate PAX key").await;
}

#[tokio::test]
async fn row_13_extension_headers_that_are_too_large() {
    for kind in *b"LKxg" {
        let tar = Tar::default().entry(kind, b"x", b"", |header| set_size(header, (1 << 20) + 1));
        refused(&with(tar), LIMIT, "extension header too large").await;
    }
}

#[tokio::test]
async fn row_14_ambiguous_extension_headers() {
    for kind in *b"LK" {
        let twice = Tar::default()
            .extension(kind, b"a\0")
            .extension(kind, b"a\0")
            .and(file(b"x"));
        refused(&with(twice), UNSAFE, "two of a kind").await;
    }
    let twice = Tar::default()
        .pax(&[("mtime", "1")])
        .pax(&[("mtime", "1")])
        .and(file(b"x"));
    refused(&with(twice), UNSAFE, "two of a kind").await;
    let alone = sample().docker().extension(b'L', b"a\0").end();
    refused(&alone, UNSAFE, "no member follows").await;
    let names = Tar::default()
        .extension(b'L', b"a\0")
        .pax(&[("path", "b")])
        .and(file(b"x"));
    refused(&with(names), UNSAFE, "two names").await;
    let targets = Tar::default()
        .extension(b'K', b"a\0")
        .pax(&[("linkpath", "b")])
        .link(b'2', "x", "c");
    refused(&with(targets), UNSAFE, "two targets").await;
    let same = Tar::default()
        .extension(b'L', b"a\0")
        .pax(&[("path", "a")])
        .and(file(b"x"));
    accepted(&with(same)).await;
}

#[tokio::test]
async fn row_15_binary_sizes_out_of_range() {
    for field in [
        [0xff; 12],
        [0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 5],
        [0x81, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5],
        [0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5],
    ] {
        let tar = Tar::default().entry(b'0', b"x", b"", |header| {
            header[124..136].copy_from_slice(&field);
        });
        refused(&with(tar), INVALID, "size out of range").await;
    }
}

#[tokio::test]
async fn row_16_bad_size_fields() {
    for field in [
        b"+0000000001\0",
        b"0000000000a\0",
        b"0000001\x001\0\0\0",
        b"\0\0\0\0\0\0\0\0\0\0\0\0",
        b"            ",
    ] {
        let tar = Tar::default().entry(b'0', b"x", b"", |header| {
            header[124..136].copy_from_slice(field);
        });
        refused(&with(tar), INVALID, "bad size field").await;
    }
}

#[tokio::test]
async fn row_17_a_wrong_checksum() {
    let mut tar = sample().docker().file("x", "x").open_end();
    let last = tar.len() - 2 * BLOCK;
    tar[last + 108] ^= 1;
    refused(&tar, INVALID, "header checksum").await;
}

#[tokio::test]
async fn row_18_unknown_formats_of_headers() {
    for magic in [b"ustar\x0001", b"ustar\0  ", b"ustar00\0", b"tar\0\0\0\0\0"] {
        let tar = Tar::default().entry(b'0', b"x", b"", |header| {
            header[257..265].copy_from_slice(magic);
        });
        refused(
            &sample().docker().and(tar).end(),
            INVALID,
            "unknown header format",
        )
        .await;
    }
    for magic in [b"ustar\x0000", b"ustar  \0", b"\0\0\0\0\0\0\0\0"] {
        let tar = Tar::default().entry(b'0', b"x", b"", |header| {
            header[257..265].copy_from_slice(magic);
        });
        accepted(&with(tar)).await;
    }
}

#[tokio::test]
async fn row_19_extensions_in_old_headers() {
    for kind in *b"LKxg" {
        let tar = Tar::default().entry(kind, b"x", b"", |header| header[257..265].fill(0));
        refused(&with(tar), UNSAFE, "extension in a v7 header").await;
    }
}

#[tokio::test]
async fn rows_20_and_21_archives_that_end_too_early() {
    let whole = sample().docker().file("last", [7; 3 * BLOCK]).open_end();
    for cut in [100, BLOCK, 2 * BLOCK, 3 * BLOCK - 7, 3 * BLOCK + 1] {
        refused(&whole[..whole.len() - cut], TRUNCATED, "ends too early").await;
    }
    let bed = bed();
    let error = bed
        .parse(&whole[..whole.len() - BLOCK], Way::File)
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("1536 bytes needed, 1024 left"), "{text}");
    let huge = Tar::default().entry(b'0', b"x", b"", |header| set_size(header, 0o77_777_777_777));
    refused(
        &sample().docker().and(huge).end(),
        TRUNCATED,
        "ends too early",
    )
    .await;
    assert_eq!(error.class(), Class::Archive);
}

#[tokio::test]
async fn rows_22_and_23_odd_ends_are_only_warned_of() {
    let open = sample().docker().open_end();
    let mark = [0; BLOCK];
    for (end, warning) in [
        (vec![], Some("end mark is missing")),
        (mark.to_vec(), Some("end mark is incomplete")),
        ([mark, mark].concat(), None),
        ([&mark[..], &mark, &[0; 20 * BLOCK]].concat(), None),
        (
            [&mark[..], &mark, &[0; BLOCK], b"garbage"].concat(),
            Some("data after its end was ignored"),
        ),
        (
            [&mark[..], b"garbage"].concat(),
            Some("data after its end was ignored"),
        ),
    ] {
        let bytes = [&open[..], &end].concat();
        for way in super::testing::WAYS {
            let bed = bed();
            bed.store(&bytes, way).await.unwrap();
            let said = bed.warnings();
            assert_eq!(
                said.len(),
                usize::from(warning.is_some()),
                "{way:?} {said:?}"
            );
            assert!(
                said.iter().all(|said| said.contains(warning.unwrap())),
                "{way:?} {said:?}"
            );
        }
    }
}

#[tokio::test]
async fn row_24_an_entry_twice() {
    for (first, second) in [
        (
            Tar::default().file("x", "one"),
            Tar::default().file("x", "two"),
        ),
        (
            Tar::default().file("x", "one"),
            Tar::default().file("./x", "four"),
        ),
        (Tar::default().file("x", "one"), Tar::default().folder("x/")),
        (
            Tar::default().link(b'2', "x", "config.json"),
            Tar::default().link(b'2', "x", "layer-0"),
        ),
        (
            Tar::default().link(b'2', "x", "config.json"),
            Tar::default().link(b'1', "x", "config.json"),
        ),
    ] {
        refused(&with(first.and(second)), UNSAFE, "entry appears twice").await;
    }
    let same = Tar::default()
        .file("x", "one")
        .file(".//x", "one")
        .folder("y")
        .folder("y/")
        .link(b'2', "l", "x")
        .link(b'2', "l", "x");
    accepted(&with(same)).await;
}

#[tokio::test]
async fn row_25_too_many_entries_or_bytes() {
    let limits = Limits {
        entries: 3,
        ..Limits::default()
    };
    refused_within(&limits, &sample().docker().end(), LIMIT, "entries").await;
    let limits = Limits {
        archive_bytes: 3000,
        ..Limits::default()
    };
    refused_within(&limits, &sample().docker().end(), LIMIT, "archive_bytes").await;
}

#[tokio::test]
async fn row_26_bad_links() {
    for (tar, words) in [
        (
            Tar::default().link(b'2', "x", "gone"),
            "is not in the archive",
        ),
        (
            Tar::default().link(b'1', "x", "gone"),
            "is not in the archive",
        ),
        (
            Tar::default().link(b'2', "x", "../../etc/passwd"),
            "is outside",
        ),
        (Tar::default().link(b'2', "x", "/etc/passwd"), "is outside"),
        (
            Tar::default().link(b'1', "a/x", "../config.json"),
            "is outside",
        ),
        (Tar::default().link(b'2', "x", ""), "is outside"),
        (Tar::default().link(b'2', "x", "x"), "in a circle"),
        (
            Tar::default().link(b'2', "x", "y").link(b'2', "y", "x"),
            "in a circle",
        ),
    ] {
        refused(&with(tar), UNSAFE, words).await;
    }
    let chain = |hops: usize| {
        let links = (1..=hops).fold(Tar::default().file("0", "end"), |tar, hop| {
            tar.link(b'2', &hop.to_string(), &(hop - 1).to_string())
        });
        with(links)
    };
    accepted(&chain(8)).await;
    refused(&chain(9), UNSAFE, "more than 8 links").await;
    let fine = Tar::default()
        .folder("folder")
        .file("deep/er/x", "x")
        .link(b'2', "l1", "folder")
        .link(b'2', "l2", "deep")
        .link(b'2', "deep/l3", "../config.json")
        .link(b'1', "l4", "deep/er/x");
    accepted(&with(fine)).await;
}

/// Row 27: of the archive as a whole; layers are tried beside the decoder.
#[tokio::test]
async fn row_27_a_packed_archive_that_is_cut_or_has_garbage_behind() {
    let whole = sample().docker().end();
    for packed in [gzip(&whole), zstd(&whole)] {
        let cut = &packed[..packed.len() - 3];
        let padded = [&packed[..], &[0; 100]].concat();
        for (bytes, reason) in [(cut, TRUNCATED), (&padded, INVALID)] {
            for way in [Way::File, Way::Stream] {
                let bed = bed();
                let error = bed.store(bytes, way).await.unwrap_err();
                assert_eq!(error.reason(), reason, "{way:?}: {error}");
                assert_eq!(bed.files(), Vec::<String>::new());
            }
        }
    }
}

#[tokio::test]
async fn row_28_decompression_bombs() {
    let limits = Limits {
        expanded_bytes: 1 << 20,
        expansion_factor: 20,
        ..Limits::default()
    };
    let zeros = vec![0; 8 << 20];
    for pack in [gzip, zstd] {
        // In a layer, and around the archive.
        let layer = Sample::of(&[&zeros]).packed(pack).docker().end();
        refused_within(&limits, &layer, LIMIT, "expands beyond").await;
        let outside = pack(&with(Tar::default().file("zeros", &zeros)));
        for way in [Way::File, Way::Stream] {
            let mut bed = bed();
            bed.limits = limits.clone();
            let error = bed.store(&outside, way).await.unwrap_err();
            assert_eq!(error.reason(), LIMIT, "{way:?}: {error}");
            assert_eq!(bed.files(), Vec::<String>::new());
        }
        let bed = bed();
        bed.store(&layer, Way::File).await.unwrap();
    }
}

#[tokio::test]
async fn row_29_a_layer_that_is_compressed_twice() {
    for (inner, outer) in [
        (gzip as fn(&[u8]) -> Vec<u8>, zstd as fn(&[u8]) -> Vec<u8>),
        (gzip, gzip),
        (zstd, gzip),
    ] {
        let image = sample().packed(inner);
        let layers: Vec<&[u8]> = image.layers.iter().map(Vec::as_slice).collect();
        let tar = Sample::of(&layers).packed(outer).docker().end();
        refused(&tar, INVALID, "layer compressed twice").await;
    }
}

#[tokio::test]
async fn row_30_json_that_is_too_large() {
    let spaces = |bytes: usize| " ".repeat(bytes);
    let large = sample()
        .parts()
        .file("manifest.json", spaces((4 << 20) + 1))
        .end();
    refused(&large, LIMIT, "manifest_json").await;
    let mut image = sample();
    image.config.extend(spaces((8 << 20) + 1).into_bytes());
    refused(&image.docker().end(), LIMIT, "config_json").await;
    refused(
        &Tar::default()
            .file("index.json", spaces((4 << 20) + 1))
            .end(),
        LIMIT,
        "manifest_json",
    )
    .await;
}

#[tokio::test]
async fn rows_31_and_32_json_bombs_and_keys_that_stand_there_twice() {
    let bomb = "[".repeat(1 << 20);
    for name in ["manifest.json", "index.json"] {
        refused(
            &sample().parts().file(name, &bomb).end(),
            INVALID,
            "JSON cannot be read",
        )
        .await;
    }
    let twice = r#"[{"Config":"config.json","Layers":[],"Layers":["layer-0","layer-1"]}]"#;
    refused(
        &sample().parts().file("manifest.json", twice).end(),
        INVALID,
        "duplicate field",
    )
    .await;
}

#[tokio::test]
async fn row_33_layers_and_diff_ids_differ_in_number() {
    let mut image = sample();
    image.layers.pop();
    refused(&image.docker().end(), INVALID, "1 layers, 2 diff_ids").await;
    image.config = b"{}".to_vec();
    refused(&image.docker().end(), INVALID, "1 layers, 0 diff_ids").await;
    let mut image = sample();
    image.layers.pop();
    let manifest = image.oci_manifest(PLAIN);
    let tar = blob(image.oci_blobs(), &manifest);
    let tar = layout(
        tar,
        &[descriptor(MediaType::OCI_MANIFEST.as_str(), &manifest)],
    );
    refused(&tar.end(), INVALID, "1 layers, 2 diff_ids").await;
}

#[tokio::test]
async fn row_34_a_layer_that_is_not_its_diff_id() {
    let mut swapped = sample();
    swapped.layers.swap(0, 1);
    refused(&swapped.docker().end(), DIGEST, "layer ").await;
    for pack in [gzip, zstd] {
        let mut image = sample();
        image.layers[1] = b"something else".to_vec();
        let tar = image.packed(pack).docker().end();
        refused(&tar, DIGEST, "layer 2 of 2, uncompressed,").await;
    }
    // Of an OCI image, whose layers have the digests that its manifest says.
    let mut image = sample();
    image.layers[1] = b"something else".to_vec();
    let image = image.packed(gzip);
    let manifest = image.oci_manifest(GZIP);
    let tar = blob(image.oci_blobs(), &manifest);
    let tar = layout(
        tar,
        &[descriptor(MediaType::OCI_MANIFEST.as_str(), &manifest)],
    );
    refused(&tar.end(), DIGEST, "layer 2 of 2, uncompressed,").await;
}

#[tokio::test]
async fn row_35_bytes_that_are_not_what_their_name_says() {
    let image = sample();
    let other = Digest::of(b"other");
    for config in [
        format!("{}.json", other.hex()),
        format!("sha256:{}", other.hex()),
        format!("blobs/sha256/{}", other.hex()),
    ] {
        let manifest = json!([{"Config": config, "Layers": ["layer-0", "layer-1"]}]);
        let tar = image
            .parts()
            .file(&config, &image.config)
            .file("manifest.json", manifest.to_string());
        refused(&tar.end(), DIGEST, "the configuration").await;
    }
    let layer = format!("blobs/sha256/{}", other.hex());
    let manifest = json!([{"Config": "config.json", "Layers": [layer, "layer-1"]}]);
    let tar = image
        .parts()
        .file(&layer, &image.layers[0])
        .file("manifest.json", manifest.to_string());
    refused(&tar.end(), DIGEST, "layer 1 of 2").await;
    // A manifest and a layer of an OCI layout.
    let manifest = image.oci_manifest(PLAIN);
    let top = descriptor(MediaType::OCI_MANIFEST.as_str(), &manifest);
    let name = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::of(bytes).hex());
    let damaged = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes[3] ^= 1;
        bytes
    };
    let tar = image.oci_blobs().file(&name(&manifest), damaged(&manifest));
    refused(
        &layout(tar, std::slice::from_ref(&top)).end(),
        DIGEST,
        "a manifest",
    )
    .await;
    let tar = blob(blob(Tar::default(), &image.config), &image.layers[0])
        .file(&name(&image.layers[1]), damaged(&image.layers[1]));
    refused(
        &layout(blob(tar, &manifest), &[top]).end(),
        DIGEST,
        "layer 2 of 2",
    )
    .await;
}

#[tokio::test]
async fn row_36_unknown_algorithms() {
    let top = json!({"mediaType": MediaType::OCI_MANIFEST, "digest": "blake3:abc", "size": 1});
    refused(
        &layout(Tar::default(), &[top]).end(),
        UNSUPPORTED,
        "blake3:abc",
    )
    .await;
    let mut image = sample();
    let config: Value = json!({"rootfs": {"diff_ids": ["blake3:a", "blake3:b"]}});
    image.config = config.to_string().into_bytes();
    refused(&image.docker().end(), UNSUPPORTED, "blake3:a").await;
}

#[tokio::test]
async fn row_37_bad_image_names() {
    let image = sample();
    for name in [
        "", "app", "App:1", "../x:1", "app:../x", "a/../b:1", "app:1:2",
    ] {
        let manifest = image.manifest(&json!([name]));
        let tar = image.parts().file("manifest.json", manifest.to_string());
        refused(&tar.end(), INVALID, "bad image name").await;
    }
    let tar = image
        .parts()
        .file("manifest.json", image.manifest(&Value::Null).to_string());
    accepted(&tar.end()).await;
}

#[tokio::test]
async fn row_38_indexes_that_nest_or_list_too_much() {
    let image = sample();
    let mut manifest = image.oci_manifest(PLAIN);
    let mut media_type = MediaType::OCI_MANIFEST;
    let mut tar = blob(image.oci_blobs(), &manifest);
    for _ in 0..5 {
        manifest = json!({
            "schemaVersion": 2, "mediaType": MediaType::OCI_INDEX,
            "manifests": [descriptor(media_type.as_str(), &manifest)],
        })
        .to_string()
        .into_bytes();
        media_type = MediaType::OCI_INDEX;
        tar = blob(tar, &manifest);
    }
    let top = descriptor(media_type.as_str(), &manifest);
    refused(&layout(tar, &[top]).end(), LIMIT, "index_depth").await;
    let manifest = image.oci_manifest(PLAIN);
    let top = descriptor(MediaType::OCI_MANIFEST.as_str(), &manifest);
    let tar = layout(blob(image.oci_blobs(), &manifest), &[top]).end();
    let limits = Limits {
        descriptors: 2,
        ..Limits::default()
    };
    refused_within(&limits, &tar, LIMIT, "descriptors").await;
    let limits = Limits {
        manifest_bytes: 100,
        ..Limits::default()
    };
    refused_within(&limits, &tar, LIMIT, "manifest_bytes").await;
}

/// However often one configuration is named: planning takes time for each name.
#[tokio::test]
async fn row_38_more_images_than_anybody_saves_at_once() {
    let image = sample();
    let element = &image.manifest(&Value::Null)[0];
    let elements = |count| Value::from(vec![element.clone(); count]).to_string();
    let tar = |count| image.parts().file("manifest.json", elements(count)).end();
    refused(&tar(1001), LIMIT, "limit images: it has more than 1000").await;
    let bed = bed();
    let contents = bed.parse(&tar(1000), Way::File).await.unwrap();
    assert_eq!(contents.images().len(), 1000);
    let manifest = image.oci_manifest(PLAIN);
    let top = descriptor(MediaType::OCI_MANIFEST.as_str(), &manifest);
    let tar = blob(image.oci_blobs(), &manifest);
    let tar = layout(tar, &vec![top; 1001]).end();
    refused(&tar, LIMIT, "limit images: it has more than 1000").await;
}

#[tokio::test]
async fn row_39_sizes_that_descriptors_do_not_have() {
    let image = sample();
    let mut manifest: Value = serde_json::from_slice(&image.oci_manifest(PLAIN)).unwrap();
    manifest["layers"][1]["size"] = json!(3);
    let manifest = manifest.to_string();
    let tar = blob(image.oci_blobs(), manifest.as_bytes());
    let top = descriptor(MediaType::OCI_MANIFEST.as_str(), manifest.as_bytes());
    refused(&layout(tar, &[top]).end(), INVALID, "size mismatch").await;
    let manifest = image.oci_manifest(PLAIN);
    for (size, words) in [(1, "size mismatch"), (-1, "JSON cannot be read")] {
        let mut top = descriptor(MediaType::OCI_MANIFEST.as_str(), &manifest);
        top["size"] = json!(size);
        let tar = blob(image.oci_blobs(), &manifest);
        refused(&layout(tar, &[top]).end(), INVALID, words).await;
    }
}

#[tokio::test]
async fn row_40_what_is_listed_but_not_there() {
    let image = sample();
    for name in ["config.json", "layer-1"] {
        let manifest = image
            .manifest(&json!(["app:1"]))
            .to_string()
            .replace(name, "gone");
        let tar = image.parts().file("manifest.json", manifest);
        refused(
            &tar.end(),
            INVALID,
            "'gone' is listed but not in the archive",
        )
        .await;
    }
    let manifest = image.oci_manifest(PLAIN);
    let top = descriptor(MediaType::OCI_MANIFEST.as_str(), &manifest);
    refused(
        &layout(image.oci_blobs(), std::slice::from_ref(&top)).end(),
        INVALID,
        "listed but not in the archive",
    )
    .await;
    let tar = blob(blob(Tar::default(), &image.config), &manifest);
    refused(&layout(tar, &[top]).end(), INVALID, "layer 1 of 2").await;
    refused(
        &image.parts().file("manifest.json", "[]").end(),
        INVALID,
        "holds no image",
    )
    .await;
}

#[tokio::test]
async fn row_41_old_formats_and_what_is_no_image() {
    let old = Tar::default()
        .file("repositories", "{}")
        .file("id/layer.tar", "x")
        .end();
    refused(
        &old,
        UNSUPPORTED,
        "old format, of Docker before 1.10; save it again",
    )
    .await;
    refused(
        &Tar::default().file("etc/passwd", "x").end(),
        UNSUPPORTED,
        "docker export",
    )
    .await;
    refused(
        &[0; 10 * BLOCK],
        UNSUPPORTED,
        "neither manifest.json nor index.json",
    )
    .await;
    let schema1 = br#"{"schemaVersion":1,"name":"app","tag":"1","fsLayers":[]}"#;
    let top = descriptor(
        "application/vnd.docker.distribution.manifest.v1+json",
        schema1,
    );
    refused(
        &layout(blob(Tar::default(), schema1), &[top]).end(),
        UNSUPPORTED,
        "is no longer served",
    )
    .await;
    for garbage in [&b"{}"[..], b"<html>not found</html>", &[7; 4096]] {
        let bed = bed();
        for way in [Way::File, Way::Stream] {
            let error = bed.store(garbage, way).await.unwrap_err();
            assert_eq!(error.reason(), INVALID);
            assert!(error.to_string().contains("no tar archive"), "{error}");
        }
    }
    let bed = bed();
    let error = bed.store(b"", Way::Stream).await.unwrap_err();
    assert!(error.to_string().contains("nothing came"), "{error}");
}
