//! How clients that people use, and agents with a scripted model, behave with Guardian: what a model is told of a refusal,
//! and that its client can go on. Golden files as in sdks.rs.

use super::sdks::without_runs;
use crate::support::golden::golden;
use crate::support::sdk_clients::{Kind, RealClient};
use crate::support::stores::Engine;
use crate::support::upstream::Upstream;
use crate::support::wait::eventually;
use crate::support::world::World;
use serde_json::{Value, json};
use std::fmt::Write;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fastmcp_tells_a_refusal_and_goes_on() {
    goes_on(Kind::FastMcp, "fastmcp.txt").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mcp_remote_tells_a_refusal_and_goes_on() {
    goes_on(Kind::McpRemote, "mcp-remote.txt").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_inspector_tells_a_refusal() {
    goes_on(Kind::Inspector, "inspector.txt").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_langchain_agent_corrects_itself_and_goes_on() {
    goes_on(Kind::LangChain, "langchain.txt").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_of_openai_corrects_itself_and_goes_on() {
    goes_on(Kind::OpenAiAgents, "openai-agents.txt").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pydantic_agent_corrects_itself_and_goes_on() {
    goes_on(Kind::PydanticAi, "pydantic-ai.txt").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_of_the_ai_sdk_corrects_itself_and_goes_on() {
    goes_on(Kind::AiSdk, "ai-sdk.txt").await;
}

async fn goes_on(kind: Kind, file: &str) {
    let mut told = format!("What {} hears of Guardian, step by step.\n", kind.name());
    for mode in kind.modes() {
        told += &tale(kind, mode).await;
    }
    golden(&format!("clients/{file}"), &told);
}

/// What a refusal must say: parts of the text that a model reads.
type Refused<'a> = (&'a str, &'a str, Value, &'a [&'a str]);

/// One client in one mode. Every refusal must say in words what is wrong, where the model reads it, and leave the client alive.
async fn tale(kind: Kind, mode: &str) -> String {
    let mut world = World::new(Engine::Sqlite).await;
    let server = Upstream::start().await;
    world.server("files", &server.url, "");
    world.set("limits.tools", "{ 'files/add' = { rate = 1, per = '60s' } }");
    world.person("ana", &["reader"]).await;
    world.grant("ana", "files", "echo,add,query,read_file,slow");
    let key = world.key("ana");
    world.start().await;
    let mut client = RealClient::start(kind, &world.file("ca.pem"), &world.folder);
    let mut told = format!("\n== mode: {mode}\n");
    let mut say = |what: &str, seen: &Value| {
        let shown = without_runs(seen, &world).replace('\n', "\n      ");
        writeln!(told, "\n  {what}\n      {shown}").unwrap();
    };

    say("connects", &client.connect(&world.resource("files"), &key, mode).await);
    say("lists the tools", &client.list().await);
    say("calls a tool", &client.call("echo", json!({ "text": "hello" })).await);
    (0..6).for_each(|_| server.step());
    let seen = client.call("slow", json!({ "events": 3 })).await;
    assert!(seen.to_string().contains("3 events"), "{seen}");
    say("calls a tool that streams its answer", &seen);
    let seen = client.call("add", json!({ "a": 1, "b": 2 })).await;
    assert!(seen.to_string().contains('3'), "{seen}");
    say("calls once, as often as it may", &seen);

    let mut wrong = Vec::new();
    for (what, tool, arguments, parts) in refusals() {
        match tool {
            "query" => lose_query(&world, &key).await,
            // It makes a number of the text itself.
            "slow" if kind == Kind::Inspector && arguments["events"].is_string() => continue,
            _ => {}
        }
        let seen = client.call(tool, arguments).await;
        wrong.extend(
            parts
                .iter()
                .filter(|part| !tells(&seen, part))
                .map(|part| format!("{what}: not told `{part}`")),
        );
        say(what, &seen);
        if kind == Kind::Inspector {
            // It runs anew for each step.
            continue;
        }
        let next = client.call("echo", json!({ "text": "still here" })).await;
        if !next["text"]
            .as_str()
            .or(next["told"][0].as_str())
            .is_some_and(|text| text.contains("still here"))
        {
            wrong.push(format!("{what}: then dead, {next}"));
        }
    }
    if corrected(&server) != usize::from(is_agent(kind)) {
        wrong.push(format!("asked {} times for the right argument", corrected(&server)));
    }
    assert!(wrong.is_empty(), "{}\n{told}", wrong.join("\n"));
    told
}

fn refusals() -> [Refused<'static>; 5] {
    [
        (
            // One that may be missing: the OpenAI SDK itself finds that one is that must not.
            "misnames an argument",
            "slow",
            json!({ "event": 1 }),
            &["`event` is not an argument of `slow`", "did you mean `events`?"],
        ),
        (
            "gives a text for a number",
            "slow",
            json!({ "events": "3" }),
            &["events", "integer"],
        ),
        (
            "is forbidden by a policy",
            "read_file",
            json!({ "path": "/etc/passwd" }),
            &["Files under /etc are off limits", "Ask for a copy under /srv"],
        ),
        (
            "calls more often than it may",
            "add",
            json!({ "a": 1, "b": 2 }),
            &["not before"],
        ),
        (
            "has no scope for the tool, any more",
            "query",
            json!({ "sql": "select 1" }),
            &["query"],
        ),
    ]
}

fn is_agent(kind: Kind) -> bool {
    matches!(kind, Kind::LangChain | Kind::OpenAiAgents | Kind::PydanticAi | Kind::AiSdk)
}

/// A refusal is a text that a model reads, or an exception with that text, and no failure of the connection.
pub(super) fn tells(seen: &Value, part: &str) -> bool {
    let heard = match seen["heard"].as_str() {
        Some("model") => &seen["told"][0],
        Some("answer") if seen["isError"] == true => &seen["text"],
        Some("error") if seen["error"] == "ToolError" => &seen["message"],
        _ => &Value::Null,
    };
    heard.as_str().is_some_and(|heard| heard.contains(part))
}

/// How often the server was called with the right name.
fn corrected(server: &Upstream) -> usize {
    let asked = |call: &&crate::support::upstream::Received| call.arguments()["events"] == 1;
    server.calls().iter().filter(asked).count()
}

/// Takes `query` out of the grant, and waits until Guardian refuses it.
async fn lose_query(world: &World, key: &str) {
    world.grant("ana", "files", "echo,add,read_file,slow");
    let bystander = world.client("files").modern().bearer(key);
    eventually("the grant to be known", async || {
        let lost = bystander.call("query", json!({ "sql": "select 1" })).await.verdict();
        let kept = bystander.call("echo", json!({ "text": "and the rest" })).await.verdict();
        (lost != "allowed" && kept == "allowed").then_some(())
    })
    .await;
}
