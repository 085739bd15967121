//! Makes any event fit into a record: texts and lists that are too long are truncated, with a mark that says so.
//!
//! Never refuses an event, and never truncates one that fits.

use super::chain::ENVELOPE;
use super::format::MAX_RECORD;
use super::text::json;
use crate::domain::{Decision, Event};

const MAX_EVENT: usize = MAX_RECORD - ENVELOPE;
/// Limits tried in turn until the event fits: characters of each text, and entries of each list.
const STEPS: [(usize, usize); 4] = [(2_048, 64), (512, 32), (128, 16), (32, 4)];

/// The event as JSON, with room left for the envelope within `MAX_RECORD`.
pub(super) fn serialise(event: &Event) -> Vec<u8> {
    let bytes = json(event);
    if bytes.len() <= MAX_EVENT {
        return bytes;
    }
    let cut = STEPS.iter().map(|(text, list)| json(&shortened(event.clone(), *text, *list)));
    let mut cut = cut.skip_while(|bytes| bytes.len() > MAX_EVENT);
    cut.next().expect("the last step leaves only fields of bounded length")
}

fn shortened(mut event: Event, text: usize, list: usize) -> Event {
    match &mut event {
        Event::Start(start) => {
            cut(&mut start.version, text);
            cut(&mut start.instance, text);
        }
        Event::Decision(decision) => shorten_decision(decision, text, list),
        Event::Outcome(outcome) => cut_some(&mut outcome.detail, text),
        Event::Policy(change) => cut_some(&mut change.rejected, text),
        Event::Admin(admin) => {
            cut(&mut admin.action, text);
            cut(&mut admin.detail, text);
        }
        Event::Suppressed(suppressed) => {
            cut(&mut suppressed.reason, text);
            cut(&mut suppressed.network, text);
        }
        Event::Stop(_) => {}
    }
    event
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
    decision.errors.iter_mut().for_each(|error| cut(error, text));
    for (name, was) in lost.into_iter().filter(|(_, was)| *was > list) {
        decision.errors.push(format!("[record cut: {list} of {was} {name}]"));
    }
    cut(decision.method.to_mut(), text);
    cut(decision.reason.to_mut(), text);
    cut(&mut decision.source_ip, text);
    for field in [
        &mut decision.tool,
        &mut decision.target,
        &mut decision.detail,
        &mut decision.args,
        &mut decision.session,
        &mut decision.trace,
    ] {
        cut_some(field, text);
    }
    if let Some(principal) = &mut decision.principal {
        cut(&mut principal.fingerprint, text);
    }
}

fn cut_some(text: &mut Option<String>, characters: usize) {
    if let Some(text) = text {
        cut(text, characters);
    }
}

/// Truncates a text to this many characters; the mark says how many bytes are missing.
pub(super) fn cut(text: &mut String, characters: usize) {
    if let Some((at, _)) = text.char_indices().nth(characters) {
        let gone = text.len() - at;
        text.truncate(at);
        text.push_str(&format!("…[{gone} bytes cut]"));
    }
}
