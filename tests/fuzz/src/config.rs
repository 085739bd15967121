//! Fuzz target: a configuration is accepted, or every problem has its place; no message holds a secret. A line `#!NAME=VALUE`
//! is an environment variable. The first byte says which secret is added.

#![no_main]

use neural_guardian::config::{Loaded, Variables, parse};
use neural_guardian::domain::{Problem, Severity, SourceLocation};
use std::path::Path;

const FILE: &str = "/nowhere/guardian.toml";
const SECRET: &str = "canary-5ecret";

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((seed, text)) = bytes.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let variables = text.lines().filter_map(|line| line.strip_prefix("#!")?.split_once('='));
    let mut variables: Variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let loaded = parse(Path::new(FILE), text, &variables);
    match &loaded {
        Ok(Loaded { warnings, .. }) => assert!(warnings.iter().all(|problem| problem.severity == Severity::Warning)),
        Err(problems) => assert!(problems.iter().any(|problem| problem.severity == Severity::Error)),
    }
    let problems = loaded.as_ref().map_or_else(|problems| problems, |loaded| &loaded.warnings);
    problems.iter().for_each(|problem| has_its_place(problem, text, &variables));

    // Text that is no TOML could swallow the secret and make something else of it.
    if problems.iter().any(|problem| problem.message.starts_with("not TOML")) || text.contains(SECRET) {
        return;
    }
    let secret = match seed / 8 % 4 {
        0 => SECRET.to_owned(),
        1 => format!("postgres://user:{SECRET}@db.example/guardian"),
        2 => format!("mysql://{SECRET}@[::1"),
        _ => format!("Bearer {SECRET}\u{7f}é"),
    };
    let server = "[[servers]]\nname = \"added\"\nurl = \"http://added.example\"\n";
    let added = match seed % 8 {
        0 => format!("[store]\nkind = \"postgres\"\nurl = '{secret}'"),
        1 => format!("[store]\nadmin_url = '{secret}'"),
        2 => format!("[store]\nurl = ['{secret}']"),
        3 => format!("{server}credential = {{ value = '{secret}' }}"),
        4 => format!("{server}env = {{ KEY = '{secret}' }}"),
        5 => format!("{server}credential = {{ value = '${{ADDED}}', values = '${{ADDED}}' }}"),
        6 => format!("{server}command = ['x']\nenv = {{ KEY = ['{secret}'] }}"),
        _ => {
            variables.insert("GUARDIAN__STORE__URL".to_owned(), secret.clone());
            String::new()
        }
    };
    variables.insert("ADDED".to_owned(), secret);
    let said = match parse(Path::new(FILE), &format!("{text}\n{added}\n"), &variables) {
        Ok(loaded) => format!("{loaded:?}"),
        Err(problems) => problems.iter().map(|problem| format!("{problem}\n{problem:?}")).collect(),
    };
    assert!(!said.contains(SECRET), "{said}");
});

fn has_its_place(problem: &Problem, text: &str, variables: &Variables) {
    match &problem.location {
        SourceLocation::InFile { file, line, column } => {
            let written = text.split('\n').nth(line - 1).expect("a line of the file");
            assert!(
                file == Path::new(FILE) && (1..=written.chars().count() + 1).contains(column),
                "{problem:?}"
            );
        }
        SourceLocation::Variable(name) => assert!(variables.contains_key(name), "{problem:?}"),
        SourceLocation::Nowhere => panic!("{problem:?}"),
    }
}
