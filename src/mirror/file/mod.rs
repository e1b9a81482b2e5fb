//! Reads files.
#![allow(dead_code, unreachable_pub)]
mod compose;
mod node;
mod scalar;
mod schema;
