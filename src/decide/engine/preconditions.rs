//! The checks before any policy: enrolment, server, freshness, grant, pin status, scopes. Plain comparisons without
//! Cedar.

use super::compiled_tool::CompiledTool;
use super::input::{DecisionInput, Enrolment};
use super::unlisted::scope;
use crate::decide::tool::primitive_kind::PrimitiveKind;
use crate::domain::{
    Grant, GrantStatus, Member, MemberStatus, PinStatus, Principal, Reason, Refusal, Scope, ServerName, Timestamp,
};

/// A usable grant and the caller's effective scopes under it.
pub(in crate::decide) struct ActiveGrant<'a> {
    pub grant: &'a Grant,
    pub scopes: Vec<&'a Scope>,
}

impl ActiveGrant<'_> {
    /// Whether the grant itself names every one of `needs`, so that `*` is not what covers them. A credential that narrows
    /// the grant names nothing: what an administrator granted is what counts. The scopes for resources and prompts name no tool:
    /// a server could give a tool such a name later.
    pub fn names(&self, needs: &[Scope], kind: PrimitiveKind) -> bool {
        use PrimitiveKind::{Prompt, Resource, Tool};
        let is_other = |needed: &Scope| match kind {
            Tool => [Tool, Resource, Prompt].iter().any(|kind| scope(*kind) == needed.as_str()),
            Resource | Prompt => scope(Tool) == needed.as_str(),
        };
        let named = |needed: &Scope| !is_other(needed) && self.grant.scopes.iter().any(|scope| scope == needed);
        !needs.is_empty() && needs.iter().all(named)
    }
}

/// Finds the caller's usable grant for this server.
pub(in crate::decide) fn active_grant<'a>(
    server: &ServerName,
    input: &DecisionInput<'a>,
) -> Result<ActiveGrant<'a>, Box<Refusal>> {
    usable(selected_grant(server, input)?, input).map_err(Into::into)
}

/// The grant that counts for this server, usable or not. The order of the checks is part of the contract: the first refusal
/// wins.
pub(in crate::decide) fn selected_grant<'a>(server: &ServerName, input: &DecisionInput<'a>) -> Result<&'a Grant, Box<Refusal>> {
    let member = active_member(input)?;
    match input.snapshot.server_enabled(server) {
        None => return Err(Reason::UnknownServer.into()),
        Some(false) => return Err(Reason::ServerDisabled.into()),
        Some(true) => {}
    }
    if let Some(reason) = input.grant_freshness.stale {
        return Err(reason.into());
    }
    grant(member, server, input.principal).ok_or(Reason::NoGrant.into())
}

/// The grant with the caller's effective scopes, if it is verified and has not expired.
pub(in crate::decide) fn usable<'a>(grant: &'a Grant, input: &DecisionInput<'a>) -> Result<ActiveGrant<'a>, Reason> {
    check_grant(grant, input.now)?;
    Ok(ActiveGrant {
        grant,
        scopes: scopes(grant, input.principal),
    })
}

/// The caller's active member of this environment.
pub(in crate::decide) fn active_member<'a>(input: &DecisionInput<'a>) -> Result<&'a Member, Box<Refusal>> {
    match input.enrolment {
        Enrolment::Absent => Err(Reason::NotEnrolled.into()),
        Enrolment::Active(member) if member.status == MemberStatus::Active => Ok(member),
        Enrolment::Disabled | Enrolment::Active(_) => Err(Reason::MemberDisabled.into()),
    }
}

/// Whether the server still offers the tool as it was pinned, and the caller's scopes cover it.
pub(in crate::decide) fn check_tool(tool: &CompiledTool, active_grant: &ActiveGrant<'_>) -> Result<(), Box<Refusal>> {
    match tool.definition.entry.pin_status {
        PinStatus::Pinned => {}
        PinStatus::Changed => return Err(Reason::DefinitionChanged.into()),
        PinStatus::Unapproved => return Err(Reason::ToolNotApproved.into()),
        PinStatus::Gone => return Err(Refusal::with_detail(Reason::UnknownTool, "the server no longer offers this tool").into()),
    }
    check_scopes(&tool.definition.needs, active_grant)
}

/// Whether the caller's scopes cover all of `needs`; a refusal names all of them.
pub(in crate::decide) fn check_scopes(needs: &[Scope], active_grant: &ActiveGrant<'_>) -> Result<(), Box<Refusal>> {
    let held = &active_grant.scopes;
    let is_held = |needed| held.iter().any(|held| *held == needed || held.as_str() == "*");
    if needs.iter().all(is_held) {
        return Ok(());
    }
    // Another credential helps only where the grant has what this one was not given.
    let reason = match needs.iter().all(|needed| active_grant.grant.scopes.covers(needed)) {
        true => Reason::CredentialLacksScope,
        false => Reason::MissingScope,
    };
    let scopes = needs.to_vec();
    Err(Refusal {
        scopes,
        ..Refusal::new(reason)
    }
    .into())
}

/// A grant for the caller's own client takes precedence over one for any client, even if it is the one that refuses.
fn grant<'a>(member: &'a Member, server: &ServerName, principal: &Principal) -> Option<&'a Grant> {
    let of_server = || member.grants.iter().filter(|grant| grant.server == *server);
    of_server()
        .find(|grant| grant.client.is_some() && grant.client == principal.client)
        .or_else(|| of_server().find(|grant| grant.client.is_none()))
}

/// Whether the grant is verified and has not expired.
fn check_grant(grant: &Grant, now: Timestamp) -> Result<(), Reason> {
    match grant.status {
        GrantStatus::Idle => Err(Reason::GrantIdle),
        GrantStatus::Revoked => Err(Reason::GrantRevoked),
        GrantStatus::Unreadable => Err(Reason::NoGrant),
        GrantStatus::Verified if grant.expires_at.is_some_and(|end| end <= now) => Err(Reason::GrantExpired),
        GrantStatus::Verified => Ok(()),
    }
}

/// The effective scopes: the grant's; if the credential narrows them, the intersection of both sets, in which `*` covers
/// every scope.
fn scopes<'a>(grant: &'a Grant, principal: &'a Principal) -> Vec<&'a Scope> {
    let Some(credential) = &principal.narrowed_to else {
        return grant.scopes.iter().collect();
    };
    let narrowed = grant.scopes.iter().filter(|scope| credential.covers(scope));
    let named = credential.iter().filter(|scope| grant.scopes.covers(scope));
    let mut both: Vec<_> = narrowed.chain(named).collect();
    both.sort();
    both.dedup();
    both
}
