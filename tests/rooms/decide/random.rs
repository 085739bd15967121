//! Random policies, callers and calls: `decide` against the model and against Cedar on the whole policy set, and
//! `could_permit` against every possible call.

use super::model::{Cond, Expected, Policy, What, Where, Who, expected};
use super::world::*;
use cedar_policy::{Authorizer, Context, Decision, Entities, PolicySet, Request};
use neural_guardian::decide::{Snapshot, Verdict, could_permit};
use neural_guardian::domain::{
    AuthMethod, Call, Catalogue, ClientId, Grant, GrantStatus, Member, Method, PinStatus, Principal, PrincipalKind, RoleName,
    ToolName,
};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Map, Value, json};
use std::net::IpAddr;

const TOOLS: [(&str, &str); 7] = [
    ("s", "plain"),
    ("s", "list"),
    ("s", "hole"),
    ("s", "bare"),
    ("s", "other"),
    ("t", "plain"),
    ("u", "plain"),
];
const NAMED: [&str; 7] = ["s/plain", "s/list", "s/hole", "s/bare", "s/other", "t/plain", "u/plain"];
const GROUPS: [&str; 6] = ["call_tool", "read_only", "destructive", "unannotated", "s", "t"];
const ROLES: [&str; 3] = ["red", "green", "blue"];

fn plain() -> Value {
    properties(
        &[],
        json!({
            "path": { "type": "string" },
            "n": { "type": "integer" },
            "flag": { "type": "boolean" },
            "tags": { "type": "array", "items": { "type": "string" } },
        }),
    )
}

pub fn tools() -> Catalogue {
    let list = properties(
        &["path"],
        json!({ "path": { "type": "array", "items": { "type": "string" } }, "n": { "type": "integer" } }),
    );
    let mut catalogue = catalogue([
        (
            "s",
            vec![
                read_only(tool("plain", plain())),
                destructive(tool("list", list)),
                unannotated(tool(
                    "hole",
                    properties(&[], json!({ "path": {}, "n": { "type": "integer" } })),
                )),
                read_only(tool("bare", json!({ "type": "object" }))),
                destructive(tool(
                    "other",
                    properties(&[], json!({ "n": { "type": "string" }, "flag": { "type": "integer" } })),
                )),
            ],
        ),
        ("t", vec![unannotated(tool("plain", plain()))]),
        ("u", vec![tool("plain", plain())]),
    ]);
    catalogue.servers.get_mut("u").unwrap().enabled = false;
    catalogue
}

fn argument() -> impl Strategy<Value = Cond> {
    prop_oneof![
        select(vec!["path", "n", "flag", "tags", "more"]).prop_map(Cond::Has),
        select(vec!["a", "/", "x"]).prop_map(|part| Cond::Text("path", part)),
        (0..6i64).prop_map(|limit| Cond::Below("n", limit)),
        select(vec!["a", "b"]).prop_map(|item| Cond::Lists("tags", item)),
        Just(Cond::Yes("flag")),
        Just(Cond::Text("more", "x")),
    ]
}

fn fact() -> impl Strategy<Value = Cond> {
    prop_oneof![
        Just(Cond::True),
        (0..24i64).prop_map(Cond::HourBelow),
        (1..8i64).prop_map(Cond::WeekdayFrom),
        select(vec!["plain", "extra", "*"]).prop_map(Cond::Holds),
        Just(Cond::Named),
        select(ROLES.to_vec()).prop_map(Cond::InRole),
        select(vec!["jwt", "key"]).prop_map(Cond::Method),
        select(vec!["@example.com", "@other.org"]).prop_map(Cond::Email),
        Just(Cond::Session("one")),
        Just(Cond::FromTen),
        Just(Cond::Before2027),
        select(GROUPS.to_vec()).prop_map(Cond::InGroup),
        select(vec!["s", "t"]).prop_map(Cond::OnServer),
        Just(Cond::Overflow),
    ]
}

fn cond() -> impl Strategy<Value = Cond> {
    prop_oneof![3 => argument(), 4 => fact()].prop_recursive(3, 8, 2, |inner| {
        prop_oneof![
            inner.clone().prop_map(|cond| Cond::Not(cond.into())),
            (inner.clone(), inner.clone()).prop_map(|(left, right)| Cond::And(left.into(), right.into())),
            (inner.clone(), inner).prop_map(|(left, right)| Cond::Or(left.into(), right.into())),
        ]
    })
}

fn who() -> impl Strategy<Value = Who> {
    prop_oneof![
        3 => Just(Who::Any),
        1 => select(vec!["User", "Service"]).prop_map(Who::Is),
        3 => select(ROLES.to_vec()).prop_map(Who::Role),
        1 => (select(vec!["User", "Service"]), select(ROLES.to_vec())).prop_map(|(kind, role)| Who::KindInRole(kind, role)),
        1 => select(vec!["idp|alice", "idp|bob"]).prop_map(Who::Me),
    ]
}

/// Policies for any action or for action groups; only a policy that names a tool may read that tool's own arguments.
fn what() -> impl Strategy<Value = What> {
    prop_oneof![
        3 => Just(What::Any),
        4 => subsequence(GROUPS.to_vec(), 1..3).prop_map(What::In),
    ]
}

fn policy() -> impl Strategy<Value = Policy> {
    let of_group = (
        what(),
        prop_oneof![3 => Just(Where::Any), 1 => select(vec!["s", "t"]).prop_map(Where::Server)],
        cond(),
    );
    let of_tool = prop_oneof![
        (select(NAMED.to_vec()).prop_map(What::Tool), Just(Where::Any), fact()),
        (subsequence(NAMED.to_vec(), 1..3).prop_map(What::In), Just(Where::Any), fact()),
        (Just(What::Any), select(NAMED.to_vec()).prop_map(Where::Tool), fact()),
    ];
    let scope = prop_oneof![3 => of_group.boxed(), 1 => of_tool.boxed()];
    (any::<bool>(), prop::bool::weighted(0.2), who(), scope).prop_map(|(permit, shadow, principal, (action, resource, when))| {
        Policy {
            id: String::new(),
            permit,
            shadow,
            principal,
            action,
            resource,
            when,
        }
    })
}

/// Some policies, each with an id, and one permit without which most sets would permit nothing.
pub fn policies() -> impl Strategy<Value = Vec<Policy>> {
    prop::collection::vec(policy(), 1..14).prop_map(|mut policies| {
        if let Some(first) = policies.first_mut() {
            (first.permit, first.shadow) = (true, false);
            (first.action, first.resource) = (What::Any, Where::Any);
        }
        for (index, policy) in policies.iter_mut().enumerate() {
            policy.id = format!("p{index:02}");
        }
        policies
    })
}

fn arguments() -> impl Strategy<Value = Option<Value>> {
    let path = prop_oneof![
        select(vec!["a", "a/x", "b", ""]).prop_map(Value::from),
        Just(json!(["a"])),
        Just(json!(3)),
        Just(Value::Null),
    ];
    let n = prop_oneof![4 => (-1..7i64).prop_map(Value::from), 1 => Just(json!("x")), 1 => Just(json!(1.5))];
    let flag = prop_oneof![4 => any::<bool>().prop_map(Value::from), 1 => Just(json!(1))];
    let tags = subsequence(vec!["a", "b", "c"], 0..3).prop_map(|tags| json!(tags));
    let object = (
        prop::option::of(path),
        prop::option::of(n),
        prop::option::of(flag),
        prop::option::of(tags),
        prop::option::weighted(0.1, Just(json!("x"))),
    )
        .prop_map(|(path, n, flag, tags, more)| {
            let pairs = [("path", path), ("n", n), ("flag", flag), ("tags", tags), ("more", more)];
            let present = pairs.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
            Value::Object(present.collect::<Map<_, _>>())
        });
    prop_oneof![9 => object.prop_map(Some), 1 => Just(None), 1 => Just(Some(json!([])))]
}

/// A caller who mostly passes all checks before the policies.
pub fn world() -> impl Strategy<Value = World> {
    let enrolled = prop_oneof![20 => Just(Enrolled::Active), 1 => Just(Enrolled::Absent), 1 => Just(Enrolled::Disabled)];
    let hours = 0..24 * 7 * 60i64;
    let address = select(vec!["10.1.2.3", "192.0.2.1", "::1", "::ffff:11.0.0.1"]);
    let member = (
        subsequence(ROLES.to_vec(), 0..3),
        grants(),
        select(vec![None, Some("a@example.com"), Some("a@other.org")]),
    );
    let session = select(vec![None, Some("one"), Some("two")]);
    (
        enrolled,
        prop::bool::weighted(0.97),
        hours,
        address,
        (caller(), member),
        session,
    )
        .prop_map(
            |(enrolled, fresh, hours, address, (principal, (roles, grants, email)), session)| World {
                now: neural_guardian::domain::Timestamp::from_secs(at("2026-11-18T00:30:00Z").secs() + hours * 3_600),
                source_ip: address.parse::<IpAddr>().unwrap(),
                principal,
                member: Member {
                    email: email.map(str::to_owned),
                    ..super::world::member(&roles, grants)
                },
                enrolled,
                fresh,
                session: session.map(str::to_owned),
            },
        )
}

fn caller() -> impl Strategy<Value = Principal> {
    let kind = prop_oneof![3 => Just(PrincipalKind::User), 1 => Just(PrincipalKind::Service)];
    let key = prop::option::weighted(0.3, subsequence(vec!["plain", "list", "hole", "extra", "*"], 0..4));
    let client = prop::option::of(select(vec!["one", "two"]));
    let method = select(vec![AuthMethod::Jwt, AuthMethod::Key, AuthMethod::Certificate]);
    (kind, key, client, method, subsequence(ROLES.to_vec(), 0..2)).prop_map(|(kind, key, client, method, roles)| Principal {
        method,
        client: client.map(|name| ClientId::parse(name).unwrap()),
        narrowed_to: key.map(scopes),
        roles: roles.into_iter().map(|role| RoleName::parse(role).unwrap()).collect(),
        email: Some("t@example.com".into()),
        ..principal(kind)
    })
}

fn grants() -> impl Strategy<Value = Vec<Grant>> {
    let status = prop_oneof![12 => Just(GrantStatus::Verified), 1 => Just(GrantStatus::Idle),
        1 => Just(GrantStatus::Revoked), 1 => Just(GrantStatus::Unreadable)];
    let held = prop_oneof![3 => Just(vec!["*"]), 1 => Just(vec!["*", "plain"]), 2 => subsequence(vec!["plain", "list", "hole", "bare", "extra"], 0..5)];
    let client = prop::option::weighted(0.3, select(vec!["one", "two"]));
    let expires = prop_oneof![8 => Just(None), 1 => Just(Some("2026-11-18T00:30:00Z")), 1 => Just(Some("2027-06-01T00:00:00Z"))];
    let one = (select(vec!["s", "s", "s", "t", "u"]), status, held, client, expires).prop_map(
        |(server_name, status, held, client, expires)| Grant {
            server: server(server_name),
            status,
            scopes: scopes(held),
            client: client.map(|name| ClientId::parse(name).unwrap()),
            expires_at: expires.map(at),
            ..grant("s", [])
        },
    );
    prop::collection::vec(one, 1..4)
}

pub fn message_to() -> impl Strategy<Value = Call> {
    let call_of_tool =
        (select(TOOLS.to_vec()), arguments()).prop_map(|((server, tool), arguments)| call(server, tool, arguments));
    prop_oneof![
        30 => call_of_tool,
        1 => Just(call("s", "nothing", None)),
        1 => Just(call("nowhere", "plain", None)),
        1 => select(vec![Method::Ping, Method::ToolsList, Method::OpenStream]).prop_map(|method| message("s", method)),
    ]
}

pub fn standing() -> impl Strategy<Value = PinStatus> {
    prop_oneof![
        20 => Just(PinStatus::Pinned),
        1 => Just(PinStatus::Changed),
        1 => Just(PinStatus::Unapproved),
        1 => Just(PinStatus::Gone),
    ]
}

/// A runner with the same cases on every run.
pub fn runner(cases: u32) -> TestRunner {
    let config = Config {
        cases,
        failure_persistence: None,
        max_global_rejects: 100_000,
        ..Config::default()
    };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

pub fn text(policies: &[Policy]) -> String {
    policies.iter().map(Policy::text).collect()
}

pub fn compiled(policies: &[Policy], catalogue: &Catalogue) -> Snapshot {
    let text = text(policies);
    compile(&text, catalogue).unwrap_or_else(|problems| panic!("{problems:#?}\n{text}"))
}

fn told(verdict: &Verdict) -> Expected {
    let (word, basis) = match verdict {
        Verdict::Permit(permit) => ("permit", permit.basis()),
        Verdict::Refuse(refused) => (refused.refusal.reason.code(), &refused.basis),
    };
    Expected {
        verdict: word.to_owned(),
        policies: basis.policies.iter().map(|id| id.as_str().to_owned()).collect(),
        shadow: basis.shadow.iter().map(|id| id.as_str().to_owned()).collect(),
    }
}

#[test]
fn decide_agrees_with_the_model() {
    let facts = prop::collection::vec((world(), message_to()), 60);
    let mut seen = std::collections::BTreeMap::<String, usize>::new();
    let cell = std::cell::RefCell::new(&mut seen);
    let cases = (policies(), prop::collection::vec(standing(), 5), facts);
    runner(70)
        .run(&cases, |(policies, standings, facts)| {
            let mut catalogue = tools();
            let of_s = catalogue.servers.get_mut("s").unwrap();
            of_s.tools
                .values_mut()
                .zip(standings)
                .for_each(|(tool, pin_status)| tool.pin_status = pin_status);
            let snapshot = compiled(&policies, &catalogue);
            for (world, call) in facts {
                let expected = expected(&policies, &catalogue, &world, &call);
                let found = told(&world.decide(&snapshot, call.clone()));
                *cell.borrow_mut().entry(found.verdict.clone()).or_default() += 1;
                prop_assert_eq!(found, expected, "{:?} {:?}\n{}", call, world.principal, text(&policies));
            }
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    for reason in [
        "permit",
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
        "invalid_arguments",
        "no_policy_permits",
        "forbidden_by_policy",
        "policy_error",
    ] {
        assert!(
            seen.get(reason).is_some_and(|count| *count >= 10),
            "too few of {reason}: {seen:?}"
        );
    }
}

/// Cedar's decision on the whole set, with all facts and Cedar's own reading of the JSON.
fn whole(set: &PolicySet, world: &World, server: &str, tool: &str, groups: &[&str], scope: &str, arguments: &Value) -> Expected {
    let kind = match world.principal.kind {
        PrincipalKind::User => "User",
        PrincipalKind::Service => "Service",
    };
    let uid = |kind: &str, id: &str| json!({ "type": format!("Guardian::{kind}"), "id": id });
    let me = uid(kind, "idp|alice");
    let name = format!("{server}/{tool}");
    let roles = world
        .member
        .roles
        .iter()
        .chain(&world.principal.roles)
        .map(|role| uid("Role", role.as_str()));
    let email = world.member.email.as_deref().or(world.principal.email.as_deref()).unwrap();
    let entities = json!([
        { "uid": me, "attrs": { "email": email, "method": world.principal.method.as_str(), "environment": "test" }, "parents": roles.collect::<Vec<_>>() },
        { "uid": uid("Action", &name), "attrs": {}, "parents": groups.iter().map(|group| uid("Action", group)).collect::<Vec<_>>() },
        { "uid": uid("Tool", &name), "attrs": {}, "parents": [uid("Server", server)] },
    ]);
    let at = world.now.to_datetime();
    let mut context = json!({
        "input": arguments,
        "scopes": [scope],
        "scope_named": scope != "*",
        "source_ip": { "__extn": { "fn": "ip", "arg": world.source_ip.to_canonical().to_string() } },
        "now": { "__extn": { "fn": "datetime", "arg": world.now.to_string() } },
        "hour": at.hour(),
        "weekday": at.weekday().number_from_monday(),
    });
    if let Some(session) = &world.session {
        context["session"] = json!(session);
    }
    let entity = |uid: &Value| {
        format!("{}::\"{}\"", uid["type"].as_str().unwrap(), uid["id"].as_str().unwrap())
            .parse()
            .unwrap()
    };
    let request = Request::new(
        entity(&me),
        entity(&uid("Action", &name)),
        entity(&uid("Tool", &name)),
        Context::from_json_value(context, None).unwrap(),
        None,
    );
    let response = Authorizer::new().is_authorized(&request.unwrap(), set, &Entities::from_json_value(entities, None).unwrap());
    let id = |id: &cedar_policy::PolicyId| set.annotation(id, "id").unwrap().to_owned();
    let mut policies: Vec<String> = response.diagnostics().reason().map(id).collect();
    let mut failed: Vec<String> = response
        .diagnostics()
        .errors()
        .map(|cedar_policy::AuthorizationError::PolicyEvaluationError(error)| id(error.policy_id()))
        .collect();
    policies.sort();
    failed.sort();
    let (verdict, policies) = match (failed.is_empty(), response.decision(), policies.is_empty()) {
        (false, _, _) => ("policy_error", failed),
        (true, Decision::Allow, _) => ("permit", policies),
        (true, Decision::Deny, false) => ("forbidden_by_policy", policies),
        (true, Decision::Deny, true) => ("no_policy_permits", policies),
    };
    Expected {
        verdict: verdict.to_owned(),
        policies,
        shadow: Vec::new(),
    }
}

#[test]
fn a_slice_decides_as_the_whole_set() {
    let arguments = (
        prop::option::of(select(vec!["a", "a/x", "b"])),
        prop::option::of(-1..7i64),
        prop::option::of(any::<bool>()),
    );
    let call = (select(vec![("s", "plain"), ("s", "bare"), ("t", "plain")]), arguments);
    let facts = prop::collection::vec((world(), call), 40);
    runner(60)
        .run(&(policies(), facts), |(policies, facts)| {
            let snapshot = compiled(&policies, &tools());
            let enforced: Vec<Policy> = policies.iter().filter(|policy| !policy.shadow).cloned().collect();
            let set: PolicySet = text(&enforced).parse().unwrap();
            for (mut world, ((server, tool), (path, n, flag))) in facts {
                (world.enrolled, world.fresh) = (Enrolled::Active, true);
                (world.principal.narrowed_to, world.principal.client) = (None, None);
                let scope = if flag == Some(true) { tool } else { "*" };
                world.member.grants = vec![grant(server, [scope])];
                let arguments = match tool {
                    "plain" => {
                        let pairs = [
                            ("path", path.map(Value::from)),
                            ("n", n.map(Value::from)),
                            ("flag", flag.map(Value::from)),
                        ];
                        let present = pairs.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
                        Value::Object(present.collect())
                    }
                    _ => json!({}),
                };
                let groups: Vec<&str> = match server {
                    "s" => vec!["call_tool", "s", "read_only"],
                    _ => vec!["call_tool", "t", "unannotated"],
                };
                let expected = whole(&set, &world, server, tool, &groups, scope, &arguments);
                let found = told(&world.decide(&snapshot, call_of(server, tool, &arguments)));
                let found = Expected {
                    shadow: Vec::new(),
                    ..found
                };
                prop_assert_eq!(found, expected, "{} {}\n{}", server, arguments, text(&policies));
            }
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
}

fn call_of(server: &str, tool: &str, arguments: &Value) -> Call {
    call(server, tool, Some(arguments.clone()))
}

#[test]
fn a_tool_that_can_be_called_is_never_hidden() {
    let worlds = prop::collection::vec(world(), 4);
    let calls = prop::collection::vec(arguments(), 25);
    let counts = std::cell::Cell::new((0, 0, 0));
    runner(90)
        .run(&(policies(), worlds, calls), |(policies, worlds, calls)| {
            let snapshot = compiled(&policies, &tools());
            for mut world in worlds {
                world.member.grants = [grant("s", ["*"]), grant("t", ["plain"])].into();
                for (server_name, tool_name) in TOOLS {
                    let server = server(server_name);
                    let tool = snapshot.tool(&server, tool_name).unwrap();
                    let listed = world.with(&snapshot, |facts| could_permit(&server, tool, facts));
                    let permitted = calls.iter().find(|arguments| {
                        let call = call(server_name, tool_name, (*arguments).clone());
                        matches!(world.decide(&snapshot, call), Verdict::Permit(_))
                    });
                    let (hidden, shown, callable) = counts.get();
                    counts.set((
                        hidden + usize::from(!listed),
                        shown + usize::from(listed),
                        callable + usize::from(permitted.is_some()),
                    ));
                    prop_assert!(
                        listed || permitted.is_none(),
                        "{server_name}/{tool_name} {permitted:?}\n{}",
                        text(&policies)
                    );
                }
            }
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    let (hidden, shown, callable) = counts.get();
    assert!(hidden > 200 && shown > 200 && callable > 200, "{:?}", counts.get());
    // `could_permit` is not too generous: of 25 random sets of arguments, one is permitted for most listed tools.
    assert!(callable * 2 > shown, "{:?}", counts.get());
}

#[test]
fn a_list_without_arguments_is_exact() {
    let steady = prop::collection::vec((policy(), fact()), 1..10).prop_map(|policies| {
        let mut policies: Vec<Policy> = policies.into_iter().map(|(policy, when)| Policy { when, ..policy }).collect();
        policies[0].permit = true;
        policies[0].shadow = false;
        policies
            .iter_mut()
            .enumerate()
            .for_each(|(index, policy)| policy.id = format!("p{index:02}"));
        policies
    });
    runner(60)
        .run(&(steady, prop::collection::vec(world(), 6)), |(policies, worlds)| {
            let snapshot = compiled(&policies, &tools());
            for world in worlds {
                let server = server("s");
                let tool = snapshot.tool(&server, ToolName::parse("plain").unwrap().as_str()).unwrap();
                let listed = world.with(&snapshot, |facts| could_permit(&server, tool, facts));
                let permitted = matches!(world.decide(&snapshot, call("s", "plain", None)), Verdict::Permit(_));
                prop_assert_eq!(listed, permitted, "{}", text(&policies));
            }
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
}

/// A JSON value; with `keywords`, one that resembles a schema, though rarely a sensible one.
fn json_value(keywords: bool) -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        select(vec![
            "string",
            "integer",
            "number",
            "object",
            "array",
            "null",
            "#",
            "#/$defs/a",
            "(",
            "^a"
        ])
        .prop_map(Value::from),
        ".{0,6}".prop_map(Value::from),
    ];
    let key = if keywords {
        select(vec![
            "type",
            "properties",
            "required",
            "items",
            "anyOf",
            "allOf",
            "enum",
            "const",
            "$ref",
            "$defs",
            "a",
            "b",
            "pattern",
            "additionalProperties",
            "propertyNames",
            "not",
            "minimum",
            "prefixItems",
            "$id",
            "$schema",
        ])
        .prop_map(str::to_owned)
        .boxed()
    } else {
        prop_oneof![
            select(vec!["a", "b", "path", "__entity", "__extn"]).prop_map(str::to_owned),
            ".{0,4}"
        ]
        .boxed()
    };
    leaf.prop_recursive(6, 40, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..5).prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

#[test]
fn no_schema_and_no_arguments_break_the_judge() {
    let policies = "@id(\"p\") permit(principal, action, resource);\n\
        @id(\"f\") forbid(principal, action, resource) when { context.input has a && context.input.a like \"*x*\" };\n\
        @id(\"g\") forbid(principal, action, resource) when { context.input has b.a && context.input.b.a > 3 };\n\
        @id(\"h\") forbid(principal, action, resource) when { context.input == context.input && context.hour > 20 };\n";
    let schema = prop_oneof![
        json_value(true),
        (json_value(true), json_value(true)).prop_map(|(a, b)| json!({ "type": "object", "properties": { "a": a, "b": b } })),
    ];
    let world = World::new(&[]);
    let verdicts = std::cell::RefCell::new(std::collections::BTreeSet::new());
    runner(300)
        .run(
            &(schema, prop::collection::vec(json_value(false), 6)),
            |(schema, arguments)| {
                let snapshot = compile(policies, &catalogue([("demo", vec![tool("t", schema)])]));
                let snapshot = snapshot.unwrap_or_else(|problems| panic!("{problems:#?}"));
                for arguments in arguments {
                    let verdict = world.decide(&snapshot, call("demo", "t", Some(arguments)));
                    verdicts.borrow_mut().insert(shown(&verdict));
                }
                Ok(())
            },
        )
        .unwrap_or_else(|error| panic!("{error}"));
    let verdicts = verdicts.into_inner();
    assert!(
        verdicts.contains("permit p") && verdicts.contains("policy_error"),
        "{verdicts:?}"
    );
}
