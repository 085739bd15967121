//! Opaque server tokens (cursors, request states, task ids, request ids) as clients hold them: the server's text with
//! an HMAC that binds it to its owner and use. The text is not hidden. There is no table, so any replica with the
//! session keys verifies a handle; equal text gives an equal handle, so that a later message can name it.

use super::keys::SessionKeys;
use crate::domain::{Principal, ServerName, Timestamp};
use aws_lc_rs::{constant_time, hmac};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// What the handle stands for. A handle of one kind is never accepted as another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handed<'a> {
    /// A list cursor; bound to the list method.
    Cursor { method: &'a str },
    /// A request state for a retry; bound to the method and its target, and valid for a time.
    State { method: &'a str, target: &'a str },
    /// The id of a server's request to its client; bound to the session.
    Request { session: &'a str },
    /// A task id. The handle carries the name of the tool that created the task, because no later message repeats it.
    Task,
}

/// The owner of a handle or session: the principal (with its client), at one server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Holder {
    principal: Vec<u8>,
    server: ServerName,
}

/// A verified handle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Returned {
    /// The server's token, as JSON text.
    pub text: String,
    /// What else the handle carries: the tool of a task, the expiry of a request state.
    pub note: String,
}

/// The prefix of every handle; it names the format.
const PREFIX: &str = "gh1.";
const MARK_LEN: usize = 16;
/// The longest server token that gets a handle. Request states are the longest tokens.
const LONGEST: usize = 256 * 1024;

impl Holder {
    pub fn new(principal: &Principal, server: &ServerName) -> Self {
        let client = principal.client.as_ref().map_or("", |client| client.as_str());
        let mut bytes = Vec::new();
        for part in [principal.issuer.as_str(), principal.subject.as_str(), client] {
            push(&mut bytes, part);
        }
        Self {
            principal: bytes,
            server: server.clone(),
        }
    }
}

impl SessionKeys {
    /// Issues the handle for a server's JSON text; `None` if the text is too long to travel through a client.
    pub fn hand(&self, handed: Handed<'_>, note: &str, text: &str, holder: &Holder) -> Option<String> {
        if text.len() > LONGEST {
            return None;
        }
        let (version, key) = self.handing();
        let mut inside = version.to_be_bytes().to_vec();
        push(&mut inside, holder.server.as_str());
        push(&mut inside, note);
        inside.extend_from_slice(text.as_bytes());
        let mark = mark(key, handed, holder, &inside);
        let mark = URL_SAFE_NO_PAD.encode(&mark.as_ref()[..MARK_LEN]);
        Some(format!("{PREFIX}{}.{mark}", URL_SAFE_NO_PAD.encode(inside)))
    }

    /// Verifies a handle for this owner and use. Every failure gives the same `None`.
    pub fn take_back(&self, handed: Handed<'_>, handle: &str, holder: &Holder) -> Option<Returned> {
        let (inside, written) = handle.strip_prefix(PREFIX)?.split_once('.')?;
        let inside = URL_SAFE_NO_PAD.decode(inside).ok()?;
        let written = URL_SAFE_NO_PAD.decode(written).ok()?;
        let (version, rest) = inside.split_first_chunk::<4>()?;
        let mark = mark(self.handed(u32::from_be_bytes(*version))?, handed, holder, &inside);
        constant_time::verify_slices_are_equal(&mark.as_ref()[..MARK_LEN], &written).ok()?;
        let (server, rest) = pull(rest)?;
        let (note, text) = pull(rest)?;
        (server == holder.server.as_str()).then_some(Returned {
            text: std::str::from_utf8(text).ok()?.to_owned(),
            note: note.to_owned(),
        })
    }

    /// Issues a handle that expires. The expiry makes each one different, which is fine because no later message names
    /// it.
    pub fn hand_until(&self, until: Timestamp, handed: Handed<'_>, text: &str, holder: &Holder) -> Option<String> {
        self.hand(handed, &until.micros().to_string(), text, holder)
    }

    /// Verifies a handle and its expiry.
    pub fn take_back_before(&self, now: Timestamp, handed: Handed<'_>, handle: &str, holder: &Holder) -> Option<Returned> {
        let returned = self.take_back(handed, handle, holder)?;
        let until = Timestamp::from_micros(returned.note.parse().ok()?);
        (now < until).then_some(returned)
    }
}

/// The server that a handle claims to belong to. Unverified; `take_back` verifies it.
pub fn said_server(handle: &str) -> Option<ServerName> {
    let (inside, _) = handle.strip_prefix(PREFIX)?.split_once('.')?;
    let inside = URL_SAFE_NO_PAD.decode(inside).ok()?;
    let (_, rest) = inside.split_first_chunk::<4>()?;
    ServerName::parse(pull(rest)?.0).ok()
}

/// HMAC-SHA-256 over kind, bindings, owner and content.
fn mark(key: &hmac::Key, handed: Handed<'_>, holder: &Holder, inside: &[u8]) -> hmac::Tag {
    let (kind, within) = match handed {
        Handed::Cursor { method } => ("cursor", [method, ""]),
        Handed::State { method, target } => ("state", [method, target]),
        Handed::Request { session } => ("request", [session, ""]),
        Handed::Task => ("task", ["", ""]),
    };
    let mut bound = Vec::with_capacity(256 + inside.len());
    push(&mut bound, kind);
    within.into_iter().for_each(|part| push(&mut bound, part));
    bound.extend_from_slice(&holder.principal);
    bound.extend_from_slice(inside);
    hmac::sign(key, &bound)
}

/// Length-prefixed, so that two different lists of parts never encode alike.
fn push(bytes: &mut Vec<u8>, part: &str) {
    bytes.extend_from_slice(&(part.len() as u32).to_be_bytes());
    bytes.extend_from_slice(part.as_bytes());
}

fn pull(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (part, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    Some((std::str::from_utf8(part).ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::keys::tests::principal;
    use base64::engine::general_purpose::STANDARD;
    use std::path::Path;

    fn holder(issuer: &str, subject: &str, client: Option<&str>, server: &str) -> Holder {
        Holder::new(&principal(issuer, subject, client), &ServerName::parse(server).unwrap())
    }

    fn keys(versions: &[u8]) -> SessionKeys {
        let lines: Vec<_> = versions
            .iter()
            .map(|version| format!("{version}:{}", STANDARD.encode([*version; 32])))
            .collect();
        SessionKeys::parse(&lines.join("\n"), Path::new("session.keys")).unwrap()
    }

    const CURSOR: Handed<'static> = Handed::Cursor { method: "tools/list" };

    #[test]
    fn a_handle_is_taken_back_from_whom_it_was_given_and_as_what_it_was_given() {
        let keys = keys(&[1]);
        let alice = holder("https://i", "alice", Some("cli"), "files");
        let ways = [
            CURSOR,
            Handed::Cursor { method: "prompts/list" },
            Handed::State {
                method: "tools/call",
                target: "echo",
            },
            Handed::State {
                method: "tools/call",
                target: "ech",
            },
            Handed::State {
                method: "prompts/get",
                target: "echo",
            },
            Handed::Request { session: "s1" },
            Handed::Request { session: "s2" },
            Handed::Request { session: "" },
            Handed::Task,
        ];
        let others = [
            holder("https://i", "bob", Some("cli"), "files"),
            holder("https://j", "alice", Some("cli"), "files"),
            holder("https://i", "alice", None, "files"),
            holder("https://ia", "lice", Some("cli"), "files"),
            holder("https://i", "alice", Some("cli"), "file"),
        ];
        for given in ways {
            let handle = keys.hand(given, "echo", r#""p\u00e9""#, &alice).unwrap();
            assert!(
                handle
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte)),
                "{handle}"
            );
            for taken in ways {
                let back = keys.take_back(taken, &handle, &alice);
                let wanted = (taken == given).then(|| Returned {
                    text: r#""p\u00e9""#.to_owned(),
                    note: "echo".to_owned(),
                });
                assert_eq!(back, wanted, "{given:?} as {taken:?}");
            }
            for other in &others {
                assert_eq!(keys.take_back(given, &handle, other), None, "{other:?}");
            }
        }
    }

    #[test]
    fn the_same_text_gets_the_same_handle_and_another_another() {
        let keys = keys(&[1]);
        let alice = holder("https://i", "alice", None, "files");
        let hand = |tool: &str, text: &str| keys.hand(Handed::Task, tool, text, &alice).unwrap();
        assert_eq!(hand("echo", "\"1\""), hand("echo", "\"1\""));
        assert_ne!(hand("echo", "\"1\""), hand("echo", "1"));
        assert_ne!(hand("echo", "\"1\""), hand("add", "\"1\""));
        assert_eq!(keys.hand(CURSOR, "", &"x".repeat(LONGEST + 1), &alice), None);
    }

    #[test]
    fn what_is_handed_out_for_a_time_is_taken_back_within_it() {
        let keys = keys(&[1]);
        let alice = holder("https://i", "alice", None, "files");
        let state = Handed::State {
            method: "tools/call",
            target: "echo",
        };
        let at = Timestamp::from_micros;
        let handle = keys.hand_until(at(2_000_000), state, "\"s\"", &alice).unwrap();
        let back = |now| keys.take_back_before(at(now), state, &handle, &alice);
        assert_eq!(back(1_999_999).unwrap().text, "\"s\"");
        assert_eq!((back(2_000_000), back(i64::MAX)), (None, None));
        let endless = keys.hand(state, "", "\"s\"", &alice).unwrap();
        assert_eq!(keys.take_back_before(at(0), state, &endless, &alice), None);
    }

    #[test]
    fn a_changed_or_plain_text_is_no_handle() {
        let keys = keys(&[1]);
        let alice = holder("https://i", "alice", None, "files");
        let handle = keys.hand(CURSOR, "", "\"page 2\"", &alice).unwrap();
        for index in 0..handle.len() {
            let mut changed = handle.clone().into_bytes();
            changed[index] = if changed[index] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(keys.take_back(CURSOR, &changed, &alice), None, "{changed}");
        }
        for cut in 0..handle.len() {
            assert_eq!(keys.take_back(CURSOR, &handle[..cut], &alice), None);
        }
        for plain in [
            "",
            "page 2",
            "gh1.",
            "gh1..",
            "gh1.AAAA.AAAA",
            &format!("{handle}="),
            &format!("{handle}."),
        ] {
            assert_eq!(keys.take_back(CURSOR, plain, &alice), None, "{plain}");
        }
    }

    #[test]
    fn keys_are_rotated_and_the_handles_of_an_older_one_are_still_taken() {
        let alice = holder("https://i", "alice", None, "files");
        let (old, both, new) = (keys(&[1]), keys(&[2, 1]), keys(&[2]));
        let before = old.hand(CURSOR, "", "\"a\"", &alice).unwrap();
        let after = both.hand(CURSOR, "", "\"a\"", &alice).unwrap();
        assert!(both.take_back(CURSOR, &before, &alice).is_some());
        assert!(new.take_back(CURSOR, &after, &alice).is_some());
        assert_eq!(new.take_back(CURSOR, &before, &alice), None);
        assert_eq!(old.take_back(CURSOR, &after, &alice), None);
    }
}
