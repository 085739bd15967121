//! The JSON tokenizer: strict RFC 8259 in one pass, without building a tree. It refuses text that parsers read
//! differently: duplicate members, lone surrogates, numbers out of range. It returns spans into the text and does not
//! know JSON-RPC.

use super::member_names::{MemberName, MemberNames};
use crate::domain::{MessageId, Reason, SafeText};
use bytes::Bytes;
use std::borrow::Cow;
use std::ops::Range;

/// Bounds on the size and depth of a body. Its length in bytes is bounded where it is received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Nesting of objects and arrays.
    pub depth: usize,
    /// Object members in the whole body.
    pub members: usize,
    /// Characters of one number.
    pub number_digits: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            depth: 64,
            members: 10_000,
            number_digits: 300,
        }
    }
}

/// Why a message is refused by the parser. The detail may be sent to the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {detail}", .reason.code())]
pub struct Malformed {
    pub reason: Reason,
    pub detail: String,
    /// The id to answer with, if one was read before the error.
    pub id: Option<MessageId>,
}

impl Malformed {
    /// An error without an id.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
            id: None,
        }
    }
}

/// `Malformed`, boxed to one word inside this room: results are returned millions of times, errors once.
pub(super) type Fault = Box<Malformed>;

pub(super) fn fault(reason: Reason, detail: impl Into<String>) -> Fault {
    Box::new(Malformed::new(reason, detail))
}

impl From<Fault> for Malformed {
    fn from(fault: Fault) -> Self {
        *fault
    }
}

/// Which member names of one object count as duplicates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DuplicateNames {
    /// Names that are equal after case folding. For messages of callers.
    Folded,
    /// Names that are equal after unescaping. For messages of servers, whose data may contain both `id` and `Id`.
    Exact,
}

/// The kind of a JSON value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum JsonKind {
    Object,
    Array,
    /// A string; whether it contains an escape.
    Text(bool),
    /// Whether it is an integer by its spelling: no fraction, no exponent.
    Number(bool),
    Bool(bool),
    Null,
}

/// The position of a value in the text it was read from, quotes and brackets included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JsonSpan {
    pub(super) start: u32,
    pub(super) end: u32,
}

impl JsonSpan {
    /// The byte range.
    pub fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }

    /// The bytes at this position.
    pub fn of(self, message: &Bytes) -> Bytes {
        message.slice(self.range())
    }

    /// The text at this position.
    pub fn text(self, message: &[u8]) -> &str {
        message
            .get(self.range())
            .and_then(|text| std::str::from_utf8(text).ok())
            .unwrap_or_default()
    }
}

/// The position and kind of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub at: JsonSpan,
    pub kind: JsonKind,
}

impl Span {
    pub fn range(self) -> Range<usize> {
        self.at.range()
    }
}

impl From<Span> for JsonSpan {
    fn from(span: Span) -> Self {
        span.at
    }
}

/// The members of an object that the reader looks for.
pub(super) struct KnownMembers<const N: usize> {
    pub spans: [Option<Span>; N],
    /// The first member with another name.
    pub unknown_member: Option<MemberName>,
    /// Members whose names equal a known one after case folding, by its index. Kept only on request.
    pub twins: Vec<(usize, Fault)>,
}

/// Checks that `text` is one strict JSON value without duplicate members.
pub fn check(text: &[u8], bounds: &Bounds) -> Result<(), Malformed> {
    let mut scanner = Scanner::open(text, bounds, DuplicateNames::Exact)?;
    scanner.value(0)?;
    Ok(scanner.close()?)
}

/// The position in a text during its one pass.
pub(super) struct Scanner<'a> {
    text: &'a str,
    at: usize,
    bounds: &'a Bounds,
    members: usize,
    names: MemberNames<'a>,
}

impl<'a> Scanner<'a> {
    /// Starts a scan. Refuses text that is too long, empty, not UTF-8, or begins with a byte order mark.
    pub fn open(text: &'a [u8], bounds: &'a Bounds, duplicates: DuplicateNames) -> Result<Self, Fault> {
        if u32::try_from(text.len()).is_err() {
            return Err(fault(Reason::BodyTooLarge, "the body is larger than 4 GiB"));
        }
        let Ok(text) = std::str::from_utf8(text) else {
            return Err(fault(Reason::MalformedJson, "the body is not UTF-8"));
        };
        let names = MemberNames::new(text, duplicates);
        let mut scanner = Self {
            text,
            at: 0,
            bounds,
            members: 0,
            names,
        };
        scanner.skip_space();
        match scanner.peek() {
            None => Err(fault(Reason::MalformedJson, "the body is empty")),
            Some(0xef) => Err(scanner.malformed("a byte order mark")),
            Some(_) => Ok(scanner),
        }
    }

    /// Ends the scan: only white space may follow the value.
    pub fn close(mut self) -> Result<(), Fault> {
        self.skip_space();
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.malformed("something after the end of the message")),
        }
    }

    /// The byte at the current position. White space has been skipped.
    pub fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// The current position.
    pub fn here(&self) -> usize {
        self.at
    }

    /// The span from `start` to the current position.
    pub fn since(&self, start: usize, kind: JsonKind) -> Span {
        // `open` refuses texts longer than u32::MAX bytes.
        let at = JsonSpan {
            start: start as u32,
            end: self.at as u32,
        };
        Span { at, kind }
    }

    pub fn name(&self, name: &MemberName) -> &str {
        self.names.text(name)
    }

    /// Reads one value that is nested in `depth` others.
    pub fn value(&mut self, depth: usize) -> Result<Span, Fault> {
        let start = self.at;
        let kind = match self.peek() {
            Some(b'{') => {
                self.object(depth, &mut |scanner, _, depth| scanner.value(depth).map(drop))?;
                JsonKind::Object
            }
            Some(b'[') => {
                self.array(depth, &mut |scanner, depth| scanner.value(depth).map(drop))?;
                JsonKind::Array
            }
            Some(b'"') => JsonKind::Text(self.string()?),
            Some(b'-' | b'0'..=b'9') => JsonKind::Number(self.number()?),
            Some(b't') => self.literal("true", JsonKind::Bool(true))?,
            Some(b'f') => self.literal("false", JsonKind::Bool(false))?,
            Some(b'n') => self.literal("null", JsonKind::Null)?,
            Some(_) => return Err(self.malformed("not a value")),
            None => return Err(self.malformed("the message breaks off")),
        };
        Ok(self.since(start, kind))
    }

    /// Reads an object and keeps the spans of the members named in `known`. `inner` reads the value of a known member,
    /// given its index. A member whose name equals a known one after case folding is refused.
    pub fn known_members<const N: usize>(
        &mut self,
        depth: usize,
        known: &[&'static str; N],
        inner: impl FnMut(&mut Self, usize, usize) -> Result<Span, Fault>,
    ) -> Result<KnownMembers<N>, Fault> {
        self.known_members_or_twins(depth, known, false, inner)
    }

    /// The same. If `keep_twins`, a name that equals a known one after case folding is kept for the caller to judge, its
    /// value unread.
    pub fn known_members_or_twins<const N: usize>(
        &mut self,
        depth: usize,
        known: &[&'static str; N],
        keep_twins: bool,
        mut inner: impl FnMut(&mut Self, usize, usize) -> Result<Span, Fault>,
    ) -> Result<KnownMembers<N>, Fault> {
        let mut fields = KnownMembers {
            spans: [None; N],
            unknown_member: None,
            twins: Vec::new(),
        };
        self.object(depth, &mut |scanner, name, depth| {
            let text = scanner.names.text(&name);
            if let Some(index) = known.iter().position(|known| *known == text) {
                fields.spans[index] = Some(inner(scanner, index, depth)?);
                return Ok(());
            }
            if let Some(index) = known.iter().position(|known| super::member_names::fold_equal(known, text)) {
                let detail = format!("member {} is `{}` in another spelling", quoted(text), known[index]);
                let fault = fault(Reason::AmbiguousJson, detail);
                if !keep_twins {
                    return Err(fault);
                }
                fields.twins.push((index, fault));
                return scanner.value(depth).map(drop);
            }
            fields.unknown_member.get_or_insert(name);
            scanner.value(depth).map(drop)
        })?;
        Ok(fields)
    }

    /// Reads an array; `each` reads an element.
    pub fn array(&mut self, depth: usize, each: &mut impl FnMut(&mut Self, usize) -> Result<(), Fault>) -> Result<(), Fault> {
        self.begin_container(depth, b'[')?;
        if self.take_exact(b']') {
            return Ok(());
        }
        loop {
            each(self, depth + 1)?;
            self.skip_space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => break,
                _ => return Err(self.malformed("neither `,` nor `]` after an element")),
            }
            self.skip_space();
        }
        self.at += 1;
        Ok(())
    }

    /// Reads an object; `each` reads the value of a member.
    pub fn object(
        &mut self,
        depth: usize,
        each: &mut impl FnMut(&mut Self, MemberName, usize) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        self.begin_container(depth, b'{')?;
        if self.take_exact(b'}') {
            return Ok(());
        }
        let frame = self.names.begin_object();
        loop {
            let name = self.member_name()?;
            each(self, name, depth + 1)?;
            self.skip_space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => break,
                _ => return Err(self.malformed("neither `,` nor `}` after a member")),
            }
            self.skip_space();
        }
        self.at += 1;
        match self.names.end_object(frame) {
            None => Ok(()),
            Some((one, other)) => {
                let detail = if one == other {
                    format!("member {} is there twice", quoted(&one))
                } else {
                    format!("members {} and {} differ only in spelling", quoted(&one), quoted(&other))
                };
                Err(fault(Reason::AmbiguousJson, detail))
            }
        }
    }

    fn member_name(&mut self) -> Result<MemberName, Fault> {
        if self.peek() != Some(b'"') {
            return Err(self.malformed("a member without a quoted name"));
        }
        self.members += 1;
        if self.members > self.bounds.members {
            let detail = format!("more than {} members", self.bounds.members);
            return Err(fault(Reason::MalformedJson, detail));
        }
        let start = self.at;
        let kind = JsonKind::Text(self.string()?);
        let text = self.text;
        let decoded = match kind {
            JsonKind::Text(false) => Cow::Borrowed(&text[start + 1..self.at - 1]),
            _ => decode(text.as_bytes(), self.since(start, kind))?,
        };
        if kind == JsonKind::Text(true) && decoded.contains('\0') {
            return Err(fault(Reason::AmbiguousJson, "a member name holds U+0000"));
        }
        let name = self.names.push(decoded, start + 1);
        self.skip_space();
        if !self.take(b':') {
            return Err(self.malformed("no `:` after a name"));
        }
        Ok(name)
    }

    fn begin_container(&mut self, depth: usize, bracket: u8) -> Result<(), Fault> {
        if self.peek() != Some(bracket) {
            return Err(self.malformed(if bracket == b'{' { "not an object" } else { "not an array" }));
        }
        if depth >= self.bounds.depth {
            let detail = format!("nested deeper than {} levels", self.bounds.depth);
            return Err(fault(Reason::MalformedJson, detail));
        }
        self.at += 1;
        self.skip_space();
        Ok(())
    }

    /// Skips a string; returns whether it contains an escape.
    fn string(&mut self) -> Result<bool, Fault> {
        let text = self.text.as_bytes();
        let mut escaped = false;
        self.at += 1;
        loop {
            self.at = plain_run(text, self.at);
            match text.get(self.at) {
                Some(b'"') => break,
                Some(b'\\') => {
                    escaped = true;
                    self.at += 1;
                    self.escape()?;
                }
                Some(_) => return Err(self.malformed("a control character in a string")),
                None => return Err(self.malformed("a string without an end")),
            }
        }
        self.at += 1;
        Ok(escaped)
    }

    fn escape(&mut self) -> Result<(), Fault> {
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.at += 1;
                Ok(())
            }
            Some(b'u') => match self.hex_unit()? {
                0xdc00..=0xdfff => Err(self.malformed("a lone surrogate")),
                0xd800..=0xdbff => {
                    let paired = self.take_exact(b'\\') && self.peek() == Some(b'u');
                    if paired && matches!(self.hex_unit()?, 0xdc00..=0xdfff) {
                        Ok(())
                    } else {
                        Err(self.malformed("a lone surrogate"))
                    }
                }
                _ => Ok(()),
            },
            _ => Err(self.malformed("not an escape")),
        }
    }

    /// Reads the four hexadecimal digits after `u`.
    fn hex_unit(&mut self) -> Result<u32, Fault> {
        let digits = self.text.as_bytes().get(self.at + 1..self.at + 5);
        let unit = digits.and_then(|digits| {
            digits
                .iter()
                .try_fold(0, |unit, digit| Some(unit << 4 | char::from(*digit).to_digit(16)?))
        });
        let Some(unit) = unit else {
            return Err(self.malformed("not an escape"));
        };
        self.at += 5;
        Ok(unit)
    }

    /// Skips a number; returns whether it is an integer by its spelling.
    fn number(&mut self) -> Result<bool, Fault> {
        let start = self.at;
        self.take_exact(b'-');
        match self.peek() {
            Some(b'0') => self.at += 1,
            _ => self.digits()?,
        }
        let mut integer = true;
        if self.take_exact(b'.') {
            integer = false;
            self.digits()?;
        }
        let mut exponent = false;
        if self.take_exact(b'e') || self.take_exact(b'E') {
            (integer, exponent) = (false, true);
            let _sign = self.take_exact(b'+') || self.take_exact(b'-');
            self.digits()?;
        }
        if self.at - start > self.bounds.number_digits {
            let detail = format!("a number longer than {} characters", self.bounds.number_digits);
            return Err(fault(Reason::MalformedJson, detail));
        }
        // A number of at most 300 characters without an exponent is always finite.
        if (exponent || self.at - start > 300) && !self.text[start..self.at].parse::<f64>().is_ok_and(f64::is_finite) {
            return Err(self.malformed("a number too large to be read alike everywhere"));
        }
        Ok(integer)
    }

    fn digits(&mut self) -> Result<(), Fault> {
        let rest = &self.text.as_bytes()[self.at..];
        let count = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.at += count;
        match count {
            0 => Err(self.malformed("not a number")),
            _ => Ok(()),
        }
    }

    fn literal(&mut self, word: &'static str, kind: JsonKind) -> Result<JsonKind, Fault> {
        if self.text.as_bytes()[self.at..].starts_with(word.as_bytes()) {
            self.at += word.len();
            Ok(kind)
        } else {
            Err(self.malformed("not a value"))
        }
    }

    fn take_exact(&mut self, byte: u8) -> bool {
        let here = self.peek() == Some(byte);
        self.at += usize::from(here);
        here
    }

    /// Skips `byte` and the white space after it; returns whether it was there.
    fn take(&mut self, byte: u8) -> bool {
        let here = self.take_exact(byte);
        if here {
            self.skip_space();
        }
        here
    }

    pub fn skip_space(&mut self) {
        let text = self.text.as_bytes();
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = text.get(self.at) {
            self.at += 1;
        }
    }

    #[cold]
    pub fn malformed(&self, what: &str) -> Fault {
        fault(Reason::MalformedJson, format!("{what}, at byte {}", self.at))
    }
}

/// Foreign text in backticks.
pub(super) fn quoted(text: &str) -> String {
    format!("`{}`", SafeText::new(text, 80))
}

/// The value of a string that the tokenizer accepted.
pub(super) fn decode(text: &[u8], span: Span) -> Result<Cow<'_, str>, Fault> {
    let quoted = &text[span.range()];
    let decoded = match span.kind {
        JsonKind::Text(false) => std::str::from_utf8(&quoted[1..quoted.len() - 1]).ok().map(Cow::Borrowed),
        _ => serde_json::from_slice(quoted).ok().map(Cow::Owned),
    };
    decoded.ok_or_else(|| fault(Reason::MalformedJson, "a string that cannot be read"))
}

/// The position of the next `"`, `\` or control character; reads eight bytes at a time.
fn plain_run(text: &[u8], mut at: usize) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    while let Some(chunk) = text.get(at..at + 8).and_then(|chunk| <[u8; 8]>::try_from(chunk).ok()) {
        let word = u64::from_le_bytes(chunk);
        let quote = word ^ (ONES * 0x22);
        let slash = word ^ (ONES * 0x5c);
        // A byte below 0x20, and a byte that is zero after the xor, borrows into its high bit. Bytes from 0x80 on are
        // masked out.
        let hit =
            (word.wrapping_sub(ONES * 0x20) & !word) | (quote.wrapping_sub(ONES) & !quote) | (slash.wrapping_sub(ONES) & !slash);
        match hit & HIGHS {
            0 => at += 8,
            hit => return at + hit.trailing_zeros() as usize / 8,
        }
    }
    while let Some(byte) = text.get(at) {
        if matches!(byte, b'"' | b'\\' | 0..=0x1f) {
            return at;
        }
        at += 1;
    }
    at
}
