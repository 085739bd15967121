//! OAuth clients that know only a URL: a 401 tells them where to sign in, a 403 which scopes to ask for besides.

use crate::support::authorization::AuthorizationServer;
use crate::support::golden::golden;
use crate::support::sdk_clients::{Kind, RealClient};
use crate::support::stores::Engine;
use crate::support::upstream::Upstream;
use crate::support::wait::eventually;
use crate::support::world::World;
use serde_json::{Value, json};
use std::fmt::Write;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn typescript_v2_signs_in_steps_up_and_refreshes() {
    signs_in(Kind::TypescriptV2, "sign-in-typescript-v2.txt").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_v2_signs_in_steps_up_and_refreshes() {
    signs_in(Kind::PythonV2, "sign-in-python-v2.txt").await;
}

async fn signs_in(kind: Kind, file: &str) {
    let mut told = format!(
        "How {} gets a token for Guardian, and a wider one, knowing only Guardian's URL.\n",
        kind.name()
    );
    for mode in ["legacy", "auto"] {
        let mut world = World::new(Engine::Sqlite).await;
        let server = Upstream::start().await;
        let issuer = begin(&mut world, &server, "scopes_claim = 'scope'").await;
        world.grant("ana", "files", "echo,query,read_file");
        world.start().await;
        let mut client = RealClient::start(kind, &world.file("ca.pem"), &world.folder);
        let mut say = |what: &str, seen: &Value| {
            let heard = match seen["heard"].as_str() {
                Some("connected") => "is connected".to_owned(),
                Some("answer") => format!("is answered {}", seen["text"]),
                _ => panic!("{what}: {seen}"),
            };
            writeln!(told, "\n  {what}\n      {heard}, holds a token for {}", seen["scope"]).unwrap();
            for asked in issuer.asked() {
                writeln!(told, "      asked the authorization server {asked}").unwrap();
            }
        };

        let url = world.resource("files");
        let step = json!({ "do": "connect", "url": url, "mode": mode, "sign_in": true });
        say(&format!("in mode {mode}, connects"), &client.take(&step).await);
        say(
            "calls within the scopes of its token",
            &client.call("echo", json!({ "text": "hello" })).await,
        );
        let seen = client.call("query", json!({ "sql": "select 1" })).await;
        assert!(
            seen["scope"]
                .as_str()
                .is_some_and(|scope| scope.contains("echo") && scope.contains("query")),
            "{seen}"
        );
        say("calls beyond them, within the grant", &seen);
        say("calls as before", &client.call("echo", json!({ "text": "hello" })).await);
        revoke(&world, &issuer).await;
        say(
            "calls after its token was revoked",
            &client.call("echo", json!({ "text": "hello" })).await,
        );

        assert_eq!(server.calls().len(), 4, "each call reached the server once");
        let leaks = server
            .received()
            .into_iter()
            .find(|request| request.header("authorization").is_some());
        assert!(leaks.is_none(), "a token of the caller reached the server: {leaks:?}");
    }
    golden(&format!("clients/{file}"), &told);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn typescript_v2_is_told_in_its_result_what_its_grant_lacks() {
    is_told_in_its_result(Kind::TypescriptV2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_v2_is_told_in_its_result_what_its_grant_lacks() {
    is_told_in_its_result(Kind::PythonV2).await;
}

/// Signing in again would give the same grant, so nobody is asked to.
async fn is_told_in_its_result(kind: Kind) {
    let mut world = World::new(Engine::Sqlite).await;
    let server = Upstream::start().await;
    let issuer = begin(&mut world, &server, "").await;
    world.grant("ana", "files", "echo");
    world.start().await;
    let mut client = RealClient::start(kind, &world.file("ca.pem"), &world.folder);
    let step = json!({ "do": "connect", "url": world.resource("files"), "mode": "auto", "sign_in": true });
    let seen = client.take(&step).await;
    assert_eq!(seen["heard"], "connected", "{seen}");
    let asked = issuer.asked();
    assert!(!asked.is_empty(), "it has signed in");

    let seen = client.call("query", json!({ "sql": "select 1" })).await;
    assert_eq!((&seen["heard"], &seen["isError"]), (&json!("answer"), &json!(true)), "{seen}");
    let text = seen["text"].as_str().unwrap();
    assert!(text.contains("Ask the operator to grant you the scope `query`."), "{seen}");
    assert_eq!(issuer.asked(), Vec::<String>::new(), "nobody signs in again");
    world.grant("ana", "files", "echo,query");
    eventually("the session to go on with the new grant", async || {
        let seen = client.call("query", json!({ "sql": "select 1" })).await;
        (seen["text"] == "0 rows").then_some(())
    })
    .await;
    assert_eq!(server.calls().len(), 1);
}

/// Adds a server `files` and Ana, whom the authorization server knows under another subject.
async fn begin(world: &mut World, server: &Upstream, more: &str) -> AuthorizationServer {
    let issuer = AuthorizationServer::start(&world.authority, "subject-of-ana", "echo").await;
    world.server("files", &server.url, "");
    let (iss, keys) = (&issuer.iss, issuer.jwks_url());
    world.issuer(
        "id",
        iss,
        &format!("kind = 'oidc'\njwks_url = '{keys}'\njwks_ca_file = 'ca.pem'\n{more}"),
    );
    world.person("ana", &["reader"]).await;
    world.link("ana", iss, "subject-of-ana");
    issuer
}

/// Revokes the newest token, and waits until Guardian refuses it.
async fn revoke(world: &World, issuer: &AuthorizationServer) {
    let newest = issuer.newest_token();
    let row = format!("('default', '{}', 'jti', '{}')", issuer.iss, newest.id);
    world
        .sql(&format!(
            "INSERT INTO {{t}}revocations (environment, issuer, kind, value) VALUES {row}"
        ))
        .await;
    let bystander = world.client("files").modern().bearer(&newest.token);
    eventually("the token to be refused", async || {
        let refused = bystander.ask("server/discover", json!({})).await.status == 401;
        refused.then_some(())
    })
    .await;
}
