//! What the engine is made of, piece by piece: hashing, manifests, the way of a blob and of an image into the cache.
//!
//! `cargo bench --bench micro` runs all, `cargo bench --bench micro -- hashing` one part.
#![expect(
    clippy::unwrap_used,
    reason = "a bench whose piece fails has nothing to measure"
)]

mod cache;
mod hashing;
mod manifests;

fn main() {
    divan::main();
}
