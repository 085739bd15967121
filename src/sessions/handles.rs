//! Opaque server tokens (cursors, request states, task ids, request ids, event ids) as clients hold them: the server's text with
//! an HMAC that binds it to its owner and use. The text is not hidden. There is no table, so any replica with the
//! session keys verifies a handle; equal text gives an equal handle, so that a later message can name it.

use super::keys::SessionKeys;
use crate::domain::{Principal, ServerName, Timestamp};
use aws_lc_rs::{constant_time, hmac};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// What the handle stands for. A handle of one kind is never accepted as another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandleKind<'a> {
    /// A list cursor; bound to the list method.
    Cursor { method: &'a str },
    /// A request state for a retry; bound to the method and its target, and valid for a time.
    State { method: &'a str, target: &'a str },
    /// The id of a server's request to its client; bound to the session.
    Request { session: &'a str },
    /// The id of an event on a stream, for `Last-Event-ID`; bound to the session. The handle of an event on the combined
    /// endpoint carries on which of its streams it was.
    Event { session: &'a str },
    /// A task id. The handle carries the name of the tool that created the task, because no later message repeats it.
    Task,
}

/// The owner of a handle or session: the principal (with its client), at one server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HandleOwner {
    principal: Vec<u8>,
    server: ServerName,
}

/// A verified handle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodedHandle {
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

impl HandleOwner {
    pub fn new(principal: &Principal, server: &ServerName) -> Self {
        let client = principal.client.as_ref().map_or("", |client| client.as_str());
        let mut bytes = Vec::new();
        for part in [principal.issuer.as_str(), principal.subject.as_str(), client] {
            push_length_prefixed(&mut bytes, part);
        }
        Self {
            principal: bytes,
            server: server.clone(),
        }
    }
}

impl SessionKeys {
    /// Issues the handle for a server's JSON text; `None` if the text is too long to travel through a client.
    pub fn issue(&self, handle_kind: HandleKind<'_>, note: &str, text: &str, owner: &HandleOwner) -> Option<String> {
        if text.len() > LONGEST {
            return None;
        }
        let (version, key) = self.issuing_key();
        let mut inside = version.to_be_bytes().to_vec();
        push_length_prefixed(&mut inside, owner.server.as_str());
        push_length_prefixed(&mut inside, note);
        inside.extend_from_slice(text.as_bytes());
        let mark = mark(key, handle_kind, owner, &inside);
        let mark = URL_SAFE_NO_PAD.encode(&mark.as_ref()[..MARK_LEN]);
        Some(format!("{PREFIX}{}.{mark}", URL_SAFE_NO_PAD.encode(inside)))
    }

    /// Verifies a handle for this owner and use. Every failure gives the same `None`.
    pub fn verify(&self, handle_kind: HandleKind<'_>, handle: &str, owner: &HandleOwner) -> Option<DecodedHandle> {
        let (inside, written) = handle.strip_prefix(PREFIX)?.split_once('.')?;
        let inside = URL_SAFE_NO_PAD.decode(inside).ok()?;
        let written = URL_SAFE_NO_PAD.decode(written).ok()?;
        let (version, rest) = inside.split_first_chunk::<4>()?;
        let mark = mark(self.verifying_key(u32::from_be_bytes(*version))?, handle_kind, owner, &inside);
        constant_time::verify_slices_are_equal(&mark.as_ref()[..MARK_LEN], &written).ok()?;
        let (server, rest) = pull_length_prefixed(rest)?;
        let (note, text) = pull_length_prefixed(rest)?;
        (server == owner.server.as_str()).then_some(DecodedHandle {
            text: std::str::from_utf8(text).ok()?.to_owned(),
            note: note.to_owned(),
        })
    }

    /// Issues a handle that expires. The expiry makes each one different, which is fine because no later message names
    /// it.
    pub fn issue_until(&self, until: Timestamp, handle_kind: HandleKind<'_>, text: &str, owner: &HandleOwner) -> Option<String> {
        self.issue(handle_kind, &until.micros().to_string(), text, owner)
    }

    /// Verifies a handle and its expiry.
    pub fn verify_before(
        &self,
        now: Timestamp,
        handle_kind: HandleKind<'_>,
        handle: &str,
        owner: &HandleOwner,
    ) -> Option<DecodedHandle> {
        let decoded = self.verify(handle_kind, handle, owner)?;
        let until = Timestamp::from_micros(decoded.note.parse().ok()?);
        (now < until).then_some(decoded)
    }
}

/// The server that a handle claims to belong to. Unverified; `verify` verifies it.
pub fn claimed_server(handle: &str) -> Option<ServerName> {
    let (inside, _) = handle.strip_prefix(PREFIX)?.split_once('.')?;
    let inside = URL_SAFE_NO_PAD.decode(inside).ok()?;
    let (_, rest) = inside.split_first_chunk::<4>()?;
    ServerName::parse(pull_length_prefixed(rest)?.0).ok()
}

/// HMAC-SHA-256 over kind, bindings, owner and content.
fn mark(key: &hmac::Key, handle_kind: HandleKind<'_>, owner: &HandleOwner, inside: &[u8]) -> hmac::Tag {
    let (kind, within) = match handle_kind {
        HandleKind::Cursor { method } => ("cursor", [method, ""]),
        HandleKind::State { method, target } => ("state", [method, target]),
        HandleKind::Request { session } => ("request", [session, ""]),
        HandleKind::Event { session } => ("event", [session, ""]),
        HandleKind::Task => ("task", ["", ""]),
    };
    let mut bound = Vec::with_capacity(256 + inside.len());
    push_length_prefixed(&mut bound, kind);
    within.into_iter().for_each(|part| push_length_prefixed(&mut bound, part));
    bound.extend_from_slice(&owner.principal);
    bound.extend_from_slice(inside);
    hmac::sign(key, &bound)
}

/// Length-prefixed, so that two different lists of parts never encode alike.
fn push_length_prefixed(bytes: &mut Vec<u8>, part: &str) {
    bytes.extend_from_slice(&(part.len() as u32).to_be_bytes());
    bytes.extend_from_slice(part.as_bytes());
}

fn pull_length_prefixed(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (part, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    Some((std::str::from_utf8(part).ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sessions::keys::tests::principal;
    use base64::engine::general_purpose::STANDARD;
    use std::path::Path;

    fn holder(issuer: &str, subject: &str, client: Option<&str>, server: &str) -> HandleOwner {
        HandleOwner::new(&principal(issuer, subject, client), &ServerName::parse(server).unwrap())
    }

    fn keys(versions: &[u8]) -> SessionKeys {
        let lines: Vec<_> = versions
            .iter()
            .map(|version| format!("{version}:{}", STANDARD.encode([*version; 32])))
            .collect();
        SessionKeys::parse(&lines.join("\n"), Path::new("session.keys")).unwrap()
    }

    const CURSOR: HandleKind<'static> = HandleKind::Cursor { method: "tools/list" };

    #[test]
    fn a_handle_is_taken_back_from_whom_it_was_given_and_as_what_it_was_given() {
        let keys = keys(&[1]);
        let alice = holder("https://i", "alice", Some("cli"), "files");
        let ways = [
            CURSOR,
            HandleKind::Cursor { method: "prompts/list" },
            HandleKind::State {
                method: "tools/call",
                target: "echo",
            },
            HandleKind::State {
                method: "tools/call",
                target: "ech",
            },
            HandleKind::State {
                method: "prompts/get",
                target: "echo",
            },
            HandleKind::Request { session: "s1" },
            HandleKind::Request { session: "s2" },
            HandleKind::Request { session: "" },
            HandleKind::Event { session: "s1" },
            HandleKind::Event { session: "" },
            HandleKind::Task,
        ];
        let others = [
            holder("https://i", "bob", Some("cli"), "files"),
            holder("https://j", "alice", Some("cli"), "files"),
            holder("https://i", "alice", None, "files"),
            holder("https://ia", "lice", Some("cli"), "files"),
            holder("https://i", "alice", Some("cli"), "file"),
        ];
        for given in ways {
            let handle = keys.issue(given, "echo", r#""p\u00e9""#, &alice).unwrap();
            assert!(
                handle
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte)),
                "{handle}"
            );
            for taken in ways {
                let back = keys.verify(taken, &handle, &alice);
                let wanted = (taken == given).then(|| DecodedHandle {
                    text: r#""p\u00e9""#.to_owned(),
                    note: "echo".to_owned(),
                });
                assert_eq!(back, wanted, "{given:?} as {taken:?}");
            }
            for other in &others {
                assert_eq!(keys.verify(given, &handle, other), None, "{other:?}");
            }
        }
    }

    #[test]
    fn the_same_text_gets_the_same_handle_and_another_another() {
        let keys = keys(&[1]);
        let alice = holder("https://i", "alice", None, "files");
        let hand = |tool: &str, text: &str| keys.issue(HandleKind::Task, tool, text, &alice).unwrap();
        assert_eq!(hand("echo", "\"1\""), hand("echo", "\"1\""));
        assert_ne!(hand("echo", "\"1\""), hand("echo", "1"));
        assert_ne!(hand("echo", "\"1\""), hand("add", "\"1\""));
        assert_eq!(keys.issue(CURSOR, "", &"x".repeat(LONGEST + 1), &alice), None);
    }

    #[test]
    fn what_is_handed_out_for_a_time_is_taken_back_within_it() {
        let keys = keys(&[1]);
        let alice = holder("https://i", "alice", None, "files");
        let state = HandleKind::State {
            method: "tools/call",
            target: "echo",
        };
        let at = Timestamp::from_micros;
        let handle = keys.issue_until(at(2_000_000), state, "\"s\"", &alice).unwrap();
        let back = |now| keys.verify_before(at(now), state, &handle, &alice);
        assert_eq!(back(1_999_999).unwrap().text, "\"s\"");
        assert_eq!((back(2_000_000), back(i64::MAX)), (None, None));
        let endless = keys.issue(state, "", "\"s\"", &alice).unwrap();
        assert_eq!(keys.verify_before(at(0), state, &endless, &alice), None);
    }

    #[test]
    fn a_changed_or_plain_text_is_no_handle() {
        let keys = keys(&[1]);
        let alice = holder("https://i", "alice", None, "files");
        let handle = keys.issue(CURSOR, "", "\"page 2\"", &alice).unwrap();
        for index in 0..handle.len() {
            let mut changed = handle.clone().into_bytes();
            changed[index] = if changed[index] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(keys.verify(CURSOR, &changed, &alice), None, "{changed}");
        }
        for cut in 0..handle.len() {
            assert_eq!(keys.verify(CURSOR, &handle[..cut], &alice), None);
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
            assert_eq!(keys.verify(CURSOR, plain, &alice), None, "{plain}");
        }
    }

    #[test]
    fn keys_are_rotated_and_the_handles_of_an_older_one_are_still_taken() {
        let alice = holder("https://i", "alice", None, "files");
        let (old, both, new) = (keys(&[1]), keys(&[2, 1]), keys(&[2]));
        let before = old.issue(CURSOR, "", "\"a\"", &alice).unwrap();
        let after = both.issue(CURSOR, "", "\"a\"", &alice).unwrap();
        assert!(both.verify(CURSOR, &before, &alice).is_some());
        assert!(new.verify(CURSOR, &after, &alice).is_some());
        assert_eq!(new.verify(CURSOR, &before, &alice), None);
        assert_eq!(old.verify(CURSOR, &after, &alice), None);
    }
}
