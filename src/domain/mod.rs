//! The values that all rooms share: names, times, digests, principals, calls, refusals, records.
//!
//! Values only: nothing here reads a clock, a file or a socket, and an invalid value cannot be built.

mod backoff;
mod call;
mod catalogue;
mod chain;
mod client_request;
mod conflict;
mod digest;
mod document;
mod gap;
mod header;
mod member;
mod method;
mod name;
mod nearest;
mod network;
mod outcome;
mod principal;
mod problem;
mod reason;
mod record;
mod recorded_principal;
mod safe_text;
mod time;
mod uri;

pub use backoff::Backoff;
pub use call::{Call, Era, MessageId, ProtocolVersion, RequestId, Target};
pub use catalogue::{Catalogue, PinStatus, ServerEntry, ToolClass, ToolEntry};
pub use chain::{Chain, ENVELOPE, MAX_RECORD};
pub use client_request::{ClientRequest, ClientRequests};
pub use conflict::Conflict;
pub use digest::{Digest, Sha256};
pub use document::{DocumentKind, KeptDocument};
pub use gap::{Gap, MissingRecords};
pub use header::is_reserved_header;
pub use member::{
    ApiKey, Grant, GrantStatus, InputSalt, Member, MemberStatus, PartialRevocation, Revocation, RevocationKind, Scopes,
};
pub use method::{HttpVerb, LimitClass, Method, TargetKind};
pub use name::{
    BadName, ClientId, EnvironmentName, GrantId, Issuer, IssuerAlias, KeyId, PolicyId, PromptName, RoleName, Scope, ServerName,
    Subject, ToolName, UserId,
};
pub use nearest::{did_you_mean, is_one_edit, nearest};
pub use network::network_of;
pub use outcome::{CutBy, Executed, Outcome, OutcomeKind};
pub use principal::{AuthMethod, CERTIFICATE_ISSUER, Fingerprint, KEY_ISSUER, OWN_ISSUERS, Principal, PrincipalKind};
pub use problem::{Problem, Severity, SourceLocation};
pub use reason::{Reason, Refusal};
pub use record::{
    Actor, AdminAction, Decision, DecisionKind, Event, GrantUsed, GrantsKnown, Incarnation, InputsKept, InstanceId, JudgedInput,
    PolicyChange, Record, RecordedChange, RecordedInputs, RecordedRequest, SealedRecord, Start, Stop, Suppressed,
    SuppressedPrincipal,
};
pub use recorded_principal::RecordedPrincipal;
pub use safe_text::{SafeText, quoted};
pub use time::Timestamp;
pub use uri::{BadUri, ResourceUri};
