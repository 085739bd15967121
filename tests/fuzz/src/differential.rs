//! Fuzz target: any body is refused, or every lenient parser reads from it what the strict reader read.

#![no_main]
#![allow(dead_code, unused_imports, reason = "of the rooms only the reader is asked")]

#[path = "../../../src/domain/mod.rs"]
mod domain;
#[path = "../../rooms/mcp/lenient_parsers.rs"]
mod lenient_parsers;
#[path = "../../../src/mcp/mod.rs"]
mod mcp;

mod reader {
    pub use crate::mcp::{Bounds, Message, parse_message};
}

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    if let Err(difference) = lenient_parsers::every_reading_agrees(body) {
        panic!("{difference}");
    }
});
