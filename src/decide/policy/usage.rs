//! What a policy references: facts of the context, and arguments by name. If an expression is not understood, the answer
//! is everything, so nothing is missed.

use crate::decide::tool::arg_types::ArgType;
use crate::decide::tool::schema::{PRINCIPAL, RESOURCE};
use crate::domain::nearest;
use cedar_policy::pst::{BinaryOp, Clause, Expr, Literal, Template, UnaryOp, Var};
use std::collections::BTreeSet;

/// A fact: one attribute of `context`. The values are bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::decide) enum ContextField {
    Input = 1,
    Scopes = 2,
    SourceIp = 4,
    Now = 8,
    Hour = 16,
    Weekday = 32,
    Session = 64,
    ScopeNamed = 128,
}

impl ContextField {
    pub const ALL: [ContextField; 8] = [
        ContextField::Input,
        ContextField::Scopes,
        ContextField::ScopeNamed,
        ContextField::SourceIp,
        ContextField::Now,
        ContextField::Hour,
        ContextField::Weekday,
        ContextField::Session,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            ContextField::Input => "input",
            ContextField::Scopes => "scopes",
            ContextField::ScopeNamed => "scope_named",
            ContextField::SourceIp => "source_ip",
            ContextField::Now => "now",
            ContextField::Hour => "hour",
            ContextField::Weekday => "weekday",
            ContextField::Session => "session",
        }
    }

    fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.name() == name)
    }

    const fn arg_type(self) -> Option<ArgType> {
        match self {
            ContextField::Hour | ContextField::Weekday => Some(ArgType::Long),
            ContextField::Session => Some(ArgType::String),
            ContextField::ScopeNamed => Some(ArgType::Bool),
            _ => None,
        }
    }
}

/// An argument that a policy names: `context.input.filter.owner` is `["filter", "owner"]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::decide) struct ArgumentRef {
    pub path: Vec<String>,
    /// The policy reads its value; otherwise it only tests for it with `has`.
    pub value: bool,
    /// The type that the policy uses it as, if its use shows one.
    pub arg_type: Option<ArgType>,
}

/// The facts and top-level arguments that one or several policies read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::decide) struct ContextUsage {
    facts: u8,
    /// The top-level names of arguments; `None`: any of them.
    names: Option<BTreeSet<String>>,
}

impl ContextUsage {
    pub fn none() -> Self {
        Self {
            facts: 0,
            names: Some(BTreeSet::new()),
        }
    }

    /// Whether `fact` is read.
    pub fn reads(&self, field: ContextField) -> bool {
        self.facts & field as u8 != 0
    }

    /// Whether the argument of this top-level name is read.
    pub fn reads_argument(&self, name: &str) -> bool {
        self.names.as_ref().is_none_or(|names| names.contains(name))
    }

    /// Whether no fact of the context is read.
    pub fn is_empty(&self) -> bool {
        self.facts == 0
    }

    pub fn add(&mut self, other: &ContextUsage) {
        self.facts |= other.facts;
        match (&mut self.names, &other.names) {
            (Some(names), Some(more)) => names.extend(more.iter().cloned()),
            (names, None) => *names = None,
            (None, Some(_)) => {}
        }
    }
}

/// Collects what the conditions of a policy reference, attributes that do not exist included.
pub(super) fn policy_usage(policy: &Template) -> PolicyUsage {
    let mut usage = PolicyUsage {
        context: ContextUsage::none(),
        arguments: Vec::new(),
        unknown_attributes: Vec::new(),
        may_fail: false,
        reads_resource: false,
    };
    for clause in policy.clauses() {
        let (Clause::When(condition) | Clause::Unless(condition)) = clause;
        usage.read(condition, Some(ArgType::Bool));
    }
    usage.arguments.sort();
    usage.arguments.dedup();
    usage
}

/// What a policy references.
pub(in crate::decide) struct PolicyUsage {
    pub context: ContextUsage,
    pub arguments: Vec<ArgumentRef>,
    pub unknown_attributes: Vec<UnknownAttribute>,
    /// Its evaluation may error although its types are right: it computes, parses a string, reads a tag, or is not
    /// understood.
    pub may_fail: bool,
    /// Its conditions read `resource`.
    pub reads_resource: bool,
}

/// An attribute that does not exist. Cedar's validator reports reading one, but not testing for it with `has`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::decide) struct UnknownAttribute {
    pub of: &'static str,
    pub name: String,
    pub near: Option<&'static str>,
}

impl PolicyUsage {
    /// Reads an expression. `used` is the type that the surrounding expression takes it for.
    fn read(&mut self, expr: &Expr, used: Option<ArgType>) {
        if let Some(path) = path_in_context(expr) {
            return self.mention(&path, true, used);
        }
        match expr {
            Expr::HasAttr { expr, attrs } => match path_in_context(expr) {
                Some(mut path) => {
                    path.extend(attrs.iter().map(|attr| attr.as_str()));
                    self.mention(&path, false, None);
                }
                None if **expr == Expr::Var(Var::Principal) => self.attribute("principal", &attrs.head, &PRINCIPAL),
                None if **expr == Expr::Var(Var::Resource) => {
                    self.reads_resource = true;
                    self.attribute("resource", &attrs.head, &RESOURCE);
                }
                None => self.read(expr, None),
            },
            Expr::GetAttr { expr, .. } => self.read(expr, None),
            Expr::Is { expr, in_expr, .. } => {
                self.read(expr, None);
                in_expr.iter().for_each(|container| self.read(container, None));
            }
            Expr::Like { expr, .. } => self.read(expr, Some(ArgType::String)),
            Expr::UnaryOp { op, expr } => {
                self.may_fail |= !matches!(op, UnaryOp::Not | UnaryOp::IsEmpty);
                self.read(expr, operand_type(*op));
            }
            Expr::BinaryOp { op, left, right } => {
                self.may_fail |= matches!(
                    op,
                    BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul | BinaryOp::Offset | BinaryOp::DurationSince | BinaryOp::GetTag
                );
                let (of_left, of_right) = operand_types(*op, left, right);
                self.read(left, of_left);
                self.read(right, of_right);
            }
            Expr::IfThenElse {
                cond,
                then_expr,
                else_expr,
            } => {
                self.read(cond, Some(ArgType::Bool));
                self.read(then_expr, used.clone());
                self.read(else_expr, used);
            }
            Expr::Set(elements) => elements.iter().for_each(|element| self.read(element, None)),
            Expr::Record(members) => members.values().for_each(|member| self.read(member, None)),
            Expr::Literal(_) | Expr::Var(Var::Principal | Var::Action) => {}
            Expr::Var(Var::Resource) => self.reads_resource = true,
            _ => self.everything(),
        }
    }

    fn everything(&mut self) {
        self.may_fail = true;
        self.reads_resource = true;
        self.context.facts = u8::MAX;
        self.argument(&[], true, None);
    }

    fn mention(&mut self, path: &[&str], value: bool, arg_type: Option<ArgType>) {
        let Some((first, rest)) = path.split_first() else {
            return self.everything();
        };
        let Some(field) = ContextField::of_name(first) else {
            return self.attribute("context", first, &ContextField::ALL.map(ContextField::name));
        };
        self.context.facts |= field as u8;
        if field == ContextField::Input {
            self.argument(rest, value, arg_type);
        }
    }

    /// Notes a test for an attribute that does not exist.
    fn attribute(&mut self, of: &'static str, name: &str, known: &[&'static str]) {
        if !known.contains(&name) {
            let near = nearest(name, known.iter().copied());
            let name = name.to_owned();
            self.unknown_attributes.push(UnknownAttribute { of, name, near });
        }
    }

    fn argument(&mut self, path: &[&str], value: bool, arg_type: Option<ArgType>) {
        match (path.first(), &mut self.context.names) {
            (Some(first), Some(names)) => {
                names.insert((*first).to_owned());
            }
            (Some(_), None) => {}
            (None, names) if value => *names = None,
            (None, _) => return,
        }
        self.arguments.push(ArgumentRef {
            path: path.iter().map(|name| (*name).to_owned()).collect(),
            value,
            arg_type,
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

fn operand_type(op: UnaryOp) -> Option<ArgType> {
    match op {
        UnaryOp::Not => Some(ArgType::Bool),
        UnaryOp::Neg => Some(ArgType::Long),
        UnaryOp::Ip | UnaryOp::Decimal | UnaryOp::Datetime | UnaryOp::Duration => Some(ArgType::String),
        UnaryOp::IsEmpty => Some(ArgType::Set(Box::new(ArgType::String))),
        _ => None,
    }
}

fn operand_types(op: BinaryOp, left: &Expr, right: &Expr) -> (Option<ArgType>, Option<ArgType>) {
    let both = |arg_type: ArgType| (Some(arg_type.clone()), Some(arg_type));
    match op {
        BinaryOp::And | BinaryOp::Or => both(ArgType::Bool),
        BinaryOp::Less | BinaryOp::LessEq | BinaryOp::Greater | BinaryOp::GreaterEq => both(ArgType::Long),
        BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul => both(ArgType::Long),
        BinaryOp::DecimalLessThan | BinaryOp::DecimalLessEq | BinaryOp::DecimalGreater | BinaryOp::DecimalGreaterEq => {
            both(ArgType::Decimal)
        }
        BinaryOp::Eq | BinaryOp::NotEq => (type_of(right), type_of(left)),
        BinaryOp::Contains => (set_of(type_of(right)), element_of(type_of(left))),
        BinaryOp::ContainsAll | BinaryOp::ContainsAny => (set_of(element_of(type_of(right))), set_of(element_of(type_of(left)))),
        _ => (None, None),
    }
}

fn set_of(element: Option<ArgType>) -> Option<ArgType> {
    element.map(|element| ArgType::Set(Box::new(element)))
}

fn element_of(set: Option<ArgType>) -> Option<ArgType> {
    match set {
        Some(ArgType::Set(element)) => Some(*element),
        _ => None,
    }
}

/// The type of an expression without arguments, as far as its outermost form shows it.
fn type_of(expr: &Expr) -> Option<ArgType> {
    match expr {
        Expr::Literal(Literal::Bool(_)) => Some(ArgType::Bool),
        Expr::Literal(Literal::Long(_)) => Some(ArgType::Long),
        Expr::Literal(Literal::String(_)) => Some(ArgType::String),
        Expr::Set(elements) => set_of(elements.first().and_then(|element| type_of(element))),
        Expr::UnaryOp {
            op: UnaryOp::Decimal, ..
        } => Some(ArgType::Decimal),
        Expr::UnaryOp { op: UnaryOp::Neg, .. } => Some(ArgType::Long),
        Expr::BinaryOp {
            op: BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul,
            ..
        } => Some(ArgType::Long),
        _ => match path_in_context(expr)?.as_slice() {
            ["scopes"] => set_of(Some(ArgType::String)),
            [name] => ContextField::of_name(name)?.arg_type(),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cedar_policy::Policy;

    fn usage_of(condition: &str) -> PolicyUsage {
        let text = format!("permit(principal, action, resource) when {{ {condition} }};");
        policy_usage(Policy::parse(None, text).unwrap().to_pst().unwrap().body())
    }

    fn names(condition: &str) -> Vec<String> {
        let arguments = usage_of(condition).arguments;
        arguments
            .iter()
            .map(|argument| {
                format!(
                    "{}{}{:?}",
                    argument.path.join("."),
                    if argument.value { "=" } else { "?" },
                    argument.arg_type
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
        let PolicyUsage { context, arguments, .. } = usage_of(r#"principal.environment == "x" && context.hour < 3"#);
        assert!(context.reads(ContextField::Hour) && !context.reads(ContextField::Input) && !context.reads(ContextField::Now));
        assert!(arguments.is_empty());
        let PolicyUsage { context, .. } = usage_of(r#"context.input has a && context has session"#);
        assert!(
            context.reads(ContextField::Input) && context.reads(ContextField::Session) && !context.reads(ContextField::Scopes)
        );
        assert_eq!(context.names.unwrap().len(), 1);
    }

    #[test]
    fn whoever_takes_the_context_whole_reads_everything() {
        for condition in [
            "context == context",
            "(if true then context else context).hour < 3",
            "{ a: context }.a.hour < 3",
        ] {
            let PolicyUsage { context, arguments, .. } = usage_of(condition);
            assert!(ContextField::ALL.into_iter().all(|field| context.reads(field)), "{condition}");
            assert_eq!(context.names, None);
            assert!(
                arguments.iter().any(|argument| argument.path.is_empty() && argument.value),
                "{condition}"
            );
        }
        let PolicyUsage { context, .. } = usage_of(r#"context.input == { path: "x" }"#);
        assert_eq!(context.names, None);
        assert!(!context.reads(ContextField::Hour));
    }
}
