//! The jobs that are compared, and what we want to reach in each.

use std::time::Duration;

use crate::proxy::Link;
use crate::tools::Tool::{self, Crane, Ours, Regctl, Regsync, Skopeo};

const KILOBYTE: u64 = 1000;
const MEBIBYTE: u64 = 1024 * 1024;

/// A job, all tools that can do it, and the targets for ours.
#[derive(Debug)]
pub(crate) struct Row {
    /// For `--row`.
    pub(crate) name: &'static str,
    pub(crate) job: &'static str,
    pub(crate) images: usize,
    /// Layers of each image, and the bytes of each layer.
    pub(crate) layers: usize,
    pub(crate) layer_bytes: u64,
    pub(crate) task: Task,
    /// What lies before the source; none is loopback itself.
    pub(crate) link: Option<Link>,
    pub(crate) tools: &'static [Tool],
    /// What the cells of the table say.
    pub(crate) shown: &'static [Shown],
    pub(crate) targets: &'static [Target],
    /// A run that takes longer counts as failed.
    pub(crate) limit: Duration,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    /// One image from a registry to others.
    Copy { destinations: usize },
    /// One image from a registry into a folder.
    Store,
    /// All tags of a repository from a registry to another.
    CopyTags,
    /// The same, when all of them are there.
    NothingToDo,
    /// As `Copy`, but killed when half of the bytes have come, and begun anew.
    KillAndAgain,
    /// What `docker save` writes, to a registry.
    Archive,
    /// The same, of files of this machine, with layers that get compressed.
    Compress,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shown {
    Seconds,
    Memory,
    /// At the source and at the destination.
    Requests,
    DestinationRequests,
    /// As a multiple of the images' own bytes.
    SourceBytes,
    FetchedTwice,
    /// What the destination keeps, as a share of the images' own bytes.
    Stored,
}

/// What shall be reached.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Target {
    Seconds(f64),
    /// As a multiple of the fastest other tool.
    OfFastest(f64),
    /// In units of 10^6 bytes.
    MemoryMegabytes(f64),
    SourceRequests(f64),
    DestinationRequests(f64),
    SourceBytes(f64),
    /// A share of the bytes.
    FetchedTwice(f64),
}

/// 1 Gbit/s, and what Linux gives a connection at most by default: 3 MiB of the 6 MiB of a receive buffer.
const fn wide_area(round_trip_milliseconds: u64) -> Link {
    Link {
        round_trip: Duration::from_millis(round_trip_milliseconds),
        bytes_per_second: Some(125_000_000),
        window: 3 * MEBIBYTE,
        dies_after: None,
    }
}

const NEAR: Link = wide_area(0);
const DYING: Link = Link {
    dies_after: Some(100_000_000),
    ..NEAR
};

const LIMIT: Duration = Duration::from_mins(5);
const IMAGE_TOOLS: &[Tool] = &[Ours, Skopeo, Crane, Regctl];
/// crane compresses as little as it can, and regctl not at all.
const COMPRESSING_TOOLS: &[Tool] = &[Ours, Skopeo];
const TAG_TOOLS: &[Tool] = &[Ours, Skopeo, Crane, Regsync];

pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "loop8",
        job: "registry -> registry, 8 x 64 MiB, loopback",
        images: 1,
        layers: 8,
        layer_bytes: 64 * MEBIBYTE,
        task: Task::Copy { destinations: 1 },
        link: None,
        tools: IMAGE_TOOLS,
        shown: &[Shown::Seconds, Shown::Memory],
        targets: &[Target::OfFastest(1.1), Target::MemoryMegabytes(48.0)],
        limit: LIMIT,
    },
    Row {
        name: "loop1",
        job: "registry -> registry, 1 x 512 MiB, loopback",
        images: 1,
        layers: 1,
        layer_bytes: 512 * MEBIBYTE,
        task: Task::Copy { destinations: 1 },
        link: None,
        tools: IMAGE_TOOLS,
        shown: &[Shown::Seconds, Shown::Memory],
        targets: &[Target::OfFastest(1.1)],
        limit: LIMIT,
    },
    Row {
        name: "store8",
        job: "registry -> local store, 8 x 64 MiB",
        images: 1,
        layers: 8,
        layer_bytes: 64 * MEBIBYTE,
        task: Task::Store,
        link: None,
        tools: IMAGE_TOOLS,
        shown: &[Shown::Seconds, Shown::Memory],
        targets: &[Target::OfFastest(1.0)],
        limit: LIMIT,
    },
    Row {
        name: "wan40",
        job: "1 x 512 MiB, WAN 40 ms",
        images: 1,
        layers: 1,
        layer_bytes: 512 * MEBIBYTE,
        task: Task::Copy { destinations: 1 },
        link: Some(wide_area(40)),
        tools: IMAGE_TOOLS,
        shown: &[Shown::Seconds, Shown::Memory],
        targets: &[Target::Seconds(4.9)],
        limit: LIMIT,
    },
    Row {
        name: "wan150",
        job: "1 x 512 MiB, WAN 150 ms",
        images: 1,
        layers: 1,
        layer_bytes: 512 * MEBIBYTE,
        task: Task::Copy { destinations: 1 },
        link: Some(wide_area(150)),
        tools: IMAGE_TOOLS,
        shown: &[Shown::Seconds, Shown::Memory],
        targets: &[Target::Seconds(6.0)],
        limit: LIMIT,
    },
    Row {
        name: "small",
        job: "200 small images (3 x 100 kB), 40 ms, cold",
        images: 200,
        layers: 3,
        layer_bytes: 100 * KILOBYTE,
        task: Task::CopyTags,
        link: Some(wide_area(40)),
        tools: TAG_TOOLS,
        shown: &[Shown::Seconds, Shown::Requests],
        targets: &[Target::Seconds(3.5)],
        limit: LIMIT,
    },
    Row {
        name: "nothing",
        job: "the same, nothing to do",
        images: 200,
        layers: 3,
        layer_bytes: 100 * KILOBYTE,
        task: Task::NothingToDo,
        link: Some(wide_area(40)),
        tools: TAG_TOOLS,
        shown: &[Shown::Seconds, Shown::Requests],
        targets: &[
            Target::Seconds(0.6),
            Target::SourceRequests(201.0),
            Target::DestinationRequests(200.0),
        ],
        limit: LIMIT,
    },
    Row {
        name: "parallel",
        job: "16 images of 2 x 16 MiB, all at once, loopback",
        images: 16,
        layers: 2,
        layer_bytes: 16 * MEBIBYTE,
        task: Task::CopyTags,
        link: None,
        tools: TAG_TOOLS,
        shown: &[Shown::Seconds, Shown::Memory],
        targets: &[Target::MemoryMegabytes(48.0)],
        limit: LIMIT,
    },
    Row {
        name: "parallel40",
        job: "16 images of 2 x 16 MiB, all at once, WAN 40 ms",
        images: 16,
        layers: 2,
        layer_bytes: 16 * MEBIBYTE,
        task: Task::CopyTags,
        link: Some(wide_area(40)),
        tools: TAG_TOOLS,
        shown: &[Shown::Seconds, Shown::Memory],
        targets: &[Target::MemoryMegabytes(48.0)],
        limit: LIMIT,
    },
    Row {
        name: "requests",
        job: "requests at the destination, cold image of 3 layers",
        images: 1,
        layers: 3,
        layer_bytes: 100 * KILOBYTE,
        task: Task::Copy { destinations: 1 },
        link: None,
        tools: IMAGE_TOOLS,
        shown: &[Shown::DestinationRequests],
        targets: &[Target::DestinationRequests(13.0)],
        limit: LIMIT,
    },
    Row {
        name: "fanout",
        job: "one source, three destinations: bytes read",
        images: 1,
        layers: 4,
        layer_bytes: 32 * MEBIBYTE,
        task: Task::Copy { destinations: 3 },
        link: None,
        tools: IMAGE_TOOLS,
        shown: &[Shown::SourceBytes, Shown::Seconds],
        targets: &[Target::SourceBytes(1.0)],
        limit: LIMIT,
    },
    Row {
        name: "dying",
        job: "every connection dies after 100 MB, 1 x 512 MiB",
        images: 1,
        layers: 1,
        layer_bytes: 512 * MEBIBYTE,
        task: Task::Copy { destinations: 1 },
        link: Some(DYING),
        tools: IMAGE_TOOLS,
        shown: &[Shown::SourceBytes, Shown::Seconds],
        targets: &[Target::SourceBytes(1.05)],
        limit: Duration::from_mins(2),
    },
    Row {
        name: "killed",
        job: "kill -9 at 50 % of 1 GiB, again: fetched twice",
        images: 1,
        layers: 1,
        layer_bytes: 1024 * MEBIBYTE,
        task: Task::KillAndAgain,
        link: Some(NEAR),
        tools: IMAGE_TOOLS,
        shown: &[Shown::FetchedTwice, Shown::Seconds],
        targets: &[Target::FetchedTwice(0.05)],
        limit: LIMIT,
    },
    Row {
        name: "archive",
        job: "docker save tar 8 x 64 MiB -> registry",
        images: 1,
        layers: 8,
        layer_bytes: 64 * MEBIBYTE,
        task: Task::Archive,
        link: None,
        tools: IMAGE_TOOLS,
        shown: &[Shown::Seconds, Shown::Memory],
        targets: &[Target::Seconds(1.2), Target::MemoryMegabytes(48.0)],
        limit: LIMIT,
    },
    Row {
        name: "compress",
        job: "docker save tar of /usr/lib, 4 x 128 MiB -> registry, gzip",
        images: 1,
        layers: 4,
        layer_bytes: 128 * MEBIBYTE,
        task: Task::Compress,
        link: None,
        tools: COMPRESSING_TOOLS,
        shown: &[Shown::Seconds, Shown::Memory, Shown::Stored],
        targets: &[Target::OfFastest(0.7), Target::MemoryMegabytes(48.0)],
        limit: LIMIT,
    },
];

impl Row {
    /// Whether the source is an archive. Whoever reads one makes a manifest of his own.
    pub(crate) const fn reads_archive(&self) -> bool {
        matches!(self.task, Task::Archive | Task::Compress)
    }

    pub(crate) const fn destinations(&self) -> usize {
        match self.task {
            Task::Copy { destinations } => destinations,
            Task::Store => 0,
            Task::CopyTags
            | Task::NothingToDo
            | Task::KillAndAgain
            | Task::Archive
            | Task::Compress => 1,
        }
    }
}
