//! Splits an event stream (WHATWG HTML, server-sent events) into frames as bytes arrive. A frame keeps its exact bytes
//! and is returned as soon as its blank line is there. One event has a bounded size.

use bytes::{Bytes, BytesMut};

/// May begin a stream, and is no part of its first line.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// One event, or a run of comments, with its blank line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SseFrame {
    /// The exact bytes.
    pub raw: Bytes,
    pub event: Option<Bytes>,
    /// The `data` lines joined by line feeds. `None` for comments and for events with only `id` or `retry`.
    pub data: Option<Bytes>,
    pub id: Option<Bytes>,
}

/// Why a stream cannot be read any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SseFault {
    #[error("an event is larger than {0} bytes")]
    TooLarge(usize),
    #[error("the stream ends inside an event")]
    Cut,
}

/// Incremental reader: feed it with `push`, call `frame` until it returns `None`, end with `finish`.
#[derive(Debug)]
pub struct SseReader {
    max_event: usize,
    /// Bytes not yet returned. After `frame` returned `None`, this is at most one unfinished frame.
    held: BytesMut,
    /// How many bytes of `held` have been scanned.
    looked: usize,
    /// Where the current line begins.
    line: usize,
    /// The last scanned byte was a carriage return: a line feed directly after it belongs to the same line end.
    after_return: bool,
    started: bool,
}

impl SseReader {
    /// A reader for one stream; an event larger than `max_event` bytes is an error.
    pub fn new(max_event: usize) -> Self {
        Self {
            max_event,
            held: BytesMut::new(),
            looked: 0,
            line: 0,
            after_return: false,
            started: false,
        }
    }

    /// Adds bytes that have arrived.
    pub fn push(&mut self, piece: Bytes) {
        if self.held.is_empty() {
            self.held = BytesMut::from(piece);
        } else {
            self.held.extend_from_slice(&piece);
        }
    }

    /// The next complete frame.
    pub fn frame(&mut self) -> Result<Option<SseFrame>, SseFault> {
        let end = self.next_end();
        match end {
            _ if end.unwrap_or(self.held.len()) > self.max_event => Err(SseFault::TooLarge(self.max_event)),
            None => Ok(None),
            Some(end) => {
                let raw = self.held.split_to(end).freeze();
                (self.looked, self.line) = (0, 0);
                let first = !std::mem::replace(&mut self.started, true);
                Ok(Some(SseFrame::read(raw, first)))
            }
        }
    }

    /// Ends the stream. Pending white space and comments are fine; a pending field means that the stream was cut.
    pub fn finish(self) -> Result<(), SseFault> {
        let fields = |line: &[u8]| !line.is_empty() && line[0] != b':';
        if self.held[..].split(|byte| matches!(byte, b'\r' | b'\n')).any(fields) {
            Err(SseFault::Cut)
        } else {
            Ok(())
        }
    }

    /// The end of the first frame whose blank line has arrived.
    fn next_end(&mut self) -> Option<usize> {
        while let Some(byte) = self.held.get(self.looked).copied() {
            self.looked += 1;
            let belongs = std::mem::take(&mut self.after_return) && byte == b'\n';
            if belongs {
                self.line = self.looked;
                continue;
            }
            if !matches!(byte, b'\r' | b'\n') {
                continue;
            }
            let blank = self.looked - 1 == self.line;
            self.line = self.looked;
            self.after_return = byte == b'\r';
            if blank {
                self.take_line_feed();
                return Some(self.looked);
            }
        }
        None
    }

    /// Takes the line feed of a CRLF into the same frame, if it has already arrived.
    fn take_line_feed(&mut self) {
        if self.after_return && self.held.get(self.looked) == Some(&b'\n') {
            self.looked += 1;
            self.after_return = false;
        }
    }
}

impl SseFrame {
    /// An event that holds one message.
    pub fn message(data: Bytes) -> Self {
        Self {
            raw: sse_event(&data),
            event: Some(Bytes::from_static(b"message")),
            data: Some(data),
            id: None,
        }
    }

    /// The bytes of the event with `id` in place of the id that `raw` has, if it has one; all other bytes stay.
    pub fn into_bytes(self) -> Bytes {
        match &self.id {
            Some(id) => with_id(&self.raw, id),
            None => self.raw,
        }
    }

    fn read(raw: Bytes, first: bool) -> Self {
        let mut frame = Self {
            raw: raw.clone(),
            ..Self::default()
        };
        let mut joined: Option<BytesMut> = None;
        for line in lines(&raw, first) {
            let (name, value) = field(line);
            let value = raw.slice_ref(value);
            match name {
                b"data" => match (&mut joined, &frame.data) {
                    (Some(joined), _) => push_line(joined, &value),
                    (None, Some(data)) => {
                        let mut both = BytesMut::from(&data[..]);
                        push_line(&mut both, &value);
                        joined = Some(both);
                    }
                    (None, None) => frame.data = Some(value),
                },
                b"event" => frame.event = Some(value),
                b"id" if !value.contains(&0) => frame.id = Some(value),
                _ => (),
            }
        }
        if let Some(joined) = joined {
            frame.data = Some(joined.freeze());
        }
        frame
    }
}

/// Encodes a message as an event. Each line of the message gets its own `data` field, as JSON may contain line breaks.
pub fn sse_event(data: &[u8]) -> Bytes {
    let mut event = BytesMut::with_capacity(data.len() + 32);
    event.extend_from_slice(b"event: message");
    for line in data.split(|byte| *byte == b'\n') {
        event.extend_from_slice(b"\ndata: ");
        event.extend_from_slice(line);
    }
    event.extend_from_slice(b"\n\n");
    event.freeze()
}

/// Replaces the `id` lines of a frame; all other bytes stay.
fn with_id(raw: &[u8], id: &[u8]) -> Bytes {
    let mut written = Vec::with_capacity(raw.len() + id.len());
    let (mark, mut rest) = raw.split_at(if raw.starts_with(BYTE_ORDER_MARK) {
        BYTE_ORDER_MARK.len()
    } else {
        0
    });
    written.extend_from_slice(mark);
    while !rest.is_empty() {
        let end = rest
            .iter()
            .position(|byte| matches!(byte, b'\r' | b'\n'))
            .unwrap_or(rest.len());
        let (line, after) = rest.split_at(end);
        let ending = match after {
            [b'\r', b'\n', ..] => 2,
            [] => 0,
            _ => 1,
        };
        if line == b"id" || line.starts_with(b"id:") {
            written.extend_from_slice(&[b"id: ", id].concat());
        } else {
            written.extend_from_slice(line);
        }
        written.extend_from_slice(&after[..ending]);
        rest = &after[ending..];
    }
    written.into()
}

fn push_line(joined: &mut BytesMut, line: &[u8]) {
    joined.extend_from_slice(b"\n");
    joined.extend_from_slice(line);
}

/// The lines of a frame without their line ends. Blank lines are dropped.
fn lines(raw: &[u8], first: bool) -> impl Iterator<Item = &[u8]> {
    let raw = if first {
        raw.strip_prefix(BYTE_ORDER_MARK).unwrap_or(raw)
    } else {
        raw
    };
    raw.split(|byte| matches!(byte, b'\r' | b'\n'))
        .filter(|line| !line.is_empty())
}

fn field(line: &[u8]) -> (&[u8], &[u8]) {
    match line.iter().position(|byte| *byte == b':') {
        Some(colon) => {
            let value = &line[colon + 1..];
            (&line[..colon], value.strip_prefix(b" ").unwrap_or(value))
        }
        None => (line, &line[line.len()..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_event_keeps_all_but_its_id() {
        for (raw, wanted) in [
            ("id: 7\nretry: 3\ndata: \n\n", "id: new\nretry: 3\ndata: \n\n"),
            ("data: {}\r\nid:7\r\n\r\n", "data: {}\r\nid: new\r\n\r\n"),
            ("data: id: 7\rid: 7\r\r", "data: id: 7\rid: new\r\r"),
            ("id: 1\nid\nid:2\n\n", "id: new\nid: new\nid: new\n\n"),
            ("\u{feff}id: 7\ndata: {}\n\n", "\u{feff}id: new\ndata: {}\n\n"),
            ("identity: 7\n id: 7\ndata: {}\n\n", "identity: 7\n id: 7\ndata: {}\n\n"),
            ("data: {}\n\n", "data: {}\n\n"),
        ] {
            let mut reader = SseReader::new(100);
            reader.push(Bytes::from_static(raw.as_bytes()));
            let mut frame = reader.frame().unwrap().unwrap();
            frame.id = frame.id.map(|_| Bytes::from_static(b"new"));
            assert_eq!(frame.into_bytes(), wanted);
        }
    }

    fn read_all(pieces: &[&[u8]]) -> (Vec<SseFrame>, Result<(), SseFault>) {
        let mut reader = SseReader::new(200);
        let mut frames = Vec::new();
        for piece in pieces {
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

    #[test]
    fn a_message_in_several_lines_stays_one_event() {
        assert_eq!(sse_event(b"{\n\n}"), "event: message\ndata: {\ndata: \ndata: }\n\n");
    }

    fn data(frames: &[SseFrame]) -> Vec<Option<&str>> {
        let text = |data: &'_ Bytes| -> &'static str { String::from_utf8(data.to_vec()).unwrap().leak() };
        frames.iter().map(|frame| frame.data.as_ref().map(text)).collect()
    }

    #[test]
    fn every_line_end_ends_a_line() {
        for stream in [
            "event: message\ndata: {}\nid: 7\n\n",
            "event: message\r\ndata: {}\r\nid: 7\r\n\r\n",
            "event: message\rdata: {}\rid: 7\r\r",
            "event:message\rdata:{}\r\nid:7\n\r\n",
        ] {
            let (frames, end) = read_all(&[stream.as_bytes()]);
            let [frame] = &frames[..] else {
                panic!("{stream:?} is {frames:?}")
            };
            assert_eq!(frame.raw, stream.as_bytes());
            assert_eq!(frame.event.as_deref(), Some(&b"message"[..]));
            assert_eq!(frame.data.as_deref(), Some(&b"{}"[..]));
            assert_eq!(frame.id.as_deref(), Some(&b"7"[..]));
            assert_eq!(end, Ok(()));
        }
    }

    #[test]
    fn an_event_is_given_out_as_soon_as_its_blank_line_is_there() {
        let mut reader = SseReader::new(64);
        for byte in b"data: a\r\n\r" {
            assert_eq!(reader.frame(), Ok(None));
            reader.push(Bytes::copy_from_slice(&[*byte]));
        }
        assert_eq!(
            reader.frame().unwrap().unwrap().raw,
            &b"data: a\r\n\r"[..],
            "not waiting for the line feed"
        );
        reader.push(Bytes::from_static(b"\ndata: b\n\n"));
        let next = reader.frame().unwrap().unwrap();
        assert_eq!(
            (&next.raw[..], next.data.as_deref()),
            (&b"\ndata: b\n\n"[..], Some(&b"b"[..]))
        );
        assert_eq!(reader.frame(), Ok(None));
    }

    #[test]
    fn fields_are_read_as_the_specification_of_event_streams_says() {
        let stream = ": comment\n\n\u{feff}data: x\n\ndata\n\ndata:\ndata:  b\ndata:c:d\nretry: 1\nother: z\n\nretry: 5\n\nid: 1\u{0}2\ndata: \u{e9}\n\n";
        let (frames, end) = read_all(&[stream.as_bytes()]);
        assert_eq!(data(&frames), [None, None, Some(""), Some("\n b\nc:d"), None, Some("é")]);
        assert_eq!((frames[5].id.as_ref(), end), (None, Ok(())));
        let (frames, _) = read_all(&["\u{feff}data: x\n\n".as_bytes()]);
        assert_eq!(data(&frames), [Some("x")], "a byte order mark counts at the start alone");
    }

    #[test]
    fn an_end_inside_an_event_is_seen() {
        assert_eq!(read_all(&[b"data: a\n\n: keep-alive\n"]).1, Ok(()));
        assert_eq!(read_all(&[b"data: a\n\n\n"]).1, Ok(()));
        for cut in ["data: a\n", "data: a", "d", "event: message\n: x\n"] {
            assert_eq!(read_all(&[b"data: a\n\n", cut.as_bytes()]).1, Err(SseFault::Cut), "{cut:?}");
        }
    }

    #[test]
    fn an_event_has_a_bounded_size() {
        let long = "x".repeat(200);
        for stream in [
            format!("data: {long}\n\n"),
            format!("data: {long}"),
            format!(": {long}"),
            "data: x\n".repeat(40),
        ] {
            assert_eq!(read_all(&[stream.as_bytes()]).1, Err(SseFault::TooLarge(200)), "{stream}");
        }
        let many = "data: x\n\n".repeat(100);
        assert_eq!(read_all(&[many.as_bytes()]).0.len(), 100);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn the_bytes_and_events_do_not_depend_on_how_they_arrive(
            lines in proptest::collection::vec((0..7_usize, 0..3_usize), 0..12),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let words = ["data: a", "data:é", ": note", "id: 3", "", "", "event: message"];
            let ends = ["\n", "\r\n", "\r"];
            let stream: String = lines.iter().flat_map(|(word, end)| [words[*word], ends[*end]]).collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut at = 0;
            for cut in cuts {
                pieces.push(&stream.as_bytes()[at..cut]);
                at = cut;
            }
            pieces.push(&stream.as_bytes()[at..]);
            let bytes: Vec<&[u8]> = stream.as_bytes().chunks(1).collect();
            let meant = |frames: &[SseFrame]| frames.iter().filter(|f| f.data.is_some()).map(|f| (f.data.clone(), f.id.clone(), f.event.clone())).collect::<Vec<_>>();
            let (whole, end) = read_all(&[stream.as_bytes()]);
            for (frames, other) in [read_all(&pieces), read_all(&bytes)] {
                prop_assert_eq!(meant(&frames), meant(&whole));
                prop_assert_eq!(other, end);
                let given: Vec<u8> = frames.iter().flat_map(|frame| frame.raw.to_vec()).collect();
                prop_assert!(stream.as_bytes().starts_with(&given));
            }
        }
    }
}
