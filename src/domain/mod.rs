//! The words everyone uses: names, times, digests, who calls, what is called, what was decided.
//!
//! Values only. Nothing here reads a clock, a file or a socket; what cannot be right cannot be built.

mod asks;
mod call;
mod catalogue;
mod digest;
mod member;
mod name;
mod principal;
mod reason;
mod record;
mod time;
mod uri;

pub use asks::{ClientRequest, ClientRequests};
pub use call::{Call, Era, MessageId, Method, ProtocolVersion, RequestId, Target};
pub use catalogue::{Annotations, Catalogue, ServerEntry, Standing, ToolEntry};
pub use digest::{Digest, Sha256};
pub use member::{ApiKey, Grant, GrantStatus, Member, MemberStatus, Revocation, RevocationKind, Scopes};
pub use name::{
    BadName, ClientId, EnvironmentName, GrantId, Issuer, IssuerAlias, KeyId, PolicyId, PromptName, RoleName, Scope, ServerName,
    Subject, ToolName, UserId,
};
pub use principal::{AuthMethod, Fingerprint, Principal, PrincipalKind};
pub use reason::{Reason, Refusal};
pub use record::{
    Admin, Decided, Decision, Ending, Event, GrantUsed, Incarnation, Outcome, PolicyChange, Record, SealedRecord, Start, Stop,
    Suppressed, Who,
};
pub use time::Timestamp;
pub use uri::{BadUri, ResourceUri};
