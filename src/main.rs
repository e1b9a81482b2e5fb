//! The `docker-image-pusher` binary.

fn main() {}
