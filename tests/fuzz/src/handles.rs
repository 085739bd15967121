//! Fuzz target: a handle or a sealed session id is taken back from whom it was given and as what it was given, and nothing
//! that anybody else writes is. The parts of the input are separated by `|`.

#![no_main]

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use neural_guardian::domain::{
    AuthMethod, ClientId, Digest, Fingerprint, Issuer, IssuerAlias, Principal, PrincipalKind, ProtocolVersion, ServerName,
    Subject, Timestamp,
};
use neural_guardian::sessions::{HandleKind, HandleOwner, Session, SessionKeys, UpstreamSessionId, claimed_server};
use std::path::PathBuf;
use std::sync::LazyLock;

static FILE: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("guardian-fuzz-{}.keys", std::process::id())));
static KEYS: LazyLock<SessionKeys> = LazyLock::new(|| {
    let line = |version: u8| format!("{version}:{}\n", STANDARD.encode([version; 32]));
    loaded(&[line(1), line(2)].concat()).expect("two keys")
});
const BEFORE: Timestamp = Timestamp::from_secs(999);
const UNTIL: Timestamp = Timestamp::from_secs(1_000);

/// What a handle is for, and whose it is.
type Use<'a> = (HandleKind<'a>, [&'a str; 4]);

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    let mut parts = text.split('|').chain(std::iter::repeat(""));
    let mut part = || parts.next().unwrap_or_default();
    let (token, note, other_token, other_note) = (part(), part(), part(), part());
    let (mine, theirs) = (used(&mut part), used(&mut part));
    let ([Some(holder), Some(other)], written) = ([mine.1, theirs.1].map(holder), part()) else {
        return;
    };

    let handle = KEYS.issue(mine.0, note, token, &holder.0).expect("a short token");
    let back = KEYS.verify(mine.0, &handle, &holder.0).expect("it is taken back");
    assert_eq!((&*back.text, &*back.note), (token, note));
    assert_eq!(claimed_server(&handle), Some(holder.2.clone()));
    assert_eq!(
        KEYS.issue(mine.0, note, token, &holder.0).as_ref(),
        Some(&handle),
        "another time it is the same"
    );
    let another = KEYS
        .issue(theirs.0, other_note, other_token, &other.0)
        .expect("a short token");
    let same_use = mine.0 == theirs.0 && holder.0 == other.0;
    assert_eq!(KEYS.verify(theirs.0, &handle, &other.0).is_some(), same_use);
    assert_eq!(KEYS.verify(mine.0, &another, &holder.0).is_some(), same_use);
    assert_eq!(handle == another, same_use && (token, note) == (other_token, other_note));
    if let Some(until) = KEYS.issue_until(UNTIL, mine.0, token, &holder.0) {
        assert!(KEYS.verify_before(BEFORE, mine.0, &until, &holder.0).is_some());
        assert!(KEYS.verify_before(UNTIL, mine.0, &until, &holder.0).is_none());
    }

    if let Some(id) = UpstreamSessionId::parse(token) {
        let session = Session {
            id,
            version: ProtocolVersion::V20251125,
            expires_at: UNTIL,
        };
        let sealed = KEYS.seal(&session, &holder.1, Some(&holder.2));
        assert_eq!(KEYS.open(&sealed, &holder.1, Some(&holder.2), BEFORE), Some(session.clone()));
        assert_eq!(KEYS.open(&sealed, &holder.1, Some(&holder.2), UNTIL), None);
        assert_eq!(KEYS.open(&sealed, &holder.1, None, BEFORE), None);
        assert_eq!(
            KEYS.open(&sealed, &other.1, Some(&other.2), BEFORE).is_some(),
            holder.0 == other.0
        );
        let changed = changed(&sealed, bytes);
        assert!(
            changed == sealed || KEYS.open(&changed, &holder.1, Some(&holder.2), BEFORE).is_none(),
            "{changed}"
        );
    }

    // What is written by somebody else, half of it perhaps right, and what was changed on its way.
    let (inside, mark) = handle["gh1.".len()..].split_once('.').expect("two halves");
    let (other_inside, _) = another["gh1.".len()..].split_once('.').expect("two halves");
    let own = URL_SAFE_NO_PAD.encode(written);
    for forged in [
        written.to_owned(),
        format!("gh1.{written}"),
        format!("gh1.{own}.{mark}"),
        format!("gh1.{inside}.{own}"),
        format!("gh1.{other_inside}.{mark}"),
        changed(&handle, bytes),
    ] {
        let _ = claimed_server(&forged);
        assert!(
            forged == handle || forged == another || KEYS.verify(mine.0, &forged, &holder.0).is_none(),
            "{forged}"
        );
    }
    for forged in [
        written.to_owned(),
        format!("gs1.{written}"),
        format!("gs1.{own}"),
        handle.replacen("gh1", "gs1", 1),
    ] {
        assert_eq!(KEYS.open(&forged, &holder.1, Some(&holder.2), BEFORE), None, "{forged}");
    }

    match loaded(&text) {
        Ok(keys) => {
            let handle = keys.issue(mine.0, note, token, &holder.0).expect("a short token");
            assert!(keys.verify(mine.0, &handle, &holder.0).is_some());
            assert!(KEYS.verify(mine.0, &handle, &holder.0).is_none(), "the key of another");
        }
        Err(said) => {
            let secrets = text.lines().filter_map(|line| Some(line.split_once(':')?.1.trim()));
            assert!(
                secrets
                    .filter(|secret| secret.len() > 20)
                    .all(|secret| !said.contains(secret)),
                "{said}"
            );
        }
    }
});

fn loaded(text: &str) -> Result<SessionKeys, String> {
    std::fs::write(&*FILE, text).expect("a file of its own");
    let keys = SessionKeys::load_or_create(&FILE).map_err(|error| error.to_string());
    let _ = std::fs::remove_file(&*FILE);
    keys
}

fn used<'a>(part: &mut impl FnMut() -> &'a str) -> Use<'a> {
    let (kind, method, target) = (part(), part(), part());
    let handed = match kind {
        "c" => HandleKind::Cursor { method },
        "s" => HandleKind::State { method, target },
        "r" => HandleKind::Request { session: method },
        _ => HandleKind::Task,
    };
    (handed, [part(), part(), part(), part()])
}

/// Of issuer, subject, client and server.
fn holder([issuer, subject, client, server]: [&str; 4]) -> Option<(HandleOwner, Principal, ServerName)> {
    let principal = Principal {
        client: ClientId::parse(client).ok(),
        ..Principal::new(
            PrincipalKind::User,
            Issuer::parse(issuer).ok()?,
            IssuerAlias::parse("a").ok()?,
            Subject::parse(subject).ok()?,
            AuthMethod::Jwt,
            Fingerprint::of(&Digest::ZERO),
        )
    };
    let server = ServerName::parse(server).ok()?;
    Some((HandleOwner::new(&principal, &server), principal, server))
}

/// One character of it is another, or it is cut there.
fn changed(text: &str, by: &[u8]) -> String {
    let [at, new] = [by.first(), by.last()].map(|byte| usize::from(*byte.unwrap_or(&0)));
    let (before, after) = text.split_at(at % text.len());
    match new % 4 {
        0 => before.to_owned(),
        _ => format!("{before}{}{}", char::from(b"AZaz09-_.="[new % 10]), &after[1..]),
    }
}
