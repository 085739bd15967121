//! HTTP/2 as bare frames over TLS (RFC 9113, and of RFC 7541 what needs no table): sends frames that no library would send
//! and reads the server's reaction.

use super::http::Address;
use super::wait::soon;
use std::collections::BTreeMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::client::TlsStream;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RESET: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// `END_STREAM`; for SETTINGS and PING frames, `ACK`.
pub const END: u8 = 1;
pub const END_HEADERS: u8 = 4;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection on which the story writes every byte.
pub struct Wire {
    write: WriteHalf<TlsStream<TcpStream>>,
    heard: watch::Receiver<Heard>,
    /// The read half of a connection that is not read.
    unread: Option<ReadHalf<TlsStream<TcpStream>>>,
}

/// What the server has sent so far.
#[derive(Debug, Clone, Default)]
pub struct Heard {
    pub statuses: BTreeMap<u32, String>,
    pub bodies: BTreeMap<u32, Vec<u8>>,
    pub ended: Vec<u32>,
    /// The streams that were reset, with their error codes.
    pub resets: BTreeMap<u32, u32>,
    /// The error code of the GOAWAY frame.
    pub goaway: Option<u32>,
    pub closed: bool,
    pub frames: usize,
}

impl Wire {
    /// Connects, sends the preface and these settings, and reads what the server sends.
    pub async fn open(address: &Address, settings: &[(u16, u32)]) -> Wire {
        let (read, write) = split(soon("a TLS handshake", address.socket()).await.unwrap());
        let (tell, heard) = watch::channel(Heard::default());
        tokio::spawn(listen(read, tell));
        let mut wire = Wire {
            write,
            heard,
            unread: None,
        };
        wire.greet(settings).await;
        wire
    }

    /// The same, but what the server sends stays unread.
    pub async fn deaf(address: &Address, settings: &[(u16, u32)]) -> Wire {
        let (read, write) = split(soon("a TLS handshake", address.socket()).await.unwrap());
        let mut wire = Wire {
            write,
            heard: watch::channel(Heard::default()).1,
            unread: Some(read),
        };
        wire.greet(settings).await;
        wire
    }

    async fn greet(&mut self, settings: &[(u16, u32)]) {
        // No dynamic table for the server's header blocks: a status can then be read without one.
        let mut payload = setting(1, 0);
        settings.iter().for_each(|(id, value)| payload.extend(setting(*id, *value)));
        self.say(&[PREFACE, &frame(SETTINGS, 0, 0, &payload)].concat()).await;
    }

    /// Sends bytes; `false` once the server has hung up.
    pub async fn say(&mut self, bytes: &[u8]) -> bool {
        let written = async {
            self.write.write_all(bytes).await?;
            self.write.flush().await
        };
        soon("the server to read on or to hang up", written).await.is_ok()
    }

    pub async fn hang_up(mut self) {
        // The server may have closed the connection first.
        let _ = self.write.shutdown().await;
    }

    pub fn so_far(&self) -> Heard {
        self.heard.borrow().clone()
    }

    /// Waits until what the server has sent satisfies `is`.
    pub async fn hear(&mut self, what: &str, is: impl FnMut(&Heard) -> bool) -> Heard {
        soon(what, self.heard.wait_for(is))
            .await
            .expect("the listener keeps the last")
            .clone()
    }

    /// Waits until the server hangs up on a client that did not read; what it sent is read now, to the end.
    pub async fn until_hung_up_on(self, what: &str) {
        let mut read = self.unread.expect("nobody listened");
        let mut rest = [0; 16 * 1024];
        let end = async { while read.read(&mut rest).await.is_ok_and(|read| read > 0) {} };
        soon(&format!("the end of {what}"), end).await;
    }

    /// Waits until any stream has a status or was reset, or the connection ends: the fate of the only stream.
    pub async fn refusal(&mut self) -> String {
        let heard = self
            .hear("a refusal", |heard| {
                !heard.statuses.is_empty() || !heard.resets.is_empty() || heard.is_over()
            })
            .await;
        let stream = heard.statuses.keys().chain(heard.resets.keys()).next();
        heard.of(stream.copied().unwrap_or_default())
    }

    /// Waits until the answer on this stream is complete, the stream is reset, or the connection ends.
    pub async fn answer(&mut self, stream: u32) -> String {
        let heard = self
            .hear("an answer or its refusal", |heard| {
                heard.ended.contains(&stream) || heard.resets.contains_key(&stream) || heard.goaway.is_some() || heard.closed
            })
            .await;
        heard.of(stream)
    }
}

impl Heard {
    /// The fate of a stream, in a word.
    pub fn of(&self, stream: u32) -> String {
        match (self.statuses.get(&stream), self.resets.get(&stream), self.goaway) {
            (Some(status), ..) => status.clone(),
            (None, Some(_), _) => "reset".to_owned(),
            (None, None, Some(_)) => "goaway".to_owned(),
            (None, None, None) if self.closed => "closed".to_owned(),
            (None, None, None) => "nothing".to_owned(),
        }
    }

    pub fn is_over(&self) -> bool {
        self.goaway.is_some() || self.closed
    }
}

/// One frame; nothing in it has to be valid.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

pub fn setting(id: u16, value: u32) -> Vec<u8> {
    [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

/// Header fields as literals that enter no table.
pub fn fields<'a>(fields: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<u8> {
    fields
        .into_iter()
        .flat_map(|(name, value)| literal(0x00, name, value))
        .collect()
}

/// A header field that enters the peer's dynamic table, where `indexed(62)` is the latest entry.
pub fn remembered(name: &str, value: &str) -> Vec<u8> {
    literal(0x40, name, value)
}

pub fn indexed(index: u8) -> u8 {
    0x80 | index
}

fn literal(kind: u8, name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![kind];
    for text in [name, value] {
        length(&mut bytes, text.len());
        bytes.extend(text.as_bytes());
    }
    bytes
}

/// A length without Huffman coding: in the seven bits of its first byte, or continued in more bytes (RFC 7541, 5.1).
fn length(bytes: &mut Vec<u8>, mut length: usize) {
    if length < 127 {
        return bytes.push(length as u8);
    }
    bytes.push(127);
    length -= 127;
    while length >= 128 {
        bytes.push((length % 128) as u8 | 128);
        length /= 128;
    }
    bytes.push(length as u8);
}

async fn listen(mut read: ReadHalf<TlsStream<TcpStream>>, tell: watch::Sender<Heard>) {
    while let Ok((kind, flags, stream, payload)) = next(&mut read).await {
        tell.send_modify(|heard| {
            heard.frames += 1;
            match kind {
                HEADERS => {
                    heard.statuses.insert(stream, status(&payload));
                }
                DATA => heard.bodies.entry(stream).or_default().extend(&payload),
                RESET => {
                    heard.resets.insert(stream, code(&payload));
                }
                GOAWAY => heard.goaway = Some(code(&payload[4..])),
                _ => (),
            }
            if matches!(kind, HEADERS | DATA) && flags & END != 0 {
                heard.ended.push(stream);
            }
        });
    }
    tell.send_modify(|heard| heard.closed = true);
}

async fn next(read: &mut ReadHalf<TlsStream<TcpStream>>) -> std::io::Result<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    read.read_exact(&mut head).await?;
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    read.read_exact(&mut payload).await?;
    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
    Ok((head[3], head[4], stream, payload))
}

fn code(payload: &[u8]) -> u32 {
    u32::from_be_bytes(payload[..4].try_into().expect("four bytes"))
}

/// The first field of an answer, `:status`: from the static table, or with its name from there and three digits.
fn status(block: &[u8]) -> String {
    // The server may begin with an update of its table size.
    let block = &block[block.iter().take_while(|byte| **byte & 0xe0 == 0x20).count()..];
    const KNOWN: [&str; 7] = ["200", "204", "206", "304", "400", "404", "500"];
    match block[0] {
        index @ 0x88..=0x8e => KNOWN[usize::from(index - 0x88)].to_owned(),
        _ if block[1] & 0x80 == 0 => String::from_utf8_lossy(&block[2..5]).into_owned(),
        _ => digits(&block[2..2 + usize::from(block[1] & 0x7f)]),
    }
}

/// Digits in Huffman coding: 0 to 2 have five bits, the others six.
fn digits(bytes: &[u8]) -> String {
    let bits: Vec<u8> = bytes
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1))
        .collect();
    let number = |bits: &[u8]| bits.iter().fold(0, |number, bit| number << 1 | bit);
    let (mut text, mut at) = (String::new(), 0);
    while bits.len() - at >= 5 {
        let (digit, length) = match number(&bits[at..at + 5]) {
            short @ 0..=2 => (short, 5),
            _ if bits.len() - at >= 6 => (number(&bits[at..at + 6]) - 0x19 + 3, 6),
            _ => break,
        };
        if digit > 9 {
            break;
        }
        text.push(char::from(b'0' + digit));
        at += length;
    }
    text
}

#[test]
fn statuses_read_in_every_way_they_are_written() {
    assert_eq!(status(&[0x88]), "200");
    assert_eq!(status(&[0x20, 0x8c]), "400");
    assert_eq!(status(&[0x08, 0x03, b'4', b'2', b'1']), "421");
    // 4 2 1 is 011010 00010 00001, padded with ones.
    assert_eq!(status(&[0x48, 0x82, 0b0110_1000, 0b0100_0001]), "421");
    // 5 0 3 is 011011 00000 011001, padded.
    assert_eq!(status(&[0x48, 0x83, 0b0110_1100, 0b0000_1100, 0b1111_1111]), "503");
}
