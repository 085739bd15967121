//! Fuzz target: a policy folder and its manifest. Policies compile or are refused, in whatever order they are read; a forbid
//! that was in force stays, or is reported as missing. A line `--` separates the manifest, the policies in force and the new.

#![no_main]

use neural_guardian::app::manifest::{Manifest, NAME};
use neural_guardian::app::policy_loader::{load_checked, read_policies};
use neural_guardian::config::PoliciesConfig;
use neural_guardian::decide::{
    CedarPrincipal, DecisionInput, Enrolment, GrantFreshness, PolicySettings, PolicySource, Snapshot, Verdict, decide,
    forbid_names, forbids, missing_forbids,
};
use neural_guardian::domain::{
    AuthMethod, Call, Catalogue, Digest, EnvironmentName, Era, Fingerprint, Grant, GrantId, GrantStatus, Issuer, IssuerAlias,
    Member, Method, PinStatus, PolicyId, Principal, PrincipalKind, Problem, RequestId, RoleName, Scope, ServerEntry, ServerName,
    SourceLocation, Subject, Target, Timestamp, ToolClass, ToolEntry, ToolName, UserId,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::LazyLock;

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("guardian-fuzz-{}.policies", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder of its own");
    folder
});
static CATALOGUE: LazyLock<Catalogue> = LazyLock::new(|| {
    let tool = |(name, read_only): (&str, bool)| ToolEntry {
        name: ToolName::parse(name).expect("a name"),
        pin_status: PinStatus::Pinned,
        digest: Digest::ZERO,
        definition: "{}".into(),
        input_schema: serde_json::json!({
            "type": "object",
            "required": ["path"],
            "properties": { "path": { "type": "string" }, "n": { "type": "integer" }, "tags": { "type": "array", "items": { "type": "string" } } },
        }),
        class: if read_only {
            ToolClass::ReadOnly
        } else {
            ToolClass::Unannotated
        },
        scopes: vec![Scope::parse(name).expect("a scope")],
    };
    let tools = [("read_text", true), ("delete", false)]
        .map(tool)
        .map(|tool| (tool.name.clone(), tool));
    let server = ServerEntry {
        enabled: true,
        tools: tools.into(),
    };
    Catalogue {
        servers: BTreeMap::from([(ServerName::parse("files").expect("a name"), server)]),
    }
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut parts = text.splitn(3, "\n--\n");
    let mut part = || parts.next().unwrap_or_default();
    manifest(part());
    let (old, new) = (sources(part()), sources(part()));
    for set in [&old, &new] {
        folder(set);
        let backwards: Vec<PolicySource> = set.iter().rev().cloned().collect();
        match (compile(set, &[]), compile(&backwards, &[])) {
            (Ok(one), Ok(other)) => {
                assert_eq!(one.policy_set(), other.policy_set());
                let counted: Option<usize> = set.iter().map(forbids).sum();
                assert_eq!(counted, Some(one.forbids().len()));
                assert!(missing_forbids(set, set).is_empty());
            }
            (Err(problems), Err(_)) => assert!(!problems.is_empty() && problems.iter().all(is_told)),
            (one, other) => panic!("{one:?} but {other:?}"),
        }
    }
    let Ok(before) = compile(&old, &[]) else { return };
    if old.iter().all(|source| source.text.trim().is_empty()) {
        let all = compile(&[permit_all()], &[]).expect("a permit");
        assert!(refused(&all).is_empty(), "only a forbid refuses");
    }
    let kept = missing_forbids(&old, &new);
    let gone: BTreeSet<PolicyId> = forbid_names(&kept).into_iter().collect();
    assert!(
        gone.iter().all(|id| before.forbids().contains(id)),
        "only what was there can be kept"
    );
    if let Ok(after) = compile(&new, &kept) {
        let all = |sources: &[PolicySource]| [sources, &[permit_all()]].concat();
        if let (Ok(before), Ok(after)) = (compile(&all(&old), &[]), compile(&all(&new), &kept)) {
            let (before, after) = (refused(&before), refused(&after));
            assert!(before.is_subset(&after), "{before:?} were forbidden, but only {after:?} are");
        }
        assert!(after.forbids().len() >= gone.len(), "what is kept is in force");
        assert!(missing_forbids(&old, &[new, kept].concat()).is_empty(), "no forbid is lost");
    }
});

fn compile(sources: &[PolicySource], kept: &[PolicySource]) -> Result<Snapshot, Vec<Problem>> {
    Snapshot::compile_keeping(
        sources,
        kept,
        &CATALOGUE,
        &PolicySettings {
            deny_all: true,
            utc_offset_minutes: 0,
        },
    )
}

fn permit_all() -> PolicySource {
    PolicySource {
        file: "all.cedar".to_owned(),
        text: "@id(\"permit-all\") permit (principal, action, resource);".to_owned(),
    }
}

/// Which of some calls are refused, by their numbers.
fn refused(snapshot: &Snapshot) -> BTreeSet<usize> {
    let principal = Principal::new(
        PrincipalKind::User,
        Issuer::parse("https://idp.example.com").expect("an issuer"),
        IssuerAlias::parse("idp").expect("an alias"),
        Subject::parse("alice").expect("a subject"),
        AuthMethod::Jwt,
        Fingerprint::of(&Digest::ZERO),
    );
    let scopes = ["read_text", "delete"].map(|scope| Scope::parse(scope).expect("a scope"));
    let server = ServerName::parse("files").expect("a name");
    let member = Member {
        roles: vec![RoleName::parse("dev").expect("a role")],
        grants: vec![Grant {
            id: GrantId::parse("g1").expect("an id"),
            server: server.clone(),
            client: None,
            status: GrantStatus::Verified,
            scopes: scopes.into_iter().collect(),
            expires_at: None,
            version: 1,
        }],
        ..Member::new(UserId::parse("u1").expect("an id"), PrincipalKind::User)
    };
    let subject = CedarPrincipal::new(&principal, Some(&member), &environment());
    let facts = DecisionInput {
        now: Timestamp::from_secs(1_795_000_000),
        source_ip: [10, 0, 0, 1].into(),
        principal: &principal,
        cedar_principal: &subject,
        enrolment: Enrolment::Active(&member),
        grant_freshness: GrantFreshness {
            seq: 1,
            age_ms: 1,
            stale: None,
        },
        snapshot,
        session: None,
    };
    let arguments = [r#"{"path":"notes/a"}"#, r#"{"path":"../etc","n":7,"tags":["x"]}"#];
    let calls = ["read_text", "delete"]
        .into_iter()
        .flat_map(|tool| arguments.map(|arguments| (tool, arguments)));
    let calls = calls.map(|(tool, arguments)| Call {
        request: RequestId(uuid::Uuid::nil()),
        server: server.clone(),
        era: Era::Modern,
        version: None,
        method: Method::ToolsCall,
        target: Target::Tool(ToolName::parse(tool).expect("a name")),
        id: None,
        body: Default::default(),
        arguments: Some(arguments.into()),
    });
    let refused = calls
        .enumerate()
        .filter(|(_, call)| matches!(decide(call.clone(), &facts), Verdict::Refuse(_)));
    refused.map(|(number, _)| number).collect()
}

fn environment() -> EnvironmentName {
    EnvironmentName::parse("default").expect("a name")
}

/// Two files of a folder: the text is cut at the first empty line.
fn sources(text: &str) -> Vec<PolicySource> {
    let files = ["a.cedar", "b.cedar"].map(|name| FOLDER.join(name).display().to_string());
    let texts = text.split_once("\n\n").map_or(vec![text], |(one, other)| vec![one, other]);
    files
        .into_iter()
        .zip(texts)
        .map(|(file, text)| PolicySource {
            file,
            text: text.to_owned(),
        })
        .collect()
}

/// A line and a column are of the file.
fn is_told(problem: &Problem) -> bool {
    !problem.message.is_empty()
        && !matches!(
            problem.location,
            SourceLocation::InFile { line: 0, .. } | SourceLocation::InFile { column: 0, .. }
        )
        && !problem.to_string().is_empty()
}

/// Whatever is in its manifest.
fn manifest(text: &str) {
    std::fs::write(FOLDER.join(NAME), text).expect("a file of its own");
    let Ok(Some(read)) = Manifest::read(&FOLDER) else { return };
    read.write(&FOLDER).expect("it can be written");
    assert_eq!(Manifest::read(&FOLDER).expect("it can be read").as_ref(), Some(&read));
}

/// What is pinned is loaded, and nothing else.
fn folder(sources: &[PolicySource]) {
    for file in std::fs::read_dir(&*FOLDER).expect("the folder").flatten() {
        std::fs::remove_file(file.path()).expect("a file of its own");
    }
    sources
        .iter()
        .for_each(|source| std::fs::write(&source.file, &source.text).expect("a file of its own"));
    let config = PoliciesConfig {
        dir: FOLDER.clone(),
        ..PoliciesConfig::default()
    };
    let Ok(read) = read_policies(&FOLDER) else {
        return assert!(
            sources.iter().any(|source| source.text.trim().is_empty()),
            "only an empty file is refused"
        );
    };
    assert_eq!(read, sources);
    let pinned = Manifest::of(&read);
    assert_eq!(
        load_checked(&config, Some(pinned.clone())).expect("they are as pinned"),
        sources
    );
    let mut changed = read;
    changed[0].text.push('\n');
    assert!(
        pinned.check(&changed).is_err() && pinned.check(&changed[1..]).is_err() && Manifest::default().check(&changed).is_err()
    );
}
