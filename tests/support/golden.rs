//! Files of expected text that people can read. `GUARDIAN_BLESS=1 cargo nextest run` rewrites them; read the diff before
//! you commit it.

use std::path::Path;

/// Compares a text with `tests/golden/<name>`.
pub fn golden(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("GUARDIAN_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, found).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        expected == found,
        "tests/golden/{name} says something else (GUARDIAN_BLESS=1 writes it anew):\n{}",
        difference(&expected, found)
    );
}

/// The lines that are in only one of the two texts, in order.
fn difference(expected: &str, found: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), found.lines().collect());
    let gone = old.iter().filter(|line| !new.contains(line)).map(|line| format!("- {line}"));
    let come = new.iter().filter(|line| !old.contains(line)).map(|line| format!("+ {line}"));
    let lines: Vec<String> = gone.chain(come).collect();
    if lines.is_empty() {
        "the same lines in another order or number".into()
    } else {
        lines.join("\n")
    }
}

#[test]
fn a_difference_names_both_sides() {
    assert_eq!(difference("a\nb\n", "a\nc\n"), "- b\n+ c");
}
