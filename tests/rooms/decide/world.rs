//! Input for decisions: a catalogue with the demo server, a member with a grant, a call.

use bytes::Bytes;
use neural_guardian::decide::{
    CedarPrincipal, DecisionInput, Enrolment, GrantFreshness, PolicySettings, PolicySource, Snapshot, Verdict, decide,
};
use neural_guardian::domain::{
    AuthMethod, Call, Catalogue, Digest, EnvironmentName, Era, Fingerprint, Grant, GrantStatus, Issuer, Member, MessageId,
    Method, PinStatus, Principal, PrincipalKind, Problem, PromptName, RequestId, ResourceUri, RoleName, Scope, Scopes,
    ServerEntry, ServerName, Subject as SubjectName, Target, Timestamp, ToolClass, ToolEntry, ToolName, UserId,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use uuid::Uuid;

pub fn server(name: &str) -> ServerName {
    ServerName::parse(name).unwrap()
}

pub fn scopes<'a>(names: impl IntoIterator<Item = &'a str>) -> Scopes {
    names.into_iter().map(|name| Scope::parse(name).unwrap()).collect()
}

pub fn at(text: &str) -> Timestamp {
    Timestamp::parse_rfc3339(text).unwrap()
}

pub fn environment() -> EnvironmentName {
    EnvironmentName::parse("test").unwrap()
}

pub fn settings() -> PolicySettings {
    PolicySettings {
        deny_all: false,
        utc_offset_minutes: 0,
    }
}

pub fn tool(name: &str, input_schema: Value) -> ToolEntry {
    let definition = json!({ "inputSchema": input_schema, "name": name }).to_string();
    ToolEntry {
        name: ToolName::parse(name).unwrap(),
        pin_status: PinStatus::Pinned,
        digest: Digest::of(definition.as_bytes()),
        definition: definition.into(),
        input_schema,
        class: ToolClass::Additive,
        scopes: vec![Scope::parse(name).unwrap()],
    }
}

pub fn properties(required: &[&str], properties: Value) -> Value {
    json!({ "type": "object", "required": required, "properties": properties })
}

pub fn read_only(mut tool: ToolEntry) -> ToolEntry {
    tool.class = ToolClass::ReadOnly;
    tool
}

pub fn destructive(mut tool: ToolEntry) -> ToolEntry {
    tool.class = ToolClass::Destructive;
    tool
}

pub fn unannotated(mut tool: ToolEntry) -> ToolEntry {
    tool.class = ToolClass::Unannotated;
    tool
}

/// The tools of the built-in demo server.
pub fn demo() -> Vec<ToolEntry> {
    let text = || json!({ "type": "string" });
    vec![
        read_only(tool("list_files", properties(&[], json!({ "path": text() })))),
        read_only(tool("read_file", properties(&["path"], json!({ "path": text() })))),
        tool(
            "write_file",
            properties(&["path", "content"], json!({ "path": text(), "content": text() })),
        ),
        destructive(tool("delete_file", properties(&["path"], json!({ "path": text() })))),
        read_only(tool("query", properties(&["sql"], json!({ "sql": text() })))),
        read_only(tool(
            "count",
            properties(
                &["to"],
                json!({ "to": { "type": "integer" }, "delay_ms": { "type": "integer" } }),
            ),
        )),
    ]
}

pub fn catalogue<const N: usize>(servers: [(&str, Vec<ToolEntry>); N]) -> Catalogue {
    let entry = |tools: Vec<ToolEntry>| ServerEntry {
        enabled: true,
        tools: tools.into_iter().map(|tool| (tool.name.clone(), tool)).collect(),
    };
    Catalogue {
        servers: servers
            .into_iter()
            .map(|(name, tools)| (server(name), entry(tools)))
            .collect::<BTreeMap<_, _>>(),
    }
}

pub fn compile(text: &str, catalogue: &Catalogue) -> Result<Snapshot, Vec<Problem>> {
    let source = PolicySource {
        file: "p.cedar".to_owned(),
        text: text.to_owned(),
    };
    Snapshot::compile(&[source], catalogue, &settings())
}

/// Everything a decision depends on; tests change single fields.
#[derive(Debug, Clone)]
pub struct World {
    pub now: Timestamp,
    pub source_ip: IpAddr,
    pub principal: Principal,
    pub member: Member,
    pub enrolled: Enrolled,
    pub fresh: bool,
    pub session: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enrolled {
    Absent,
    Disabled,
    Active,
}

impl World {
    /// A user with these roles, who has a grant for everything of `demo`, on a Wednesday at noon.
    pub fn new(roles: &[&str]) -> Self {
        Self {
            now: at("2026-11-18T12:00:00Z"),
            source_ip: IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3)),
            principal: principal(PrincipalKind::User),
            member: member(roles, vec![grant("demo", ["*"])]),
            enrolled: Enrolled::Active,
            fresh: true,
            session: None,
        }
    }

    pub fn with<T>(&self, snapshot: &Snapshot, act: impl FnOnce(&DecisionInput<'_>) -> T) -> T {
        let environment = environment();
        let cedar_principal = CedarPrincipal::new(&self.principal, Some(&self.member), &environment);
        act(&DecisionInput {
            now: self.now,
            source_ip: self.source_ip,
            principal: &self.principal,
            cedar_principal: &cedar_principal,
            enrolment: match self.enrolled {
                Enrolled::Absent => Enrolment::Absent,
                Enrolled::Disabled => Enrolment::Disabled,
                Enrolled::Active => Enrolment::Active(&self.member),
            },
            grant_freshness: GrantFreshness {
                seq: 7,
                age_ms: 12,
                stale: (!self.fresh).then_some(neural_guardian::domain::Reason::StaleAuthorization),
            },
            snapshot,
            session: self.session.as_deref(),
        })
    }

    pub fn decide(&self, snapshot: &Snapshot, call: Call) -> Verdict {
        self.with(snapshot, |input| decide(call, input))
    }

    /// The verdict as `permit <policies>` or `<reason> <policies>`.
    pub fn verdict(&self, snapshot: &Snapshot, tool: &str, arguments: Value) -> String {
        shown(&self.decide(snapshot, call("demo", tool, Some(arguments))))
    }
}

pub fn shown(verdict: &Verdict) -> String {
    let (word, policies) = match verdict {
        Verdict::Permit(permit) => ("permit", &permit.basis().policies),
        Verdict::Refuse(refused) => (refused.refusal.reason.code(), &refused.basis.policies),
    };
    let names = policies.iter().map(|policy| policy.as_str());
    std::iter::once(word).chain(names).collect::<Vec<_>>().join(" ")
}

pub fn principal(kind: PrincipalKind) -> Principal {
    Principal::new(
        kind,
        Issuer::parse("https://idp.example.com").unwrap(),
        neural_guardian::domain::IssuerAlias::parse("idp").unwrap(),
        SubjectName::parse("alice").unwrap(),
        AuthMethod::Jwt,
        Fingerprint::of(&Digest::ZERO),
    )
}

pub fn member(roles: &[&str], grants: Vec<Grant>) -> Member {
    Member {
        roles: roles.iter().map(|role| RoleName::parse(role).unwrap()).collect(),
        grants,
        ..Member::new(UserId::parse("u1").unwrap(), PrincipalKind::User)
    }
}

pub fn grant<const N: usize>(server_name: &str, names: [&str; N]) -> Grant {
    Grant {
        id: neural_guardian::domain::GrantId::parse("g1").unwrap(),
        server: server(server_name),
        client: None,
        status: GrantStatus::Verified,
        scopes: scopes(names),
        expires_at: None,
        version: 3,
    }
}

pub fn call(server_name: &str, tool: &str, arguments: Option<Value>) -> Call {
    Call {
        method: Method::ToolsCall,
        target: Target::Tool(ToolName::parse(tool).unwrap()),
        arguments: arguments.map(|arguments| Bytes::from(arguments.to_string())),
        ..message(server_name, Method::ToolsCall)
    }
}

/// A message about a resource.
pub fn about(server_name: &str, method: Method, uri: &str) -> Call {
    Call {
        target: Target::Resource(ResourceUri::parse_template(uri).unwrap()),
        ..message(server_name, method)
    }
}

pub fn get_prompt(server_name: &str, prompt: &str, arguments: Option<Value>) -> Call {
    Call {
        target: Target::Prompt(PromptName::parse(prompt).unwrap()),
        arguments: arguments.map(|arguments| Bytes::from(arguments.to_string())),
        ..message(server_name, Method::GetPrompt)
    }
}

pub fn listen(server_name: &str, uris: &[&str]) -> Call {
    Call {
        target: Target::Resources(uris.iter().map(|uri| ResourceUri::parse(uri).unwrap()).collect()),
        ..message(server_name, Method::Listen)
    }
}

pub fn message(server_name: &str, method: Method) -> Call {
    Call {
        request: RequestId(Uuid::nil()),
        server: server(server_name),
        era: Era::Modern,
        version: None,
        method,
        target: Target::Server,
        id: Some(MessageId::from_json(Bytes::from_static(b"1"))),
        body: Bytes::from_static(b"{}"),
        arguments: None,
    }
}
