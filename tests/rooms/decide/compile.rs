//! What `Snapshot::compile` accepts, and what it reports of the rest: place, problem, help.

use super::world::*;
use neural_guardian::domain::Problem;
use neural_guardian::domain::{Catalogue, PinStatus};
use serde_json::json;

const PERMIT: &str = "@id(\"all\") permit(principal, action, resource);\n";

/// The problems of a policy that stands below a permit in line 1.
fn problems(policy: &str, catalogue: &Catalogue) -> Vec<String> {
    match compile(&format!("{PERMIT}{policy}"), catalogue) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(|problem| problem.to_string()).collect(),
    }
}

fn warnings(policy: &str, catalogue: &Catalogue) -> Vec<String> {
    let snapshot = compile(&format!("{PERMIT}{policy}"), catalogue).unwrap_or_else(|problems| panic!("{problems:#?}"));
    snapshot.warnings().iter().map(Problem::unlabelled).collect()
}

fn demo_only() -> Catalogue {
    catalogue([("demo", demo())])
}

fn empty() -> Catalogue {
    catalogue([])
}

fn forbid(scope: &str, condition: &str) -> String {
    format!("@id(\"no\")\nforbid(principal, {scope}, resource)\nwhen {{ {condition} }};\n")
}

#[test]
fn a_set_that_permits_nothing_needs_to_be_meant() {
    let text =
        "@id(\"a\") forbid(principal, action, resource);\n@id(\"b\") @mode(\"shadow\") permit(principal, action, resource);";
    let problems = compile(text, &empty()).err().unwrap();
    assert_eq!(
        problems[0].to_string(),
        "no policy permits anything; add a permit, or set `policies.deny_all = true`"
    );
    assert_eq!(problems.len(), 1);

    let sources = [neural_guardian::decide::PolicySource {
        file: "p.cedar".to_owned(),
        text: text.to_owned(),
    }];
    let settings = neural_guardian::decide::PolicySettings {
        deny_all: true,
        ..settings()
    };
    let snapshot = neural_guardian::decide::Snapshot::compile(&sources, &empty(), &settings);
    assert_eq!(snapshot.ok().map(|snapshot| snapshot.policies()), Some(2));
}

#[test]
fn a_misspelt_argument_of_a_named_tool_is_an_error_where_it_stands() {
    let scope = r#"action == Guardian::Action::"demo/read_file""#;
    for condition in [
        r#"context.input.pth like "*x*""#,
        r#"context.input has pth && context.input.pth like "*x*""#,
        r#"context.input has pth || context.hour > 3"#,
    ] {
        assert_eq!(
            problems(&forbid(scope, condition), &demo_only()),
            [
                "p.cedar:4:22: policy `no`: tool `demo/read_file` has no argument `pth`; did you mean `path`?"
                    .replace(":22:", if condition.contains("has") { ":26:" } else { ":22:" })
            ],
            "{condition}"
        );
    }
    let by_resource =
        "@id(\"no\") forbid(principal, action, resource == Guardian::Tool::\"demo/query\") when { context.input.sq like \"*\" };";
    assert_eq!(
        problems(by_resource, &demo_only()),
        ["p.cedar:2:100: policy `no`: tool `demo/query` has no argument `sq`; did you mean `sql`?"]
    );
}

#[test]
fn of_several_named_tools_one_must_have_the_argument() {
    let scope = r#"action in [Guardian::Action::"demo/query", Guardian::Action::"demo/read_file"]"#;
    let guarded = |name: &str| {
        forbid(
            scope,
            &format!("context.input has {name} && context.input.{name} like \"*x*\""),
        )
    };
    assert_eq!(problems(&guarded("sql"), &demo_only()), [""; 0]);
    assert_eq!(
        problems(&guarded("sqll"), &demo_only()),
        ["p.cedar:4:26: policy `no`: none of its tools has an argument `sqll`; did you mean `sql`?"]
    );
    let unguarded = problems(&forbid(scope, r#"context.input.sql like "*x*""#), &demo_only());
    assert_eq!(unguarded.len(), 1, "{unguarded:#?}");
    assert!(
        unguarded[0].starts_with("p.cedar:4:8: policy `no`: attribute `input.sql`"),
        "{unguarded:#?}"
    );
}

#[test]
fn misspelt_names_are_errors_with_the_nearest_one() {
    let cases = [
        (
            r#"principal, action == Guardian::Action::"demo/read_fil", resource"#,
            "there is no action `demo/read_fil`; did you mean `demo/read_file`?",
        ),
        (
            r#"principal, action in Guardian::Action::"destructiv", resource"#,
            "there is no action `destructiv`; did you mean `destructive`?",
        ),
        (
            r#"principal, action, resource == Guardian::Tool::"demo/qery""#,
            "there is no tool `demo/qery`; did you mean `demo/query`?",
        ),
        (
            r#"principal, action, resource in Guardian::Server::"dem""#,
            "there is no server `dem`; did you mean `demo`?",
        ),
        (
            r#"principal, action == Guardian::Action::"destructive", resource"#,
            "`destructive` is a group of actions, which no action equals; write `action in` instead of `action ==`",
        ),
        (
            r#"principal == Guardian::Role::"x", action, resource"#,
            "no caller can be the principal of its scope; callers are `Guardian::User` or `Guardian::Service`, in `Guardian::Role`",
        ),
        (
            r#"principal, action, resource == Guardian::Server::"demo""#,
            "nothing can be the resource of its scope; there are `Guardian::Tool`, `Guardian::Resource` and `Guardian::Prompt`, in `Guardian::Server`",
        ),
    ];
    for (scope, said) in cases {
        let found = problems(&format!("@id(\"no\") forbid({scope});"), &demo_only());
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].ends_with(&format!(": policy `no`: {said}")), "{found:#?}");
    }
    let found = problems(
        "@id(\"no\") forbid(principal is Guardian::Usr, action, resource);",
        &demo_only(),
    );
    assert_eq!(found.len(), 1, "{found:#?}");
    let found = problems(
        "@id(\"no\") forbid(principal, action, resource) when { principal.emial == \"x\" };",
        &demo_only(),
    );
    assert!(
        found.len() == 1 && found[0].starts_with("p.cedar:2:54: policy `no`: attribute `emial`"),
        "{found:#?}"
    );
}

#[test]
fn a_name_in_a_condition_must_exist_too() {
    let condition = r#"action == Guardian::Action::"demo/reed_file" || resource in Guardian::Server::"dmo""#;
    let found = problems(&forbid("action", condition), &demo_only());
    assert_eq!(
        found,
        [
            "p.cedar:4:36: policy `no`: there is no action `demo/reed_file`; did you mean `demo/read_file`?",
            "p.cedar:4:86: policy `no`: there is no server `dmo`; did you mean `demo`?",
        ]
    );
}

#[test]
fn a_policy_for_a_group_loads_whatever_tools_there_are() {
    let odd = |property: serde_json::Value| catalogue([("demo", vec![tool("t", properties(&[], json!({ "path": property })))])]);
    let catalogues = [
        empty(),
        demo_only(),
        catalogue([("demo", vec![]), ("other", vec![])]),
        odd(json!({ "type": "array", "items": { "type": "string" } })),
        odd(json!({ "type": "integer" })),
        odd(json!({})),
        odd(json!({ "type": "object", "properties": { "x": { "type": "string" } } })),
    ];
    for catalogue in &catalogues {
        for group in ["call_tool", "read_only", "destructive", "unannotated"] {
            for condition in [
                r#"context.input has path && context.input.path like "*..*""#,
                r#"(context.input has path && context.input.path == "x") || (context.input has file && context.input.file like "y*")"#,
                r#"context.input has n && context.input.n > 3"#,
                r#"context.input has sum && context.input.sum.greaterThan(decimal("1.5"))"#,
                r#"context.input has tags && context.input.tags.containsAny(["x", "y"])"#,
                r#"context.input has a.b.c && context.input.a.b.c"#,
                r#"context.input has a && context.input has b && context.input.a == context.input.b"#,
                r#"action in Guardian::Action::"destructive" && context.input has path && context.input.path like "*x""#,
            ] {
                let scope = format!("action in Guardian::Action::\"{group}\"");
                assert_eq!(problems(&forbid(&scope, condition), catalogue), [""; 0], "{condition}");
            }
        }
    }
}

#[test]
fn a_policy_for_a_group_must_ask_before_it_reads_an_argument() {
    for (catalogue, scope) in [
        (demo_only(), "action in Guardian::Action::\"demo\""),
        (empty(), "action"),
        (demo_only(), "action"),
    ] {
        let found = problems(&forbid(scope, r#"context.input.path like "*x*""#), &catalogue);
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(
            found[0].contains("unable to guarantee safety of access to optional attribute `input.path`"),
            "{found:#?}"
        );
        assert!(found[0].contains("has path"), "{found:#?}");
    }
}

#[test]
fn a_policy_for_a_group_that_is_wrong_in_itself_is_an_error_without_any_tool() {
    for condition in [
        r#"context.input has n && context.input.n + 1 > "x""#,
        r#"context.input has n && context.input.n like "x" && context.input.n > 1"#,
        r#"context.inptu has n"#,
        r#"context.hour like "x""#,
        r#"principal.email == "x""#,
        r#"context has sesion && context.sesion == "x""#,
    ] {
        assert_eq!(problems(&forbid("action", condition), &empty()).len(), 1, "{condition}");
        assert_eq!(problems(&forbid("action", condition), &demo_only()).len(), 1, "{condition}");
    }
    let found = problems(&forbid("action", "principal has emial && context has sesion"), &empty());
    assert_eq!(
        found,
        [
            "p.cedar:4:22: policy `no`: `principal` has no `emial`; did you mean `email`?",
            "p.cedar:4:43: policy `no`: `context` has no `sesion`; did you mean `session`?",
        ]
    );
}

#[test]
fn a_tool_that_a_group_policy_cannot_judge_is_told_of() {
    let list = json!({ "type": "array", "items": { "type": "string" } });
    let mixed = catalogue([(
        "demo",
        vec![
            tool("many", properties(&[], json!({ "path": list }))),
            tool("one", properties(&[], json!({ "path": { "type": "string" } }))),
        ],
    )]);
    let found = warnings(
        &forbid("action", r#"context.input has path && context.input.path like "*..*""#),
        &mixed,
    );
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(
        found[0].starts_with("p.cedar:4:34: policy `no`: unexpected type"),
        "{found:#?}"
    );
    let judged = ": it cannot judge calls of tool `demo/many` with `path`, they are then refused; \
                  the tool has the argument in another type than the policy takes it for";
    assert!(found[0].ends_with(judged), "{found:#?}");
}

#[test]
fn what_policies_cannot_read_is_told_of() {
    let holes = catalogue([(
        "demo",
        vec![tool("t", properties(&[], json!({ "any": {}, "path": { "type": "string" } })))],
    )]);
    assert_eq!(
        warnings("", &holes),
        ["policies cannot read argument `any` of tool `demo/t`: it has no type"]
    );
    let found = problems(
        &forbid("action == Guardian::Action::\"demo/t\"", "context.input has any"),
        &holes,
    );
    assert_eq!(
        found,
        ["p.cedar:4:26: policy `no`: argument `any` of tool `demo/t` cannot be read by policies: it has no type"]
    );
    let found = warnings(&forbid("action", "context.input has any"), &holes);
    let told = "p.cedar:4:26: policy `no`: it asks for `any`: it cannot judge calls of tool `demo/t` with `any`, they are then refused; \
                the tool's schema gives the argument no type that policies can read";
    assert!(found.iter().any(|warning| warning == told), "{found:#?}");
    let unusable = catalogue([("demo", vec![tool("t", json!({ "type": "strin" }))])]);
    let found = warnings("", &unusable);
    assert!(
        found.len() == 1 && found[0].starts_with("tool `demo/t`: it is listed to nobody and every call of it is refused: "),
        "{found:#?}"
    );
}

#[test]
fn a_server_that_has_not_shown_its_tools_stops_no_policy() {
    let silent = catalogue([("github", vec![]), ("demo", demo())]);
    let policy = forbid(
        r#"action == Guardian::Action::"github/create_issue""#,
        r#"context.input.title like "*x*""#,
    );
    assert_eq!(
        warnings(&policy, &silent),
        ["p.cedar:3:47: policy `no`: the tools of server `github` are not known yet: not checked"]
    );
    assert_eq!(
        problems(&policy, &demo_only()),
        ["p.cedar:3:47: policy `no`: there is no action `github/create_issue`"]
    );
}

#[test]
fn a_nearly_right_argument_in_a_group_is_remarked_on() {
    let found = warnings(
        &forbid("action", "context.input has contents && context.input.contents like \"*x*\""),
        &demo_only(),
    );
    assert_eq!(
        found,
        ["p.cedar:4:26: policy `no`: none of its tools has an argument `contents`; did you mean `content`?"]
    );
}

#[test]
fn a_name_is_no_slip_if_the_file_asks_for_its_neighbour_too() {
    let both = [
        forbid("action", "context.input has contents"),
        forbid("action", "context.input has content").replace("\"no\"", "\"no-2\""),
    ];
    assert_eq!(warnings(&both.concat(), &demo_only()), [""; 0]);
}

#[test]
fn a_condition_that_excludes_groups_may_hold_before_any_tool_is_known() {
    for condition in [
        r#"!(action in Guardian::Action::"destructive" || action in Guardian::Action::"unannotated")"#,
        r#"!(action in Guardian::Action::"read_only") && context.input has n"#,
        r#"action in Guardian::Action::"unannotated" && !(action in Guardian::Action::"read_only")"#,
        r#"!(action in Guardian::Action::"demo")"#,
        r#"action in Guardian::Action::"silent" && !(action in Guardian::Action::"demo")"#,
    ] {
        for catalogue in [
            catalogue([("demo", vec![]), ("silent", vec![])]),
            catalogue([("demo", demo()), ("silent", vec![])]),
        ] {
            assert_eq!(
                warnings(&forbid("action in Guardian::Action::\"call_tool\"", condition), &catalogue),
                [""; 0],
                "{condition}"
            );
        }
    }
    for never in [
        r#"action in Guardian::Action::"destructive" && action in Guardian::Action::"read_only""#,
        r#"action in Guardian::Action::"silent" && action in Guardian::Action::"demo" && false"#,
    ] {
        let policy = forbid(
            "action in Guardian::Action::\"call_tool\"",
            &format!("{never} && !(action in Guardian::Action::\"unannotated\")"),
        );
        let found = warnings(&policy, &catalogue([("demo", vec![]), ("silent", vec![])]));
        assert!(
            found
                .iter()
                .any(|warning| warning.ends_with("its conditions can never hold: it has no effect")),
            "{found:#?}"
        );
    }
}

#[test]
fn forgotten_unannotated_tools_are_told_of() {
    let policy = forbid("action in Guardian::Action::\"destructive\"", "true");
    let unsaid = || catalogue([("demo", vec![unannotated(tool("t", json!({})))])]);
    let told = "policies name the group `destructive`, and none names `unannotated`: tools whose servers do not say what they do \
                (1 now) are judged as if they destroyed nothing; \
                name both groups: `action in [Guardian::Action::\"destructive\", Guardian::Action::\"unannotated\"]`";
    assert_eq!(warnings(&policy, &unsaid()), [told]);
    assert_eq!(warnings(&policy, &demo_only()), [""; 0]);
    let both = forbid(
        "action in [Guardian::Action::\"destructive\", Guardian::Action::\"unannotated\"]",
        "true",
    );
    assert_eq!(warnings(&both, &unsaid()), [""; 0]);
}

#[test]
fn a_policy_without_effect_is_remarked_on() {
    let found = warnings(&forbid("action", "context.hour > 3 && false"), &demo_only());
    assert_eq!(
        found,
        ["p.cedar:2:1: policy `no`: its conditions can never hold: it has no effect"]
    );
}

#[test]
fn a_policy_for_no_tool_is_remarked_on() {
    let policy =
        "@id(\"no\") forbid(principal, action == Guardian::Action::\"demo/query\", resource == Guardian::Tool::\"demo/count\");";
    assert_eq!(
        warnings(policy, &demo_only()),
        ["p.cedar:2:1: policy `no`: nothing is of its action and of its resource: it has no effect"]
    );
}

#[test]
fn a_server_cannot_take_the_name_of_a_group() {
    let taken = catalogue([("read_only", demo())]);
    assert_eq!(
        problems("", &taken),
        ["server `read_only` has the name of an action that policies know; give the server another name in the configuration"]
    );
}

#[test]
fn groups_follow_from_pinned_annotations_alone() {
    for class in [read_only, destructive, unannotated] {
        let mut unapproved = class(tool("t", json!({})));
        unapproved.pin_status = PinStatus::Unapproved;
        let snapshot = compile(PERMIT, &catalogue([("demo", vec![unapproved])])).ok().unwrap();
        assert!(
            snapshot
                .cedar_schema()
                .contains("action \"demo/t\" in [\"call_tool\", \"demo\"] appliesTo")
        );
    }
    let snapshot = compile(PERMIT, &catalogue([("demo", vec![unannotated(tool("t", json!({})))])]))
        .ok()
        .unwrap();
    assert!(
        snapshot
            .cedar_schema()
            .contains("action \"demo/t\" in [\"call_tool\", \"demo\", \"unannotated\"] appliesTo")
    );
    let snapshot = compile(PERMIT, &demo_only()).ok().unwrap();
    assert!(
        snapshot
            .cedar_schema()
            .contains("action \"demo/delete_file\" in [\"call_tool\", \"demo\", \"destructive\"] appliesTo")
    );
}

#[test]
fn an_unapproved_definition_cannot_break_a_policy_set() {
    let mut entry = tool("t", properties(&["path"], json!({ "path": { "type": "integer" } })));
    let policy = forbid("action == Guardian::Action::\"demo/t\"", r#"context.input.path like "*x*""#);
    assert_eq!(problems(&policy, &catalogue([("demo", vec![entry.clone()])])).len(), 1);
    entry.pin_status = PinStatus::Unapproved;
    assert_eq!(warnings(&policy, &catalogue([("demo", vec![entry])])).len(), 1);
}

#[test]
fn the_digest_names_texts_and_not_their_order() {
    let source = |file: &str, text: &str| neural_guardian::decide::PolicySource {
        file: file.to_owned(),
        text: text.to_owned(),
    };
    let digest = |sources: &[_]| {
        neural_guardian::decide::Snapshot::compile(sources, &empty(), &settings())
            .ok()
            .unwrap()
            .policy_set()
    };
    let other = "@id(\"b\") forbid(principal, action, resource);";
    let one = digest(&[source("a", PERMIT), source("b", other)]);
    assert_eq!(one, digest(&[source("b", other), source("a", PERMIT)]));
    assert_ne!(one, digest(&[source("a", PERMIT), source("b", &format!("{other} "))]));
    assert_ne!(one, digest(&[source("a", PERMIT), source("c", other)]));
}
