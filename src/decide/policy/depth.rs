//! Refuses a policy text that is nested so deeply that Cedar would exhaust the stack. Cedar's parser, validator and
//! evaluator recurse without a bound of their own, and an exhausted stack ends the process.
//!
//! It reads tokens, not policies. In a text that Cedar can parse, it knows operands and operators apart, as the grammar
//! does, and measures how deep the tree of an expression is. In any other text only brackets and `if` nest; both are
//! counted so that no mistake in the text lowers the count.

use super::source_spans::{is_word, words};
use std::fmt;

/// How many brackets may be open inside each other.
pub(super) const MAX_BRACKETS: usize = 64;
/// How deep an expression may be: the operators, attributes, calls, `if`s and brackets around its innermost part. Operators
/// of one chain count each, because Cedar nests `a && b && c` as `(a && b) && c`.
pub(in crate::decide) const MAX_DEPTH: usize = 256;
/// How many `if`s a policy may have.
pub(super) const MAX_IFS: usize = 256;

/// A bound that a text exceeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::decide) enum DepthBound {
    Brackets,
    Depth,
    Ifs,
}

/// The first byte at which a policy text exceeds a bound, and which.
pub(super) fn too_deep(text: &str) -> Option<(usize, DepthBound)> {
    let mut reader = DepthReader::default();
    let mut tokens = words(text).peekable();
    while let Some(token) = tokens.next() {
        let next = tokens.peek().map_or("", |next| &text[next.start..]);
        if let Err(bound) = reader.token(&text[token.clone()], next) {
            return Some((token.start, bound));
        }
    }
    None
}

impl fmt::Display for DepthBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DepthBound::Brackets => write!(f, "more than {MAX_BRACKETS} brackets are open inside each other"),
            DepthBound::Depth => write!(
                f,
                "the condition is more than {MAX_DEPTH} operators, attributes and brackets deep"
            ),
            DepthBound::Ifs => write!(f, "the policy has more than {MAX_IFS} `if`s"),
        }
    }
}

/// Binding strength: operators of a later level bind tighter.
const IF: usize = 0;
const OR: usize = 1;
const AND: usize = 2;
const RELATION: usize = 3;
const ADD: usize = 4;
const MULTIPLY: usize = 5;
const UNARY: usize = 6;
const MEMBER: usize = 7;

#[derive(Default)]
struct DepthReader {
    /// The open brackets, outermost first.
    open: Vec<(char, Element)>,
    /// Outside of brackets: the clauses of a policy, which Cedar joins with `&&`.
    outside: Element,
    ifs: usize,
    expects: Expects,
    /// The last word was `has`: Cedar reads `a has b.c` as `a has b && a.b has c`.
    after_has: bool,
}

/// What comes next in a text that can be parsed.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Expects {
    #[default]
    Operand,
    Operator,
    /// A name, whatever word it is: after `.`, `::` and `has`.
    Name,
}

/// The expression read last inside one bracket.
#[derive(Default)]
struct Element {
    levels: [Level; 8],
    /// The deepest of the elements before it.
    deepest: usize,
}

/// The operators of one strength in the operand read last, and the deepest of what they join.
#[derive(Default, Clone, Copy)]
struct Level {
    operators: usize,
    deepest: usize,
}

impl DepthReader {
    /// `next` is the text from the token after this on.
    fn token(&mut self, token: &str, next: &str) -> Result<(), DepthBound> {
        let first = token.chars().next().unwrap_or(' ');
        if is_word(first) {
            return self.word(token, next);
        }
        match (first, self.expects) {
            ('"', _) => self.expects = Expects::Operator,
            ('(' | '[' | '{', _) => return self.opens(first),
            (')' | ']' | '}', _) => return self.closes(first),
            (';', _) => *self = Self::default(),
            (':', _) if next.starts_with(':') => self.expects = Expects::Name,
            (':', Expects::Name) => {}
            (',' | ':', _) => {
                self.innermost().next();
                self.expects = Expects::Operand;
            }
            ('!' | '-', Expects::Operand) => return self.operator(UNARY, 1),
            ('.', _) => {
                self.expects = Expects::Name;
                return self.operator(MEMBER, if self.after_has { 2 } else { 1 });
            }
            (_, Expects::Operator) => {
                self.expects = Expects::Operand;
                return match first {
                    '|' => self.operator(OR, 1),
                    '&' => self.operator(AND, 1),
                    '=' | '!' | '<' | '>' => self.operator(RELATION, 1),
                    '+' | '-' => self.operator(ADD, 1),
                    '*' | '/' | '%' => self.operator(MULTIPLY, 1),
                    _ => Ok(()),
                };
            }
            // The second character of `&&`, `==` and their like.
            _ => {}
        }
        Ok(())
    }

    fn word(&mut self, word: &str, next: &str) -> Result<(), DepthBound> {
        if word == "if" {
            self.ifs += 1;
            if self.ifs > MAX_IFS {
                return Err(DepthBound::Ifs);
            }
        }
        let is_path = next.starts_with("::");
        match (self.expects, word) {
            (Expects::Operand, "if") if !is_path => self.operator(IF, 1),
            (Expects::Operand | Expects::Name, _) => {
                self.expects = Expects::Operator;
                Ok(())
            }
            (Expects::Operator, "has") => {
                self.expects = Expects::Name;
                self.operator(RELATION, 1)?;
                self.after_has = true;
                Ok(())
            }
            (Expects::Operator, "in" | "is" | "like") => {
                self.expects = Expects::Operand;
                self.operator(RELATION, 1)
            }
            (Expects::Operator, "then" | "else") => {
                self.expects = Expects::Operand;
                self.innermost().fold(IF);
                Ok(())
            }
            (Expects::Operator, _) => Ok(()),
        }
    }

    fn operator(&mut self, level: usize, count: usize) -> Result<(), DepthBound> {
        self.after_has &= level == MEMBER;
        let depth = self.innermost().operator(level, count);
        if depth > MAX_DEPTH { Err(DepthBound::Depth) } else { Ok(()) }
    }

    fn opens(&mut self, bracket: char) -> Result<(), DepthBound> {
        if self.open.len() >= MAX_BRACKETS {
            return Err(DepthBound::Brackets);
        }
        match (bracket, self.open.is_empty()) {
            ('{', true) => self.operator(AND, 1)?,
            ('(' | '[', false) if self.expects == Expects::Operator => self.operator(MEMBER, 1)?,
            _ => {}
        }
        self.open.push((bracket, Element::default()));
        self.expects = Expects::Operand;
        self.after_has = false;
        Ok(())
    }

    /// A closing bracket without its partner closes nothing: Cedar skips it. So it does with `}` in the scope of a policy,
    /// where it may also skip the partner of one.
    fn closes(&mut self, bracket: char) -> Result<(), DepthBound> {
        let partner = match bracket {
            ')' => '(',
            ']' => '[',
            _ => '{',
        };
        let in_scope = self.open.first().is_some_and(|(outermost, _)| *outermost != '{');
        self.expects = Expects::Operator;
        self.after_has = false;
        match self
            .open
            .pop_if(|(opened, _)| *opened == partner && !(bracket == '}' && in_scope))
        {
            Some((_, mut closed)) => {
                closed.next();
                self.innermost().contains(closed.deepest + 1)
            }
            None => Ok(()),
        }
    }

    fn innermost(&mut self) -> &mut Element {
        match self.open.last_mut() {
            Some((_, element)) => element,
            None => &mut self.outside,
        }
    }
}

impl Element {
    /// Adds operators of this strength; returns how deep they and what they join are.
    fn operator(&mut self, level: usize, count: usize) -> usize {
        self.fold(level);
        self.levels[level].operators += count;
        self.levels[level].operators + self.levels[level].deepest
    }

    /// Ends the operands that bind tighter than `level`: they are below its operators.
    fn fold(&mut self, level: usize) {
        for inner in (level + 1..self.levels.len()).rev() {
            let Level { operators, deepest } = std::mem::take(&mut self.levels[inner]);
            let outer = &mut self.levels[inner - 1];
            outer.deepest = outer.deepest.max(operators + deepest);
        }
    }

    /// The operand read last has a part that is so deep.
    fn contains(&mut self, depth: usize) -> Result<(), DepthBound> {
        let part = &mut self.levels[MEMBER];
        part.deepest = part.deepest.max(depth);
        let whole: usize = self.levels.iter().map(|level| level.operators).sum();
        if whole + depth > MAX_DEPTH {
            Err(DepthBound::Depth)
        } else {
            Ok(())
        }
    }

    /// Ends this element; the next begins.
    fn next(&mut self) {
        self.fold(IF);
        let Level { operators, deepest } = std::mem::take(&mut self.levels[IF]);
        self.deepest = self.deepest.max(operators + deepest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How deep a condition is, measured by how many operators around it are within the bound.
    fn depth(condition: &str) -> usize {
        let fits = |more: usize| {
            let text = format!(
                "permit (principal, action, resource) when {{ {} ({condition}) }};",
                "1 + ".repeat(more)
            );
            too_deep(&text).is_none()
        };
        MAX_DEPTH - (0..MAX_DEPTH).take_while(|more| fits(*more)).count() - 1
    }

    #[test]
    fn operators_of_a_chain_add_up_and_those_beside_each_other_do_not() {
        let same = [
            ("a", 1),
            ("a + b", 2),
            ("a + b + c + d", 4),
            ("a + (b + c) + d", 5),
            ("a == b && c == d && e == f", 4),
            ("a.b.c == d.e.f && g.h.i == j.k.l", 5),
            ("[a + b, c + d + e, f]", 4),
            ("{ a: b, c: d.e }", 3),
            ("if a then b else if c then d else e", 3),
            ("if a && b then b && c else d", 3),
            ("a has b.c.d", 6),
            ("!!a", 3),
            ("a - -b * -c", 4),
            ("a is B in C::\"d\"", 3),
            ("A::B::C::\"d\" == e", 2),
            ("a // ) + b\n + \") + (\" + \"\\\"(\" + c", 4),
        ];
        for (condition, expected) in same {
            assert_eq!(depth(condition), expected, "{condition}");
        }
    }

    #[test]
    fn a_word_is_a_name_where_an_operand_stands() {
        for condition in [
            "then * a * b * c",
            "a has if && b && c && d",
            "if::A::\"b\" * a * b * c",
            "else + in + has + is",
            "a.then + b.if + c.in",
        ] {
            assert!(depth(condition) >= 4, "{condition}");
        }
        let chains = format!("if x then {} else y", vec!["then * a * a * a"; 100].join(" * "));
        assert!(depth(&chains) >= 400.min(MAX_DEPTH - 2), "{chains}");
    }

    #[test]
    fn mistakes_do_not_lower_the_count() {
        let is_bound = |text: String, bound| assert_eq!(too_deep(&text).map(|(_, bound)| bound), Some(bound), "{text}");
        let clause = |text: &str| format!("permit (principal, action, resource) when {{ {text}");
        is_bound(clause(&"( ] ".repeat(65)), DepthBound::Brackets);
        is_bound(clause(&"[ ( ] ".repeat(40)), DepthBound::Brackets);
        is_bound(
            format!("permit (principal == {}", "{ a } : ".repeat(65)),
            DepthBound::Brackets,
        );
        is_bound(clause(&"if , then ".repeat(257)), DepthBound::Ifs);
        is_bound(clause(&"if ( then ) else ".repeat(257)), DepthBound::Depth);
        is_bound(clause(&format!("{}1", "1if ".repeat(257))), DepthBound::Ifs);
        assert_eq!(
            too_deep(&clause(&"( ; ".repeat(1_000))),
            None,
            "Cedar begins anew after a semicolon"
        );
    }

    #[test]
    fn breadth_and_the_number_of_policies_are_not_bounded() {
        let policy = "@id(\"a\") permit (principal, action, resource) when { [a, (b), c].contains(d) };\n";
        assert_eq!(too_deep(&policy.repeat(10_000)), None);
        let set = format!(
            "permit (principal, action, resource) when {{ [{}].contains(e) }};",
            "(a == b.c && d), ".repeat(10_000)
        );
        assert_eq!(too_deep(&set), None);
        assert_eq!(
            too_deep(&format!(
                "{} permit (principal, action, resource);",
                "@a(\"\") ".repeat(1_000)
            )),
            None
        );
    }
}
