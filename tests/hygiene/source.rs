//! Rust files as the rules read them: comments and literals blanked out, test code marked. This is not a parser, only as
//! much of a lexer as is needed to never take a word in a comment or a string for code.

use std::fmt;
use std::path::{Path, PathBuf};

pub struct Finding {
    pub file: String,
    pub line: usize,
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.what)
    }
}

pub struct Source {
    /// Relative to the package, such as `src/gate/mod.rs`.
    pub file: String,
    pub text: String,
    /// As long as `text`, with spaces for every character of a comment or a literal.
    code: String,
    /// Lines (from 0) that are compiled only for tests.
    tests: Vec<bool>,
}

impl Source {
    /// Every `.rs` file under `folder`, in order of their paths.
    pub fn tree(folder: &str) -> Vec<Source> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut files = Vec::new();
        walk(&root.join(folder), &mut files);
        files.sort();
        let read = |path: &PathBuf| {
            let file = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            Source::new(file, std::fs::read_to_string(path).unwrap())
        };
        files.iter().map(read).collect()
    }

    pub fn new(file: String, text: String) -> Source {
        let code = blank(&text);
        // A room's `mod tests;` is a file of its own; other files that are only tests say so with `#![cfg(test)]`.
        let named_so = file.ends_with("/tests.rs") || file.contains("/tests/") || code.contains("#![cfg(test)]");
        let only_tests = file.starts_with("src/") && named_so;
        let tests = if only_tests {
            vec![true; code.lines().count()]
        } else {
            test_lines(&code)
        };
        Source { file, text, code, tests }
    }

    /// The room a file of `src` belongs to: `gate` for `src/gate/mod.rs`, `app` for `src/app.rs`.
    pub fn room(&self) -> &str {
        let rest = self.file.strip_prefix("src/").unwrap_or(&self.file);
        let first = rest.split('/').next().unwrap_or(rest);
        first.strip_suffix(".rs").unwrap_or(first)
    }

    /// Lines of code that ship, numbered from 1.
    pub fn shipped(&self) -> impl Iterator<Item = (usize, &str)> {
        self.lines().filter(|(number, _)| !self.tests[number - 1])
    }

    /// All lines of code, numbered from 1.
    pub fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code.lines().enumerate().map(|(index, line)| (index + 1, line))
    }

    /// The code that ships as one text, so that a `use` over several lines can be read; lines of tests are empty.
    pub fn shipped_text(&self) -> String {
        let line = |(index, line)| if self.tests[index] { "" } else { line };
        self.code.lines().enumerate().map(line).collect::<Vec<_>>().join("\n")
    }

    pub fn finding(&self, line: usize, what: impl Into<String>) -> Finding {
        Finding {
            file: self.file.clone(),
            line,
            what: what.into(),
        }
    }
}

/// The identifiers of a line of code, each with the byte offset where it starts.
pub fn words(line: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    line.char_indices().filter_map(move |(start, c)| {
        let begins = is_word(c) && !line[..start].chars().next_back().is_some_and(is_word);
        let rest = &line[start..];
        begins.then(|| (start, &rest[..rest.find(|c| !is_word(c)).unwrap_or(rest.len())]))
    })
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if !path.ends_with("node_modules") {
                walk(&path, files);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// Replaces comments, strings and characters by spaces; line ends stay.
fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = literal_end(&chars, at);
        match end {
            Some(end) => {
                code.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
                at = end;
            }
            None => {
                code.push(chars[at]);
                at += 1;
            }
        }
    }
    code
}

/// Where the comment or literal that begins at `at` ends, if one does.
fn literal_end(chars: &[char], at: usize) -> Option<usize> {
    let next = |offset: usize| chars.get(at + offset).copied().unwrap_or('\0');
    let after_word = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
    match chars[at] {
        '/' if next(1) == '/' => Some(find(chars, at, |c, _| c == '\n')),
        '/' if next(1) == '*' => Some(block_comment_end(chars, at)),
        '"' => Some(string_end(chars, at + 1)),
        'r' if !after_word && (next(1) == '"' || next(1) == '#') => raw_string_end(chars, at + 1),
        'b' | 'c' if !after_word && next(1) == 'r' && (next(2) == '"' || next(2) == '#') => raw_string_end(chars, at + 2),
        '\'' if next(1) == '\\' => Some(find(chars, at + 3, |c, _| c == '\'') + 1),
        '\'' if next(2) == '\'' => Some(at + 3),
        _ => None,
    }
}

fn find(chars: &[char], from: usize, is_end: impl Fn(char, usize) -> bool) -> usize {
    (from..chars.len()).find(|at| is_end(chars[*at], *at)).unwrap_or(chars.len())
}

fn string_end(chars: &[char], mut at: usize) -> usize {
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

fn raw_string_end(chars: &[char], from: usize) -> Option<usize> {
    let hashes = chars[from..].iter().take_while(|c| **c == '#').count();
    if chars.get(from + hashes) != Some(&'"') {
        return None; // `r#type`
    }
    let closes = |at: usize| chars[at] == '"' && chars[at + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes;
    let quote = find(chars, from + hashes + 1, |_, at| closes(at));
    Some((quote + 1 + hashes).min(chars.len()))
}

fn block_comment_end(chars: &[char], mut at: usize) -> usize {
    let mut depth = 0;
    while at < chars.len() {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('*')) => (depth, at) = (depth + 1, at + 2),
            ('*', Some('/')) => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// Marks the item after each `#[cfg(test)]`, to its closing brace or semicolon.
fn test_lines(code: &str) -> Vec<bool> {
    let mut tests = vec![false; code.lines().count()];
    for (start, _) in code.match_indices("#[cfg(test)]") {
        let mut depth = 0;
        let ends = |c: char| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            depth == 0 && (c == '}' || c == ';')
        };
        let length = code[start..].find(ends).unwrap_or(code.len() - start - 1);
        let line = |at: usize| code[..at].matches('\n').count();
        tests[line(start)..=line(start + length)].fill(true);
    }
    tests
}

#[test]
fn words_in_comments_and_literals_are_not_code() {
    let text = r##"
let a = "todo! \" //"; // todo!
let b = r#"unwrap " "#; /* a /* b */ unwrap */ let c = '"'; let d = 'x';
let life: &'static str = b"unwrap"; r#type();
"##;
    let source = Source::new("src/a.rs".into(), text.into());
    let found: Vec<&str> = source
        .lines()
        .flat_map(|(_, line)| words(line))
        .map(|(_, word)| word)
        .collect();
    assert_eq!(
        found,
        [
            "let", "a", "let", "b", "let", "c", "let", "d", "let", "life", "static", "str", "b", "r", "type"
        ]
    );
    assert_eq!(source.code.len(), text.len());
}

#[test]
fn code_for_tests_does_not_ship() {
    let text = "fn a() {}\n#[cfg(test)]\nuse b::C;\nfn d() {}\n#[cfg(test)]\nmod tests {\n  fn e() {}\n}\nfn f() {}\n";
    let source = Source::new("src/gate/mod.rs".into(), text.into());
    let shipped: Vec<usize> = source.shipped().map(|(number, _)| number).collect();
    assert_eq!(shipped, [1, 4, 9]);
    assert_eq!(source.room(), "gate");
}
