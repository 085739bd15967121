//! Web pages as clients: what a browser asks before it lets a page call (CORS), and what a page may read.

use crate::ana_reads_files;
use crate::support::client::{Answer, Client};
use crate::support::http::{Address, Protocol};
use crate::support::issuer::Issuer;
use crate::support::on_both_stores;
use crate::support::world::World;
use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use serde_json::{Value, json};

const PAGE: &str = "https://console.example.test";
const OTHER: &str = "https://evil.example.test";

/// What a browser sends before a page's request.
async fn preflight(address: &Address, path: &str, origin: &str, headers: &str) -> Answer {
    let mut client = Client::new(address.clone(), "");
    client.path = path.into();
    let mut fields = HeaderMap::new();
    for (name, value) in [
        ("origin", origin),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", headers),
    ] {
        fields.insert(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
    }
    Answer::read(client.send("OPTIONS", fields, Bytes::new()).await.unwrap())
        .await
        .unwrap()
}

fn cors(answer: &Answer) -> Vec<(&str, &str)> {
    let fields = answer.headers.iter();
    let fields = fields.filter(|(name, _)| name.as_str().starts_with("access-control-"));
    let mut fields: Vec<_> = fields
        .map(|(name, value)| (&name.as_str()[15..], value.to_str().unwrap()))
        .collect();
    fields.sort_unstable();
    fields
}

on_both_stores! {
    async fn a_page_of_a_listed_origin_may_call_and_read_and_another_may_not(world: World) {
        let (files, key) = ana_reads_files(&mut world).await;
        world.set("listen.origins", &format!("['{PAGE}']"));
        world.start().await;
        let names = "authorization,content-type,mcp-protocol-version,mcp-param-region,x-evil";
        for protocol in [Protocol::Http1, Protocol::Http2] {
            let address = world.address(None, protocol);
            // A server that does not exist looks like any other: nobody has proved yet who they are.
            for path in ["/mcp", "/mcp/files", "/mcp/nowhere"] {
                let asked = preflight(&address, path, PAGE, names).await;
                assert_eq!(asked.status, 204, "{asked:?}");
                assert_eq!(
                    cors(&asked),
                    [
                        ("allow-headers", "authorization, content-type, mcp-protocol-version, mcp-param-region"),
                        ("allow-methods", "GET, POST, DELETE"),
                        ("allow-origin", PAGE),
                        ("expose-headers", "mcp-session-id, www-authenticate, retry-after"),
                        ("max-age", "600"),
                    ]
                );
                assert_eq!(asked.header("vary"), Some("origin, access-control-request-method, access-control-request-headers"));
                let refused = preflight(&address, path, OTHER, names).await;
                assert_eq!((refused.verdict().as_str(), cors(&refused)), ("403 wrong_origin", vec![]));
            }
            let of_page = |credential: &str| Client::new(address.clone(), "files").with("origin", PAGE).bearer(credential);
            let readable = [("allow-origin", PAGE), ("expose-headers", "mcp-session-id, www-authenticate, retry-after")];

            let mut client = of_page(&key);
            let answer = client.handshake().await;
            assert!(answer.header("mcp-session-id").is_some());
            assert_eq!((cors(&answer), answer.header("vary")), (readable.to_vec(), Some("origin")));
            let answer = client.call("echo", json!({ "text": "hi" })).await;
            assert_eq!((answer.text(), cors(&answer)), ("hi", readable.to_vec()));
            let refused = of_page("ng_wrong").handshake().await;
            assert_eq!((refused.status, cors(&refused)), (401, readable.to_vec()));
            assert!(refused.header("www-authenticate").is_some());
            client.session = Some("unknown".into());
            let mut unknown = of_page(&key).modern();
            unknown.path = "/mcp/nowhere".into();
            for client in [client, unknown] {
                let answer = client.call("echo", json!({ "text": "hi" })).await;
                assert_eq!((answer.status, cors(&answer)), (404, readable.to_vec()), "{answer:?}");
            }
            let mut combined = of_page(&key);
            combined.path = "/mcp".into();
            assert_eq!(cors(&combined.handshake().await), readable);

            for client in [Client::new(address.clone(), "files").with("origin", OTHER).bearer(&key), of_page(&key).with("origin", OTHER)] {
                let answer = client.modern().call("echo", json!({ "text": "hi" })).await;
                assert_eq!((answer.verdict().as_str(), cors(&answer)), ("403 wrong_origin", vec![]));
            }
            // Clients that are no browsers say nothing of an origin.
            let plain = Client::new(address.clone(), "files").modern().bearer(&key).call("echo", json!({ "text": "hi" })).await;
            assert_eq!((plain.text(), cors(&plain), plain.header("vary")), ("hi", vec![], Some("origin")));
        }
        assert_eq!(files.calls().len(), 4);
        let options = world.client("files").send("OPTIONS", HeaderMap::new(), Bytes::new()).await.unwrap();
        assert_eq!(options.status, 405, "no page asks");
    }

    async fn where_to_sign_in_is_told_to_every_page(world: World) {
        let (_files, _) = ana_reads_files(&mut world).await;
        let issuer = Issuer::es256("https://id.example.test");
        world.folder.write("jwks.json", &issuer.key_set().to_string());
        world.issuer("id", &issuer.iss, "kind = 'oidc'\njwks_file = 'jwks.json'");
        world.start().await;
        let address = world.address(None, Protocol::Http1);
        let path = "/.well-known/oauth-protected-resource/mcp/files";
        let asked = preflight(&address, path, OTHER, "mcp-protocol-version").await;
        assert_eq!(asked.status, 204);
        assert!(cors(&asked).contains(&("allow-origin", "*")) && cors(&asked).contains(&("allow-headers", "mcp-protocol-version")), "{asked:?}");
        let mut client = world.client("").with("origin", OTHER);
        client.path = path.into();
        let answer = Answer::read(client.send("GET", client.headers.clone(), Bytes::new()).await.unwrap()).await.unwrap();
        assert_eq!((answer.status, &answer.message["resource"]), (200, &json!(world.resource("files"))));
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"));

        // Strangers cannot find out which servers there are.
        let (status, told) = document(&world, "/.well-known/oauth-protected-resource/mcp/nowhere").await;
        assert_eq!((status, &told["resource"]), (200, &json!(world.resource("nowhere"))));
        let [known, unknown] = ["files", "nowhere"].map(|server| world.client(server));
        let told = async |mut client: Client, server: &str| {
            let answer = client.handshake().await;
            (answer.status, answer.body, answer.headers["www-authenticate"].to_str().unwrap().replace(server, ""))
        };
        assert_eq!(told(known, "files").await, told(unknown, "nowhere").await);
    }
}

async fn document(world: &World, path: &str) -> (u16, Value) {
    let reply = world.address(None, Protocol::Http1).get(path).await.unwrap();
    (reply.status, serde_json::from_str(&reply.text().await.unwrap()).unwrap())
}

/// A client that finds no sign-in must not make one up: it would register its user at Guardian.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_issuers_no_sign_in_is_offered() {
    let mut world = World::new(crate::support::stores::Engine::Sqlite).await;
    let (_files, _) = ana_reads_files(&mut world).await;
    world.start().await;
    for (credential, expected) in [(None, "Bearer"), (Some("ng_wrong"), r#"Bearer error="invalid_token""#)] {
        let client = world.client("files");
        let mut client = match credential {
            Some(credential) => client.bearer(credential),
            None => client,
        };
        assert_eq!(client.handshake().await.header("www-authenticate"), Some(expected));
    }
    for path in [
        "/register",
        "/authorize?response_type=code&client_id=x",
        "/token",
        "/.well-known/oauth-protected-resource",
        "/.well-known/oauth-protected-resource/mcp/files",
    ] {
        let (status, told) = document(&world, path).await;
        let sentence = told["error_description"].as_str().unwrap();
        assert!(status == 404 && sentence.contains("Guardian key"), "{path}: {told}");
    }
    let mut client = world.client("");
    client.path = "/register".into();
    let registered = client.post(&json!({ "redirect_uris": ["http://127.0.0.1/"] })).await;
    assert_eq!(
        (registered.status, &registered.message["error"]),
        (404, &json!("invalid_request"))
    );
}

/// Scopes are named where they narrow what a token may do, and are never the names of tools.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scopes_are_offered_only_where_tokens_have_some() {
    for (issuer, server, offered) in [
        ("", "", None),
        ("", "tool_scopes = { echo = ['files:read'] }", None),
        ("scopes_claim = 'scope'", "", None),
        (
            "scopes_claim = 'scope'",
            "tool_scopes = { echo = ['files:read'], slow = ['files:read', 'files:slow'] }",
            Some("files:read files:slow"),
        ),
        (
            "scopes_claim = 'scope'\nscopes_supported = ['mcp', 'a']",
            "tool_scopes = { echo = ['files:read'] }",
            Some("a mcp"),
        ),
    ] {
        let mut world = World::new(crate::support::stores::Engine::Sqlite).await;
        let files = crate::support::upstream::Upstream::start().await;
        world.server("files", &files.url, server);
        let keys = Issuer::es256("https://id.example.test");
        world.folder.write("jwks.json", &keys.key_set().to_string());
        world.issuer("id", &keys.iss, &format!("kind = 'oidc'\njwks_file = 'jwks.json'\n{issuer}"));
        world.start().await;
        let list = offered
            .map(|offered| json!(offered.split(' ').collect::<Vec<_>>()))
            .unwrap_or_default();
        for (path, endpoint) in [("/mcp/files", "/mcp/files"), ("/mcp", "/mcp")] {
            let (_, document) = document(&world, &format!("/.well-known/oauth-protected-resource{path}")).await;
            assert_eq!(document["scopes_supported"], list, "{issuer} {server}");
            let mut client = world.client("");
            client.path = endpoint.into();
            let answer = client.handshake().await;
            let challenge = answer.header("www-authenticate").unwrap();
            let scope = offered.map(|offered| format!("scope=\"{offered}\", ")).unwrap_or_default();
            let url = format!("https://localhost:{}/.well-known/oauth-protected-resource{path}", world.port);
            assert_eq!(challenge, format!("Bearer {scope}resource_metadata=\"{url}\""));
        }
    }
}
