//! Every byte of every blob is hashed once: this is the least that a copy costs.

use divan::Bencher;
use divan::counter::BytesCount;
use docker_image_pusher::image::{Algorithm, Hasher};

/// More than the processor's caches hold.
const BYTES: usize = 64 * 1024 * 1024;

/// As large as the pieces that come from a connection.
const PIECE: usize = 256 * 1024;

#[divan::bench(sample_count = 10, args = [Algorithm::Sha256, Algorithm::Sha512])]
fn blob(bencher: Bencher<'_, '_>, algorithm: Algorithm) {
    let bytes = vec![7; BYTES];
    bencher.counter(BytesCount::new(BYTES)).bench(|| {
        let mut hasher = Hasher::new(algorithm);
        for piece in bytes.chunks(PIECE) {
            hasher.update(piece);
        }
        hasher.finish()
    });
}
