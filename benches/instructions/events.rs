//! The two records of a call, always the same but for its number.

use neural_guardian::domain::{
    AuthMethod, Decision, DecisionKind, Digest, EnvironmentName, Era, Event, GrantId, GrantUsed, Issuer, Outcome, OutcomeKind,
    PolicyId, RecordedPrincipal, RequestId, Scope, ServerName, Subject, Timestamp, UserId,
};
use uuid::Uuid;

pub fn environment() -> EnvironmentName {
    EnvironmentName::parse("default").expect("a name")
}

/// As a call leaves it.
pub fn decision(number: u64, kind: DecisionKind) -> Event {
    Event::Decision(Box::new(Decision {
        at: Timestamp::from_micros(1_795_000_000_000_000 + number as i64),
        environment: environment(),
        request: request(number),
        principal: Some(RecordedPrincipal {
            issuer: Issuer::parse("https://login.example.com").expect("an issuer"),
            subject: Subject::parse("6f9619ff-8b86-d011-b42d-00cf4fc964ff").expect("a subject"),
            user: UserId::parse("0198f0c4-2f5b-7a10-9d43-6d2f7a3b1c55").ok(),
            method: AuthMethod::Jwt,
            fingerprint: "9f86d081884c7d65".to_owned(),
            client: None,
            key: None,
        }),
        server: Some(ServerName::parse("files").expect("a name")),
        method: "tools/call".into(),
        tool: Some("write_file".to_owned()),
        target: None,
        decision: kind,
        reason: "permitted".into(),
        detail: None,
        policies: vec![PolicyId::parse("roles.developer").expect("an id")],
        errors: Vec::new(),
        scopes: vec![Scope::parse("write_file").expect("a scope")],
        args_digest: Some(Digest::of(&number.to_be_bytes())),
        args: None,
        policy_set: Digest::of(b"policies"),
        catalogue: Digest::of(b"tools"),
        grant: Some(GrantUsed {
            id: GrantId::parse("0198f0c4-2f5b-7a10-9d43-6d2f7a3b1c56").expect("an id"),
            version: 1,
            seq: 1,
            age_ms: 12,
        }),
        source_ip: "127.0.0.1".to_owned(),
        session: None,
        trace: None,
        era: Some(Era::Modern),
        took_us: 57,
    }))
}

pub fn outcome(number: u64) -> Event {
    Event::Outcome(Outcome {
        at: Timestamp::from_micros(1_795_000_000_000_400 + number as i64),
        environment: environment(),
        request: request(number),
        kind: OutcomeKind::Done,
        detail: None,
        status: Some(200),
        tool_error: Some(false),
        latency_us: 412,
        bytes: 1_024,
        recovered: false,
    })
}

fn request(number: u64) -> RequestId {
    RequestId(Uuid::from_u128(u128::from(number) << 64 | 0x7000_8000_0000_0000_0000))
}
