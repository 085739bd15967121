//! Decisions about resources and prompts, against Cedar on the whole policy set; and the lists of them, against every
//! possible call.

use super::world::*;
use cedar_policy::{Authorizer, Context, Decision, Entities, PolicySet, Request};
use neural_guardian::decide::{Listing, Snapshot, Verdict};
use neural_guardian::domain::{Call, Catalogue, Method, PrincipalKind, PromptName, ResourceUri};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Value, json};

const ROLES: [&str; 2] = ["red", "green"];
const URIS: [&str; 4] = ["x:a/1", "x:a/2", "x:b", "x:named"];
const PROMPTS: [&str; 2] = ["named", "other"];

fn servers() -> Catalogue {
    let plain = properties(&[], json!({ "env": { "type": "string" }, "n": { "type": "integer" } }));
    catalogue([("s", vec![read_only(tool("plain", plain))]), ("t", vec![])])
}

/// Every set of arguments that the policies below can distinguish.
fn arguments() -> Vec<Value> {
    let mut all = Vec::new();
    for env in [None, Some("prod"), Some("dev")] {
        for n in [None, Some("3")] {
            let pairs = [("env", env), ("n", n)];
            let present = pairs
                .into_iter()
                .filter_map(|(name, value)| Some((name.to_owned(), value?.into())));
            all.push(Value::Object(present.collect()));
        }
    }
    all
}

fn cond() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("true"),
        Just("context.hour < 12"),
        Just("context.scopes.contains(\"*\")"),
        Just("principal in Guardian::Role::\"red\""),
        Just("context has session && context.session == \"one\""),
        Just("resource in Guardian::Server::\"s\""),
        Just("resource is Guardian::Resource && resource.uri like \"x:a/*\""),
        Just("resource is Guardian::Resource && resource.uri == \"x:b\""),
        Just("resource is Guardian::Prompt && resource.name == \"named\""),
        Just("resource is Guardian::Tool"),
        Just("action == Guardian::Action::\"get_prompt\""),
        Just("action in [Guardian::Action::\"read_resource\", Guardian::Action::\"read_only\"]"),
        Just("context.input has env && context.input.env == \"prod\""),
        Just("context.input has env"),
        Just("context.hour + 9223372036854775807 > 0"),
    ]
    .prop_map(str::to_owned);
    leaf.prop_recursive(2, 6, 2, |inner| {
        prop_oneof![
            inner.clone().prop_map(|cond| format!("!({cond})")),
            (inner.clone(), inner.clone()).prop_map(|(left, right)| format!("({left}) && ({right})")),
            (inner.clone(), inner).prop_map(|(left, right)| format!("({left}) || ({right})")),
        ]
    })
}

fn policy() -> impl Strategy<Value = String> {
    let principal = select(vec![
        "principal",
        "principal",
        "principal in Guardian::Role::\"red\"",
        "principal in Guardian::Role::\"green\"",
        "principal is Guardian::Service",
        "principal == Guardian::User::\"idp|alice\"",
    ]);
    let action = select(vec![
        "action",
        "action",
        "action == Guardian::Action::\"read_resource\"",
        "action == Guardian::Action::\"get_prompt\"",
        "action in [Guardian::Action::\"read_resource\", Guardian::Action::\"get_prompt\"]",
        "action in [Guardian::Action::\"get_prompt\", Guardian::Action::\"call_tool\"]",
        "action in Guardian::Action::\"s\"",
    ]);
    let resource = select(vec![
        "resource",
        "resource",
        "resource in Guardian::Server::\"s\"",
        "resource in Guardian::Server::\"t\"",
        "resource is Guardian::Resource",
        "resource is Guardian::Prompt in Guardian::Server::\"s\"",
        "resource == Guardian::Resource::\"s/x:named\"",
        "resource == Guardian::Resource::\"t/x:a/1\"",
        "resource in Guardian::Prompt::\"s/named\"",
    ]);
    (prop::bool::weighted(0.7), principal, action, resource, cond()).prop_map(|(permit, principal, action, resource, cond)| {
        let effect = if permit { "permit" } else { "forbid" };
        format!("{effect}({principal}, {action}, {resource}) when {{ {cond} }};\n")
    })
}

/// Policies with ids, and one for everything, without which most sets would permit nothing.
fn policies() -> impl Strategy<Value = String> {
    (prop::collection::vec(policy(), 1..10), cond()).prop_map(|(policies, cond)| {
        let first = format!("permit(principal, action, resource) when {{ {cond} }};\n");
        let all = std::iter::once(&first).chain(&policies).enumerate();
        all.map(|(index, text)| format!("@id(\"p{index:02}\") {text}")).collect()
    })
}

fn world() -> impl Strategy<Value = World> {
    let scopes = select(vec![
        vec!["*"],
        vec!["*"],
        vec!["*"],
        vec!["resources"],
        vec!["prompts"],
        vec!["resources", "prompts"],
    ]);
    let roles = prop::sample::subsequence(ROLES.to_vec(), 0..=2);
    (scopes, roles, 0..24i64, any::<bool>(), select(vec![None, Some("one")])).prop_map(
        |(scopes, roles, hour, service, session)| {
            let mut world = World::new(&roles);
            world.now = neural_guardian::domain::Timestamp::from_secs(at("2026-11-18T00:30:00Z").secs() + hour * 3_600);
            world.member.grants = ["s", "t"]
                .map(|server| {
                    let mut grant = grant(server, []);
                    grant.scopes = super::world::scopes(scopes.clone());
                    grant
                })
                .into();
            if service {
                world.principal = principal(PrincipalKind::Service);
            }
            world.session = session.map(str::to_owned);
            world
        },
    )
}

fn runner(cases: u32) -> TestRunner {
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

fn compiled(text: &str) -> Snapshot {
    compile(text, &servers()).unwrap_or_else(|problems| panic!("{problems:#?}\n{text}"))
}

fn permits(world: &World, snapshot: &Snapshot, call: Call) -> bool {
    matches!(world.decide(snapshot, call), Verdict::Permit(_))
}

/// Cedar's decision on the whole set, with all facts and Cedar's own reading of the JSON.
fn whole(set: &PolicySet, world: &World, server: &str, kind: &str, name: &str, input: &Value) -> String {
    let scopes: Vec<&str> = world.member.grants[0].scopes.iter().map(|scope| scope.as_str()).collect();
    let (action, attribute, needed) = match kind {
        "Resource" => ("read_resource", "uri", "resources"),
        _ => ("get_prompt", "name", "prompts"),
    };
    if !scopes.iter().any(|scope| *scope == "*" || *scope == needed) {
        return "missing_scope".to_owned();
    }
    let me = match world.principal.kind {
        PrincipalKind::User => "User",
        PrincipalKind::Service => "Service",
    };
    let uid = |kind: &str, id: &str| json!({ "type": format!("Guardian::{kind}"), "id": id });
    let (me, thing) = (uid(me, "idp|alice"), uid(kind, &format!("{server}/{name}")));
    let roles: Vec<Value> = world.member.roles.iter().map(|role| uid("Role", role.as_str())).collect();
    let entities = json!([
        { "uid": me, "attrs": { "method": "jwt", "environment": "test" }, "parents": roles },
        { "uid": uid("Action", action), "attrs": {}, "parents": [] },
        { "uid": thing, "attrs": { attribute: name }, "parents": [uid("Server", server)] },
    ]);
    let at = world.now.to_datetime();
    let mut context = json!({
        "input": input,
        "scopes": scopes,
        "source_ip": { "__extn": { "fn": "ip", "arg": world.source_ip.to_string() } },
        "now": { "__extn": { "fn": "datetime", "arg": world.now.to_string() } },
        "hour": at.hour(),
        "weekday": at.weekday().number_from_monday(),
    });
    if let Some(session) = &world.session {
        context["session"] = json!(session);
    }
    let entity = |uid: &Value| {
        let text = format!("{}::\"{}\"", uid["type"].as_str().unwrap(), uid["id"].as_str().unwrap());
        text.parse().unwrap()
    };
    let context = Context::from_json_value(context, None).unwrap();
    let request = Request::new(entity(&me), entity(&uid("Action", action)), entity(&thing), context, None).unwrap();
    let entities = Entities::from_json_value(entities, None).unwrap();
    let response = Authorizer::new().is_authorized(&request, set, &entities);
    let name_of = |id: &cedar_policy::PolicyId| set.annotation(id, "id").unwrap().to_owned();
    let mut because: Vec<String> = response.diagnostics().reason().map(name_of).collect();
    let errors = response.diagnostics().errors();
    let mut failed: Vec<String> = errors
        .map(|cedar_policy::AuthorizationError::PolicyEvaluationError(error)| name_of(error.policy_id()))
        .collect();
    because.sort();
    failed.sort();
    let (word, policies) = match (failed.is_empty(), response.decision(), because.is_empty()) {
        (false, _, _) => ("policy_error", failed),
        (true, Decision::Allow, _) => ("permit", because),
        (true, Decision::Deny, false) => ("forbidden_by_policy", because),
        (true, Decision::Deny, true) => ("no_policy_permits", because),
    };
    std::iter::once(word.to_owned()).chain(policies).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_slice_decides_on_resources_and_prompts_as_the_whole_set() {
    let seen = std::cell::RefCell::new(std::collections::BTreeMap::<String, usize>::new());
    runner(60)
        .run(&(policies(), prop::collection::vec(world(), 4)), |(text, worlds)| {
            let snapshot = compiled(&text);
            let set: PolicySet = text.parse().unwrap();
            for world in worlds {
                for server in ["s", "t"] {
                    for uri in URIS {
                        let found = shown(&world.decide(&snapshot, about(server, Method::ReadResource, uri)));
                        let expected = whole(&set, &world, server, "Resource", uri, &json!({}));
                        *seen
                            .borrow_mut()
                            .entry(found.split(' ').next().unwrap().to_owned())
                            .or_default() += 1;
                        prop_assert_eq!(found, expected, "{}/{}\n{}", server, uri, &text);
                    }
                    for (prompt, input) in PROMPTS
                        .iter()
                        .flat_map(|prompt| arguments().into_iter().map(move |input| (prompt, input)))
                    {
                        let found = shown(&world.decide(&snapshot, get_prompt(server, prompt, Some(input.clone()))));
                        let expected = whole(&set, &world, server, "Prompt", prompt, &input);
                        prop_assert_eq!(found, expected, "{}/{} {}\n{}", server, prompt, input, &text);
                    }
                }
            }
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    for word in [
        "permit",
        "forbidden_by_policy",
        "no_policy_permits",
        "policy_error",
        "missing_scope",
    ] {
        assert!(seen.borrow().get(word).is_some_and(|count| *count > 50), "{word}: {seen:?}");
    }
}

#[test]
fn lists_show_the_resources_that_can_be_read_and_hide_no_prompt_that_can_be_had() {
    let counts = std::cell::Cell::new((0, 0, 0, 0));
    runner(60)
        .run(&(policies(), prop::collection::vec(world(), 4)), |(text, worlds)| {
            let snapshot = compiled(&text);
            for world in worlds {
                for server_name in ["s", "t"] {
                    let server = server(server_name);
                    let listed =
                        |look: &dyn Fn(&Listing<'_>) -> bool| world.with(&snapshot, |facts| look(&Listing::new(&server, facts)));
                    let readable: Vec<bool> = URIS
                        .iter()
                        .map(|uri| permits(&world, &snapshot, about(server_name, Method::ReadResource, uri)))
                        .collect();
                    let shown = world.with(&snapshot, |facts| {
                        let listing = Listing::new(&server, facts);
                        URIS.map(|uri| listing.resource(&ResourceUri::parse(uri).unwrap()))
                    });
                    prop_assert_eq!(&shown[..], &readable[..], "{}\n{}", server_name, &text);
                    let template = listed(&|listing| listing.template());
                    prop_assert!(template || !readable.contains(&true), "{}\n{}", server_name, &text);
                    for prompt in PROMPTS {
                        let name = PromptName::parse(prompt).unwrap();
                        let had = arguments()
                            .into_iter()
                            .any(|input| permits(&world, &snapshot, get_prompt(server_name, prompt, Some(input))));
                        let shown = listed(&|listing| listing.prompt(&name));
                        prop_assert!(shown || !had, "{}/{}\n{}", server_name, prompt, &text);
                        let (hidden, idle, useful, templates) = counts.get();
                        counts.set((
                            hidden + usize::from(!shown),
                            idle + usize::from(shown && !had),
                            useful + usize::from(had),
                            templates + usize::from(!template),
                        ));
                    }
                }
            }
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    let (hidden, idle, useful, templates) = counts.get();
    assert!(hidden > 100 && useful > 100 && templates > 100, "{:?}", counts.get());
    assert!(idle * 4 < useful, "much is shown that cannot be had: {:?}", counts.get());
}

fn verdict(policies: &str, call: Call) -> String {
    shown(&World::new(&["red"]).decide(&compile(policies, &catalogue([("demo", demo())])).unwrap(), call))
}

const ALL: &str = "@id(\"all\") permit(principal, action, resource);\n";

#[test]
fn a_stream_is_refused_whole_if_one_of_its_resources_is() {
    let policies = format!(
        "{ALL}@id(\"closed\") forbid(principal, action == Guardian::Action::\"read_resource\", resource)\n\
         when {{ resource.uri like \"x:closed/*\" }};"
    );
    assert_eq!(verdict(&policies, listen("demo", &[])), "permit");
    assert_eq!(verdict(&policies, listen("demo", &["x:a", "x:b"])), "permit all");
    assert_eq!(
        verdict(&policies, listen("demo", &["x:a", "x:closed/b", "x:c"])),
        "forbidden_by_policy closed"
    );
    for method in [Method::ReadResource, Method::Subscribe, Method::Complete] {
        assert_eq!(
            verdict(&policies, about("demo", method, "x:closed/b")),
            "forbidden_by_policy closed"
        );
        assert_eq!(verdict(&policies, about("demo", method, "x:open")), "permit all");
    }
    // Unsubscribing needs no permission.
    assert_eq!(verdict(&policies, about("demo", Method::Unsubscribe, "x:closed/b")), "permit");
}

#[test]
fn a_method_without_its_target_is_refused() {
    for method in [
        Method::ReadResource,
        Method::Subscribe,
        Method::GetPrompt,
        Method::Complete,
        Method::Listen,
    ] {
        assert_eq!(verdict(ALL, message("demo", method)), "invalid_params", "{method:?}");
    }
    assert_eq!(verdict(ALL, message("demo", Method::ToolsCall)), "unknown_tool");
    assert_eq!(verdict(ALL, about("demo", Method::GetPrompt, "x:a")), "invalid_params");
}

#[test]
fn a_permit_for_tools_is_none_for_resources_and_prompts() {
    let tools = "@id(\"tools\") permit(principal, action in Guardian::Action::\"call_tool\", resource);";
    assert_eq!(
        verdict(tools, about("demo", Method::ReadResource, "x:a")),
        "no_policy_permits"
    );
    assert_eq!(verdict(tools, get_prompt("demo", "p", None)), "no_policy_permits");
    let mut world = World::new(&["red"]);
    world.member.grants = vec![grant("demo", ["read_file"])];
    let snapshot = compile(ALL, &catalogue([("demo", demo())])).unwrap();
    for (call, scope) in [
        (about("demo", Method::ReadResource, "x:a"), "resources"),
        (get_prompt("demo", "p", None), "prompts"),
    ] {
        let Verdict::Refuse(refused) = world.decide(&snapshot, call) else {
            panic!("permitted without the scope");
        };
        let needed: Vec<&str> = refused.refusal.scopes.iter().map(|scope| scope.as_str()).collect();
        assert_eq!(needed, [scope]);
    }
}

#[test]
fn the_arguments_of_a_prompt_are_texts_that_policies_can_name() {
    let policies = format!(
        "{ALL}@id(\"prod\") forbid(principal, action == Guardian::Action::\"get_prompt\", resource)\n\
         when {{ context.input has env && context.input.env == \"prod\" }};\n\
         @id(\"many\") forbid(principal, action, resource) when {{ context.input has to && context.input.to > 3 }};"
    );
    let get = |arguments: Value| verdict(&policies, get_prompt("demo", "p", Some(arguments)));
    assert_eq!(get(json!({ "env": "dev", "other": "x" })), "permit all");
    assert_eq!(get(json!({ "env": "prod" })), "forbidden_by_policy prod");
    assert_eq!(get(json!({ "env": 7 })), "invalid_arguments");
    assert_eq!(get(json!(["env"])), "invalid_arguments");
    // The forbid takes `to` for a number: a string there is an error, which refuses the call.
    assert_eq!(get(json!({ "to": "9" })), "policy_error many");
    assert_eq!(get(json!({})), "permit all");
}

/// `policy schema` prints the schema that policies are checked against: Cedar's own validator accepts them under it.
#[test]
fn the_schema_that_is_shown_is_the_one_policies_are_typed_by() {
    let policies = format!(
        "{ALL}@id(\"a\") forbid(principal, action == Guardian::Action::\"read_resource\", resource)\n\
         when {{ resource.uri like \"x:*\" && context.hour > 3 }};\n\
         @id(\"b\") forbid(principal, action == Guardian::Action::\"get_prompt\", resource in Guardian::Server::\"demo\")\n\
         when {{ resource.name == \"p\" && context.input has env && context.input.env == \"x\" }};"
    );
    let snapshot = compile(&policies, &catalogue([("demo", demo())])).unwrap();
    let (schema, _) = cedar_policy::Schema::from_cedarschema_str(snapshot.cedar_schema()).unwrap();
    let valid = |text: &str| {
        let set: PolicySet = text.parse().unwrap();
        let result = cedar_policy::Validator::new(schema.clone()).validate(&set, cedar_policy::ValidationMode::Strict);
        result.validation_errors().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(valid(&policies), [""; 0]);
    assert!(!valid(&policies.replace("resource.uri", "resource.url")).is_empty());
    assert!(!valid(&policies.replace("context.input.env", "context.input.other")).is_empty());
}

#[test]
fn what_is_wrong_in_a_policy_for_them_is_told() {
    let problems = |policy: &str| {
        let found = compile(&format!("{ALL}@id(\"no\") {policy}"), &catalogue([("demo", demo())]));
        let problems = found
            .map(|snapshot| snapshot.warnings().to_vec())
            .unwrap_or_else(|problems| problems);
        problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    for (policy, said) in [
        (
            r#"forbid(principal, action == Guardian::Action::"read_resorce", resource);"#,
            "there is no action `read_resorce`; did you mean `read_resource`?",
        ),
        (
            r#"forbid(principal, action, resource == Guardian::Resource::"demos/x:a");"#,
            "there is no server `demos`; did you mean `demo`?",
        ),
        (
            r#"forbid(principal, action, resource == Guardian::Resource::"demo/file:///a/../b");"#,
            "nothing is called `demo/file:///a/../b`: the URI has a `.` or `..` in its path",
        ),
        (
            r#"forbid(principal, action == Guardian::Action::"read_resource", resource) when { resource.url == "x" };"#,
            "attribute `url`",
        ),
        (
            r#"forbid(principal, action == Guardian::Action::"read_resource", resource) when { resource has url };"#,
            "`resource` has no `url`; did you mean `uri`?",
        ),
        (
            r#"forbid(principal, action == Guardian::Action::"get_prompt", resource) when { context.input.env == "x" };"#,
            "`input.env`",
        ),
        (
            r#"forbid(principal, action == Guardian::Action::"read_resource", resource is Guardian::Prompt);"#,
            "nothing is of its action and of its resource: it has no effect",
        ),
        (
            r#"forbid(principal, action, resource) when { resource.uri like "x:*" };"#,
            "attribute `uri`",
        ),
    ] {
        let found = problems(policy);
        assert!(found.contains(said), "{policy}\n{found}");
    }
    let fine = r#"forbid(principal, action, resource is Guardian::Resource in Guardian::Server::"demo") when { resource.uri like "x:*" };"#;
    assert_eq!(problems(fine), "");
}
