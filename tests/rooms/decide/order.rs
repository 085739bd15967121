//! Single decisions: which reason, policies and text they carry, and that no secret is among them.

use super::world::*;
use neural_guardian::decide::{PolicySource, Snapshot, Verdict, could_permit, forbid_names, missing_forbids};
use neural_guardian::domain::{Call, GrantStatus, Method, PinStatus, Reason, Refusal, ToolClass};
use serde_json::{Value, json};

const OPEN: &str = "@id(\"open\") permit(principal, action, resource);\n";

fn snapshot(policies: &str) -> Snapshot {
    compile(&format!("{OPEN}{policies}"), &catalogue([("demo", demo())])).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

fn refusal(world: &World, snapshot: &Snapshot, call: Call) -> Refusal {
    match world.decide(snapshot, call) {
        Verdict::Refuse(refused) => refused.refusal,
        Verdict::Permit(_) => panic!("permitted"),
    }
}

fn shadow(verdict: &Verdict) -> Vec<&str> {
    let basis = match verdict {
        Verdict::Permit(permit) => permit.basis(),
        Verdict::Refuse(refused) => &refused.basis,
    };
    basis.shadow.iter().map(|policy| policy.as_str()).collect()
}

#[test]
fn a_permit_carries_what_it_rests_on() {
    let snapshot = snapshot("@id(\"also\") permit(principal, action in Guardian::Action::\"read_only\", resource);");
    let mut world = World::new(&[]);
    world.member.grants = vec![grant("demo", ["read_file", "query"])];
    let call = call("demo", "read_file", Some(json!({ "path": "x" })));
    let Verdict::Permit(permit) = world.decide(&snapshot, call) else {
        panic!("refused");
    };
    let basis = permit.basis();
    let names = |names: Vec<&str>| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    assert_eq!(
        basis.policies.iter().map(|id| id.to_string()).collect::<Vec<_>>(),
        names(vec!["open", "also"])
    );
    assert_eq!(
        basis.scopes.iter().map(|scope| scope.to_string()).collect::<Vec<_>>(),
        names(vec!["query", "read_file"])
    );
    let grant = basis.grant.as_ref().unwrap();
    assert_eq!((grant.id.as_str(), grant.version, grant.seq, grant.age_ms), ("g1", 3, 7, 12));
    assert_eq!(
        (basis.policy_set, basis.catalogue),
        (snapshot.policy_set(), snapshot.catalogue())
    );
    assert_eq!(permit.call().tool().unwrap().as_str(), "read_file");
}

#[test]
fn a_forbid_that_changed_holds_beside_its_earlier_form() {
    let forbid = |path: &str| {
        let text = format!(
            "@id(\"no\") forbid(principal, action == Guardian::Action::\"demo/read_file\", resource)\n\
             when {{ context.input.path like \"{path}\" }};"
        );
        let file = "no.cedar".to_owned();
        PolicySource { file, text }
    };
    let open = PolicySource {
        file: "open.cedar".to_owned(),
        text: OPEN.to_owned(),
    };
    let (old, new) = ([open.clone(), forbid("/etc/*")], [open, forbid("*/shadow")]);
    let kept = missing_forbids(&old, &new);
    assert_eq!(
        forbid_names(&kept).iter().map(|name| name.as_str()).collect::<Vec<_>>(),
        ["no"]
    );
    let catalogue = catalogue([("demo", demo())]);
    let snapshot = Snapshot::compile_keeping(&new, &kept, &catalogue, &settings()).unwrap();

    let verdict = |path: &str| World::new(&[]).verdict(&snapshot, "read_file", json!({ "path": path }));
    assert_eq!(verdict("/etc/hosts"), "forbidden_by_policy no");
    assert_eq!(verdict("/srv/shadow"), "forbidden_by_policy no");
    assert_eq!(verdict("/etc/shadow"), "forbidden_by_policy no", "named once");
    assert_eq!(verdict("/srv/a"), "permit open");
    let without = Snapshot::compile(&new, &catalogue, &settings()).unwrap();
    assert_ne!(snapshot.policy_set(), without.policy_set());
    assert_eq!(missing_forbids(&[&new[..], &kept].concat(), &old), [new[1].clone()]);
}

#[test]
fn other_methods_need_a_grant_and_no_policy() {
    let snapshot = compile(
        "@id(\"no\") permit(principal, action, resource) when { false };",
        &catalogue([("demo", demo())]),
    )
    .unwrap_or_else(|p| panic!("{p:#?}"));
    let world = World::new(&[]);
    for method in [
        Method::Initialize,
        Method::Ping,
        Method::ToolsList,
        Method::Notification,
        Method::OpenStream,
        Method::EndSession,
    ] {
        let verdict = world.decide(&snapshot, message("demo", method));
        assert_eq!(shown(&verdict), "permit", "{method:?}");
    }
    let mut without = world.clone();
    without.member.grants.clear();
    assert_eq!(
        refusal(&without, &snapshot, message("demo", Method::Ping)).reason,
        Reason::NoGrant
    );
    assert_eq!(
        refusal(&world, &snapshot, message("demo", Method::ToolsCall)).reason,
        Reason::UnknownTool
    );
}

#[test]
fn a_missing_scope_names_all_that_are_needed() {
    let mut tools = demo();
    tools[1].scopes = ["files", "files.read"]
        .map(|scope| neural_guardian::domain::Scope::parse(scope).unwrap())
        .to_vec();
    let snapshot = compile(OPEN, &catalogue([("demo", tools)])).unwrap_or_else(|problems| panic!("{problems:#?}"));
    let mut world = World::new(&[]);
    let read = || call("demo", "read_file", Some(json!({ "path": "x" })));
    for (held, covered) in [
        (vec!["files"], false),
        (vec!["read_file"], false),
        (vec!["files", "files.read"], true),
        (vec!["*"], true),
    ] {
        world.member.grants[0].scopes = scopes(held.clone());
        if covered {
            assert_eq!(shown(&world.decide(&snapshot, read())), "permit open");
        } else {
            let refusal = refusal(&world, &snapshot, read());
            assert_eq!(refusal.reason, Reason::MissingScope);
            assert_eq!(
                refusal.scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>(),
                ["files", "files.read"],
                "{held:?}"
            );
        }
    }
}

#[test]
fn a_tool_whose_scopes_were_left_empty_needs_its_own_name() {
    let mut tools = demo();
    tools[1].scopes.clear();
    let snapshot = compile(OPEN, &catalogue([("demo", tools)])).unwrap_or_else(|problems| panic!("{problems:#?}"));
    let mut world = World::new(&[]);
    world.member.grants[0].scopes = scopes(["query"]);
    let refusal = refusal(&world, &snapshot, call("demo", "read_file", Some(json!({ "path": "x" }))));
    assert_eq!(
        (refusal.reason, refusal.scopes[0].as_str()),
        (Reason::MissingScope, "read_file")
    );
}

#[test]
fn a_credential_narrows_and_never_widens() {
    let snapshot = snapshot("");
    let mut world = World::new(&[]);
    let can = |world: &World, tool: &str| {
        let arguments = if tool == "query" {
            json!({ "sql": "x" })
        } else {
            json!({ "path": "x" })
        };
        matches!(
            world.decide(&snapshot, call("demo", tool, Some(arguments))),
            Verdict::Permit(_)
        )
    };
    for (granted, key, read, query) in [
        (vec!["*"], Some(vec!["read_file"]), true, false),
        (vec!["read_file"], Some(vec!["*"]), true, false),
        (vec!["read_file"], Some(vec!["query"]), false, false),
        (vec!["read_file", "query"], Some(vec![]), false, false),
        (vec!["read_file", "query"], None, true, true),
        (vec!["*"], Some(vec!["*"]), true, true),
    ] {
        world.member.grants[0].scopes = scopes(granted);
        world.principal.narrowed_to = key.map(scopes);
        assert_eq!(
            (can(&world, "read_file"), can(&world, "query")),
            (read, query),
            "{:?}",
            world.principal.narrowed_to
        );
    }
}

#[test]
fn a_grant_for_the_client_goes_before_the_grant_for_any() {
    let snapshot = snapshot("");
    let mut world = World::new(&[]);
    let client = neural_guardian::domain::ClientId::parse("claude").unwrap();
    let mine = neural_guardian::domain::Grant {
        client: Some(client.clone()),
        status: GrantStatus::Revoked,
        ..grant("demo", ["*"])
    };
    world.member.grants.push(mine);
    let list = || call("demo", "list_files", None);
    assert_eq!(shown(&world.decide(&snapshot, list())), "permit open");
    world.principal.client = Some(client);
    assert_eq!(refusal(&world, &snapshot, list()).reason, Reason::GrantRevoked);
    world.member.grants.remove(0);
    world.principal.client = None;
    assert_eq!(refusal(&world, &snapshot, list()).reason, Reason::NoGrant);
}

#[test]
fn a_grant_ends_at_its_moment() {
    let snapshot = snapshot("");
    let mut world = World::new(&[]);
    world.member.grants[0].expires_at = Some(at("2026-11-18T12:00:00Z"));
    world.now = at("2026-11-18T11:59:59.999999Z");
    assert_eq!(
        shown(&world.decide(&snapshot, call("demo", "list_files", None))),
        "permit open"
    );
    world.now = at("2026-11-18T12:00:00Z");
    assert_eq!(
        refusal(&world, &snapshot, call("demo", "list_files", None)).reason,
        Reason::GrantExpired
    );
}

#[test]
fn each_call_is_judged_by_its_own_address_hour_and_session() {
    let snapshot = snapshot(
        "@id(\"net\") forbid(principal, action, resource) unless { context.source_ip.isInRange(ip(\"10.0.0.0/8\")) };\n\
         @id(\"late\") forbid(principal, action, resource) when { context.hour == 3 };\n\
         @id(\"mine\") forbid(principal, action, resource) when { context has session && context.session == \"other\" };\n",
    );
    let world = World::new(&[]);
    let cedar_principal = neural_guardian::decide::CedarPrincipal::new(&world.principal, Some(&world.member), &environment());
    let verdict = |address: &str, now: &str, session: Option<&str>| {
        world.with(&snapshot, |input| {
            let input = neural_guardian::decide::DecisionInput {
                cedar_principal: &cedar_principal,
                source_ip: address.parse().unwrap(),
                now: at(now),
                session,
                ..*input
            };
            shown(&neural_guardian::decide::decide(call("demo", "list_files", None), &input))
        })
    };
    for _ in 0..2 {
        assert_eq!(verdict("10.0.0.1", "2026-11-18T12:00:00Z", None), "permit open");
        assert_eq!(verdict("11.0.0.1", "2026-11-18T12:00:00Z", None), "forbidden_by_policy net");
        assert_eq!(verdict("::ffff:10.0.0.1", "2026-11-18T12:00:00Z", Some("one")), "permit open");
        assert_eq!(
            verdict("2001:db8::1", "2026-11-18T12:00:00Z", None),
            "forbidden_by_policy net"
        );
        assert_eq!(verdict("10.0.0.1", "2026-11-18T03:59:59Z", None), "forbidden_by_policy late");
        assert_eq!(
            verdict("10.0.0.1", "2026-11-18T12:00:00Z", Some("other")),
            "forbidden_by_policy mine"
        );
    }
}

#[test]
fn a_forbid_wins_and_says_why() {
    let snapshot = snapshot(
        "@id(\"one\") forbid(principal, action == Guardian::Action::\"demo/query\", resource);\n\
         @id(\"two\") @reason(\"Not today.\") @remedy(\"Come back.\") forbid(principal, action, resource) when { context.weekday == 3 };\n\
         @id(\"three\") @reason(\"Never.\") forbid(principal, action in Guardian::Action::\"demo\", resource);\n",
    );
    let refusal = refusal(
        &World::new(&[]),
        &snapshot,
        call("demo", "query", Some(json!({ "sql": "x" }))),
    );
    assert_eq!(refusal.reason, Reason::ForbiddenByPolicy);
    assert_eq!(
        refusal.policies.iter().map(|id| id.as_str()).collect::<Vec<_>>(),
        ["one", "two", "three"]
    );
    assert_eq!(
        (refusal.policy_message.as_deref(), refusal.remedy.as_deref()),
        (Some("Not today."), Some("Come back."))
    );
}

#[test]
fn a_forbid_that_errs_refuses() {
    let snapshot = snapshot(
        "@id(\"guard\") forbid(principal, action == Guardian::Action::\"demo/count\", resource) when { context.input.to + 1 > 100 };\n",
    );
    let world = World::new(&[]);
    let count = |to: i64| call("demo", "count", Some(json!({ "to": to })));
    assert_eq!(shown(&world.decide(&snapshot, count(3))), "permit open");
    assert_eq!(shown(&world.decide(&snapshot, count(100))), "forbidden_by_policy guard");
    let refusal = refusal(&world, &snapshot, count(i64::MAX));
    assert_eq!(refusal.reason, Reason::PolicyError);
    assert_eq!(refusal.errors, ["policy `guard`: its arithmetic overflows"]);
    assert!(!format!("{refusal:?}").contains("9223372036854775807"));
}

#[test]
fn arguments_are_data_and_never_policy() {
    let snapshot = snapshot(
        "@id(\"guard\") forbid(principal, action, resource) when { context.input has sql && !(context.input.sql like \"SELECT *\") };\n\
         @id(\"role\") forbid(principal, action, resource) unless { principal in Guardian::Role::\"analyst\" };\n",
    );
    let world = World::new(&["analyst"]);
    let verdict = |arguments: Value| world.verdict(&snapshot, "query", arguments);
    assert_eq!(verdict(json!({ "sql": "SELECT 1" })), "permit open");
    assert_eq!(verdict(json!({ "sql": "x\" || true || \"" })), "forbidden_by_policy guard");
    assert_eq!(
        verdict(json!({ "sql": { "__extn": { "fn": "ip", "arg": "10.0.0.1" } } })),
        "invalid_arguments"
    );
    let outsider = World::new(&[]);
    let entity = json!({ "sql": "SELECT 1", "__entity": { "type": "Guardian::Role", "id": "analyst" } });
    assert_eq!(outsider.verdict(&snapshot, "query", entity), "forbidden_by_policy role");
}

#[test]
fn arguments_that_break_the_schema_are_refused_before_policies() {
    let snapshot = snapshot("@id(\"never\") forbid(principal, action, resource);");
    let world = World::new(&[]);
    let detail = |tool: &str, arguments: Option<Value>| {
        let refusal = refusal(&world, &snapshot, call("demo", tool, arguments));
        (refusal.reason == Reason::InvalidArguments).then(|| refusal.detail.unwrap())
    };
    assert_eq!(detail("read_file", None).as_deref(), Some("argument `path` is missing"));
    assert_eq!(
        detail("read_file", Some(json!({ "path": 3 }))).as_deref(),
        Some("argument `path` must be a string, not a number")
    );
    assert_eq!(
        detail("list_files", Some(json!([]))).as_deref(),
        Some("the arguments must be an object, not an array")
    );
    assert_eq!(detail("list_files", None), None);
}

#[test]
fn a_number_that_a_policy_reads_is_exact_or_refused() {
    let guard =
        "@id(\"guard\") forbid(principal, action == Guardian::Action::\"demo/count\", resource) when { context.input.to > 100 };";
    let world = World::new(&[]);
    let odd = || json!({ "to": 1.0, "delay_ms": 1e20 });
    assert_eq!(world.verdict(&snapshot(""), "count", odd()), "permit open");
    let refusal = refusal(&world, &snapshot(guard), call("demo", "count", Some(odd())));
    assert_eq!(refusal.reason, Reason::InvalidArguments);
    assert_eq!(
        refusal.detail.as_deref(),
        Some("argument `to` is not written as a whole number of at most 64 bits")
    );
    // No policy reads `delay_ms`.
    assert_eq!(
        world.verdict(&snapshot(guard), "count", json!({ "to": 1, "delay_ms": 1e20 })),
        "permit open"
    );
}

#[test]
fn shadow_policies_are_named_and_not_obeyed() {
    let shadows = "@id(\"deny\") @mode(\"shadow\") forbid(principal, action in Guardian::Action::\"destructive\", resource);\n\
         @id(\"deny-late\") @mode(\"shadow\") forbid(principal, action, resource) when { context.hour > 20 };\n\
         @id(\"allow\") @mode(\"shadow\") permit(principal, action == Guardian::Action::\"demo/query\", resource);\n";
    let world = World::new(&[]);
    let delete = || call("demo", "delete_file", Some(json!({ "path": "x" })));
    let query = || call("demo", "query", Some(json!({ "sql": "x" })));

    let open = snapshot(shadows);
    let verdict = world.decide(&open, delete());
    assert_eq!((shown(&verdict).as_str(), shadow(&verdict)), ("permit open", vec!["deny"]));
    let verdict = world.decide(&open, query());
    assert_eq!((shown(&verdict).as_str(), shadow(&verdict)), ("permit open", vec![]));

    let closed = compile(
        &format!("@id(\"none\") permit(principal, action, resource) when {{ context.hour > 22 }};\n{shadows}"),
        &catalogue([("demo", demo())]),
    );
    let closed = closed.unwrap_or_else(|problems| panic!("{problems:#?}"));
    let verdict = world.decide(&closed, query());
    assert_eq!(
        (shown(&verdict).as_str(), shadow(&verdict)),
        ("no_policy_permits", vec!["allow"])
    );
    let verdict = world.decide(&closed, delete());
    assert_eq!((shown(&verdict).as_str(), shadow(&verdict)), ("no_policy_permits", vec![]));
}

#[test]
fn a_list_shows_what_could_be_called() {
    let snapshot = compile(
        "@id(\"small\") permit(principal, action == Guardian::Action::\"demo/count\", resource) when { context.input.to < 10 };\n\
         @id(\"read\") permit(principal in Guardian::Role::\"reader\", action in Guardian::Action::\"read_only\", resource);\n\
         @id(\"hours\") forbid(principal, action == Guardian::Action::\"demo/query\", resource) when { context.hour < 13 };\n",
        &catalogue([("demo", demo())]),
    )
    .unwrap_or_else(|problems| panic!("{problems:#?}"));
    let listed = |world: &World| {
        let demo = server("demo");
        let names = super::world::demo().into_iter().map(|tool| tool.name);
        world.with(&snapshot, |input| {
            let shown = names.filter(|name| could_permit(&demo, snapshot.tool(&demo, name.as_str()).unwrap(), input));
            shown.map(|name| name.to_string()).collect::<Vec<_>>()
        })
    };
    assert_eq!(listed(&World::new(&[])), ["count"]);
    assert_eq!(listed(&World::new(&["reader"])), ["list_files", "read_file", "count"]);
    let mut later = World::new(&["reader"]);
    later.now = at("2026-11-18T13:00:00Z");
    assert_eq!(listed(&later), ["list_files", "read_file", "query", "count"]);
    later.member.grants[0].scopes = scopes(["query"]);
    assert_eq!(listed(&later), ["query"]);
    later.fresh = false;
    assert!(listed(&later).is_empty());
}

#[test]
fn one_caller_serves_many_snapshots_and_tools() {
    let mut tools: Vec<_> = (0..80)
        .map(|index| tool(&format!("t{index}"), json!({ "type": "object" })))
        .collect();
    let allow = compile(OPEN, &catalogue([("demo", tools.clone())])).unwrap_or_else(|problems| panic!("{problems:#?}"));
    tools.iter_mut().for_each(|tool| tool.class = ToolClass::Destructive);
    let policies = format!("{OPEN}@id(\"no\") forbid(principal, action in Guardian::Action::\"destructive\", resource);");
    let deny = compile(&policies, &catalogue([("demo", tools)])).unwrap_or_else(|problems| panic!("{problems:#?}"));
    let world = World::new(&[]);
    let cedar_principal = neural_guardian::decide::CedarPrincipal::new(&world.principal, Some(&world.member), &environment());
    for round in 0..3 {
        for index in 0..80 {
            for (snapshot, expected) in [(&allow, "permit open"), (&deny, "forbidden_by_policy no")] {
                let verdict = world.with(snapshot, |input| {
                    let input = neural_guardian::decide::DecisionInput {
                        cedar_principal: &cedar_principal,
                        ..*input
                    };
                    neural_guardian::decide::decide(call("demo", &format!("t{index}"), None), &input)
                });
                assert_eq!(shown(&verdict), expected, "{round} {index}");
            }
        }
    }
}

#[test]
fn a_tool_that_is_gone_or_not_pinned_is_refused_before_its_arguments() {
    let world = World::new(&[]);
    for (pin_status, reason) in [
        (PinStatus::Changed, Reason::DefinitionChanged),
        (PinStatus::Unapproved, Reason::ToolNotApproved),
        (PinStatus::Gone, Reason::UnknownTool),
    ] {
        let mut tools = demo();
        tools[1].pin_status = pin_status;
        let snapshot = compile(OPEN, &catalogue([("demo", tools)])).unwrap_or_else(|problems| panic!("{problems:#?}"));
        assert_eq!(refusal(&world, &snapshot, call("demo", "read_file", None)).reason, reason);
        let demo = server("demo");
        let listed = world.with(&snapshot, |input| {
            could_permit(&demo, snapshot.tool(&demo, "read_file").unwrap(), input)
        });
        assert!(!listed);
    }
}
