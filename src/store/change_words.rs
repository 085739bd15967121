//! What a change of a row is called and what it was about, in words that a person reads.

use crate::domain::Timestamp;
use serde_json::{Map, Value as Json};
use std::collections::BTreeSet;

/// A row that a trigger wrote about one change.
pub(super) struct RowChange<'a> {
    /// The table.
    pub relation: &'a str,
    /// `insert`, `update`, `delete` or `truncate`.
    pub op: &'a str,
    /// The server that it concerns, where the values do not say.
    pub server: Option<&'a str>,
    pub old: Option<&'a Json>,
    pub new: Option<&'a Json>,
}

/// Members that say nothing to a person, or that the words say already.
const UNTOLD: &[&str] = &[
    "id",
    "environment",
    "user_id",
    "server_name",
    "client_id",
    "server",
    "tool",
    "key_id",
    "issuer",
    "subject",
    "value",
    "key",
    "role_name",
    "verified",
    "row_version",
    "created_at",
    "updated_at",
    "revoked_at",
    "linked_at",
    "linked_by",
    "pinned_at",
    "offered_digest",
    "offered_since",
];
/// A detail is for a line on a screen; the values stand beside it.
const LONGEST_VALUE: usize = 120;

impl RowChange<'_> {
    /// Such as `granted`.
    pub(super) fn words(&self) -> &'static str {
        match (self.relation, self.op) {
            ("mcp_authorizations", op) => self.words_of_grant(op),
            ("api_keys", "insert") => "key made",
            ("api_keys", "delete") => "key deleted",
            ("api_keys", "update") => match (self.old_value("revoked_at"), self.new_value("revoked_at")) {
                (None, Some(_)) => "key revoked",
                (Some(_), None) => "key restored",
                _ if self.old == self.new => "secret of a key changed",
                _ => "key changed",
            },
            ("users", "insert") => "user enrolled",
            ("users", "delete") => "user deleted",
            ("users", "update") => match self.new_value("status").and_then(Json::as_str) {
                Some("active") if self.differs("status") => "user enabled",
                Some(_) if self.differs("status") => "user disabled",
                _ if self.differs("roles") => "roles changed",
                _ => "user changed",
            },
            ("user_identities", "insert") => "identity linked",
            ("user_identities", "delete") => "identity unlinked",
            ("user_identities", "update") => "identity changed",
            ("mcp_registry", "insert") => "server registered",
            ("mcp_registry", "delete") => "server removed",
            ("mcp_registry", "update") => match self.new_value("enabled").and_then(Json::as_bool) {
                Some(true) if self.differs("enabled") => "server enabled",
                Some(false) if self.differs("enabled") => "server disabled",
                _ => "server changed",
            },
            ("revocations", "insert") => "tokens revoked",
            ("revocations", "delete") => "revocation of tokens lifted",
            ("revocations", "update") => "revocation of tokens changed",
            ("server_tools", "delete") => "tool forgotten",
            ("server_tools", "insert" | "update") => match (self.old_value("pinned_digest"), self.new_value("pinned_digest")) {
                (_, None) => "approval of a tool withdrawn",
                _ => "tool approved",
            },
            ("audit_salts", "delete") => "recorded arguments made unreadable",
            ("audit_salts", "update") => "key of recorded arguments replaced",
            ("role_bindings", "insert") => "login bound",
            ("role_bindings", "delete") => "login unbound",
            ("retention_log", "insert") => "old audit records dropped",
            ("settings", "insert" | "update" | "delete") => "setting changed",
            (_, "truncate") => "table emptied",
            (_, "insert") => "row added",
            (_, "delete") => "row deleted",
            _ => "row changed",
        }
    }

    fn words_of_grant(&self, op: &str) -> &'static str {
        let status = |of: Option<&Json>| of.and_then(Json::as_str).map(str::to_owned).unwrap_or_default();
        let (old, new) = (status(self.old_value("status")), status(self.new_value("status")));
        match (op, old.as_str(), new.as_str()) {
            ("truncate", ..) => "table emptied",
            ("delete", ..) => "grant deleted",
            (_, "verified", "verified") => "grant changed",
            (_, _, "verified") => "granted",
            (_, "revoked", "revoked") => "grant changed",
            (_, _, "revoked") => "revoked",
            ("insert", ..) => "grant prepared",
            _ => "grant changed",
        }
    }

    /// What was changed, such as a server, a key or an identity.
    pub(super) fn of(&self) -> String {
        let text = |name: &str| self.text(name);
        match self.relation {
            _ if self.op == "truncate" => self.relation.to_owned(),
            "mcp_authorizations" => match (self.server.unwrap_or_default(), text("client_id").as_str()) {
                (server, "") => server.to_owned(),
                (server, client) => format!("{server} for client {client}"),
            },
            "api_keys" => [text("key_id"), text("name")].join(" ").trim().to_owned(),
            "users" => [text("email"), text("display_name"), text("id")]
                .into_iter()
                .find(|name| !name.is_empty())
                .unwrap_or_default(),
            "user_identities" => format!("{} of {}", text("subject"), text("issuer")),
            "mcp_registry" => text("id"),
            "revocations" => format!("{} {} of {}", text("kind"), text("value"), text("issuer")),
            "server_tools" => [text("server"), text("tool")].join("/").trim_matches('/').to_owned(),
            "audit_salts" => text("user_id"),
            "role_bindings" => text("role_name"),
            "retention_log" => text("partition_name"),
            "settings" => text("key"),
            other => other.to_owned(),
        }
    }

    /// What was changed, from what to what.
    pub(super) fn detail(&self) -> String {
        let (of, differences) = (self.of(), self.differences());
        match (of.is_empty(), differences.is_empty()) {
            (_, true) => of,
            (true, false) => differences.join(", "),
            (false, false) => format!("{of}: {}", differences.join(", ")),
        }
    }

    fn differences(&self) -> Vec<String> {
        let nothing = Map::new();
        let members = |of: Option<&Json>| of.and_then(Json::as_object).unwrap_or(&nothing).clone();
        let (old, new) = (members(self.old), members(self.new));
        let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        let told = names
            .into_iter()
            .filter(|name| !UNTOLD.contains(&name.as_str()) && self.differs(name));
        let difference = |name: &String| match (shown(name, old.get(name)), shown(name, new.get(name))) {
            (None, None) => None,
            (None, Some(new)) if self.old.is_none() => Some(format!("{name} {new}")),
            (Some(old), None) if self.new.is_none() => Some(format!("{name} {old}")),
            (old, new) => {
                let or_nothing = |value: Option<String>| value.unwrap_or_else(|| "nothing".to_owned());
                Some(format!("{name} {} → {}", or_nothing(old), or_nothing(new)))
            }
        };
        told.filter_map(difference).collect()
    }

    fn text(&self, name: &str) -> String {
        self.new_value(name).or(self.old_value(name)).map(plain).unwrap_or_default()
    }

    fn differs(&self, name: &str) -> bool {
        self.old_value(name) != self.new_value(name)
    }

    fn old_value(&self, name: &str) -> Option<&Json> {
        self.old.and_then(|old| old.get(name)).filter(|value| !value.is_null())
    }

    fn new_value(&self, name: &str) -> Option<&Json> {
        self.new.and_then(|new| new.get(name)).filter(|value| !value.is_null())
    }
}

/// A value for a line; `None` for what says nothing.
fn shown(name: &str, value: Option<&Json>) -> Option<String> {
    let value = value.filter(|value| !value.is_null())?;
    let moment = value.as_i64().filter(|_| name.ends_with("_at") || name.ends_with("_before"));
    let text = moment.map_or_else(|| plain(value), |micros| Timestamp::from_micros(micros).to_string());
    let cut = text.char_indices().nth(LONGEST_VALUE).map(|(at, _)| at);
    match cut {
        _ if text.is_empty() => None,
        Some(at) => Some(format!("{}…", &text[..at])),
        None => Some(text),
    }
}

fn plain(value: &Json) -> String {
    match value {
        Json::Null => String::new(),
        Json::String(text) => text.clone(),
        Json::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(","),
        Json::Object(members) if members.is_empty() => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn told(relation: &str, op: &str, old: Json, new: Json) -> (&'static str, String) {
        let some = |value: Json| (!value.is_null()).then_some(value);
        let (old, new) = (some(old), some(new));
        let change = RowChange {
            relation,
            op,
            server: Some("files"),
            old: old.as_ref(),
            new: new.as_ref(),
        };
        (change.words(), change.detail())
    }

    #[test]
    fn a_change_is_told_in_words() {
        let grant = |status: &str, scopes: Json| json!({ "id": "1", "server_name": "files", "status": status, "scopes": scopes });
        let (none, user) = (
            Json::Null,
            |status: &str, roles: Json| json!({ "email": "a@b", "status": status, "roles": roles }),
        );
        for (relation, op, old, new, words, detail) in [
            (
                "mcp_authorizations",
                "insert",
                none.clone(),
                grant("verified", json!(["a", "b"])),
                "granted",
                "files: scopes a,b, status verified",
            ),
            (
                "mcp_authorizations",
                "insert",
                none.clone(),
                grant("idle", json!([])),
                "grant prepared",
                "files: status idle",
            ),
            (
                "mcp_authorizations",
                "update",
                grant("verified", json!(["a"])),
                grant("revoked", json!(["a"])),
                "revoked",
                "files: status verified → revoked",
            ),
            (
                "mcp_authorizations",
                "update",
                grant("revoked", json!(["a"])),
                grant("verified", json!(["a"])),
                "granted",
                "files: status revoked → verified",
            ),
            (
                "mcp_authorizations",
                "update",
                grant("verified", json!(["a"])),
                grant("verified", json!([])),
                "grant changed",
                "files: scopes a → nothing",
            ),
            (
                "users",
                "update",
                user("active", json!([])),
                user("disabled", json!([])),
                "user disabled",
                "a@b: status active → disabled",
            ),
            (
                "users",
                "update",
                user("active", json!(["x"])),
                user("active", json!(["x", "y"])),
                "roles changed",
                "a@b: roles x → x,y",
            ),
            (
                "api_keys",
                "update",
                json!({ "key_id": "k" }),
                json!({ "key_id": "k", "revoked_at": 7 }),
                "key revoked",
                "k",
            ),
            (
                "api_keys",
                "update",
                json!({ "key_id": "k" }),
                json!({ "key_id": "k" }),
                "secret of a key changed",
                "k",
            ),
            (
                "server_tools",
                "update",
                json!({ "server": "s", "tool": "t", "pinned_digest": "1" }),
                json!({ "server": "s", "tool": "t" }),
                "approval of a tool withdrawn",
                "s/t: pinned_digest 1 → nothing",
            ),
            (
                "mcp_registry",
                "update",
                json!({ "id": "s", "enabled": true }),
                json!({ "id": "s", "enabled": false }),
                "server disabled",
                "s: enabled true → false",
            ),
            ("users", "truncate", none.clone(), none.clone(), "table emptied", "users"),
            (
                "another",
                "insert",
                none.clone(),
                json!({ "x": 1 }),
                "row added",
                "another: x 1",
            ),
        ] {
            assert_eq!(told(relation, op, old, new), (words, detail.to_owned()));
        }
    }
}
