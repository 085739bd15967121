//! A fixture that decides and records calls for real, because nothing but a `Cleared` call can be forwarded.

use bytes::Bytes;
use neural_guardian::config::{HumanDuration, ServerConfig};
use neural_guardian::decide::{
    CedarPrincipal as CedarSubject, DecisionInput, Enrolment, GrantFreshness, PolicySettings, PolicySource, Snapshot, Verdict,
    decide,
};
use neural_guardian::domain::*;
use neural_guardian::journal::{Cleared, Journal, JournalSettings, StartFacts, read_dir};
use neural_guardian::upstream::{Answer, ForwardError, ForwardHeaders, Upstream};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

pub struct Fixture {
    pub upstream: Upstream,
    journal: Journal,
    dir: PathBuf,
    environment: EnvironmentName,
    member: Member,
    principal: Principal,
    snapshot: Snapshot,
}

/// One of these time-outs ends every wait of a test; they are long, for the tests that should reach none.
pub fn config(url: &str) -> ServerConfig {
    let mut config: ServerConfig = serde_json::from_value(serde_json::json!({
        "name": "files",
        "url": url,
        "credential": { "value": "Bearer upstream-secret" },
        "connect_timeout": "20s",
        "first_byte_timeout": "20s",
        "idle_timeout": "20s",
        "max_answer_bytes": 65536,
        "allow_private_address": true,
        "client_requests": ["roots"],
    }))
    .unwrap();
    config.catalogue_refresh = HumanDuration(Duration::from_secs(1));
    config
}

impl Fixture {
    pub fn new(url: &str) -> Self {
        Self::with(config(url))
    }

    /// With this `idle_timeout` between two pieces of an answer.
    pub fn impatient(url: &str, idle: Duration) -> Self {
        Self::with(ServerConfig {
            idle_timeout: HumanDuration(idle),
            ..config(url)
        })
    }

    pub fn with(config: ServerConfig) -> Self {
        let dir = std::env::temp_dir().join(format!("guardian-upstream-{}", uuid::Uuid::new_v4()));
        let environment = EnvironmentName::parse("test").unwrap();
        let settings = JournalSettings {
            dir: dir.clone(),
            max_bytes: 1 << 30,
            segment_bytes: 1 << 20,
            sync_timeout: Duration::from_secs(30),
            keep_shipped: Duration::ZERO,
            seal_on_conflict: false,
            allow_volatile: true,
        };
        let start = StartFacts {
            environment: environment.clone(),
            version: "0".to_owned(),
            instance: "test".to_owned(),
            instance_id: None,
        };
        let (journal, _) = Journal::open_dir(settings, start, || NOW).unwrap();
        Self {
            upstream: Upstream::new(&config).unwrap(),
            journal,
            dir,
            member: member(&config.name),
            principal: principal(),
            snapshot: snapshot(&config.name),
            environment,
        }
    }

    pub async fn cleared(&self, call: Call) -> Cleared {
        let cedar_principal = CedarSubject::new(&self.principal, Some(&self.member), &self.environment);
        let input = DecisionInput {
            now: NOW,
            source_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            principal: &self.principal,
            cedar_principal: &cedar_principal,
            enrolment: Enrolment::Active(&self.member),
            grant_freshness: GrantFreshness {
                seq: 1,
                age_ms: 0,
                stale: None,
            },
            snapshot: &self.snapshot,
            session: None,
        };
        match decide(call, &input) {
            Verdict::Permit(permit) => self
                .journal
                .open(permit, self.request())
                .await
                .map_err(|(_, sealed)| sealed)
                .unwrap(),
            Verdict::Refuse(refused) => panic!("refused: {:?}", refused.refusal),
        }
    }

    pub async fn forward(&self, call: Call) -> Result<Answer, ForwardError> {
        self.upstream
            .forward(self.cleared(call).await, ForwardHeaders::default())
            .await
    }

    /// All outcomes, once no call is open any more.
    pub async fn outcomes(&self) -> Vec<Outcome> {
        self.journal.all_closed().await;
        self.journal.stop().await;
        let records = read_dir(&self.dir).unwrap().map(|record| record.unwrap());
        let events = records.map(|record| serde_json::from_slice::<Record>(&record.bytes).unwrap().event);
        let outcomes = events.filter_map(|event| match event {
            Event::Outcome(outcome) => Some(outcome),
            _ => None,
        });
        outcomes.collect()
    }

    /// The outcome of the one call.
    pub async fn outcome(&self) -> Outcome {
        match &self.outcomes().await[..] {
            [outcome] => outcome.clone(),
            others => panic!("not one outcome: {others:?}"),
        }
    }

    fn request(&self) -> RecordedRequest {
        RecordedRequest {
            at: NOW,
            environment: self.environment.clone(),
            principal: None,
            target: None,
            inputs: Default::default(),
            judged: None,
            source_ip: "127.0.0.1".to_owned(),
            session: None,
            trace: None,
            took_us: 0,
        }
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A legacy `tools/call` with id 7.
pub fn tool_call() -> Call {
    let body = r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"read","arguments":{"path":"a \u00e9"}}}"#;
    Call {
        method: Method::ToolsCall,
        target: Target::Tool(ToolName::parse("read").unwrap()),
        arguments: Some(Bytes::from_static(br#"{"path":"a \u00e9"}"#)),
        ..legacy(body)
    }
}

pub fn modern_call() -> Call {
    Call {
        era: Era::Modern,
        version: Some(ProtocolVersion::V20260728),
        ..tool_call()
    }
}

/// A legacy request with id 7 and this body.
pub fn legacy(body: &str) -> Call {
    Call {
        request: RequestId(uuid::Uuid::now_v7()),
        server: ServerName::parse("files").unwrap(),
        era: Era::Legacy,
        version: Some(ProtocolVersion::V20250618),
        method: Method::ToolsList,
        target: Target::Server,
        id: Some(MessageId::from_json(Bytes::from_static(b"7"))),
        body: Bytes::copy_from_slice(body.as_bytes()),
        arguments: None,
    }
}

pub fn initialize() -> Call {
    Call {
        method: Method::Initialize,
        ..legacy(r#"{"jsonrpc":"2.0","id":7,"method":"initialize","params":{"protocolVersion":"2025-06-18"}}"#)
    }
}

pub fn without_id(method: Method, body: &str) -> Call {
    Call {
        method,
        id: None,
        ..legacy(body)
    }
}

fn principal() -> Principal {
    Principal::new(
        PrincipalKind::User,
        Issuer::parse("https://issuer").unwrap(),
        IssuerAlias::parse("issuer").unwrap(),
        Subject::parse("alice").unwrap(),
        AuthMethod::Jwt,
        Fingerprint::of(&Digest::ZERO),
    )
}

fn member(server: &ServerName) -> Member {
    Member {
        identities: vec![(Issuer::parse("https://issuer").unwrap(), Subject::parse("alice").unwrap())],
        grants: vec![Grant {
            id: GrantId::parse("g1").unwrap(),
            server: server.clone(),
            client: None,
            status: GrantStatus::Verified,
            scopes: [Scope::parse("*").unwrap()].into_iter().collect(),
            expires_at: None,
            version: 1,
        }],
        ..Member::new(UserId::parse("u1").unwrap(), PrincipalKind::User)
    }
}

fn snapshot(server: &ServerName) -> Snapshot {
    let name = ToolName::parse("read").unwrap();
    let entry = ToolEntry {
        name: name.clone(),
        pin_status: PinStatus::Pinned,
        digest: Digest::ZERO,
        definition: r#"{"inputSchema":{"type":"object"},"name":"read"}"#.into(),
        input_schema: serde_json::json!({ "type": "object" }),
        class: ToolClass::default(),
        scopes: vec![Scope::parse("read").unwrap()],
    };
    let mut catalogue = Catalogue::default();
    let tools = [(name, entry)].into();
    catalogue.servers.insert(server.clone(), ServerEntry { enabled: true, tools });
    let all = PolicySource {
        file: "all.cedar".to_owned(),
        text: "@id(\"all\") permit (principal, action, resource);".to_owned(),
    };
    let settings = PolicySettings {
        deny_all: false,
        utc_offset_minutes: 0,
    };
    Snapshot::compile(&[all], &catalogue, &settings).unwrap_or_else(|problems| panic!("{problems:?}"))
}
