//! Fuzz target: an event stream reads alike however its bytes arrive, and as a plain reading of the specification has it.
//! The first byte says how the rest is cut into pieces and how large an event may be.

#![no_main]

use bytes::Bytes;
use neural_guardian::mcp::{SseFault, SseFrame, SseReader};

/// `event`, `data` and `id`.
type Fields = [Option<Vec<u8>>; 3];

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((seed, stream)) = bytes.split_first() else { return };
    let (piece, bound) = (1 + usize::from(seed % 16), 1 + usize::from(seed / 16) * 8);
    let (events, cut) = plainly(stream);
    for size in [stream.len().max(1), piece, 1] {
        let (frames, end) = read(stream, size, usize::MAX);
        let raw: Vec<u8> = frames.iter().flat_map(|frame| frame.raw.to_vec()).collect();
        assert!(stream.starts_with(&raw), "the bytes survive");
        let told: Vec<Fields> = frames
            .iter()
            .map(fields)
            .filter(|fields| *fields != Fields::default())
            .collect();
        assert_eq!(told, events, "in pieces of {size}");
        // A byte order mark before an event that never ends counts as its beginning.
        if !raw.is_empty() || !stream.starts_with(b"\xef\xbb\xbf") {
            assert_eq!(end, if cut { Err(SseFault::Cut) } else { Ok(()) }, "in pieces of {size}");
        }
        let (bounded, end) = read(stream, size, bound);
        assert_eq!(bounded, frames[..bounded.len()], "a bound changes no frame");
        let next = frames
            .get(bounded.len())
            .map_or(stream.len() - raw.len(), |frame| frame.raw.len());
        assert!(bounded.iter().all(|frame| frame.raw.len() <= bound));
        assert_eq!(end == Err(SseFault::TooLarge(bound)), next > bound, "in pieces of {size}");
    }
});

fn read(stream: &[u8], piece: usize, bound: usize) -> (Vec<SseFrame>, Result<(), SseFault>) {
    let (mut reader, mut frames) = (SseReader::new(bound), Vec::new());
    for piece in stream.chunks(piece) {
        reader.push(Bytes::copy_from_slice(piece));
        loop {
            match reader.frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(fault) => return (frames, Err(fault)),
            }
        }
    }
    (frames, reader.finish())
}

fn fields(frame: &SseFrame) -> Fields {
    [&frame.event, &frame.data, &frame.id].map(|field| field.as_ref().map(|field| field.to_vec()))
}

/// The events that have any of the fields, and whether the stream ends inside one.
fn plainly(stream: &[u8]) -> (Vec<Fields>, bool) {
    let mut rest = stream.strip_prefix(b"\xef\xbb\xbf").unwrap_or(stream);
    let (mut events, mut event, mut open) = (Vec::new(), Fields::default(), false);
    while let Some(end) = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
        let (line, after) = rest.split_at(end);
        rest = after.strip_prefix(b"\r\n").unwrap_or(&after[1..]);
        if line.is_empty() {
            events.push(std::mem::take(&mut event));
            open = false;
            continue;
        }
        open |= line[0] != b':';
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let value = line.get(colon + 1..).unwrap_or_default();
        let value = value.strip_prefix(b" ").unwrap_or(value).to_vec();
        match &line[..colon] {
            b"event" => event[0] = Some(value),
            b"data" => {
                event[1] = Some(match event[1].take() {
                    Some(before) => [before, value].join(&b'\n'),
                    None => value,
                });
            }
            b"id" if !value.contains(&0) => event[2] = Some(value),
            _ => {}
        }
    }
    events.retain(|event| *event != Fields::default());
    (events, open || rest.first().is_some_and(|byte| *byte != b':'))
}
