//! Rules about dependencies: licences, banned crates, sources, and that each dependency is used. They are in `.deny.toml`,
//! which `cargo deny` reads too; the advisory database needs a network and is left to that tool.

use crate::hold;
use crate::source::{Finding, Source, words};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

const MANIFEST: &str = "Cargo.toml";

/// Name, version, licence and source of every crate that is compiled into Guardian or its tests.
struct Crate {
    name: String,
    version: String,
    licence: String,
    source: String,
}

#[test]
fn every_licence_is_allowed() {
    let rules = rules();
    let allowed: BTreeSet<&str> = strings(&rules["licenses"]["allow"]).collect();
    let refused = |found: &Crate| {
        let text = found.licence.replace('/', " OR ");
        let what = format!("{} {} is licensed `{}`", found.name, found.version, found.licence);
        (!licence_holds(&text, &allowed)).then(|| in_lock(what))
    };
    hold(
        "Find another crate, or allow the licence in .deny.toml on purpose.",
        tree().iter().filter_map(refused).collect(),
    );
}

#[test]
fn no_forbidden_crate_is_in_the_tree() {
    let (rules, tree) = (rules(), tree());
    let mut findings = Vec::new();
    for rule in rules["bans"]["deny"].as_array().unwrap() {
        let name = rule["crate"].as_str().unwrap();
        let several_only = rule.get("deny-multiple-versions").is_some();
        let versions: BTreeSet<&str> = tree
            .iter()
            .filter(|found| found.name == name)
            .map(|found| found.version.as_str())
            .collect();
        if versions.len() > usize::from(several_only) {
            findings.push(in_lock(format!("{name} {versions:?}")));
        }
    }
    hold(
        "Turn off the feature that brings it: `cargo tree -i <crate>` names who does.",
        findings,
    );
}

#[test]
fn every_crate_comes_from_the_registry() {
    let strange = |found: &&Crate| !found.source.is_empty() && !found.source.starts_with("registry+");
    let what = |found: &Crate| in_lock(format!("{} comes from `{}`", found.name, found.source));
    hold("Use a published version.", tree().iter().filter(strange).map(what).collect());
}

#[test]
fn every_dependency_is_used() {
    let manifest: Value = toml::from_str(&read(MANIFEST)).unwrap();
    let mut findings = unused(&manifest["dependencies"], &["src"]);
    findings.extend(unused(&manifest["dev-dependencies"], &["src", "tests", "benches"]));
    hold("Remove the line, or use the crate.", findings);
}

#[test]
fn the_lock_files_of_the_clients_name_no_registry() {
    let locks = [
        ("tests/clients/package-lock.json", "\"resolved\""),
        ("tests/clients/python/v1.txt", "://"),
        ("tests/clients/python/v2.txt", "://"),
    ];
    let mut findings = Vec::new();
    for (file, place) in locks {
        let lock = read(file);
        let lines = lock.lines().enumerate().filter(|(_, line)| line.contains(place));
        findings.extend(lines.map(|(index, line)| Finding {
            file: file.into(),
            line: index + 1,
            what: line.trim().into(),
        }));
    }
    hold(
        "Write the lock file with `omit-lockfile-registry-resolved=true`, or with `pip-compile --no-emit-index-url`.",
        findings,
    );
}

/// A crate counts as used if code names a path that starts with it.
fn unused(dependencies: &Value, folders: &[&str]) -> Vec<Finding> {
    let sources: Vec<Source> = folders.iter().flat_map(|folder| Source::tree(folder)).collect();
    let mut used = BTreeSet::new();
    for (_, line) in sources.iter().flat_map(Source::lines) {
        let paths = words(line).filter(|(at, word)| line[at + word.len()..].starts_with("::") || line[..*at].ends_with("use "));
        used.extend(paths.map(|(_, word)| word));
    }
    let names = dependencies.as_object().unwrap().keys();
    names
        .filter(|name| !used.contains(name.replace('-', "_").as_str()))
        .map(|name| Finding {
            file: MANIFEST.into(),
            line: line_of(name),
            what: format!("`{name}` is not used"),
        })
        .collect()
}

fn line_of(name: &str) -> usize {
    let is_entry = |line: &str| {
        line.strip_prefix(name)
            .is_some_and(|rest| rest.trim_start().starts_with(['=', '.']))
    };
    read(MANIFEST).lines().position(is_entry).map_or(1, |index| index + 1)
}

/// Evaluates an SPDX expression: `A AND (B OR C)`; `WITH` belongs to the name before it.
fn licence_holds(text: &str, allowed: &BTreeSet<&str>) -> bool {
    let spaced = text.replace('(', " ( ").replace(')', " ) ").replace(" WITH ", "+WITH+");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let (holds, rest) = either(&tokens, allowed);
    holds && rest.is_empty()
}

fn either<'a, 'b>(tokens: &'b [&'a str], allowed: &BTreeSet<&str>) -> (bool, &'b [&'a str]) {
    let (mut holds, mut rest) = both(tokens, allowed);
    while let ["OR", after @ ..] = rest {
        let (other, left) = both(after, allowed);
        (holds, rest) = (holds | other, left);
    }
    (holds, rest)
}

fn both<'a, 'b>(tokens: &'b [&'a str], allowed: &BTreeSet<&str>) -> (bool, &'b [&'a str]) {
    let (mut holds, mut rest) = one(tokens, allowed);
    while let ["AND", after @ ..] = rest {
        let (other, left) = one(after, allowed);
        (holds, rest) = (holds & other, left);
    }
    (holds, rest)
}

fn one<'a, 'b>(tokens: &'b [&'a str], allowed: &BTreeSet<&str>) -> (bool, &'b [&'a str]) {
    match tokens {
        ["(", inner @ ..] => {
            let (holds, rest) = either(inner, allowed);
            (holds, rest.get(1..).unwrap_or_default())
        }
        [name, rest @ ..] => (allowed.contains(name.replace("+WITH+", " WITH ").as_str()), rest),
        [] => (false, tokens),
    }
}

/// The crates that are compiled, as `cargo tree` lists them; the lock file also names those that features leave out.
fn tree() -> Vec<Crate> {
    let columns = "{p}\t{l}";
    let arguments = [
        "tree",
        "--locked",
        "--edges=normal,build,dev",
        "--prefix=none",
        "--no-dedupe",
        "--format",
        columns,
    ];
    let compiled = cargo(&arguments);
    let sources = sources_by_name();
    let mut lines: Vec<&str> = compiled.lines().collect();
    lines.sort_unstable();
    lines.dedup();
    assert!(lines.len() > 100, "`cargo tree` lists the whole tree");
    let crate_of = |line: &str| {
        let (package, licence) = line.split_once('\t')?;
        let (name, version) = package.split(' ').next().zip(package.split(' ').nth(1))?;
        let version = version.trim_start_matches('v');
        let source = sources
            .get(&(name.to_owned(), version.to_owned()))
            .cloned()
            .unwrap_or_default();
        Some(Crate {
            name: name.into(),
            version: version.into(),
            licence: licence.into(),
            source,
        })
    };
    lines.into_iter().filter_map(crate_of).collect()
}

fn sources_by_name() -> BTreeMap<(String, String), String> {
    let lock: Value = toml::from_str(&read("Cargo.lock")).unwrap();
    let text = |package: &Value, key: &str| package[key].as_str().unwrap_or_default().to_owned();
    let entry = |package: &Value| ((text(package, "name"), text(package, "version")), text(package, "source"));
    lock["package"].as_array().unwrap().iter().map(entry).collect()
}

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "cargo {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn rules() -> Value {
    toml::from_str(&read(".deny.toml")).unwrap()
}

fn strings(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap())
}

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn in_lock(what: String) -> Finding {
    Finding {
        file: "Cargo.lock".into(),
        line: 1,
        what,
    }
}

#[test]
fn a_licence_expression_is_read_as_it_is_meant() {
    let allowed = BTreeSet::from(["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"]);
    for good in [
        "MIT",
        "GPL-3.0 OR MIT",
        "(GPL-3.0 OR MIT) AND Apache-2.0",
        "Apache-2.0 WITH LLVM-exception",
    ] {
        assert!(licence_holds(good, &allowed), "{good}");
    }
    for bad in [
        "",
        "GPL-3.0",
        "GPL-3.0 AND MIT",
        "MIT AND (GPL-3.0)",
        "Apache-2.0 WITH Other",
        "MIT GPL-3.0",
    ] {
        assert!(!licence_holds(bad, &allowed), "{bad}");
    }
}
