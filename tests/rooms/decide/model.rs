//! A reference model of `decide`: the order of checks written down naively, from the design and not from the code.
//!
//! Policies are small trees here, rendered to Cedar text for `decide` and evaluated directly by the model.

use super::world::{Enrolled, World};
use neural_guardian::domain::{Call, Catalogue, GrantStatus, Method, PinStatus, PrincipalKind, Scope, ToolClass};
use serde_json::Value;
use std::net::IpAddr;

#[derive(Debug, Clone)]
pub struct Policy {
    pub id: String,
    pub permit: bool,
    pub shadow: bool,
    pub principal: Who,
    pub action: What,
    pub resource: Where,
    pub when: Cond,
}

#[derive(Debug, Clone)]
pub enum Who {
    Any,
    Is(&'static str),
    Role(&'static str),
    KindInRole(&'static str, &'static str),
    Me(&'static str),
}

#[derive(Debug, Clone)]
pub enum What {
    Any,
    Tool(&'static str),
    In(Vec<&'static str>),
}

#[derive(Debug, Clone)]
pub enum Where {
    Any,
    Tool(&'static str),
    Server(&'static str),
}

#[derive(Debug, Clone)]
pub enum Cond {
    True,
    Has(&'static str),
    /// `has` and `like`: an argument that is a string with this in it.
    Text(&'static str, &'static str),
    /// `has` and `<`: an argument that is a number below this.
    Below(&'static str, i64),
    /// `has` and `contains`: an argument that is a list with this in it.
    Lists(&'static str, &'static str),
    Yes(&'static str),
    HourBelow(i64),
    WeekdayFrom(i64),
    Holds(&'static str),
    Named,
    InRole(&'static str),
    Method(&'static str),
    Email(&'static str),
    Session(&'static str),
    FromTen,
    Before2027,
    InGroup(&'static str),
    OnServer(&'static str),
    /// An evaluation error, unless it is midnight.
    Overflow,
    Not(Box<Cond>),
    And(Box<Cond>, Box<Cond>),
    Or(Box<Cond>, Box<Cond>),
}

// ── as Cedar text

impl Policy {
    pub fn text(&self) -> String {
        let mode = if self.shadow { "@mode(\"shadow\") " } else { "" };
        let effect = if self.permit { "permit" } else { "forbid" };
        let principal = match &self.principal {
            Who::Any => "principal".to_owned(),
            Who::Is(kind) => format!("principal is Guardian::{kind}"),
            Who::Role(role) => format!("principal in Guardian::Role::\"{role}\""),
            Who::KindInRole(kind, role) => format!("principal is Guardian::{kind} in Guardian::Role::\"{role}\""),
            Who::Me(id) => format!("principal == Guardian::User::\"{id}\""),
        };
        let action = match &self.action {
            What::Any => "action".to_owned(),
            What::Tool(tool) => format!("action == Guardian::Action::\"{tool}\""),
            What::In(names) => {
                let names: Vec<String> = names.iter().map(|name| format!("Guardian::Action::\"{name}\"")).collect();
                format!("action in [{}]", names.join(", "))
            }
        };
        let resource = match &self.resource {
            Where::Any => "resource".to_owned(),
            Where::Tool(tool) => format!("resource == Guardian::Tool::\"{tool}\""),
            Where::Server(server) => format!("resource in Guardian::Server::\"{server}\""),
        };
        format!(
            "@id(\"{}\") {mode}{effect}({principal}, {action}, {resource}) when {{ {} }};\n",
            self.id,
            self.when.text()
        )
    }
}

impl Cond {
    fn text(&self) -> String {
        match self {
            Cond::True => "true".to_owned(),
            Cond::Has(name) => format!("context.input has {name}"),
            Cond::Text(name, part) => format!("(context.input has {name} && context.input.{name} like \"*{part}*\")"),
            Cond::Below(name, limit) => format!("(context.input has {name} && context.input.{name} < {limit})"),
            Cond::Lists(name, item) => format!("(context.input has {name} && context.input.{name}.contains(\"{item}\"))"),
            Cond::Yes(name) => format!("(context.input has {name} && context.input.{name})"),
            Cond::HourBelow(hour) => format!("context.hour < {hour}"),
            Cond::WeekdayFrom(day) => format!("context.weekday >= {day}"),
            Cond::Holds(scope) => format!("context.scopes.contains(\"{scope}\")"),
            Cond::InRole(role) => format!("principal in Guardian::Role::\"{role}\""),
            Cond::Method(method) => format!("principal.method == \"{method}\""),
            Cond::Email(end) => format!("(principal has email && principal.email like \"*{end}\")"),
            Cond::Named => "context.scope_named".to_owned(),
            Cond::Session(session) => format!("(context has session && context.session == \"{session}\")"),
            Cond::FromTen => "context.source_ip.isInRange(ip(\"10.0.0.0/8\"))".to_owned(),
            Cond::Before2027 => "context.now < datetime(\"2027-01-01\")".to_owned(),
            Cond::InGroup(group) => format!("action in Guardian::Action::\"{group}\""),
            Cond::OnServer(server) => format!("resource in Guardian::Server::\"{server}\""),
            Cond::Overflow => "context.hour + 9223372036854775807 > 0".to_owned(),
            Cond::Not(inner) => format!("!({})", inner.text()),
            Cond::And(left, right) => format!("({} && {})", left.text(), right.text()),
            Cond::Or(left, right) => format!("({} || {})", left.text(), right.text()),
        }
    }

    /// The arguments that the condition reads, each with the JSON Schema type it needs.
    fn asks(&self, asked: &mut Vec<(&'static str, Option<&'static str>)>) {
        match self {
            Cond::Has(name) => asked.push((name, None)),
            Cond::Text(name, _) => asked.push((name, Some("string"))),
            Cond::Below(name, _) => asked.push((name, Some("integer"))),
            Cond::Lists(name, _) => asked.push((name, Some("array"))),
            Cond::Yes(name) => asked.push((name, Some("boolean"))),
            Cond::Not(inner) => inner.asks(asked),
            Cond::And(left, right) | Cond::Or(left, right) => {
                left.asks(asked);
                right.asks(asked);
            }
            _ => {}
        }
    }
}

// ── as a model

/// The expected result: `permit` or a reason, the deciding policies, and the shadow policies that would have changed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    pub verdict: String,
    pub policies: Vec<String>,
    pub shadow: Vec<String>,
}

struct Here<'a> {
    world: &'a World,
    server: &'a str,
    tool: &'a str,
    schema: &'a Value,
    groups: Vec<&'a str>,
    arguments: Value,
    scopes: Vec<String>,
    scope_named: bool,
}

pub fn expected(policies: &[Policy], catalogue: &Catalogue, world: &World, call: &Call) -> Expected {
    let (verdict, policies, shadow) = decide(policies, catalogue, world, call);
    Expected {
        verdict: verdict.to_owned(),
        policies,
        shadow,
    }
}

type Told = (&'static str, Vec<String>, Vec<String>);

fn refuse(reason: &'static str) -> Told {
    (reason, Vec::new(), Vec::new())
}

fn decide(policies: &[Policy], catalogue: &Catalogue, world: &World, call: &Call) -> Told {
    // enrolled and active
    match world.enrolled {
        Enrolled::Absent => return refuse("not_enrolled"),
        Enrolled::Disabled => return refuse("member_disabled"),
        Enrolled::Active => {}
    }
    // server known and enabled
    let Some(server) = catalogue.servers.get(&call.server) else {
        return refuse("unknown_server");
    };
    if !server.enabled {
        return refuse("server_disabled");
    }
    // view fresh
    if !world.fresh {
        return refuse("stale_authorization");
    }
    // grant verified and not expired
    let grants = || world.member.grants.iter().filter(|grant| grant.server == call.server);
    let mine = grants().find(|grant| grant.client.is_some() && grant.client == world.principal.client);
    let Some(grant) = mine.or(grants().find(|grant| grant.client.is_none())) else {
        return refuse("no_grant");
    };
    match grant.status {
        GrantStatus::Idle => return refuse("grant_idle"),
        GrantStatus::Revoked => return refuse("grant_revoked"),
        GrantStatus::Unreadable => return refuse("no_grant"),
        GrantStatus::Verified => {}
    }
    if grant.expires_at.is_some_and(|end| world.now >= end) {
        return refuse("grant_expired");
    }
    if call.method != Method::ToolsCall {
        return ("permit", Vec::new(), Vec::new());
    }
    // tool known and pinned
    let name = call.tool().unwrap();
    let Some(tool) = server.tools.get(name) else {
        return refuse("unknown_tool");
    };
    match tool.pin_status {
        PinStatus::Gone => return refuse("unknown_tool"),
        PinStatus::Changed => return refuse("definition_changed"),
        PinStatus::Unapproved => return refuse("tool_not_approved"),
        PinStatus::Pinned => {}
    }
    // scope
    let by_key = |scope: &str| match &world.principal.narrowed_to {
        Some(key) => key.iter().any(|held| held.as_str() == scope || held.as_str() == "*"),
        None => true,
    };
    let by_grant = |scope: &str| grant.scopes.iter().any(|held| held.as_str() == scope || held.as_str() == "*");
    if !tool
        .scopes
        .iter()
        .all(|scope| by_grant(scope.as_str()) && by_key(scope.as_str()))
    {
        let another_credential_helps = tool.scopes.iter().all(|scope| by_grant(scope.as_str()));
        return refuse(if another_credential_helps {
            "credential_lacks_scope"
        } else {
            "missing_scope"
        });
    }
    let of_key = world.principal.narrowed_to.iter().flat_map(|scopes| scopes.iter());
    let named = grant.scopes.iter().chain(of_key).map(Scope::as_str);
    let mut scopes: Vec<String> = named
        .filter(|scope| by_grant(scope) && by_key(scope))
        .map(str::to_owned)
        .collect();
    scopes.sort();
    scopes.dedup();
    // arguments
    let arguments: Value = match &call.arguments {
        None => serde_json::json!({}),
        Some(text) => serde_json::from_slice(text).unwrap(),
    };
    if !jsonschema::is_valid(&tool.input_schema, &arguments) {
        return refuse("invalid_arguments");
    }
    // policies
    let mut groups = vec!["call_tool", call.server.as_str()];
    match tool.class {
        ToolClass::ReadOnly => groups.push("read_only"),
        ToolClass::Destructive => groups.push("destructive"),
        ToolClass::Unannotated => groups.push("unannotated"),
        ToolClass::Additive => {}
    }
    let by_name = |scope: &Scope| grant.scopes.iter().any(|held| held == scope);
    let scope_named = tool.scopes.iter().all(by_name);
    let here = Here {
        world,
        server: call.server.as_str(),
        tool: name.as_str(),
        schema: &tool.input_schema,
        groups,
        arguments,
        scopes,
        scope_named,
    };
    here.judge(policies)
}

impl Here<'_> {
    fn judge(&self, policies: &[Policy]) -> Told {
        let apply = |policy: &&Policy| self.in_scope(policy);
        let enforced: Vec<&Policy> = policies.iter().filter(|policy| !policy.shadow).filter(apply).collect();
        let shadow: Vec<&Policy> = policies.iter().filter(|policy| policy.shadow).filter(apply).collect();
        let (verdict, deciding) = self.verdict(&enforced);
        let turned = shadow.into_iter().filter(|policy| match verdict {
            "permit" if self.blind(policy).is_some() => !policy.permit,
            "permit" => match self.holds(&policy.when) {
                Err(()) => true,
                Ok(holds) => holds && !policy.permit,
            },
            "no_policy_permits" => policy.permit && self.blind(policy).is_none() && self.holds(&policy.when) == Ok(true),
            _ => false,
        });
        (verdict, deciding, turned.map(|policy| policy.id.clone()).collect())
    }

    fn verdict(&self, policies: &[&Policy]) -> (&'static str, Vec<String>) {
        let ids = |found: Vec<&&Policy>| found.into_iter().map(|policy| policy.id.clone()).collect::<Vec<_>>();
        if let Some((reason, policy)) = policies
            .iter()
            .filter(|policy| !policy.permit)
            .find_map(|p| Some((self.blind(p)?, p)))
        {
            return (reason, vec![policy.id.clone()]);
        }
        let judged: Vec<&&Policy> = policies.iter().filter(|policy| self.blind(policy).is_none()).collect();
        let of = |permit: Option<bool>, result: Result<bool, ()>| {
            let wanted =
                |policy: &&&Policy| permit.is_none_or(|permit| policy.permit == permit) && self.holds(&policy.when) == result;
            judged.iter().copied().filter(wanted).collect::<Vec<_>>()
        };
        let failed = of(None, Err(()));
        if !failed.is_empty() {
            return ("policy_error", ids(failed));
        }
        let forbids = of(Some(false), Ok(true));
        if !forbids.is_empty() {
            return ("forbidden_by_policy", ids(forbids));
        }
        let permits = of(Some(true), Ok(true));
        if permits.is_empty() {
            ("no_policy_permits", Vec::new())
        } else {
            ("permit", ids(permits))
        }
    }

    fn in_scope(&self, policy: &Policy) -> bool {
        let kind = match self.world.principal.kind {
            PrincipalKind::User => "User",
            PrincipalKind::Service => "Service",
        };
        let id = format!("{}|{}", self.world.principal.alias, self.world.principal.subject);
        let tool = format!("{}/{}", self.server, self.tool);
        let who = match &policy.principal {
            Who::Any => true,
            Who::Is(wanted) => *wanted == kind,
            Who::Role(role) => self.in_role(role),
            Who::KindInRole(wanted, role) => *wanted == kind && self.in_role(role),
            Who::Me(wanted) => *wanted == id && kind == "User",
        };
        let what = match &policy.action {
            What::Any => true,
            What::Tool(wanted) => *wanted == tool,
            What::In(names) => names.iter().any(|name| *name == tool || self.groups.contains(name)),
        };
        let there = match &policy.resource {
            Where::Any => true,
            Where::Tool(wanted) => *wanted == tool,
            Where::Server(wanted) => *wanted == self.server,
        };
        who && what && there
    }

    fn in_role(&self, wanted: &str) -> bool {
        let roles = self.world.member.roles.iter().chain(&self.world.principal.roles);
        roles.into_iter().any(|role| role.as_str() == wanted)
    }

    /// The type that the tool's schema declares for an argument; `Some("")` for a type that policies cannot read.
    fn declared(&self, name: &str) -> Option<&str> {
        let property = self.schema["properties"].get(name)?;
        Some(property["type"].as_str().unwrap_or(""))
    }

    fn carried(&self, name: &str) -> Option<&Value> {
        self.arguments.get(name).filter(|value| !value.is_null())
    }

    /// Why the policy cannot be evaluated for this call: it reads an argument that is present and invisible to Cedar.
    fn blind(&self, policy: &Policy) -> Option<&'static str> {
        let mut asked = Vec::new();
        policy.when.asks(&mut asked);
        // In the order in which `decide` checks them: by name.
        asked.sort();
        let is_ill_typed = self.typed(&policy.when).1;
        for (name, _) in &asked {
            if self.carried(name).is_none() {
                continue;
            }
            let Some(declared) = self.declared(name) else {
                return Some("invalid_arguments");
            };
            let taken_for = asked
                .iter()
                .find_map(|(other, kind)| if other == name { *kind } else { None });
            if declared.is_empty() || is_ill_typed && taken_for.is_some_and(|kind| kind != declared) {
                return Some("policy_error");
            }
        }
        None
    }

    /// What a condition is for every call of the tool, if that is certain, and whether it is ill typed. Cedar does not look
    /// at what stands behind a condition that is certain.
    fn typed(&self, cond: &Cond) -> (Option<bool>, bool) {
        let required = |name: &str| {
            self.schema["required"]
                .as_array()
                .is_some_and(|names| names.iter().any(|one| one == name))
        };
        let has = |name: &str| match self.declared(name) {
            None | Some("") => Some(false),
            Some(_) => required(name).then_some(true),
        };
        let reads = |name: &str, kind: &str| match has(name) {
            Some(false) => (Some(false), false),
            _ => (None, self.declared(name) != Some(kind)),
        };
        let both = |left: &Cond, right: &Cond, ends: bool| {
            let (is_left, wrong) = self.typed(left);
            if is_left == Some(ends) {
                return (is_left, wrong);
            }
            let (is_right, also_wrong) = self.typed(right);
            let is = if is_right == Some(ends) || is_left.is_some() {
                is_right
            } else {
                None
            };
            (is, wrong || also_wrong)
        };
        match cond {
            Cond::True => (Some(true), false),
            Cond::Has(name) => (has(name), false),
            Cond::Text(name, _) => reads(name, "string"),
            Cond::Below(name, _) => reads(name, "integer"),
            Cond::Lists(name, _) => reads(name, "array"),
            Cond::Yes(name) => reads(name, "boolean"),
            Cond::InGroup(group) => (Some(self.groups.contains(group)), false),
            Cond::Not(inner) => {
                let (is, wrong) = self.typed(inner);
                (is.map(|is| !is), wrong)
            }
            Cond::And(left, right) => both(left, right, false),
            Cond::Or(left, right) => both(left, right, true),
            _ => (None, false),
        }
    }

    fn seen(&self, name: &str) -> Option<&Value> {
        self.carried(name)
            .filter(|_| self.declared(name).is_some_and(|kind| !kind.is_empty()))
    }

    fn holds(&self, cond: &Cond) -> Result<bool, ()> {
        let world = self.world;
        let seconds = world.now.secs();
        let hour = (seconds / 3_600) % 24;
        Ok(match cond {
            Cond::True => true,
            Cond::Has(name) => self.seen(name).is_some(),
            Cond::Text(name, part) => self.seen(name).is_some_and(|value| value.as_str().unwrap().contains(part)),
            Cond::Below(name, limit) => self.seen(name).is_some_and(|value| value.as_i64().unwrap() < *limit),
            Cond::Lists(name, item) => self
                .seen(name)
                .is_some_and(|value| value.as_array().unwrap().iter().any(|one| one == item)),
            Cond::Yes(name) => self.seen(name).is_some_and(|value| value.as_bool().unwrap()),
            Cond::HourBelow(limit) => hour < *limit,
            // 2026-11-16 was a Monday.
            Cond::WeekdayFrom(day) => {
                (seconds - super::world::at("2026-11-16T00:00:00Z").secs())
                    .div_euclid(86_400)
                    .rem_euclid(7)
                    + 1
                    >= *day
            }
            Cond::Holds(scope) => self.scopes.iter().any(|held| held == scope),
            Cond::InRole(role) => self.in_role(role),
            Cond::Method(method) => world.principal.method.as_str() == *method,
            Cond::Email(end) => {
                let email = world.member.email.as_deref().or(world.principal.email.as_deref());
                email.is_some_and(|email| email.ends_with(end))
            }
            Cond::Named => self.scope_named,
            Cond::Session(session) => world.session.as_deref() == Some(session),
            Cond::FromTen => matches!(world.source_ip, IpAddr::V4(address) if address.octets()[0] == 10),
            Cond::Before2027 => world.now < super::world::at("2027-01-01T00:00:00Z"),
            Cond::InGroup(group) => self.groups.contains(group),
            Cond::OnServer(server) => self.server == *server,
            Cond::Overflow if hour > 0 => return Err(()),
            Cond::Overflow => true,
            Cond::Not(inner) => !self.holds(inner)?,
            Cond::And(left, right) => self.holds(left)? && self.holds(right)?,
            Cond::Or(left, right) => self.holds(left)? || self.holds(right)?,
        })
    }
}
