//! Records: shipped into the audit trail, and queried from it.

use super::world::{Place, World, at, env, on_both, open, parse};
use bytes::Bytes;
use neural_guardian::domain::*;
use neural_guardian::store::{AuditFilter, AuditKind, AuditRow, Shipped, StoreError};
use uuid::Uuid;

on_both! {
    async fn a_record_sent_twice_is_there_once(world) {
        let journal = Journal::new();
        let records = vec![journal.decision(0, "read", DecisionKind::Allow), journal.outcome(1, 0), journal.decision(2, "rm", DecisionKind::Deny)];
        assert_eq!(world.proxy.ship(&records[..2]).await.unwrap(), Shipped { inserted: 2, opaque: 0 });
        assert_eq!(world.proxy.ship(&records).await.unwrap(), Shipped { inserted: 1, opaque: 0 });
        assert_eq!(world.proxy.ship(&records).await.unwrap(), Shipped { inserted: 0, opaque: 0 });
        assert_eq!(world.proxy.ship(&[]).await.unwrap(), Shipped::default());

        let stored = world.admin.audit_bytes(&env(), journal.0, 0, 100).await.unwrap();
        assert_eq!(stored.iter().map(|row| (row.seq, &row.bytes[..], row.leaf, row.head)).collect::<Vec<_>>(),
            records.iter().map(|record| (record.seq, &record.bytes[..], record.leaf, record.head)).collect::<Vec<_>>());
        assert_eq!(world.admin.audit_bytes(&env(), journal.0, 2, 100).await.unwrap().len(), 1);
        let spans = world.admin.audit_incarnations(&env()).await.unwrap();
        assert_eq!(spans.iter().map(|span| (span.incarnation, span.records, span.first, span.last)).collect::<Vec<_>>(), [(journal.0, 3, 0, 2)]);
    }

    async fn a_decision_is_shown_with_who_what_why_and_how_it_ended(world) {
        let alice = world.user("alice@example.com").await;
        let journal = Journal::new();
        let decision = journal.full_decision(&alice);
        let records = [journal.seal(0, Event::Decision(Box::new(decision.clone()))), journal.outcome(1, 0)];
        world.proxy.ship(&records).await.unwrap();

        let [row] = &ask(world, |_| ()).await[..] else { panic!("one row") };
        let principal = decision.principal.unwrap();
        assert_eq!((row.at, row.seq, row.kind.as_str(), row.decision), (decision.at, 0, "decision", Some(DecisionKind::Allow)));
        assert_eq!((&row.user, row.email.as_deref()), (&principal.user, Some("alice@example.com")));
        assert_eq!((row.issuer.as_ref(), row.subject.as_ref(), row.auth_method), (Some(&principal.issuer), Some(&principal.subject), Some(principal.method)));
        assert_eq!((&row.key, &row.client, row.fingerprint.as_deref()), (&principal.key, &principal.client, Some("0011223344556677")));
        assert_eq!((row.server.as_deref(), row.tool.as_deref(), row.method.as_deref()), (Some("files"), Some("read"), Some("tools/call")));
        assert_eq!((row.reason.as_deref(), row.detail.as_deref()), (Some("permitted"), Some("all is well")));
        assert_eq!((&row.policies, &row.grant, row.policy_set), (&decision.policies, &decision.grant, Some(decision.policy_set)));
        assert_eq!((row.request, row.took_us), (Some(decision.request), Some(250)));
        let outcome = row.outcome.as_ref().unwrap();
        assert_eq!((outcome.kind, outcome.status, outcome.latency_us, outcome.bytes), (OutcomeKind::Done, Some(200), 1_500, 42));
        let json = serde_json::to_value(row).unwrap();
        assert_eq!((&json["at"], &json["decision"], &json["outcome"]["ending"]), (&"2026-11-20T10:00:00.000001Z".into(), &"allow".into(), &"done".into()));
    }

    async fn each_filter_finds_its_rows(world) {
        let (alice, bob) = (world.user("alice@example.com").await, world.user("bob@example.com").await);
        let journal = Journal::new();
        let decide = |seq, user: &UserId, change: &dyn Fn(&mut Decision)| {
            let mut decision = journal.full_decision(user);
            decision.request = journal.request(seq);
            decision.at = second(seq);
            std::sync::Arc::make_mut(decision.principal.as_mut().unwrap()).subject = parse(if *user == alice { "sub-a" } else { "sub-b" });
            change(&mut decision);
            journal.seal(seq, Event::Decision(Box::new(decision)))
        };
        let deny = |decision: &mut Decision| (decision.decision, decision.reason) = (DecisionKind::Deny, "missing_scope".into());
        let records = [
            decide(0, &alice, &|_| ()),
            decide(1, &alice, &deny),
            decide(2, &bob, &|decision| decision.tool = Some("write".into())),
            decide(3, &bob, &|decision| decision.server = Some(parse("mail"))),
            decide(4, &bob, &|decision| decision.principal = None),
        ];
        world.proxy.ship(&records).await.unwrap();

        let asked: [Asked; 13] = [
            ("everything", &[4, 3, 2, 1, 0], &|_| ()),
            ("a user by id", &[1, 0], &|filter| filter.user = Some(alice.to_string().to_uppercase())),
            ("a user by e-mail", &[3, 2], &|filter| filter.user = Some("bob@example.com".into())),
            ("a user by subject", &[1, 0], &|filter| filter.user = Some("sub-a".into())),
            ("nobody", &[], &|filter| filter.user = Some("' OR 1 = 1 --".into())),
            ("a server", &[3], &|filter| filter.server = Some("mail".into())),
            ("a tool", &[2], &|filter| filter.tool = Some("write".into())),
            ("refusals", &[1], &|filter| filter.decision = Some(DecisionKind::Deny)),
            ("a reason", &[1], &|filter| filter.reason = Some("missing_scope".into())),
            ("a request", &[3], &|filter| filter.request = Some(journal.request(3))),
            ("a time", &[2, 1], &|filter| (filter.since, filter.until) = (Some(second(1)), Some(second(3)))),
            ("oldest first", &[0, 1], &|filter| (filter.ascending, filter.limit) = (true, 2)),
            ("two at once", &[1], &|filter| (filter.user, filter.decision) = (Some("sub-a".into()), Some(DecisionKind::Deny))),
        ];
        for (what, expected, set) in asked {
            let found: Vec<u64> = ask(world, set).await.iter().map(|row| row.seq).collect();
            assert_eq!(found, expected, "{what}");
        }
        let elsewhere = AuditFilter::new(parse("development"));
        assert_eq!(world.admin.audit(&elsewhere).await.unwrap(), []);
    }

    async fn a_poison_row_anywhere_in_a_batch_blocks_nothing(world) {
        let poisons: [Poison; 9] = [
            ("U+0000 in the tool", |text| text.replace("\"tool\":\"read\"", "\"tool\":\"re\\u0000ad\"")),
            ("U+0000 in the reason", |text| text.replace("\"permitted\"", "\"\\u0000\"")),
            ("a lone surrogate", |text| text.replace("\"tool\":\"read\"", "\"tool\":\"\\ud800\"")),
            ("a huge number", |text| text.replace("\"took_us\":250", "\"took_us\":1e200000")),
            ("more than 64 bits of microseconds", |text| text.replace("\"took_us\":250", "\"took_us\":18446744073709551615")),
            ("a text too long for an index", |text| text.replace("\"tool\":\"read\"", &format!("\"tool\":\"{}\"", "ä€".repeat(4_000)))),
            ("a kind of a later version", |text| text.replace("\"kind\":\"decision\"", "\"kind\":\"judgement\"")),
            ("another record's number", |text| text.replace("\"seq\":", "\"seq\":7")),
            ("no JSON at all", |_| "\u{0}\u{1}{".to_owned()),
        ];
        for (what, poison) in poisons {
            for position in 0..3 {
                let journal = Journal::new();
                let mut records: Vec<_> = (0..3).map(|seq| journal.decision(seq, "read", DecisionKind::Allow)).collect();
                let text = String::from_utf8(records[position].bytes.to_vec()).unwrap();
                let poisoned = poison(&text);
                assert_ne!(poisoned, text, "{what}");
                records[position].bytes = Bytes::from(poisoned);

                assert_eq!(world.proxy.ship(&records).await.unwrap(), Shipped { inserted: 3, opaque: 1 }, "{what}");
                assert_eq!(world.proxy.ship(&records).await.unwrap(), Shipped { inserted: 0, opaque: 1 }, "{what}");
                let stored = world.admin.audit_bytes(&env(), journal.0, 0, 10).await.unwrap();
                let stored: Vec<&[u8]> = stored.iter().map(|row| &row.bytes[..]).collect();
                let expected: Vec<&[u8]> = records.iter().map(|record| &record.bytes[..]).collect();
                assert_eq!(stored, expected, "{what}");
            }
        }
        let opaque = ask(world, |filter| (filter.kind, filter.limit) = (AuditKind::Opaque, 100)).await;
        let shown = opaque.iter().filter(|row| row.tool.as_deref() == Some("re\0ad")).count();
        assert_eq!(shown, 3, "what can be read is still shown");
    }

    async fn every_kind_of_record_goes_in_and_comes_out(world) {
        let journal = Journal::new();
        let (at, environment) = (second(0), env());
        let events = [
            Event::Start(Start { at, environment: environment.clone(), version: "0.1.0".into(), instance: "one".into(), instance_id: None, after: None, after_at: None, journal_missing: false, cut: 0 }),
            Event::Policy(PolicyChange {
                at, environment: environment.clone(), policy_set: Digest::of(b"p"), catalogue: Digest::of(b"c"), policies: 3,
                rejected: Some("line 3".into()),
            }),
            Event::Admin(AdminAction::new(at, environment.clone(), "reload", "limits".into())),
            Event::Suppressed(Suppressed {
                at, environment: environment.clone(), reason: "no_credential".into(), authenticated: false, principal: None,
                network: "192.0.2.0/24".into(), count: 12,
            }),
            Event::Conflict(Conflict {
                at, environment: environment.clone(), incarnation: Incarnation([7; 16]), seq: 4, leaf: Digest::of(b"l"), found: None,
                beside: false, record: Some("{}".into()), part: 1, parts: 2, again: 0, count: 1, through: 4,
            }),
            Event::Stop(Stop { at, environment }),
        ];
        let records: Vec<_> = (0..).zip(events).map(|(seq, event)| journal.seal(seq, event)).collect();
        assert_eq!(world.proxy.ship(&records).await.unwrap(), Shipped { inserted: 6, opaque: 0 });

        let mut rows = ask(world, |filter| (filter.kind, filter.ascending) = (AuditKind::Any, true)).await;
        let bound = rows.len();
        rows.retain(|row| row.reason.as_deref() != Some("login bound"));
        let bound = bound - rows.len();
        let said: Vec<_> = rows.iter().map(|row| (row.kind.as_str(), row.reason.as_deref(), row.detail.as_deref())).collect();
        assert_eq!(said, [
            ("start", None, Some("0.1.0 on one")),
            ("policy", Some("rejected"), Some("line 3")),
            ("admin", Some("reload"), Some("limits")),
            ("suppressed", Some("no_credential"), Some("12 times")),
            ("conflict", Some("row_in_place"),
                Some("another row stands in the place of record 4 of 07070707070707070707070707070707; this carries the record, part 1 of 2")),
            ("stop", None, None),
        ]);
        let kinds = [AuditKind::Decision, AuditKind::Outcome, AuditKind::Policy, AuditKind::Admin, AuditKind::Suppressed,
            AuditKind::Conflict, AuditKind::Start, AuditKind::Stop, AuditKind::Opaque, AuditKind::Any];
        for kind in kinds {
            let count = ask(world, |filter| filter.kind = kind).await.len();
            let expected = match kind {
                AuditKind::Any => 6 + bound,
                AuditKind::Admin => 1 + bound,
                AuditKind::Decision | AuditKind::Outcome | AuditKind::Opaque => 0,
                _ => 1,
            };
            assert_eq!(count, expected, "{kind:?}");
        }
    }

    async fn what_administrators_change_is_on_record_without_secrets(world) {
        let alice = world.user("alice@example.com").await;
        world.grant(&alice, "files", &["read"]).await;
        world.admin.revoke_grant(&env(), &alice, &parse("files"), None).await.unwrap();
        world.admin.add_key(&env(), &alice, &super::world::key("key00001")).await.unwrap();
        world.proxy.observe_tools(&env(), &parse("files"), &[(parse("read"), Digest::of(b"1"), "long text".into())], true).await.unwrap();

        let mut rows = ask(world, |filter| (filter.kind, filter.ascending) = (AuditKind::Admin, true)).await;
        rows.retain(|row| row.reason.as_deref() != Some("login bound"));
        let said: Vec<_> = rows.iter().map(|row| (row.reason.as_deref().unwrap(), row.unhashed)).collect();
        assert_eq!(said, [
            ("user enrolled", false), ("granted", false), ("revoked", false), ("key made", false), ("tool approved", true),
        ], "what the instance did is covered when its journal is shipped");
        let [revoked] = &rows[2].changes[..] else { panic!("one change") };
        let status = |of: &Option<serde_json::Value>| of.as_ref().unwrap()["status"].clone();
        assert_eq!((status(&revoked.old), status(&revoked.new)), ("verified".into(), "revoked".into()));
        assert_eq!((rows[2].actor.as_deref(), rows[2].claimed_by.as_deref()), (Some("ann@desk"), Some("Ann")));
        assert_eq!(rows[2].email.as_deref(), Some("alice@example.com"));
        assert_eq!((rows[2].user.as_ref(), rows[2].server.as_deref()), (Some(&alice), Some("files")));
        let all = serde_json::to_string(&rows).unwrap();
        for secret in ["key_hash", "0707070707", "long text"] {
            assert!(!all.contains(secret), "{secret} in {all}");
        }
    }

    async fn nobody_can_change_or_remove_a_record(world) {
        let journal = Journal::new();
        world.proxy.ship(&[journal.decision_at(0, now()), journal.decision_at(1, now())]).await.unwrap();
        for statement in [
            "UPDATE schema.audit_trail SET reason = 'x'",
            "DELETE FROM schema.audit_trail",
            "INSERT INTO schema.audit_trail SELECT * FROM schema.audit_trail",
        ] {
            let refused = world.try_by_hand(statement).await.unwrap_err().to_string();
            assert!(refused.contains("append-only") || refused.contains("UNIQUE") || refused.contains("duplicate key"), "{refused}");
        }
        let replace = if world.is_postgres() {
            "TRUNCATE guardian.audit_trail"
        } else {
            "INSERT OR REPLACE INTO audit_trail SELECT * FROM audit_trail"
        };
        let refused = world.try_by_hand(replace).await.unwrap_err().to_string();
        assert!(refused.contains("append-only"), "{refused}");
        assert_eq!(ask(world, |_| ()).await.len(), 2);
    }
}

/// A database that answers a commit before it is on disk would lose records that the journal has forgotten.
#[tokio::test]
async fn records_are_committed_to_disk_whatever_the_database_is_set_to() {
    let world = World::postgres().await;
    let Place::Postgres(server) = &world.place else {
        unreachable!("a Postgres world")
    };
    for statement in [
        "CREATE TABLE public.settings (value text); GRANT INSERT ON public.settings TO PUBLIC",
        "CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN INSERT INTO public.settings VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$",
        "CREATE TRIGGER note AFTER INSERT ON schema.audit_trail FOR EACH STATEMENT EXECUTE FUNCTION public.note()",
    ] {
        world.by_hand(statement).await;
    }
    let journal = Journal::new();
    for (at, (set, expected)) in [("off", "on"), ("local", "on"), ("remote_apply", "remote_apply")]
        .into_iter()
        .enumerate()
    {
        world
            .by_hand(&format!("ALTER ROLE {} SET synchronous_commit = {set}", server.proxy.role))
            .await;
        let proxy = open(&server.proxy.url).await.unwrap();
        let record = journal.decision(at as u64, "read", DecisionKind::Allow);
        assert_eq!(proxy.ship(&[record]).await.unwrap().inserted, 1);
        let seen = format!("DELETE FROM public.settings WHERE value = '{expected}'");
        assert_eq!(world.try_by_hand(&seen).await.unwrap(), 1, "set to {set}");
    }
}

#[test]
fn only_what_may_pass_by_itself_is_transient() {
    let place = || "the database".to_owned();
    assert!(
        StoreError::Unreachable {
            place: place(),
            why: "connection refused".into()
        }
        .is_transient()
    );
    assert!(
        StoreError::Busy {
            place: place(),
            why: "locked".into()
        }
        .is_transient()
    );
    assert!(
        !StoreError::Permission {
            place: place(),
            what: "permission denied".into()
        }
        .is_transient()
    );
    assert!(
        !StoreError::Unstorable {
            place: place(),
            what: "U+0000".into()
        }
        .is_transient()
    );
}

async fn ask(world: &World, set: impl FnOnce(&mut AuditFilter)) -> Vec<AuditRow> {
    let mut filter = AuditFilter::new(env());
    set(&mut filter);
    world.admin.audit(&filter).await.unwrap()
}

fn second(n: u64) -> Timestamp {
    Timestamp::from_micros(at("2026-11-20T10:00:00.000001Z").micros() + i64::try_from(n).unwrap() * 1_000_000)
}

fn now() -> Timestamp {
    Timestamp::from_datetime(time::OffsetDateTime::now_utc())
}

/// A query's description, the numbers of the rows it must return, and its filter.
type Asked<'a> = (&'a str, &'a [u64], &'a dyn Fn(&mut AuditFilter));

/// What is wrong with a row, and the SQL that makes it so.
type Poison = (&'static str, fn(&str) -> String);

/// One incarnation: seals events as the journal does, but without the hash chain.
pub struct Journal(Incarnation);

impl Journal {
    pub fn new() -> Self {
        Self(Incarnation(*Uuid::new_v4().as_bytes()))
    }

    pub fn seal(&self, seq: u64, event: Event) -> SealedRecord {
        let record = Record {
            v: 2,
            incarnation: self.0,
            seq,
            prev: Digest::ZERO,
            event,
        };
        let bytes = Bytes::from(serde_json::to_vec(&record).unwrap());
        SealedRecord {
            incarnation: self.0,
            seq,
            leaf: Digest::of(&bytes),
            head: Digest::of(&seq.to_be_bytes()),
            bytes,
        }
    }

    /// The request id of the decision with this number.
    fn request(&self, seq: u64) -> RequestId {
        RequestId(Uuid::from_u128(u128::from_be_bytes(self.0.0).wrapping_add(seq.into())))
    }

    fn decision(&self, seq: u64, tool: &str, decided: DecisionKind) -> SealedRecord {
        let decision = Decision {
            tool: Some(tool.into()),
            decision: decided,
            at: second(seq),
            ..self.plain_decision(seq)
        };
        self.seal(seq, Event::Decision(Box::new(decision)))
    }

    pub fn decision_at(&self, seq: u64, at: Timestamp) -> SealedRecord {
        self.seal(
            seq,
            Event::Decision(Box::new(Decision {
                at,
                ..self.plain_decision(seq)
            })),
        )
    }

    fn outcome(&self, seq: u64, of: u64) -> SealedRecord {
        let outcome = Outcome {
            at: second(seq),
            environment: env(),
            request: self.request(of),
            kind: OutcomeKind::Done,
            executed: Executed::Yes,
            by: None,
            detail: None,
            status: Some(200),
            latency_us: 1_500,
            bytes: 42,
            recovered: false,
        };
        self.seal(seq, Event::Outcome(outcome))
    }

    fn full_decision(&self, user: &UserId) -> Decision {
        let principal = RecordedPrincipal {
            user: Some(user.clone()),
            client: Some(parse("cursor")),
            key: Some(parse("key00001")),
            ..RecordedPrincipal::new(
                parse("https://issuer"),
                parse("alice"),
                AuthMethod::Key,
                "0011223344556677".into(),
            )
        };
        let grant = GrantUsed::new(parse("5b0f9b0e-0000-4000-8000-000000000001"), 4, 17, 30);
        Decision {
            principal: Some(principal.into()),
            grant: Some(grant),
            detail: Some("all is well".into()),
            policies: vec![parse("readers"), parse("it's \"quoted\"")],
            inputs: Some(InputsKept::Digest),
            inputs_key: Some(1),
            args_digest: Some(Digest::of(b"args")),
            ..self.plain_decision(0)
        }
    }

    fn plain_decision(&self, seq: u64) -> Decision {
        Decision {
            server: Some(parse("files")),
            method: "tools/call".into(),
            tool: Some("read".into()),
            decision: DecisionKind::Allow,
            reason: "permitted".into(),
            scopes_held: vec![parse("read")],
            policy_set: Digest::of(b"policies"),
            catalogue: Digest::of(b"catalogue"),
            source_ip: "192.0.2.7".into(),
            era: Some(Era::Modern),
            took_us: 250,
            ..Decision::new(second(0), env(), self.request(seq))
        }
    }
}
