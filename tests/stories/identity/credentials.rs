//! Authentication: tokens of issuers, API keys, client certificates; enrolment, and what ends it.

use crate::support::certificates::Authority;
use crate::support::client::Client;
use crate::support::http::{Address, Protocol};
use crate::support::issuer::Issuer;
use crate::support::on_both_stores;
use crate::support::upstream::Upstream;
use crate::support::wait::eventually;
use crate::support::world::World;
use crate::{ana, ana_reads_files};
use serde_json::json;
use std::sync::atomic::Ordering;

const ISS: &str = "https://id.example.test";

on_both_stores! {
    async fn a_token_and_a_key_of_one_person_are_one_person(world: World) {
        let (_files, key) = ana_reads_files(&mut world).await;
        let issuer = issuer_in_a_file(&mut world);
        world.link("ana", ISS, "subject-of-ana");
        world.start().await;

        let token = issuer.token("subject-of-ana", &world.resource("files"));
        for credential in [&key, &token] {
            let client = world.connected("files", credential).await;
            assert_eq!(client.call("echo", json!({ "text": "hi" })).await.text(), "hi");
        }
        world.shipped().await;
        let rows = world.audit("--tool echo");
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0]["user"], rows[1]["user"]);
        assert_eq!((&rows[0]["auth_method"], &rows[1]["auth_method"]), (&json!("key"), &json!("jwt")));
    }

    /// The same subject under another issuer is another person.
    async fn a_bare_subject_names_nobody(world: World) {
        let (files, _) = ana_reads_files(&mut world).await;
        issuer_in_a_file(&mut world);
        let other = Issuer::es256("https://other.example.test");
        world.folder.write("other.json", &other.key_set().to_string());
        world.issuer("other", &other.iss, "kind = 'oidc'\njwks_file = 'other.json'");
        world.link("ana", ISS, "ana");
        world.start().await;

        let token = other.token("ana", &world.resource("files"));
        assert_eq!(world.client("files").bearer(&token).handshake().await.verdict(), "200 not_enrolled");
        let mut claims = other.claims("ana", &world.resource("files"));
        claims["iss"] = json!(ISS);
        assert_eq!(world.client("files").bearer(&other.sign(&claims)).handshake().await.status, 401);
        assert_eq!(files.calls().len(), 0);
    }

    async fn a_rotated_signing_key_is_fetched_when_it_is_first_seen(world: World) {
        let (_files, _) = ana_reads_files(&mut world).await;
        let issuer = Issuer::es256(ISS);
        let url = issuer.serve(&world.authority).await;
        world.issuer("id", ISS, &format!("kind = 'oidc'\njwks_url = '{url}'\njwks_ca_file = 'ca.pem'\njwks_refetch = '1s'"));
        world.link("ana", ISS, "ana");
        world.start().await;
        let verdict = async |token: &str| world.client("files").bearer(token).handshake().await.verdict();
        let old = issuer.token("ana", &world.resource("files"));
        eventually("the keys to be there", async || (verdict(&old).await == "allowed").then_some(())).await;

        let before = issuer.fetches.load(Ordering::SeqCst);
        issuer.rotate();
        let new = issuer.token("ana", &world.resource("files"));
        eventually("the new key to be fetched", async || (verdict(&new).await == "allowed").then_some(())).await;
        assert!(issuer.fetches.load(Ordering::SeqCst) > before);
        let again = issuer.sign_as("k1", &issuer.claims("ana", &world.resource("files")));
        assert_eq!(verdict(&again).await, "401 unknown_signing_key", "the old key is gone");
    }

    /// Tokens with made-up key ids do not make Guardian fetch the issuer's key set again and again.
    async fn unknown_key_ids_cost_the_issuer_next_to_nothing(world: World) {
        let (_files, _) = ana_reads_files(&mut world).await;
        let issuer = Issuer::es256(ISS);
        let url = issuer.serve(&world.authority).await;
        world.issuer("id", ISS, &format!("kind = 'oidc'\njwks_url = '{url}'\njwks_ca_file = 'ca.pem'\njwks_refetch = '60s'"));
        world.start().await;
        for number in 0..50 {
            let token = issuer.sign_as(&format!("made-up-{number}"), &issuer.claims("ana", &world.resource("files")));
            assert!([401, 503].contains(&world.client("files").bearer(&token).handshake().await.status));
        }
        assert!((1..=3).contains(&issuer.fetches.load(Ordering::SeqCst)), "{}", issuer.fetches.load(Ordering::SeqCst));
    }

    async fn a_certificate_is_a_credential_where_it_is_asked_for(world: World) {
        let (_files, key) = ana_reads_files(&mut world).await;
        let authority = Authority::new("clients");
        world.folder.write("clients.pem", &authority.pem);
        world.set("listen.tls.client_ca_file", "'clients.pem'").set("listen.tls.client_certificates", "'required'");
        world.link("ana", "certificate", "uri:spiffe://example.test/ana");
        world.start().await;
        let presenting = |authority: &Authority| {
            let pair = authority.client("ana", &["spiffe://example.test/ana"]);
            Client::new(Address::tls(world.port, &world.authority, Some(&pair), Protocol::Http1), "files")
        };

        let mut client = presenting(&authority);
        assert_eq!(client.handshake().await.verdict(), "allowed");
        assert_eq!(client.call("echo", json!({ "text": "hi" })).await.text(), "hi");
        let stranger = presenting(&Authority::new("clients"));
        assert!(stranger.try_post(&stranger.request("ping", json!({}))).await.is_err());
        let without = world.client("files").bearer(&key);
        assert!(without.try_post(&without.request("ping", json!({}))).await.is_err());
        // Where every connection must present a certificate, it admits the connection and the key names the caller.
        let mut both = presenting(&authority).bearer(&key);
        assert_eq!(both.handshake().await.verdict(), "allowed");
    }

    async fn whoever_an_issuer_proves_is_enrolled_on_the_first_call_if_that_is_wanted(world: World) {
        let (files, _) = ana_reads_files(&mut world).await;
        let issuer = issuer_in_a_file(&mut world);
        world.set("members.just_in_time", "true").set("members.just_in_time_roles", "['reader']");
        world.start().await;

        let token = issuer.token("newcomer", &world.resource("files"));
        assert_eq!(world.client("files").bearer(&token).handshake().await.verdict(), "200 no_grant");
        let users = world.guardian("user list --json").ok().stdout;
        assert!(users.contains("newcomer") || world.guardian("user list --json").rows().len() == 2, "{users}");
        assert_eq!(files.calls().len(), 0);
    }

    async fn a_key_narrowed_to_a_scope_can_do_no_more(world: World) {
        let (_files, _) = ana_reads_files(&mut world).await;
        let narrowed = world.key_with("ana", "--scopes echo");
        world.start().await;

        let client = world.connected("files", &narrowed).await;
        assert_eq!(client.list().await, ["echo"]);
        assert_eq!(client.call("echo", json!({ "text": "hi" })).await.text(), "hi");
        assert_eq!(client.call("read_file", json!({ "path": "/srv/a" })).await.verdict(), "200 credential_lacks_scope");
    }

    async fn a_server_behind_tls_is_verified(world: World) {
        let files = Upstream::with_tls(&world.authority).await;
        let stranger = Upstream::with_tls(&Authority::new("Guardian's tests")).await;
        world.server("files", &files.url, "ca_file = 'ca.pem'").server("stranger", &stranger.url, "ca_file = 'ca.pem'");
        let key = ana(&mut world).await;
        world.grant("ana", "stranger", "*");
        world.start().await;

        assert_eq!(world.connected("files", &key).await.call("echo", json!({ "text": "hi" })).await.text(), "hi");
        let answer = world.client("stranger").bearer(&key).handshake().await;
        assert_eq!(answer.verdict(), "200 upstream_unreachable");
        assert_eq!(stranger.received().len(), 0);
    }
}

fn issuer_in_a_file(world: &mut World) -> Issuer {
    let issuer = Issuer::es256(ISS);
    world.folder.write("jwks.json", &issuer.key_set().to_string());
    world.issuer("id", ISS, "kind = 'oidc'\njwks_file = 'jwks.json'");
    issuer
}
