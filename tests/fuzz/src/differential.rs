//! Fuzz target: any body is refused, or every lenient parser reads from it what the strict reader read.

#![no_main]

#[path = "../../rooms/mcp/lenient_parsers.rs"]
mod lenient_parsers;

mod reader {
    pub use neural_guardian::mcp::{Bounds, Message, parse_message};
}

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    if let Err(difference) = lenient_parsers::every_reading_agrees(body) {
        panic!("{difference}");
    }
});
