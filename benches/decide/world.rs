//! The policies, the tools and the caller that decisions are measured with.

use bytes::Bytes;
use neural_guardian::decide::{CedarPrincipal, DecisionInput, Enrolment, GrantFreshness, PolicySettings, PolicySource, Snapshot};
use neural_guardian::domain::{
    AuthMethod, Call, Catalogue, Digest, EnvironmentName, Era, Fingerprint, Grant, GrantId, GrantStatus, Issuer, IssuerAlias,
    Member, Method, PinStatus, Principal, PrincipalKind, PromptName, RequestId, ResourceUri, RoleName, Scope, ServerEntry,
    ServerName, Subject as SubjectName, Target, Timestamp, ToolClass, ToolEntry, ToolName, UserId,
};
use serde_json::json;
use std::fmt::Write;
use std::time::{Duration, Instant};
use uuid::Uuid;

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Expect {
    Permit,
    Refuse,
}

pub struct Stage {
    pub call: Call,
    pub expect: Expect,
}

impl Stage {
    pub fn new(tool: &str, arguments: &'static str, expect: Expect) -> Self {
        let call = Call {
            request: RequestId(Uuid::nil()),
            server: name("s0"),
            era: Era::Modern,
            version: None,
            method: Method::ToolsCall,
            target: Target::Tool(ToolName::parse(tool).expect("a tool name")),
            id: None,
            body: Bytes::new(),
            arguments: Some(Bytes::from_static(arguments.as_bytes())),
        };
        Self { call, expect }
    }

    pub fn reading(uri: &str) -> Self {
        let mut stage = Self::new("t0", "{}", Expect::Permit);
        let target = Target::Resource(ResourceUri::parse(uri).expect("a URI"));
        (stage.call.method, stage.call.target) = (Method::ReadResource, target);
        stage
    }

    pub fn having(prompt: &str, arguments: &'static str) -> Self {
        let mut stage = Self::new("t0", arguments, Expect::Permit);
        let target = Target::Prompt(PromptName::parse(prompt).expect("a prompt name"));
        (stage.call.method, stage.call.target) = (Method::GetPrompt, target);
        stage
    }
}

pub struct World {
    pub snapshot: Snapshot,
    pub principal: Principal,
    member: Member,
    cedar_principal: CedarPrincipal,
}

impl World {
    /// `policies` in all, of which ten are for the tools and the caller that are measured; and how long they took to compile.
    pub fn new(policies: usize) -> (Self, Duration) {
        let (world, took) = Self::with(text(policies), policies);
        assert_eq!(world.snapshot.policies(), policies);
        (world, took)
    }

    /// With these policies, `number` of them.
    pub fn with(text: String, number: usize) -> (Self, Duration) {
        let catalogue = catalogue(number);
        let source = PolicySource {
            file: "bench.cedar".to_owned(),
            text,
        };
        let environment = EnvironmentName::parse("bench").expect("a name");
        let settings = PolicySettings {
            deny_all: false,
            utc_offset_minutes: 60,
        };
        let begun = Instant::now();
        let snapshot = Snapshot::compile(&[source], &catalogue, &settings).unwrap_or_else(|problems| panic!("{problems:#?}"));
        let took = begun.elapsed();
        let (principal, member) = (principal(), member());
        let cedar_principal = CedarPrincipal::new(&principal, Some(&member), &environment);
        let world = Self {
            snapshot,
            principal,
            member,
            cedar_principal,
        };
        (world, took)
    }

    pub fn facts(&self) -> DecisionInput<'_> {
        DecisionInput {
            now: Timestamp::from_secs(1_795_000_000),
            source_ip: [10, 0, 0, 1].into(),
            principal: &self.principal,
            cedar_principal: &self.cedar_principal,
            enrolment: Enrolment::Active(&self.member),
            grant_freshness: GrantFreshness {
                seq: 1,
                age_ms: 1,
                stale: None,
            },
            snapshot: &self.snapshot,
            session: None,
        }
    }
}

/// Ten policies that can apply, and as many more as asked for that cannot: for other tools, other roles, other people.
fn text(policies: usize) -> String {
    let mut text = String::from(
        r#"
        @id("developer") permit(principal in Guardian::Role::"developer", action in Guardian::Action::"read_only", resource);
        @id("writes") permit(principal in Guardian::Role::"developer", action == Guardian::Action::"s0/t1", resource)
            when { context.input.path like "notes/*" && context.input.n < 5 };
        @id("own-environment") forbid(principal, action, resource) unless { principal.environment == "bench" };
        @id("inside") forbid(principal, action, resource) when { context.input has file && context.input.file like "*..*" };
        @id("inside-1") forbid(principal, action == Guardian::Action::"s0/t1", resource) when { context.input.path like "*..*" };
        @id("hours") forbid(principal, action in Guardian::Action::"destructive", resource) unless { context.hour >= 8 };
        @id("net") forbid(principal, action in Guardian::Action::"s0", resource) unless { context.source_ip.isInRange(ip("10.0.0.0/8")) };
        @id("alice") permit(principal == Guardian::User::"idp|alice", action, resource in Guardian::Server::"s0");
        @id("users") permit(principal is Guardian::User, action == Guardian::Action::"s0/t1", resource);
        @id("no-service") forbid(principal is Guardian::Service, action, resource);
        "#,
    );
    for index in 10..policies {
        let (server, tool) = (1 + index % 10, index / 10 % 50);
        let effect = if index % 10 == 9 { "forbid" } else { "permit" };
        let scope = match index % 4 {
            3 => format!(
                r#"principal in Guardian::Role::"team{index}", action == Guardian::Action::"read_resource", resource == Guardian::Resource::"s{server}/x:{index}""#
            ),
            0 => format!(
                r#"principal in Guardian::Role::"team{index}", action == Guardian::Action::"s{server}/t{tool}", resource"#
            ),
            1 => format!(r#"principal in Guardian::Role::"team{index}", action in Guardian::Action::"call_tool", resource"#),
            _ => format!(r#"principal == Guardian::User::"idp|user{index}", action, resource in Guardian::Server::"s{server}""#),
        };
        writeln!(
            text,
            r#"@id("p{index}") {effect}({scope}) when {{ context.hour > 3 && principal.method == "jwt" }};"#
        )
        .expect("a string takes what is written to it");
    }
    text
}

fn catalogue(policies: usize) -> Catalogue {
    let servers = if policies <= 10 { 1 } else { 11 };
    let server = |index: usize| {
        let tools = (0..50).map(tool).map(|tool| (tool.name.clone(), tool)).collect();
        (name(&format!("s{index}")), ServerEntry { enabled: true, tools })
    };
    Catalogue {
        servers: (0..servers).map(server).collect(),
    }
}

fn tool(index: usize) -> ToolEntry {
    let tool = format!("t{index}");
    ToolEntry {
        name: ToolName::parse(&tool).expect("a tool name"),
        pin_status: PinStatus::Pinned,
        digest: Digest::ZERO,
        definition: "{}".into(),
        input_schema: json!({
            "type": "object",
            "required": ["path", "n"],
            "properties": { "path": { "type": "string" }, "n": { "type": "integer" }, "file": { "type": "string" } },
        }),
        class: match index {
            0 => ToolClass::ReadOnly,
            1 => ToolClass::Destructive,
            _ => ToolClass::Additive,
        },
        scopes: vec![Scope::parse(&tool).expect("a scope")],
    }
}

pub fn name(text: &str) -> ServerName {
    ServerName::parse(text).expect("a server name")
}

fn principal() -> Principal {
    Principal::new(
        PrincipalKind::User,
        Issuer::parse("https://idp.example.com").expect("an issuer"),
        IssuerAlias::parse("idp").expect("an alias"),
        SubjectName::parse("alice").expect("a subject"),
        AuthMethod::Jwt,
        Fingerprint::of(&Digest::ZERO),
    )
}

fn member() -> Member {
    Member {
        email: Some("alice@example.com".to_owned()),
        roles: vec![RoleName::parse("developer").expect("a role")],
        grants: vec![Grant {
            id: GrantId::parse("g1").expect("an id"),
            server: name("s0"),
            client: None,
            status: GrantStatus::Verified,
            scopes: ["t0", "t1", "t2", "resources", "prompts"]
                .map(|scope| Scope::parse(scope).expect("a scope"))
                .into_iter()
                .collect(),
            expires_at: None,
            version: 1,
        }],
        ..Member::new(UserId::parse("u1").expect("an id"), PrincipalKind::User)
    }
}
