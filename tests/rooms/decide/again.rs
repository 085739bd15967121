//! Decisions made once more from the bytes of their records and from the documents that these name, and from nothing else.

use super::random::{message_to, policies, runner, standing, text, tools};
use super::world::*;
use neural_guardian::decide::{
    PolicySource, RecordedArguments, Snapshot, Undecidable, Verdict, decide_again, differences, snapshot_of,
};
use neural_guardian::domain::*;
use neural_guardian::journal::{
    InputSecrets, Journal, JournalSettings, PersonKeys, RefusedMessage, StartFacts, permitted, read_dir,
};
use proptest::prelude::*;
use proptest::sample::select;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// Policies that read what the random ones do not.
const MORE: &str = r#"
@id("tenant") forbid (principal, action, resource) when { principal has tenant && principal.tenant == "evil" };
@id("assurance") forbid (principal, action in Guardian::Action::"unannotated", resource)
  unless { principal has assurance && principal.assurance == "aal2" };
@id("private") forbid (principal, action == Guardian::Action::"read_resource", resource) when { resource.uri like "file:///private/*" };
@id("alias") forbid (principal == Guardian::User::"idp|mallory", action, resource);
"#;

type Documents = HashMap<(DocumentKind, Digest), Arc<str>>;

/// What a record is made of besides the verdict.
#[derive(Debug, Clone)]
struct Circumstances {
    kept: Option<InputsKept>,
    tenant: Option<&'static str>,
    assurance: Option<&'static str>,
    subject: &'static str,
    /// The record is of a later moment and of another session than the decision.
    apart: bool,
}

fn circumstances() -> impl Strategy<Value = Circumstances> {
    use InputsKept::{Digest, Plain, Redacted, Sealed};
    (
        prop_oneof![6 => Just(Plain), 6 => Just(Sealed), 1 => Just(Digest), 1 => Just(Redacted)].prop_map(Some),
        select(vec![None, None, Some("acme"), Some("evil")]),
        select(vec![None, Some("aal1"), Some("aal2")]),
        select(vec!["alice", "alice", "alice", "mallory"]),
        prop::bool::weighted(0.2),
    )
        .prop_map(|(kept, tenant, assurance, subject, apart)| Circumstances {
            kept,
            tenant,
            assurance,
            subject,
            apart,
        })
}

fn message() -> impl Strategy<Value = Call> {
    let uris = || select(vec!["file:///a", "file:///private/b", "file:///a/b?c=d"]);
    let task = |tool: &str| ToolName::parse(tool).unwrap();
    let subscription = move |uris: Vec<ResourceUri>| Target::Subscription(uris, vec![task("plain"), task("list")]);
    let parsed = |uri: &str| ResourceUri::parse(uri).unwrap();
    prop_oneof![
        16 => message_to(),
        1 => uris().prop_map(|uri| about("s", Method::ReadResource, uri)),
        1 => uris().prop_map(|uri| about("s", Method::Complete, uri)),
        1 => prop::option::of(select(vec!["x", "y"])).prop_map(|text| get_prompt("s", "greet", text.map(|text| serde_json::json!({ "path": text })))),
        1 => Just(Call { method: Method::Complete, ..get_prompt("s", "greet", Some(serde_json::json!({}))) }),
        1 => prop::collection::vec(uris(), 0..3).prop_map(|uris| listen("s", &uris)),
        1 => prop::collection::vec(uris(), 0..3).prop_map(move |uris| Call {
            target: subscription(uris.into_iter().map(parsed).collect()),
            ..super::world::message("s", Method::Listen)
        }),
        1 => select(vec!["plain", "list", "gone"]).prop_map(move |tool| Call {
            target: Target::Task(task(tool), "t-1".to_owned()),
            ..super::world::message("s", Method::TasksGet)
        }),
    ]
}

/// The record of this verdict, as gate and journal make it.
fn record(
    world: &World,
    around: &Circumstances,
    keys: &PersonKeys,
    call: &Call,
    snapshot: &Snapshot,
    number: u128,
) -> Box<Decision> {
    let id = RequestId(Uuid::from_u128(number));
    let at = if around.apart {
        Timestamp::from_micros(world.now.micros() + 7)
    } else {
        world.now
    };
    let session = if around.apart {
        Some("another".to_owned())
    } else {
        world.session.clone()
    };
    let member = Member {
        status: match world.enrolled {
            Enrolled::Disabled => MemberStatus::Disabled,
            Enrolled::Active | Enrolled::Absent => MemberStatus::Active,
        },
        ..world.member.clone()
    };
    let member = Some(&member).filter(|_| world.enrolled != Enrolled::Absent);
    let sent = call.arguments.as_deref();
    let kept = around.kept.filter(|_| sent.is_some());
    let inputs = RecordedInputs {
        kept,
        key: Some(keys.version).filter(|_| kept == Some(InputsKept::Sealed)),
        digest: sent
            .filter(|_| kept == Some(InputsKept::Digest))
            .map(|sent| keys.digest(sent)),
        text: match (kept, sent) {
            (Some(InputsKept::Sealed), Some(sent)) => Some(keys.seal(id, sent)),
            (Some(InputsKept::Plain), Some(sent)) => Some(String::from_utf8(sent.to_vec()).unwrap()),
            (Some(InputsKept::Redacted), _) => Some("{}".to_owned()),
            _ => None,
        },
    };
    let judged = world.with(snapshot, |input| input.judged(at, session.as_deref()));
    let target = match &call.target {
        Target::Server | Target::Tool(_) => None,
        other => Some(other.to_string()).filter(|target| !target.is_empty()),
    };
    let request = RecordedRequest {
        at,
        environment: environment(),
        principal: Some(Arc::new(RecordedPrincipal::of(&world.principal, member))),
        target,
        inputs,
        source_ip: world.source_ip.to_string(),
        session,
        trace: None,
        took_us: 1,
        judged: Some(judged),
    };
    match world.decide(snapshot, call.clone()) {
        Verdict::Permit(permit) => {
            let call = Call {
                request: id,
                ..call.clone()
            };
            permitted(&call, permit.basis().clone(), request)
        }
        Verdict::Refuse(refused) => RefusedMessage {
            request: id,
            server: Some(call.server.clone()),
            method: call.method.as_str().into(),
            tool: call.tool().map(ToString::to_string),
            task_tools: match &call.target {
                Target::Subscription(_, tools) => tools.clone(),
                _ => Vec::new(),
            },
            era: Some(call.era),
            refusal: &refused.refusal,
            decided: None,
            basis: Some(&refused.basis),
        }
        .record(request),
    }
}

const SETS: u32 = 50;
const CALLS: usize = 200;

/// 10,000 records of all kinds, in the journal, and the documents that they name.
fn recorded(keys: &PersonKeys) -> (Vec<Event>, Documents) {
    let (records, documents) = (RefCell::new(Vec::new()), RefCell::new(Documents::new()));
    let facts = prop::collection::vec((super::random::world(), circumstances(), message()), CALLS);
    let cases = (
        policies(),
        prop::collection::vec(standing(), 5),
        select(vec![0, 60, -330]),
        facts,
    );
    let ran = runner(SETS).run(&cases, |(policies, standings, utc_offset_minutes, facts)| {
        let mut catalogue = tools();
        let of_s = catalogue.servers.get_mut("s").unwrap();
        let with_standing = of_s.tools.values_mut().zip(standings);
        with_standing.for_each(|(tool, pin_status)| tool.pin_status = pin_status);
        let file = |name: &str, text: String| PolicySource {
            file: name.to_owned(),
            text,
        };
        let sources = [file("b.cedar", text(&policies)), file("a.cedar", MORE.to_owned())];
        let settings = neural_guardian::decide::PolicySettings {
            utc_offset_minutes,
            ..settings()
        };
        let kept = [file(
            "kept.cedar",
            "@id(\"kept\") forbid (principal, action == Guardian::Action::\"get_prompt\", resource) when { context.hour == 3 };"
                .to_owned(),
        )];
        let snapshot = Snapshot::compile_keeping(&sources, &kept, &catalogue, &settings).unwrap();
        let kept = snapshot
            .documents()
            .iter()
            .map(|document| ((document.kind, document.digest), document.text.clone()));
        documents.borrow_mut().extend(kept);
        for (mut world, around, call) in facts {
            world.principal.tenant = around.tenant.map(Into::into);
            world.principal.assurance = around.assurance.map(Into::into);
            world.principal.subject = Subject::parse(around.subject).unwrap();
            let number = records.borrow().len() as u128;
            let decision = record(&world, &around, keys, &call, &snapshot, number);
            records.borrow_mut().push(Event::Decision(decision));
        }
        Ok(())
    });
    ran.unwrap_or_else(|error| panic!("{error}"));
    (records.into_inner(), documents.into_inner())
}

/// The same events as a journal on disk gives them back.
async fn through_the_journal(events: Vec<Event>) -> Vec<Decision> {
    let dir = std::env::temp_dir().join(format!("guardian-again-{}", Uuid::new_v4()));
    let settings = JournalSettings {
        dir: dir.clone(),
        max_bytes: 1 << 30,
        segment_bytes: 64 << 20,
        sync_timeout: Duration::from_secs(60),
        keep_shipped: std::time::Duration::ZERO,
        seal_on_conflict: false,
        allow_volatile: true,
    };
    let start = StartFacts {
        environment: environment(),
        version: "1".to_owned(),
        instance: "test".to_owned(),
        instance_id: None,
    };
    let (journal, _) = Journal::open_dir(settings, start, || Timestamp::from_secs(1)).unwrap();
    // Many at once, since each waits for the disk.
    for some in events.chunks(250) {
        let append = |event: &Event| {
            let (journal, event) = (journal.clone(), event.clone());
            tokio::spawn(async move { journal.append(event).await })
        };
        let appended: Vec<_> = some.iter().map(append).collect();
        for appended in appended {
            appended.await.unwrap().unwrap();
        }
    }
    journal.stop().await;
    let records = read_dir(&dir)
        .unwrap()
        .map(|record| serde_json::from_slice::<Record>(&record.unwrap().bytes).unwrap());
    let decision = |record: Record| match record.event {
        Event::Decision(decision) => Some(*decision),
        _ => None,
    };
    let found = records.filter_map(decision).collect();
    std::fs::remove_dir_all(&dir).unwrap();
    found
}

#[tokio::test]
async fn ten_thousand_decisions_are_the_same_when_they_are_made_again_from_their_records() {
    let secrets = InputSecrets::random().unwrap();
    let keys = secrets.newest_keys(&InputSalt([7; 32]));
    let (events, documents) = recorded(&keys);
    let records = through_the_journal(events).await;
    assert_eq!(records.len(), SETS as usize * CALLS);

    let mut snapshots: HashMap<(Digest, Digest), Snapshot> = HashMap::new();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for record in &records {
        let snapshot = snapshots.entry((record.policy_set, record.catalogue)).or_insert_with(|| {
            let document = |kind, digest: &Digest| documents.get(&(kind, *digest)).cloned();
            let snapshot = snapshot_of(&record.policy_set, &record.catalogue, document).unwrap();
            assert_eq!(
                (snapshot.policy_set(), snapshot.catalogue()),
                (record.policy_set, record.catalogue)
            );
            snapshot
        });
        let arguments = RecordedArguments::of(record, |version, sealed| {
            assert_eq!(version, 1);
            keys.open(record.request, sealed)
        });
        let known = !matches!(arguments, RecordedArguments::Unknown(_));
        match decide_again(record, arguments, snapshot) {
            Ok(verdict) => {
                let differences = differences(record, &verdict);
                assert!(
                    differences.is_empty(),
                    "{differences:?}\n{}",
                    serde_json::to_string(record).unwrap()
                );
                let kept = record.inputs.map_or("nothing".to_owned(), |kept| format!("{kept:?}"));
                for counted in [record.reason.to_string(), record.method.to_string(), kept] {
                    *seen.entry(counted).or_default() += 1;
                }
            }
            Err(Undecidable::Arguments) if !known => *seen.entry("undecidable".to_owned()).or_default() += 1,
            Err(why) => panic!("{why}: {}", serde_json::to_string(record).unwrap()),
        }
    }
    println!("{seen:?}");
    for what in [
        "permitted",
        "not_enrolled",
        "member_disabled",
        "unknown_server",
        "server_disabled",
        "stale_authorization",
        "no_grant",
        "grant_idle",
        "grant_revoked",
        "grant_expired",
        "unknown_tool",
        "tool_not_approved",
        "definition_changed",
        "missing_scope",
        "credential_lacks_scope",
        "invalid_arguments",
        "no_policy_permits",
        "forbidden_by_policy",
        "policy_error",
        "undecidable",
        "tools/call",
        "resources/read",
        "prompts/get",
        "completion/complete",
        "subscriptions/listen",
        "tasks/get",
        "tools/list",
        "Plain",
        "Sealed",
        "Digest",
        "Redacted",
    ] {
        assert!(
            seen.get(what).is_some_and(|count| *count >= 10),
            "too few of {what}: {seen:?}"
        );
    }
}

/// One record, and what becomes of it when something of it is lost.
#[test]
fn a_record_that_lacks_something_says_so_and_gives_no_verdict() {
    let keys = InputSecrets::random().unwrap().newest_keys(&InputSalt([7; 32]));
    let snapshot = compile(
        "@id(\"p\") permit (principal, action, resource) when { context.input has path };",
        &catalogue([("demo", demo()[1..2].to_vec())]),
    )
    .unwrap();
    let world = World::new(&["reader"]);
    let call = call("demo", "read_file", Some(serde_json::json!({ "path": "a" })));
    let whole = |kept| {
        let around = Circumstances {
            kept: Some(kept),
            tenant: None,
            assurance: None,
            subject: "alice",
            apart: false,
        };
        *record(&world, &around, &keys, &call, &snapshot, 7)
    };
    let again = |record: &Decision, open: bool| {
        let arguments = RecordedArguments::of(record, |_, sealed| keys.open(record.request, sealed).filter(|_| open));
        decide_again(record, arguments, &snapshot).map(|verdict| differences(record, &verdict))
    };
    let sealed = whole(InputsKept::Sealed);
    assert_eq!(again(&sealed, true), Ok(Vec::new()));
    assert_eq!(again(&sealed, false), Err(Undecidable::Sealed));
    assert_eq!(again(&whole(InputsKept::Digest), true), Err(Undecidable::Arguments));
    assert_eq!(again(&whole(InputsKept::Redacted), true), Err(Undecidable::Arguments));
    let plain = whole(InputsKept::Plain);
    assert_eq!(
        again(
            &Decision {
                cut: true,
                ..plain.clone()
            },
            true
        ),
        Err(Undecidable::Cut)
    );
    assert_eq!(
        again(
            &Decision {
                grant: None,
                ..plain.clone()
            },
            true
        ),
        Err(Undecidable::NotDecided)
    );
    assert_eq!(
        again(
            &Decision {
                decided: Some("not_asked".into()),
                ..plain.clone()
            },
            true
        ),
        Err(Undecidable::NotDecided)
    );
    let old: RecordedPrincipal = RecordedPrincipal {
        alias: None,
        ..(**plain.principal.as_ref().unwrap()).clone()
    };
    assert_eq!(
        again(
            &Decision {
                principal: Some(old.into()),
                ..plain.clone()
            },
            true
        ),
        Err(Undecidable::Old)
    );
    // Another verdict is told in words.
    let other = Decision {
        policies: vec![PolicyId::parse("q").unwrap()],
        ..plain
    };
    assert_eq!(again(&other, true).unwrap(), ["policies was [\"q\"] and is [\"p\"]"]);
}

#[test]
fn what_documents_are_changed_or_missing_is_said() {
    let source = PolicySource {
        file: "p.cedar".to_owned(),
        text: "@id(\"p\") permit (principal, action, resource);".to_owned(),
    };
    let snapshot = Snapshot::compile(&[source], &tools(), &settings()).unwrap();
    let all = snapshot.documents();
    let (set, catalogue) = (snapshot.policy_set(), snapshot.catalogue());
    for (at, document) in all.iter().enumerate() {
        assert_eq!(document.digest, Digest::of(document.text.as_bytes()));
        let without = |kind, digest: &Digest| {
            let mut others = all
                .iter()
                .enumerate()
                .filter(|(other, _)| *other != at)
                .map(|(_, document)| document);
            others
                .find(|document| document.kind == kind && document.digest == *digest)
                .map(|document| document.text.clone())
        };
        let twice = all.iter().filter(|other| other.digest == document.digest).count() > 1;
        assert_eq!(snapshot_of(&set, &catalogue, without).is_ok(), twice, "{document:?}");
        let forged = |kind, digest: &Digest| match without(kind, digest) {
            Some(text) => Some(text),
            None => Some("@id(\"p\") permit (principal, action, resource); // ".into()),
        };
        assert_eq!(snapshot_of(&set, &catalogue, forged).is_ok(), twice, "{document:?}");
    }
}
