//! The threat catalogue, T1 to T24 and T32 to T36: each threat has the stories here whose names begin with it, and those
//! elsewhere that the table names. Ana attacks or is attacked; Bob only calls `add` and must not notice.

mod attacks;
mod bodies;
mod cross_tenant;
mod frames;
mod framing;
mod headers;
mod servers;
mod slow;
mod streams;

use crate::support::client::Client;
use crate::support::hostile_server::HostileServer;
use crate::support::stores::Engine;
use crate::support::upstream::{Received, Upstream};
use crate::support::wait::eventually;
use crate::support::world::World;
use serde_json::{Value, json};
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::time::interval;

/// Each threat, with stories elsewhere that cover it too: on both stores, or a part that is not covered here.
const CATALOGUE: &[(&str, &str, &[&str])] = &[
    (
        "t1",
        "a member twice",
        &["what_two_readers_could_understand_differently_never_leaves"],
    ),
    ("t2", "a member in another case, strangers", &[]),
    ("t3", "no request", &[]),
    ("t4", "no UTF-8", &[]),
    ("t5", "no JSON, or more", &[]),
    (
        "t6",
        "too deep, too many, too long",
        &["a_body_or_head_too_large_is_refused_and_the_next_is_not"],
    ),
    ("t7", "batches", &[]),
    ("t8", "names of tools", &["the_body_arrives_as_it_was_sent"]),
    ("t9", "every reading agrees", &[]),
    ("t10", "answers amiss", &["what_a_server_streams_amiss_ends_with_an_error"]),
    ("t11", "content types", &["only_json_in_utf8_is_read"]),
    ("t12", "encodings", &[]),
    ("t13", "fields that repeat the message", &["header_body_mismatch_is_refused"]),
    (
        "t14",
        "fields that repeat arguments",
        &["arguments_and_the_fields_that_repeat_them_agree"],
    ),
    ("t15", "framing", &["a_second_request_smuggled_behind_a_length_is_never_read"]),
    (
        "t16",
        "bodies that end wrongly",
        &["a_message_that_arrives_slowly_is_judged_when_it_is_there"],
    ),
    ("t17", "other protocols and methods", &[]),
    ("t18", "paths", &[]),
    (
        "t19",
        "identities by other fields",
        &[
            "the_callers_token_cookies_and_identity_headers_never_reach_the_server",
            "two_credentials_are_none",
        ],
    ),
    ("t20", "origins and hosts", &[]),
    ("t21", "floods in HTTP/2", &[]),
    (
        "t22",
        "slow peers, many connections",
        &[
            "slow_clients_are_cut_and_the_others_served",
            "connections_are_counted_by_address",
            "messages_that_never_arrive_whole_take_a_bounded_room",
        ],
    ),
    (
        "t23",
        "servers that misbehave",
        &["nothing_of_the_servers_own_headers_reaches_the_caller"],
    ),
    (
        "t24",
        "streams that hang, are left, are not read",
        &[
            "a_client_that_does_not_read_costs_no_memory",
            "a_client_that_goes_away_is_on_record",
        ],
    ),
    (
        "t32",
        "sessions of others",
        &[
            "a_foreign_session_id_is_unknown",
            "a_session_of_one_server_is_unknown_to_another",
        ],
    ),
    (
        "t33",
        "streams, tasks and answers of others",
        &[
            "only_the_one_who_was_asked_answers_and_once",
            "a_task_of_the_old_era_is_its_callers",
            "a_task_of_the_new_era_is_its_callers",
            "a_stream_tells_of_the_tasks_that_are_the_callers",
        ],
    ),
    (
        "t34",
        "forged states",
        &[
            "a_call_that_needs_more_is_repeated_with_it",
            "a_request_state_is_taken_back_for_as_long_as_a_session",
            "input_for_a_server_that_may_ask_nothing_is_refused",
        ],
    ),
    (
        "t35",
        "lists of others",
        &[
            "a_cursor_goes_on_for_the_one_it_was_given_to",
            "a_list_that_is_played_again_is_filtered_too",
        ],
    ),
    (
        "t36",
        "authorisation that ends before its stream",
        &["a_revocation_cuts_an_open_stream_although_nobody_calls"],
    ),
];

#[test]
fn every_threat_of_the_catalogue_has_its_story() {
    let numbers = (1..=24).chain(32..=36).map(|number| format!("t{number}"));
    let listed: Vec<&str> = CATALOGUE.iter().map(|(id, ..)| *id).collect();
    assert_eq!(listed, numbers.collect::<Vec<_>>());
    let stories = crate::stories();
    let told = |name: &str| stories.iter().any(|text| text.contains(&format!("async fn {name}")));
    for (id, what, elsewhere) in CATALOGUE {
        assert!(told(&format!("{id}_")) || !elsewhere.is_empty(), "{id}, {what}, has no story");
        for story in *elsewhere {
            assert!(told(&format!("{story}(")), "{id}, {what}: the story `{story}` is missing");
        }
    }
}

/// An installation with a recording server `files`, Ana (a reader of it) and Bob.
struct Scene {
    world: World,
    files: Upstream,
    ana: String,
    bob: String,
    /// Number of requests that the server had received when the story began.
    before: usize,
}

/// The effect of an attack while it ran.
#[derive(Debug)]
struct Cost {
    /// Bob's calls during the attack; each was answered correctly.
    served: usize,
    slowest: Duration,
    /// Highest resident memory, less what it was before.
    grown: u64,
    /// Processor time of the whole process during the attack.
    processor: Duration,
}

const MIB: u64 = 1024 * 1024;
/// The most that a flood may add to resident memory.
const ROOM: u64 = 32 * MIB;
/// Pause between Bob's calls.
const PACE: Duration = Duration::from_millis(20);
/// The longest that a call of Bob's may take during an attack: a debug build, on a machine that has other work.
const PATIENCE: Duration = Duration::from_secs(5);

impl Scene {
    /// `more` goes into the server's entry, `settings` into the rest of the configuration.
    async fn set(more: &str, settings: &[(&str, &str)]) -> Scene {
        let files = Upstream::start().await;
        let url = files.url.clone();
        Self::within(World::new(Engine::Sqlite).await, files, &url, more, settings).await
    }

    /// The same with a hostile server in front of `files`, which can replace the answers to `echo`.
    async fn with_hostile_server(more: &str, settings: &[(&str, &str)]) -> (Scene, HostileServer) {
        let files = Upstream::start().await;
        let hostile = HostileServer::before(&files).await;
        let world = World::new(Engine::Sqlite).await;
        (Self::within(world, files, &hostile.url, more, settings).await, hostile)
    }

    async fn within(mut world: World, files: Upstream, url: &str, more: &str, settings: &[(&str, &str)]) -> Scene {
        world.server("files", url, &format!("catalogue_refresh = '1h'\n{more}"));
        world.set("limits.per_principal", "{ rate = 1000000, per = '1s' }");
        for (name, value) in settings {
            world.set(name, value);
        }
        for (name, scopes) in [("ana", "echo,read_file,slow"), ("bob", "add")] {
            world.person(name, &["reader"]).await;
            world.grant(name, "files", scopes);
        }
        let (ana, bob) = (world.key("ana"), world.key("bob"));
        world.start().await;
        let mut scene = Scene {
            world,
            files,
            ana,
            bob,
            before: 0,
        };
        let bystander = scene.bystander();
        eventually("the tools to be known", async || add(&bystander).await.then_some(())).await;
        scene.mark();
        scene
    }

    /// Starts to count what reaches the server.
    fn mark(&mut self) {
        self.before = self.files.received().len();
    }

    fn bystander(&self) -> Client {
        self.world.client("files").modern().bearer(&self.bob)
    }

    /// A client of Ana's in the modern era, without a session.
    fn ana(&self) -> Client {
        self.world.client("files").modern().bearer(&self.ana)
    }

    /// Everything that reached the server since the mark, without Bob's calls.
    fn reached(&self) -> Vec<Received> {
        let since = self.files.received().split_off(self.before);
        since.into_iter().filter(|received| received.tool() != Some("add")).collect()
    }

    /// A call of `echo` with the id that the hostile server's answers use.
    fn echo(&self, client: &Client) -> Value {
        let mut request = client.request("tools/call", json!({ "name": "echo", "arguments": { "text": "hi" } }));
        request["id"] = json!("seven");
        request
    }

    /// The last records of calls of `echo`, oldest first, once each has its outcome.
    async fn outcomes(&self, count: usize) -> Vec<Value> {
        eventually(&format!("{count} outcomes"), async || {
            let rows = self.world.audit("--tool echo --decision allow");
            let closed = rows.iter().filter(|row| row["outcome"]["ending"].is_string()).count();
            (closed == rows.len() && closed >= count).then(|| rows[rows.len() - count..].to_vec())
        })
        .await
    }

    #[track_caller]
    fn nothing_reached_the_server(&self, what: &str) {
        let reached: Vec<String> = self.reached().iter().map(Received::everything).collect();
        assert!(reached.is_empty(), "{what}: {reached:?}");
    }

    /// Runs an attack while Bob goes on calling, each time on a new connection. Fails unless each of his calls is answered,
    /// during the attack and once after it.
    async fn while_bob_is_served<T>(&self, attack: impl Future<Output = T>) -> (T, Cost) {
        self.beside_bob(attack, true).await
    }

    /// The same, with all of Bob's calls on one connection.
    async fn while_bob_stays_served<T>(&self, attack: impl Future<Output = T>) -> (T, Cost) {
        self.beside_bob(attack, false).await
    }

    async fn beside_bob<T>(&self, attack: impl Future<Output = T>, anew: bool) -> (T, Cost) {
        let mut bob = self.bystander();
        assert!(add(&bob).await, "Bob is served before the attack");
        let (memory, processor) = (self.world.resident(), self.world.processor_time());
        let mut cost = Cost {
            served: 0,
            slowest: Duration::ZERO,
            grown: 0,
            processor: Duration::ZERO,
        };
        let (mut attack, mut outcome) = (pin!(attack), None);
        let mut pace = interval(PACE);
        while outcome.is_none() {
            tokio::select! {
                _ = pace.tick() => (),
                done = &mut attack => outcome = Some(done),
            }
            if anew {
                bob = self.bystander();
            }
            let begun = Instant::now();
            let mut call = pin!(add(&bob));
            let answered = loop {
                tokio::select! {
                    answered = &mut call => break answered,
                    done = &mut attack, if outcome.is_none() => outcome = Some(done),
                }
            };
            assert!(answered, "Bob is served while the attack goes on");
            cost.served += 1;
            cost.slowest = cost.slowest.max(begun.elapsed());
            cost.grown = cost.grown.max(self.world.resident().saturating_sub(memory));
        }
        cost.processor = self.world.processor_time().saturating_sub(processor);
        (outcome.expect("the loop has ended"), cost)
    }
}

impl Cost {
    #[track_caller]
    fn is_bounded(&self, what: &str) {
        assert!(self.grown < ROOM, "{what}: {self:?}");
        assert!(self.slowest < PATIENCE, "{what}: {self:?}");
    }
}

/// Runs all futures at once and returns their results in order.
async fn all<T>(futures: impl IntoIterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut running: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        for (future, done) in running.iter_mut().filter(|(_, done)| done.is_none()) {
            if let Poll::Ready(value) = future.as_mut().poll(context) {
                *done = Some(value);
            }
        }
        if running.iter().all(|(_, done)| done.is_some()) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
    running.into_iter().filter_map(|(_, done)| done).collect()
}

async fn add(client: &Client) -> bool {
    let answer = client.call("add", json!({ "a": 1, "b": 2 })).await;
    answer.is_result() && answer.text() == "3"
}
