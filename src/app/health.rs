//! The health of an instance, in sentences for operators: why no call is served, and what is wrong although calls are.

use super::first_contact::Readiness;
use super::policy_loader::PolicyLoader;
use crate::console::Health;
use crate::domain::Reason;
use crate::grants::{Grants, RefreshCounts};
use crate::journal::{Journal, JournalState};
use std::sync::PoisonError;

pub fn health(readiness: &Readiness, journal: &Journal, grants: &Grants, policy_loader: &PolicyLoader) -> Health {
    let snapshot = policy_loader.snapshot.load();
    let state = journal.state();
    let sealed = match &state {
        JournalState::Sealed(why) => Some(format!("nothing can be recorded: {why}")),
        JournalState::Open | JournalState::Pressure => None,
    };
    let failing = policy_loader.rejected.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Health {
        not_ready: sealed.into_iter().chain(readiness.waits_for()).collect(),
        degraded: [
            failing.map(|why| format!("the newest policies are not in use: {why}")),
            journal
                .ship_error()
                .map(|why| format!("the database does not take records: {why}")),
            grants
                .failure()
                .map(|why| format!("users and grants cannot be confirmed: {why}")),
            too_many_members(grants),
            unreadable_rows(grants),
        ]
        .into_iter()
        .flatten()
        .chain(journal.findings().sentences())
        .collect(),
        journal: match state {
            JournalState::Open => "open",
            JournalState::Pressure => "pressure",
            JournalState::Sealed(_) => "sealed",
        },
        unshipped: journal.unshipped(),
        grants_age_ms: grants
            .is_admitted()
            .then(|| u64::try_from(grants.view().age.as_millis()).unwrap_or(u64::MAX)),
        policy_set: snapshot.policy_set().to_string(),
        catalogue: snapshot.catalogue().to_string(),
        version: env!("CARGO_PKG_VERSION"),
    }
}

fn too_many_members(grants: &Grants) -> Option<String> {
    let RefreshCounts {
        members,
        left_out,
        max_members,
        ..
    } = grants.counts();
    let told = || {
        format!(
            "{} users are enrolled and `grants.max_members` is {max_members}: those above it are refused as `{}` ({left_out} \
             now); raise it and restart",
            members + left_out,
            Reason::TooManyMembers.code()
        )
    };
    (left_out > 0).then(told)
}

fn unreadable_rows(grants: &Grants) -> Option<String> {
    let unreadable = grants.unreadable();
    let tables = unreadable.iter().filter(|(_, rows)| **rows > 0);
    let tables: Vec<String> = tables.map(|(table, rows)| format!("{rows} of `{table}`")).collect();
    let told = || {
        format!(
            "rows of the store cannot be read and are disabled ({}): the log and `guardian check` name them",
            tables.join(", ")
        )
    };
    (!tables.is_empty()).then(told)
}
