//! How much an archive may ask of us. Every limit is far above what any producer writes.

/// Limits of the reader; an archive that exceeds one is refused with its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a name or of a link's target: what a path has on Linux.
    pub name_length: usize,
    /// Bytes of all names together, which are in memory at once.
    pub name_bytes: u64,
    /// Entries and their extension headers, of which some hundred bytes each are in memory; a classic archive has four per
    /// layer, so this is room for a hundred images of more than a hundred layers.
    pub entries: u64,
    /// Bytes of the archive, expanded.
    pub archive_bytes: u64,
    /// Bytes of an extension header: long names and PAX records.
    pub extension_header: u64,
    /// Bytes of `manifest.json`, `index.json` and of a manifest.
    pub manifest_json: u64,
    /// Bytes of an image's configuration.
    pub config_json: u64,
    /// Bytes of all configurations, which are read and kept while the images are found.
    pub config_bytes: u64,
    /// Bytes of all manifests of an OCI layout, which are in memory at once.
    pub manifest_bytes: u64,
    /// Images that `manifest.json` or `index.json` lists.
    pub images: usize,
    /// Descriptors in all indexes and manifests of the archive; in `manifest.json`, names and paths.
    pub descriptors: usize,
    /// Indexes within indexes.
    pub index_depth: usize,
    /// Compressed data may always grow to this many bytes ...
    pub expanded_bytes: u64,
    /// ... or to this many times its size: gzip reaches 1030 at most, with zeros only.
    pub expansion_factor: u64,
    /// Base-two logarithm of the memory that decoding zstd may take. `zstd -19` and the usual levels of container tools need
    /// at most 8 MiB (23); `BuildKit` and podman take 32 MiB (25) at their highest. All decoders of the process together have
    /// 64 MiB, and wait for each other.
    pub zstd_window_log: u32,
    /// Layers that are read at once: hashing is bound by the processor.
    pub layers_at_once: usize,
}

impl Default for Limits {
    fn default() -> Self {
        /// More threads than this wait for the disk.
        const MOST_LAYERS_AT_ONCE: usize = 4;
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            name_length: 4096,
            name_bytes: 64 << 20,
            entries: 100_000,
            archive_bytes: 1 << 40,
            extension_header: 1 << 20,
            manifest_json: 4 << 20,
            config_json: 8 << 20,
            config_bytes: 64 << 20,
            manifest_bytes: 64 << 20,
            images: 1000,
            descriptors: 50_000,
            index_depth: 4,
            expanded_bytes: 64 << 20,
            expansion_factor: 1000,
            zstd_window_log: 25,
            layers_at_once: processors.clamp(1, MOST_LAYERS_AT_ONCE),
        }
    }
}
