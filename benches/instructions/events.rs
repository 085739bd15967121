//! The two records of a call, always the same but for its number.

use neural_guardian::domain::{
    AuthMethod, Decision, DecisionKind, Digest, EnvironmentName, Era, Event, Executed, GrantId, GrantUsed, InputsKept, Issuer,
    IssuerAlias, Outcome, OutcomeKind, PolicyId, RecordedPrincipal, RequestId, RoleName, Scope, ServerName, Subject, Timestamp,
    ToolClass, UserId,
};
use std::sync::{Arc, LazyLock};
use uuid::Uuid;

pub fn environment() -> EnvironmentName {
    EnvironmentName::parse("default").expect("a name")
}

/// As a call leaves it.
pub fn decision(number: u64, kind: DecisionKind) -> Event {
    static CALLER: LazyLock<Arc<RecordedPrincipal>> = LazyLock::new(|| Arc::new(caller()));
    Event::Decision(Box::new(Decision {
        principal: Some(CALLER.clone()),
        server: Some(ServerName::parse("files").expect("a name")),
        method: "tools/call".into(),
        tool: Some("write_file".to_owned()),
        class: Some(ToolClass::Destructive),
        decision: kind,
        reason: "permitted".into(),
        policies: vec![PolicyId::parse("roles.developer").expect("an id")],
        scopes_held: vec![Scope::parse("write_file").expect("a scope")],
        inputs: Some(InputsKept::Digest),
        inputs_key: Some(1),
        args_digest: Some(Digest::of(&number.to_be_bytes())),
        policy_set: Digest::of(b"policies"),
        catalogue: Digest::of(b"tools"),
        grant: Some(GrantUsed::new(
            GrantId::parse("0198f0c4-2f5b-7a10-9d43-6d2f7a3b1c56").expect("an id"),
            1,
            1,
            12,
        )),
        source_ip: "127.0.0.1".to_owned(),
        era: Some(Era::Modern),
        took_us: 57,
        ..Decision::new(
            Timestamp::from_micros(1_795_000_000_000_000 + number as i64),
            environment(),
            request(number),
        )
    }))
}

fn caller() -> RecordedPrincipal {
    RecordedPrincipal {
        alias: IssuerAlias::parse("login").ok(),
        user: UserId::parse("0198f0c4-2f5b-7a10-9d43-6d2f7a3b1c55").ok(),
        email: Some("ana@example.com".to_owned()),
        roles: vec![RoleName::parse("developer").expect("a role")],
        ..RecordedPrincipal::new(
            Issuer::parse("https://login.example.com").expect("an issuer"),
            Subject::parse("6f9619ff-8b86-d011-b42d-00cf4fc964ff").expect("a subject"),
            AuthMethod::Jwt,
            "9f86d081884c7d65".to_owned(),
        )
    }
}

pub fn outcome(number: u64) -> Event {
    Event::Outcome(Outcome {
        at: Timestamp::from_micros(1_795_000_000_000_400 + number as i64),
        environment: environment(),
        request: request(number),
        kind: OutcomeKind::Done,
        executed: Executed::Yes,
        by: None,
        detail: None,
        status: Some(200),
        latency_us: 412,
        bytes: 1_024,
        recovered: false,
    })
}

fn request(number: u64) -> RequestId {
    RequestId(Uuid::from_u128(u128::from(number) << 64 | 0x7000_8000_0000_0000_0000))
}
