//! A policy at the bounds of nesting is compiled and evaluated on the stack of a serving thread; one beyond them is refused
//! with the place at which it is too deep.

use super::world::*;
use neural_guardian::decide::{PolicySource, Snapshot, forbid_names, forbids, missing_forbids};
use serde_json::json;

/// What nests, how many of it are within the bounds, and a condition with so many.
type Construct = (&'static str, usize, fn(usize) -> String);

const CONSTRUCTS: [Construct; 24] = [
    ("parentheses", 63, |n| format!("{}true{}", "(".repeat(n), ")".repeat(n))),
    ("negations", 63, |n| format!("{}true{}", "!(".repeat(n), ")".repeat(n))),
    ("minuses", 63, |n| format!("{}1{} == 0", "-(".repeat(n), ")".repeat(n))),
    ("sets", 63, |n| format!("{}1{}.isEmpty()", "[".repeat(n), "]".repeat(n))),
    ("records", 63, |n| {
        let record = format!("{}1{}", "{a: ".repeat(n), "}".repeat(n));
        format!("{record} == {record}")
    }),
    ("attributes of a record", 63, |n| {
        format!("{}1{}{} == 1", "{a: ".repeat(n), "}".repeat(n), ".a".repeat(n))
    }),
    ("arguments of methods", 63, |n| {
        format!("{}true{}", "[true].contains(".repeat(n), ")".repeat(n))
    }),
    ("right operands", 63, |n| {
        format!("{}true{}", "context.hour < 99 && (".repeat(n), ")".repeat(n))
    }),
    ("left operands", 63, |n| {
        format!("{}true{}", "(".repeat(n), ") && context.hour < 99".repeat(n))
    }),
    ("`is`", 63, |n| {
        format!("{}principal is Guardian::User{}", "(".repeat(n), ")".repeat(n))
    }),
    ("`&&`", 252, |n| {
        format!("context.hour < 99{}", " && context.hour < 99".repeat(n))
    }),
    ("`||`", 252, |n| {
        format!("context.hour > 99{}", " || context.hour > 99".repeat(n))
    }),
    ("arguments that are asked for", 249, |n| {
        let asked = " || (context.input has path && context.input.path like \"*x\")";
        format!("context.hour > 99{}", asked.repeat(n))
    }),
    ("`+`", 252, |n| format!("context.hour{} > 0", " + 1".repeat(n))),
    ("`-`", 252, |n| format!("context.hour{} < 0", " - 1".repeat(n))),
    ("`*`", 252, |n| format!("context.hour{} > 0", " * 1".repeat(n))),
    ("attributes", 250, |n| {
        format!("context.input has a && context.input.a{} == 1", ".a".repeat(n))
    }),
    ("attributes by index", 249, |n| {
        format!("context.input has a && context.input.a{} == 1", "[\"a\"]".repeat(n))
    }),
    ("attributes of `has`", 126, |n| {
        format!("context.input has a{}", ".a".repeat(n))
    }),
    ("methods", 124, |n| {
        format!("context.now{} > context.now", ".offset(duration(\"1s\"))".repeat(n))
    }),
    ("`else if`", 252, |n| {
        format!("{}true", "if context.hour == 99 then true else ".repeat(n))
    }),
    ("`then if`", 252, |n| {
        format!("{}true{}", "if context.hour < 99 then ".repeat(n), " else false".repeat(n))
    }),
    ("`if if`", 252, |n| {
        format!("{}true{}", "if ".repeat(n), " then context.hour < 99 else true".repeat(n))
    }),
    ("clauses", 251, |n| {
        format!("true }}{} when {{ true", " when { context.hour < 99 }".repeat(n))
    }),
];

fn policies(condition: &str) -> String {
    format!(
        "@id(\"all\") permit (principal, action, resource);\n@id(\"deep\") forbid (principal, action, resource)\nwhen {{ {condition} }};\n"
    )
}

/// Has the stack of a thread that serves.
fn on_a_serving_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(2 * 1024 * 1024);
        thread.spawn_scoped(scope, work).unwrap().join().unwrap()
    })
}

/// The verdict about a call, or the first problem.
fn verdict(text: &str) -> String {
    on_a_serving_thread(|| match compile(text, &catalogue([("demo", demo())])) {
        Ok(snapshot) => World::new(&[]).verdict(&snapshot, "read_file", json!({ "path": "x" })),
        Err(problems) => problems[0].to_string(),
    })
}

fn is_refused(verdict: &str) -> bool {
    verdict.starts_with("p.cedar:3:") && verdict.ends_with("; write it as several policies")
}

#[test]
fn a_policy_at_the_bounds_is_compiled_and_evaluated_and_one_beyond_is_refused() {
    for (what, within, condition) in CONSTRUCTS {
        let (at, beyond) = (
            verdict(&policies(&condition(within))),
            verdict(&policies(&condition(within + 1))),
        );
        let is_evaluated = ["permit all", "forbidden_by_policy deep"].contains(&at.as_str());
        // Cedar's validator knows no argument that has so many attributes.
        let is_validated = what.starts_with("attributes") && at.contains("unable to guarantee safety of access");
        assert!(is_evaluated || is_validated, "{within} {what}: {at}");
        assert!(is_refused(&beyond), "{} {what}: {beyond}", within + 1);
    }
}

#[test]
fn an_attack_is_refused_with_the_place_and_the_other_files_are_read() {
    let attacks = [
        (
            "(".repeat(2_500) + "true" + &")".repeat(2_500),
            "p.cedar:3:71: more than 64 brackets are open inside each other; write it as several policies",
        ),
        ("true".to_owned() + &" && true".repeat(20_000), "p.cedar:3:"),
        ("if true then true else ".repeat(20_000) + "true", "p.cedar:3:"),
    ];
    for (condition, told) in attacks {
        let broken = source("p.cedar", policies(&condition));
        let other = source(
            "q.cedar",
            "@id(\"q\") permit (principal, action, resource) when { context. };".to_owned(),
        );
        let problems =
            on_a_serving_thread(|| Snapshot::compile(&[broken.clone(), other], &catalogue([]), &settings()).unwrap_err());
        assert!(
            problems.len() == 2 && problems[0].to_string().starts_with(told) && problems[1].to_string().starts_with("q.cedar:1:"),
            "{problems:#?}"
        );
        assert_eq!(forbids(&broken), None);
        assert_eq!(missing_forbids(std::slice::from_ref(&broken), &[]), []);
        assert_eq!(forbid_names(&[broken]), []);
    }
}

/// A forbid that is kept while its file is away is read again from its text.
#[test]
fn a_forbid_at_the_bounds_is_missed_when_it_is_gone() {
    for (what, within, condition) in CONSTRUCTS {
        let old = [source("p.cedar", policies(&condition(within)))];
        let missing = on_a_serving_thread(|| missing_forbids(&old, &[]));
        assert_eq!(missing.iter().map(forbids).collect::<Vec<_>>(), [Some(1)], "{what}");
        let changed = [source(
            "p.cedar",
            old[0]
                .text
                .replace("forbid (", "forbid  (")
                .replace("context.hour", "context.weekday"),
        )];
        on_a_serving_thread(|| missing_forbids(&old, &changed));
    }
}

fn source(file: &str, text: String) -> PolicySource {
    PolicySource {
        file: file.to_owned(),
        text,
    }
}
