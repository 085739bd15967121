//! How a permitted call ended, and whether its tool may have run.
//! What is not certain is `unknown`: `no` and `yes` are said only of what Guardian or the protocol knows.

use super::{EnvironmentName, RequestId, Timestamp};
use serde::{Deserialize, Serialize};

/// How a permitted call ended. The aliases are the names in records of version 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeKind {
    /// The server answered in full.
    Done,
    /// The server answered with a result that has `isError`.
    ToolError,
    /// The server answered with a JSON-RPC error, or with an HTTP status that says no.
    RefusedByServer,
    /// Nothing of the call reached the server.
    #[serde(alias = "aborted")]
    NotSent,
    /// The server broke off, or its answer was no valid one. In version 1 also: it could not be reached, or took too long.
    #[serde(alias = "failed")]
    Broken,
    /// Guardian ended the call; `CutBy` says why.
    #[serde(alias = "revoked")]
    Cut,
    /// The client disconnected first.
    ClientClosed,
    /// The server took longer than its time limit.
    TimedOut,
    /// Nobody knows: the process ended without recording an outcome, or the answer may still come on another stream.
    Unknown,
}

impl OutcomeKind {
    pub const ALL: [OutcomeKind; 9] = [
        OutcomeKind::Done,
        OutcomeKind::ToolError,
        OutcomeKind::RefusedByServer,
        OutcomeKind::NotSent,
        OutcomeKind::Broken,
        OutcomeKind::Cut,
        OutcomeKind::ClientClosed,
        OutcomeKind::TimedOut,
        OutcomeKind::Unknown,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            OutcomeKind::Done => "done",
            OutcomeKind::ToolError => "tool_error",
            OutcomeKind::RefusedByServer => "refused_by_server",
            OutcomeKind::NotSent => "not_sent",
            OutcomeKind::Broken => "broken",
            OutcomeKind::Cut => "cut",
            OutcomeKind::ClientClosed => "client_closed",
            OutcomeKind::TimedOut => "timed_out",
            OutcomeKind::Unknown => "unknown",
        }
    }

    /// What the kind alone says of whether the tool ran.
    pub const fn executed(self) -> Executed {
        match self {
            OutcomeKind::Done | OutcomeKind::ToolError => Executed::Yes,
            OutcomeKind::NotSent => Executed::No,
            OutcomeKind::RefusedByServer
            | OutcomeKind::Broken
            | OutcomeKind::Cut
            | OutcomeKind::ClientClosed
            | OutcomeKind::TimedOut
            | OutcomeKind::Unknown => Executed::Unknown,
        }
    }
}

/// Whether the tool ran. Of a message that calls no tool: whether the server acted upon it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Executed {
    /// Certainly not: nothing of the call reached the server, or the server's answer says so by the protocol.
    No,
    /// The server answered as having run it.
    Yes,
    /// It may have run.
    Unknown,
}

impl Executed {
    pub const fn as_str(self) -> &'static str {
        match self {
            Executed::No => "no",
            Executed::Yes => "yes",
            Executed::Unknown => "unknown",
        }
    }
}

/// Why Guardian ended a call that was under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CutBy {
    /// The caller lost the authorisation for an open stream.
    Revoked,
    /// The instance was stopping, and `drain_timeout` was over.
    Drain,
    /// The instance was told to stop at once.
    Stop,
    /// The answer was longer under way than `total_timeout`.
    TimeLimit,
    /// The client did not read its answer.
    SlowClient,
    /// The client flooded its connection with frames.
    Flood,
    /// The session that the call belonged to was ended, by its client or because it was idle.
    SessionEnded,
    /// The server demanded something of the client that the configuration does not allow.
    ForbiddenRequest,
}

impl CutBy {
    pub const fn as_str(self) -> &'static str {
        match self {
            CutBy::Revoked => "revoked",
            CutBy::Drain => "drain",
            CutBy::Stop => "stop",
            CutBy::TimeLimit => "time_limit",
            CutBy::SlowClient => "slow_client",
            CutBy::Flood => "flood",
            CutBy::SessionEnded => "session_ended",
            CutBy::ForbiddenRequest => "forbidden_request",
        }
    }

    /// In words, for people who read the record.
    pub const fn detail(self) -> &'static str {
        match self {
            CutBy::Revoked => "the authorisation for this stream is gone",
            CutBy::Drain => "Guardian was stopping, and the call took longer than `drain_timeout`",
            CutBy::Stop => "Guardian was told to stop at once",
            CutBy::TimeLimit => "the answer took longer than `total_timeout`",
            CutBy::SlowClient => "the client did not read its answer",
            CutBy::Flood => "the client flooded its connection",
            CutBy::SessionEnded => "the session was ended",
            CutBy::ForbiddenRequest => "the server demanded of the client what the configuration does not allow",
        }
    }
}

/// A permitted call ended; `request` names its decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "StoredOutcome")]
pub struct Outcome {
    pub at: Timestamp,
    pub environment: EnvironmentName,
    pub request: RequestId,
    #[serde(rename = "ending")]
    pub kind: OutcomeKind,
    pub executed: Executed,
    /// Why Guardian ended the call, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<CutBy>,
    pub detail: Option<String>,
    /// HTTP status of the server's answer.
    pub status: Option<u16>,
    pub latency_us: u64,
    pub bytes: u64,
    /// Written by recovery after a restart, not by the call itself.
    pub recovered: bool,
}

/// An outcome as it may be written: a record of version 1 has no `executed`, and says `tool_error` of what is now a kind.
#[derive(Deserialize)]
struct StoredOutcome {
    at: Timestamp,
    environment: EnvironmentName,
    request: RequestId,
    ending: OutcomeKind,
    executed: Option<Executed>,
    by: Option<CutBy>,
    detail: Option<String>,
    status: Option<u16>,
    tool_error: Option<bool>,
    latency_us: u64,
    bytes: u64,
    recovered: bool,
}

impl From<StoredOutcome> for Outcome {
    fn from(stored: StoredOutcome) -> Self {
        let (kind, executed, by) = match stored.executed {
            Some(executed) => (stored.ending, executed, stored.by),
            None => Outcome::of_version_1(stored.ending, stored.tool_error, stored.status),
        };
        Self {
            at: stored.at,
            environment: stored.environment,
            request: stored.request,
            kind,
            executed,
            by,
            detail: stored.detail,
            status: stored.status,
            latency_us: stored.latency_us,
            bytes: stored.bytes,
            recovered: stored.recovered,
        }
    }
}

impl Outcome {
    /// What a record of version 1 means, which has no `executed`. Version 1 called an error answer `done` too, and what Guardian had answered in place of the server. It was right about
    /// what it never sent.
    pub fn of_version_1(
        ending: OutcomeKind,
        tool_error: Option<bool>,
        status: Option<u16>,
    ) -> (OutcomeKind, Executed, Option<CutBy>) {
        let is_success = status.is_none_or(|status| (200..300).contains(&status));
        match (ending, tool_error) {
            (OutcomeKind::Done, Some(true)) if is_success => (OutcomeKind::ToolError, Executed::Unknown, None),
            (OutcomeKind::Done, Some(true)) => (OutcomeKind::RefusedByServer, Executed::Unknown, None),
            (OutcomeKind::Done, _) => (OutcomeKind::Done, Executed::Unknown, None),
            (OutcomeKind::Cut, _) => (OutcomeKind::Cut, Executed::Unknown, Some(CutBy::Revoked)),
            (kind, _) => (kind, kind.executed(), None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_of_version_1_say_no_more_than_they_know() {
        let read = |ending: &str, tool_error: &str, status: &str| {
            let text = format!(
                r#"{{"at":1,"environment":"test","request":"01a22d6f-6ecc-7000-8a3a-c02f4c0e2a90","ending":"{ending}","detail":null,"status":{status},"tool_error":{tool_error},"latency_us":8,"bytes":2,"recovered":false}}"#
            );
            let outcome: Outcome = serde_json::from_str(&text).unwrap();
            (
                outcome.kind.as_str(),
                outcome.executed.as_str(),
                outcome.by.map(CutBy::as_str),
            )
        };
        for (ending, tool_error, status, expected) in [
            ("done", "false", "200", ("done", "unknown", None)),
            ("done", "true", "200", ("tool_error", "unknown", None)),
            ("done", "true", "404", ("refused_by_server", "unknown", None)),
            ("done", "null", "202", ("done", "unknown", None)),
            ("failed", "null", "null", ("broken", "unknown", None)),
            ("aborted", "null", "null", ("not_sent", "no", None)),
            ("revoked", "null", "200", ("cut", "unknown", Some("revoked"))),
            ("client_closed", "null", "null", ("client_closed", "unknown", None)),
            ("unknown", "null", "null", ("unknown", "unknown", None)),
        ] {
            assert_eq!(read(ending, tool_error, status), expected, "{ending} {tool_error}");
        }
    }

    #[test]
    fn names_are_the_same_in_records_and_columns() {
        for kind in OutcomeKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
        for executed in [Executed::No, Executed::Yes, Executed::Unknown] {
            assert_eq!(serde_json::to_value(executed).unwrap(), executed.as_str());
        }
        for by in [
            CutBy::Revoked,
            CutBy::Drain,
            CutBy::Stop,
            CutBy::TimeLimit,
            CutBy::SlowClient,
            CutBy::Flood,
            CutBy::SessionEnded,
            CutBy::ForbiddenRequest,
        ] {
            assert_eq!(serde_json::to_value(by).unwrap(), by.as_str());
        }
    }
}
