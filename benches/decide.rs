//! What a decision costs as policies grow in number while those that can apply stay the same.
//!
//! `cargo bench --bench decide` prints the cost at 10, 100, 1,000 and 10,000 policies and fails if it grows by half
//! from the least to the most (not with `--quick`). CPU time of this thread, least of several rounds: other load does not count.

use bytes::Bytes;
use neural_guardian::decide::{Enrolment, Facts, PolicySource, Settings, Snapshot, Subject, Verdict, View, could_permit, decide};
use neural_guardian::domain::{
    Annotations, AuthMethod, Call, Catalogue, Digest, EnvironmentName, Era, Fingerprint, Grant, GrantId, GrantStatus, Issuer,
    IssuerAlias, Member, Method, Principal, PrincipalKind, PromptName, RequestId, ResourceUri, RoleName, Scope, ServerEntry,
    ServerName, Standing, Subject as SubjectName, Target, Timestamp, ToolEntry, ToolName, UserId,
};
use serde_json::json;
use std::fmt::Write;
use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use uuid::Uuid;

const SIZES: [usize; 4] = [10, 100, 1_000, 10_000];
const MOST_GROWTH: f64 = 1.5;
const ROUNDS: usize = 15;
const CALLS: u32 = 4_000;

fn main() -> ExitCode {
    println!(
        "                          {}",
        SIZES.map(|size| format!("{size:>10}")).concat()
    );
    let mut ok = true;
    let stages = [
        (
            "permit, by role",
            Stage::new("t0", r#"{"path":"notes/today.txt","n":3}"#, Expect::Permit),
        ),
        (
            "permit, reads arguments",
            Stage::new("t1", r#"{"path":"notes/today.txt","n":3}"#, Expect::Permit),
        ),
        ("forbidden", Stage::new("t1", r#"{"path":"../secret","n":3}"#, Expect::Refuse)),
        ("reading a resource", Stage::reading("x:notes/today")),
        ("having a prompt", Stage::having("summarise", r#"{"file":"today.txt"}"#)),
    ];
    let worlds: Vec<(World, Duration)> = SIZES.iter().map(|size| World::new(*size)).collect();
    for (name, stage) in &stages {
        ok &= report(name, &worlds.iter().map(|(world, _)| world.cost(stage)).collect::<Vec<_>>());
    }
    ok &= report(
        "listing one tool",
        &worlds.iter().map(|(world, _)| world.listing_cost()).collect::<Vec<_>>(),
    );
    let compiled: String = worlds.iter().map(|(_, took)| format!("{:>8.0?}  ", took)).collect();
    println!("compiling the set         {compiled}");
    // Tests run it to see that it runs: a machine that is busy with them must not fail one.
    let judged = std::env::args().all(|argument| argument != "--quick");
    match ok || !judged {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn report(name: &str, costs: &[f64]) -> bool {
    let growth = costs[costs.len() - 1] / costs[0];
    let shown: String = costs.iter().map(|nanos| format!("{:>7.2} us", nanos / 1_000.0)).collect();
    let verdict = if growth < MOST_GROWTH { "" } else { "  TOO MUCH" };
    println!("{name:<26}{shown}   x{growth:.2}{verdict}");
    growth < MOST_GROWTH
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Expect {
    Permit,
    Refuse,
}

struct Stage {
    call: Call,
    expect: Expect,
}

impl Stage {
    fn new(tool: &str, arguments: &'static str, expect: Expect) -> Self {
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

    fn reading(uri: &str) -> Self {
        let mut stage = Self::new("t0", "{}", Expect::Permit);
        let target = Target::Resource(ResourceUri::parse(uri).expect("a URI"));
        (stage.call.method, stage.call.target) = (Method::ReadResource, target);
        stage
    }

    fn having(prompt: &str, arguments: &'static str) -> Self {
        let mut stage = Self::new("t0", arguments, Expect::Permit);
        let target = Target::Prompt(PromptName::parse(prompt).expect("a prompt name"));
        (stage.call.method, stage.call.target) = (Method::GetPrompt, target);
        stage
    }
}

struct World {
    snapshot: Snapshot,
    principal: Principal,
    member: Member,
    subject: Subject,
}

impl World {
    /// `policies` in all, of which ten are for the tools and the caller that are measured.
    fn new(policies: usize) -> (Self, Duration) {
        let catalogue = catalogue(policies);
        let source = PolicySource {
            file: "bench.cedar".to_owned(),
            text: text(policies),
        };
        let environment = EnvironmentName::parse("bench").expect("a name");
        let settings = Settings {
            deny_all: false,
            utc_offset_minutes: 60,
            environment: environment.clone(),
        };
        let begun = Instant::now();
        let snapshot = Snapshot::compile(&[source], &catalogue, &settings).unwrap_or_else(|problems| panic!("{problems:#?}"));
        let took = begun.elapsed();
        assert_eq!(snapshot.policies(), policies);
        let (principal, member) = (principal(), member());
        let subject = Subject::new(&principal, Some(&member), &environment);
        let world = Self {
            snapshot,
            principal,
            member,
            subject,
        };
        (world, took)
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            now: Timestamp::from_secs(1_795_000_000),
            source_ip: [10, 0, 0, 1].into(),
            principal: &self.principal,
            subject: &self.subject,
            enrolment: Enrolment::Active(&self.member),
            view: View {
                seq: 1,
                age_ms: 1,
                stale: None,
            },
            snapshot: &self.snapshot,
            session: None,
        }
    }

    /// Nanoseconds a decision.
    fn cost(&self, stage: &Stage) -> f64 {
        let facts = self.facts();
        measure(|| {
            let verdict = decide(black_box(stage.call.clone()), &facts);
            let found = match &verdict {
                Verdict::Permit(_) => Expect::Permit,
                Verdict::Refuse(_) => Expect::Refuse,
            };
            assert_eq!(found, stage.expect);
            verdict
        })
    }

    fn listing_cost(&self) -> f64 {
        let facts = self.facts();
        let server = name("s0");
        let tool = self.snapshot.tool(&server, "t0").expect("it is in the catalogue");
        measure(|| {
            let listed = could_permit(&server, tool, &facts);
            assert!(listed);
            listed
        })
    }
}

fn measure<T>(mut act: impl FnMut() -> T) -> f64 {
    let mut least = f64::MAX;
    for _ in 0..ROUNDS {
        let begun = thread_cpu();
        for _ in 0..CALLS {
            black_box(act());
        }
        let took = thread_cpu() - begun;
        least = least.min(took.as_nanos() as f64 / f64::from(CALLS));
    }
    least
}

/// CPU time of this thread so far, from the kernel's accounting; wall time where there is none.
fn thread_cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanos = text
        .as_deref()
        .and_then(|text| text.split(' ').next())
        .and_then(|nanos| nanos.parse().ok());
    nanos.map_or_else(wall, Duration::from_nanos)
}

fn wall() -> Duration {
    static BEGUN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    BEGUN.get_or_init(Instant::now).elapsed()
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
        standing: Standing::Pinned,
        digest: Digest::ZERO,
        definition: "{}".into(),
        input_schema: json!({
            "type": "object",
            "required": ["path", "n"],
            "properties": { "path": { "type": "string" }, "n": { "type": "integer" }, "file": { "type": "string" } },
        }),
        annotations: Annotations {
            read_only: index == 0,
            destructive: index == 1,
        },
        scopes: vec![Scope::parse(&tool).expect("a scope")],
    }
}

fn name(text: &str) -> ServerName {
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
