//! Makes any event fit into a record: texts and lists that are too long are truncated, with a mark that says so.
//!
//! Never refuses an event, and never truncates one that fits.

use super::encode::encode_event;
use crate::domain::{AdminAction, Decision, ENVELOPE, Event, MAX_RECORD};

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
        Event::Stop(_) => {}
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

fn shorten_decision(decision: &mut Decision, text: usize, list: usize) {
    let lost = [
        ("policies", decision.policies.len()),
        ("scopes", decision.scopes.len()),
        ("errors", decision.errors.len()),
    ];
    decision.policies.truncate(list);
    decision.scopes.truncate(list);
    decision.errors.truncate(list);
    decision.errors.iter_mut().for_each(|error| truncate(error, text));
    for (name, was) in lost.into_iter().filter(|(_, was)| *was > list) {
        decision.errors.push(format!("[record cut: {list} of {was} {name}]"));
    }
    truncate(decision.method.to_mut(), text);
    truncate(decision.reason.to_mut(), text);
    truncate(&mut decision.source_ip, text);
    for field in [
        &mut decision.tool,
        &mut decision.target,
        &mut decision.detail,
        &mut decision.args,
        &mut decision.session,
        &mut decision.trace,
    ] {
        truncate_some(field, text);
    }
    if let Some(principal) = &mut decision.principal {
        truncate(&mut principal.fingerprint, text);
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
