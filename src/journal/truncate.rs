//! Makes any event fit into a record: texts and lists that are too long are truncated, with a mark that says so.
//!
//! Never refuses an event, and never truncates one that fits.

use super::encode::encode_event;
use crate::domain::{AdminAction, Decision, ENVELOPE, Event, InputsKept, MAX_RECORD, RecordedPrincipal};
use std::sync::Arc;

const MAX_EVENT: usize = MAX_RECORD - ENVELOPE;
/// Limits tried in turn until the event fits: characters of each text, and entries of each list.
const STEPS: [(usize, usize); 4] = [(2_048, 64), (512, 32), (128, 16), (32, 4)];

/// The event as JSON, with room left for the envelope within `MAX_RECORD`.
pub(super) fn serialise(event: &Event) -> Vec<u8> {
    let bytes = encode_event(event);
    if bytes.len() <= MAX_EVENT {
        return bytes;
    }
    let cut = STEPS
        .iter()
        .map(|(text, list)| encode_event(&shortened(event.clone(), *text, *list)));
    let mut cut = cut.skip_while(|bytes| bytes.len() > MAX_EVENT);
    cut.next().expect("the last step leaves only fields of bounded length")
}

fn shortened(mut event: Event, text: usize, list: usize) -> Event {
    match &mut event {
        Event::Start(start) => {
            truncate(&mut start.version, text);
            truncate(&mut start.instance, text);
        }
        Event::Decision(decision) => shorten_decision(decision, text, list),
        Event::Outcome(outcome) => truncate_some(&mut outcome.detail, text),
        Event::Policy(change) => truncate_some(&mut change.rejected, text),
        Event::Admin(admin) => {
            truncate(&mut admin.action, text);
            truncate(&mut admin.detail, text);
            shorten_changes(admin, text, list);
        }
        Event::Suppressed(suppressed) => {
            truncate(&mut suppressed.reason, text);
            truncate(&mut suppressed.network, text);
        }
        Event::Gap(gap) => {
            gap.missing.truncate(list);
            truncate(&mut gap.found, text);
            truncate(&mut gap.accepted_by, text);
        }
        // A part of a record is made to fit, and a shortened one would not be that record's bytes.
        Event::Conflict(_) | Event::Stop(_) => {}
    }
    event
}

/// Values go before the digests of their rows do: a digest is what covers a row.
fn shorten_changes(admin: &mut AdminAction, text: usize, list: usize) {
    for change in &mut admin.changes {
        truncate(&mut change.change, text);
        truncate(&mut change.of, text);
        (change.old, change.new) = (None, None);
    }
    let was = admin.changes.len();
    admin.changes.truncate(list);
    if was > list {
        admin.detail.push_str(&format!(" [record cut: {list} of {was} changes]"));
    }
}

/// Cuts what is longer, and says so where the decision was made from it.
fn shorten_decision(decision: &mut Decision, text: usize, list: usize) {
    let lost = [
        ("policies", decision.policies.len()),
        ("scopes", decision.scopes_held.len().max(decision.scopes_needed.len())),
        ("errors", decision.errors.len()),
    ];
    let whole = decision.clone();
    decision.policies.truncate(list);
    decision.scopes_held.truncate(list);
    decision.scopes_needed.truncate(list);
    decision.task_tools.truncate(list);
    if let Some(scopes) = decision.grant.as_mut().and_then(|grant| grant.scopes.as_mut()) {
        *scopes = scopes.iter().take(list).cloned().collect();
    }
    truncate(decision.method.to_mut(), text);
    truncate(decision.reason.to_mut(), text);
    truncate(&mut decision.source_ip, text);
    for field in [
        &mut decision.tool,
        &mut decision.target,
        &mut decision.session,
        &mut decision.judged_session,
    ] {
        truncate_some(field, text);
    }
    match decision.inputs {
        // Half of a sealed text is of no use.
        Some(InputsKept::Sealed) => {
            decision.args.take_if(|args| args.len() > text);
        }
        _ => truncate_some(&mut decision.args, text),
    }
    if let Some(principal) = &mut decision.principal {
        shorten_principal(Arc::make_mut(principal), text, list);
    }
    decision.cut |= *decision != whole;
    for field in [&mut decision.detail, &mut decision.trace] {
        truncate_some(field, text);
    }
    decision.errors.truncate(list);
    decision.errors.iter_mut().for_each(|error| truncate(error, text));
    for (name, was) in lost.into_iter().filter(|(_, was)| *was > list) {
        decision.errors.push(format!("[record cut: {list} of {was} {name}]"));
    }
}

fn shorten_principal(principal: &mut RecordedPrincipal, text: usize, list: usize) {
    truncate(&mut principal.fingerprint, text);
    for field in [&mut principal.email, &mut principal.tenant, &mut principal.assurance] {
        truncate_some(field, text);
    }
    principal.roles.truncate(list);
    principal.token_roles.truncate(list);
    if let Some(scopes) = &mut principal.narrowed_to {
        *scopes = scopes.iter().take(list).cloned().collect();
    }
}

fn truncate_some(text: &mut Option<String>, characters: usize) {
    if let Some(text) = text {
        truncate(text, characters);
    }
}

/// Truncates a text to this many characters; the mark says how many bytes are missing.
pub(super) fn truncate(text: &mut String, characters: usize) {
    if let Some((at, _)) = text.char_indices().nth(characters) {
        let gone = text.len() - at;
        text.truncate(at);
        text.push_str(&format!("…[{gone} bytes cut]"));
    }
}
