//! What a policy references: facts of the context, and arguments by name. If an expression is not understood, the answer
//! is everything, so nothing is missed.

use super::problem::nearest;
use super::shape::Shape;
use cedar_policy::pst::{BinaryOp, Clause, Expr, Literal, Template, UnaryOp, Var};
use std::collections::BTreeSet;

/// A fact: one attribute of `context`. The values are bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fact {
    Input = 1,
    Scopes = 2,
    SourceIp = 4,
    Now = 8,
    Hour = 16,
    Weekday = 32,
    Session = 64,
}

impl Fact {
    const ALL: [Fact; 7] = [
        Fact::Input,
        Fact::Scopes,
        Fact::SourceIp,
        Fact::Now,
        Fact::Hour,
        Fact::Weekday,
        Fact::Session,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Fact::Input => "input",
            Fact::Scopes => "scopes",
            Fact::SourceIp => "source_ip",
            Fact::Now => "now",
            Fact::Hour => "hour",
            Fact::Weekday => "weekday",
            Fact::Session => "session",
        }
    }

    const fn shape(self) -> Option<Shape> {
        match self {
            Fact::Hour | Fact::Weekday => Some(Shape::Long),
            Fact::Session => Some(Shape::String),
            _ => None,
        }
    }
}

/// The attributes that a principal may have; `schema.rs` declares the same.
pub(super) const PRINCIPAL: [&str; 6] = ["assurance", "client", "email", "environment", "method", "tenant"];

/// The attributes of prompts and resources; `schema.rs` declares the same.
pub(super) const RESOURCE: [&str; 2] = ["name", "uri"];

/// An argument that a policy names: `context.input.filter.owner` is `["filter", "owner"]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mention {
    pub path: Vec<String>,
    /// The policy reads its value; otherwise it only tests for it with `has`.
    pub value: bool,
    /// The type that the policy uses it as, if its use shows one.
    pub shape: Option<Shape>,
}

/// The facts and top-level arguments that one or several policies read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Reads {
    facts: u8,
    /// The top-level names of arguments; `None`: any of them.
    names: Option<BTreeSet<String>>,
}

impl Reads {
    pub fn none() -> Self {
        Self {
            facts: 0,
            names: Some(BTreeSet::new()),
        }
    }

    /// Whether `fact` is read.
    pub fn fact(&self, fact: Fact) -> bool {
        self.facts & fact as u8 != 0
    }

    /// The arguments read by name; `None` stands for all.
    pub fn names(&self) -> Option<&BTreeSet<String>> {
        self.names.as_ref()
    }

    /// Whether no fact of the context is read.
    pub fn is_empty(&self) -> bool {
        self.facts == 0
    }

    pub fn and(mut self, other: &Reads) -> Self {
        self.add(other);
        self
    }

    pub fn add(&mut self, other: &Reads) {
        self.facts |= other.facts;
        match (&mut self.names, &other.names) {
            (Some(names), Some(more)) => names.extend(more.iter().cloned()),
            (names, None) => *names = None,
            (None, Some(_)) => {}
        }
    }
}

/// Collects what the conditions of a policy reference, attributes that do not exist included.
pub(super) fn of(policy: &Template) -> Looks {
    let mut reader = Reader {
        reads: Reads::none(),
        mentions: Vec::new(),
        unknown: Vec::new(),
        can_err: false,
        resource: false,
    };
    for clause in policy.clauses() {
        let (Clause::When(condition) | Clause::Unless(condition)) = clause;
        reader.read(condition, Some(Shape::Bool));
    }
    let mut mentions = reader.mentions;
    mentions.sort();
    mentions.dedup();
    Looks {
        reads: reader.reads,
        mentions,
        unknown: reader.unknown,
        can_err: reader.can_err,
        resource: reader.resource,
    }
}

/// What a policy references.
pub(super) struct Looks {
    pub reads: Reads,
    pub mentions: Vec<Mention>,
    pub unknown: Vec<Unknown>,
    /// Its evaluation may error although its types are right: it computes, parses a string, reads a tag, or is not
    /// understood.
    pub can_err: bool,
    /// Its conditions read `resource`.
    pub resource: bool,
}

/// An attribute that does not exist. Cedar's validator reports reading one, but not testing for it with `has`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unknown {
    pub of: &'static str,
    pub name: String,
    pub near: Option<&'static str>,
}

struct Reader {
    reads: Reads,
    mentions: Vec<Mention>,
    unknown: Vec<Unknown>,
    can_err: bool,
    resource: bool,
}

impl Reader {
    /// Reads an expression. `used` is the type that the surrounding expression takes it for.
    fn read(&mut self, expr: &Expr, used: Option<Shape>) {
        if let Some(path) = path_in_context(expr) {
            return self.mention(&path, true, used);
        }
        match expr {
            Expr::HasAttr { expr, attrs } => match path_in_context(expr) {
                Some(mut path) => {
                    path.extend(attrs.iter().map(|attr| attr.as_str()));
                    self.mention(&path, false, None);
                }
                None if **expr == Expr::Var(Var::Principal) => self.principal(&attrs.head),
                None if **expr == Expr::Var(Var::Resource) => self.of_resource(&attrs.head),
                None => self.read(expr, None),
            },
            Expr::GetAttr { expr, .. } | Expr::Is { expr, in_expr: None, .. } => self.read(expr, None),
            Expr::Is {
                expr,
                in_expr: Some(container),
                ..
            } => {
                self.read(expr, None);
                self.read(container, None);
            }
            Expr::Like { expr, .. } => self.read(expr, Some(Shape::String)),
            Expr::UnaryOp { op, expr } => {
                self.can_err |= !matches!(op, UnaryOp::Not | UnaryOp::IsEmpty);
                self.read(expr, operand(*op));
            }
            Expr::BinaryOp { op, left, right } => {
                self.can_err |= matches!(
                    op,
                    BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul | BinaryOp::Offset | BinaryOp::DurationSince | BinaryOp::GetTag
                );
                let (of_left, of_right) = operands(*op, left, right);
                self.read(left, of_left);
                self.read(right, of_right);
            }
            Expr::IfThenElse {
                cond,
                then_expr,
                else_expr,
            } => {
                self.read(cond, Some(Shape::Bool));
                self.read(then_expr, used.clone());
                self.read(else_expr, used);
            }
            Expr::Set(elements) => elements.iter().for_each(|element| self.read(element, None)),
            Expr::Record(members) => members.values().for_each(|member| self.read(member, None)),
            Expr::Literal(_) | Expr::Var(Var::Principal | Var::Action) => {}
            Expr::Var(Var::Resource) => self.resource = true,
            _ => self.everything(),
        }
    }

    fn everything(&mut self) {
        self.can_err = true;
        self.resource = true;
        self.reads.facts = u8::MAX;
        self.argument(&[], true, None);
    }

    fn mention(&mut self, path: &[&str], value: bool, shape: Option<Shape>) {
        let Some((first, rest)) = path.split_first() else {
            return self.everything();
        };
        let Some(fact) = Fact::ALL.into_iter().find(|fact| fact.name() == *first) else {
            return self.unknown("context", first, &Fact::ALL.map(Fact::name));
        };
        self.reads.facts |= fact as u8;
        if fact == Fact::Input {
            self.argument(rest, value, shape);
        }
    }

    fn principal(&mut self, name: &str) {
        if !PRINCIPAL.contains(&name) {
            self.unknown("principal", name, &PRINCIPAL);
        }
    }

    fn of_resource(&mut self, name: &str) {
        self.resource = true;
        if !RESOURCE.contains(&name) {
            self.unknown("resource", name, &RESOURCE);
        }
    }

    fn unknown(&mut self, of: &'static str, name: &str, known: &[&'static str]) {
        let near = nearest(name, known.iter().copied());
        let name = name.to_owned();
        self.unknown.push(Unknown { of, name, near });
    }

    fn argument(&mut self, path: &[&str], value: bool, shape: Option<Shape>) {
        match path.first() {
            Some(first) => {
                if let Some(names) = &mut self.reads.names {
                    names.insert((*first).to_owned());
                }
            }
            None if value => self.reads.names = None,
            None => return,
        }
        self.mentions.push(Mention {
            path: path.iter().map(|name| (*name).to_owned()).collect(),
            value,
            shape,
        });
    }
}

/// `context.a.b` is `["a", "b"]`; any other expression is `None`.
fn path_in_context(expr: &Expr) -> Option<Vec<&str>> {
    match expr {
        Expr::Var(Var::Context) => Some(Vec::new()),
        Expr::GetAttr { expr, attr } => {
            let mut path = path_in_context(expr)?;
            path.push(attr);
            Some(path)
        }
        _ => None,
    }
}

fn operand(op: UnaryOp) -> Option<Shape> {
    match op {
        UnaryOp::Not => Some(Shape::Bool),
        UnaryOp::Neg => Some(Shape::Long),
        UnaryOp::Ip | UnaryOp::Decimal | UnaryOp::Datetime | UnaryOp::Duration => Some(Shape::String),
        UnaryOp::IsEmpty => Some(Shape::Set(Box::new(Shape::String))),
        _ => None,
    }
}

fn operands(op: BinaryOp, left: &Expr, right: &Expr) -> (Option<Shape>, Option<Shape>) {
    let both = |shape: Shape| (Some(shape.clone()), Some(shape));
    match op {
        BinaryOp::And | BinaryOp::Or => both(Shape::Bool),
        BinaryOp::Less | BinaryOp::LessEq | BinaryOp::Greater | BinaryOp::GreaterEq => both(Shape::Long),
        BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul => both(Shape::Long),
        BinaryOp::DecimalLessThan | BinaryOp::DecimalLessEq | BinaryOp::DecimalGreater | BinaryOp::DecimalGreaterEq => {
            both(Shape::Decimal)
        }
        BinaryOp::Eq | BinaryOp::NotEq => (shape_of(right), shape_of(left)),
        BinaryOp::Contains => (set_of(shape_of(right)), element_of(shape_of(left))),
        BinaryOp::ContainsAll | BinaryOp::ContainsAny => {
            (set_of(element_of(shape_of(right))), set_of(element_of(shape_of(left))))
        }
        _ => (None, None),
    }
}

fn set_of(element: Option<Shape>) -> Option<Shape> {
    element.map(|element| Shape::Set(Box::new(element)))
}

fn element_of(set: Option<Shape>) -> Option<Shape> {
    match set {
        Some(Shape::Set(element)) => Some(*element),
        _ => None,
    }
}

/// The type of an expression without arguments, as far as its outermost form shows it.
fn shape_of(expr: &Expr) -> Option<Shape> {
    match expr {
        Expr::Literal(Literal::Bool(_)) => Some(Shape::Bool),
        Expr::Literal(Literal::Long(_)) => Some(Shape::Long),
        Expr::Literal(Literal::String(_)) => Some(Shape::String),
        Expr::Set(elements) => set_of(elements.first().and_then(|element| shape_of(element))),
        Expr::UnaryOp {
            op: UnaryOp::Decimal, ..
        } => Some(Shape::Decimal),
        Expr::UnaryOp { op: UnaryOp::Neg, .. } => Some(Shape::Long),
        Expr::BinaryOp {
            op: BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul,
            ..
        } => Some(Shape::Long),
        _ => match path_in_context(expr)?.as_slice() {
            ["scopes"] => set_of(Some(Shape::String)),
            [name] => Fact::ALL.into_iter().find(|fact| fact.name() == *name)?.shape(),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cedar_policy::Policy;

    fn read(condition: &str) -> Looks {
        let text = format!("permit(principal, action, resource) when {{ {condition} }};");
        of(Policy::parse(None, text).unwrap().to_pst().unwrap().body())
    }

    fn names(condition: &str) -> Vec<String> {
        let mentions = read(condition).mentions;
        mentions
            .iter()
            .map(|mention| {
                format!(
                    "{}{}{:?}",
                    mention.path.join("."),
                    if mention.value { "=" } else { "?" },
                    mention.shape
                )
            })
            .collect()
    }

    #[test]
    fn arguments_are_found_with_the_type_their_use_shows() {
        assert_eq!(
            names(r#"context.input has path && context.input.path like "a*""#),
            ["path?None", "path=Some(String)"]
        );
        assert_eq!(names(r#"context.input["a b"].c > 3"#), ["a b.c=Some(Long)"]);
        assert_eq!(names("context.input has a.b.c"), ["a.b.c?None"]);
        assert_eq!(names(r#"["x"].contains(context.input.mode)"#), ["mode=Some(String)"]);
        assert_eq!(names(r#"context.input.tags.contains("x")"#), ["tags=Some(Set(String))"]);
        assert_eq!(names("context.input.n == context.hour"), ["n=Some(Long)"]);
        assert_eq!(names("context.scopes.contains(context.input.s)"), ["s=Some(String)"]);
        assert_eq!(names(r#"context.input.sum.lessThan(decimal("1.0"))"#), ["sum=Some(Decimal)"]);
        assert_eq!(
            names("if context.input.dry then true else context.input.yes"),
            ["dry=Some(Bool)", "yes=Some(Bool)"]
        );
    }

    #[test]
    fn only_what_is_named_is_read() {
        let Looks { reads, mentions, .. } = read(r#"principal.environment == "x" && context.hour < 3"#);
        assert!(reads.fact(Fact::Hour) && !reads.fact(Fact::Input) && !reads.fact(Fact::Now));
        assert!(mentions.is_empty());
        let Looks { reads, .. } = read(r#"context.input has a && context has session"#);
        assert!(reads.fact(Fact::Input) && reads.fact(Fact::Session) && !reads.fact(Fact::Scopes));
        assert_eq!(reads.names().unwrap().len(), 1);
    }

    #[test]
    fn whoever_takes_the_context_whole_reads_everything() {
        for condition in [
            "context == context",
            "(if true then context else context).hour < 3",
            "{ a: context }.a.hour < 3",
        ] {
            let Looks { reads, mentions, .. } = read(condition);
            assert!(Fact::ALL.into_iter().all(|fact| reads.fact(fact)), "{condition}");
            assert_eq!(reads.names(), None);
            assert!(
                mentions.iter().any(|mention| mention.path.is_empty() && mention.value),
                "{condition}"
            );
        }
        let Looks { reads, .. } = read(r#"context.input == { path: "x" }"#);
        assert_eq!(reads.names(), None);
        assert!(!reads.fact(Fact::Hour));
    }
}
