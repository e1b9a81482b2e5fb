#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| docker_image_pusher::fuzzing::check("documents", bytes));
