//! What records keep of the arguments of calls, and decisions that are made once more from what the audit trail holds.

use crate::ana_reads_files;
use crate::support::issuer::Issuer;
use crate::support::on_both_stores;
use crate::support::upstream::Upstream;
use crate::support::wait::eventually;
use crate::support::world::{POLICIES, World};
use neural_guardian::decide::{RecordedArguments, decide_again, differences, snapshot_of};
use neural_guardian::domain::{Decision, Digest, DocumentKind, Event, KeptDocument, Record};
use neural_guardian::journal::read_dir;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

const ISSUER: &str = "https://id.example.test";

/// Policies that look at what a caller and a moment are, besides the usual ones.
const MORE: &str = r#"
@id("assured") forbid (principal, action == Guardian::Action::"files/slow", resource) unless { principal has assurance && principal.assurance == "aal2" };
@id("contractors") forbid (principal in Guardian::Role::"contractor", action == Guardian::Action::"get_prompt", resource);
@id("read-notes") permit (principal in Guardian::Role::"reader", action == Guardian::Action::"read_resource", resource) when { resource.uri like "notes://a/*" && context.hour < 24 };
@id("prompts") permit (principal, action == Guardian::Action::"get_prompt", resource) when { context has session && context.session != "" || context.source_ip.isLoopback() };
"#;

/// A policy that is taken away without waiting, unlike a forbid.
const PERMIT: &str = "@id(\"notes\") permit (principal, action == Guardian::Action::\"read_resource\", resource);\n";

on_both_stores! {
    /// Allowed and refused calls of two eras, three kinds of caller and both endpoints: what the trail says of each is enough
    /// to decide it again, with the policies and tools that it names.
    async fn every_decision_can_be_made_again_from_what_the_trail_holds(world: World) {
        world.set("audit.inputs", "'plain'");
        let files = Upstream::start().await;
        world.server("files", &files.url, "");
        let issuer = Issuer::es256(ISSUER);
        world.folder.write("jwks.json", &issuer.key_set().to_string());
        world.issuer("id", ISSUER, "kind = 'oidc'\njwks_file = 'jwks.json'");
        world.policies(&format!("{POLICIES}{MORE}"));
        world.person("ana", &["reader"]).await;
        world.grant("ana", "files", "echo,read_file,slow,resources,prompts");
        let key = world.key("ana");
        world.link("ana", ISSUER, "ana");
        world.person("bob", &["contractor"]).await;
        let bobs = world.key("bob");
        world.start().await;
        let token = issuer.token("ana", &world.resource("files"));
        let stranger = issuer.token("nobody", &world.resource("files"));

        for credential in [&key, &token] {
            let legacy = world.connected("files", credential).await;
            let modern = world.client("files").modern().bearer(credential);
            for client in [&legacy, &modern] {
                for (tool, arguments) in [
                    ("echo", json!({ "text": "hi", "n": 1.50 })),
                    ("echo", json!({ "text": 7 })),
                    ("read_file", json!({ "path": "/etc/passwd" })),
                    ("read_file", json!({ "path": "/srv/a" })),
                    ("slow", json!({})),
                    ("query", json!({ "sql": "select" })),
                    ("nothing", json!({})),
                ] {
                    client.call(tool, arguments).await;
                }
                client.list().await;
                for uri in ["notes://a/1", "notes://secret/1"] {
                    client.ask("resources/read", json!({ "uri": uri })).await;
                }
                client.ask("prompts/get", json!({ "name": "greet", "arguments": { "who": "x" } })).await;
                client.ask("completion/complete", json!({ "ref": { "type": "ref/prompt", "name": "greet" }, "argument": { "name": "who", "value": "a" } })).await;
            }
        }
        for other in [&bobs, &stranger] {
            world.client("files").modern().bearer(other).call("echo", json!({ "text": "hi" })).await;
        }
        let mut combined = world.client("").bearer(&key);
        combined.path = "/mcp".into();
        combined.handshake().await;
        combined.call("files__echo", json!({ "text": "hi" })).await;
        combined.call("files__query", json!({ "sql": "x" })).await;
        world.grant("ana", "files", "echo");
        world.revoke("ana", "files");
        eventually("the revocation to take effect", async || {
            (world.client("files").modern().bearer(&key).call("echo", json!({ "text": "hi" })).await.verdict() == "200 grant_revoked").then_some(())
        })
        .await;
        world.shipped().await;

        let seen = decided_again(&world).await;
        for reason in ["permitted", "invalid_arguments", "forbidden_by_policy", "missing_scope", "unknown_tool", "no_policy_permits", "no_grant", "not_enrolled", "grant_revoked"] {
            assert!(seen.contains_key(reason), "{reason} is not among {seen:?}");
        }
        assert!(seen.values().sum::<usize>() > 50, "{seen:?}");
    }

    /// Sets and catalogues come and go; each is in the trail once, whatever comes back.
    async fn a_policy_set_is_kept_once_and_found_by_its_hash(world: World) {
        let (_files, key) = ana_reads_files(&mut world).await;
        world.start().await;
        let first = decided_with(&world, &key).await;
        world.folder.write("policies/more.cedar", PERMIT);
        let second = until_other(&world, &key, &first).await;
        std::fs::remove_file(world.file("policies/more.cedar")).unwrap();
        let back = until_other(&world, &key, &second).await;
        assert_eq!(back, first);
        world.shipped().await;
        world.kill();
        world.start().await;
        assert_eq!(decided_with(&world, &key).await, first);
        world.shipped().await;
        eventually("the documents to be shipped", async || waiting(&world).is_empty().then_some(())).await;

        assert_eq!(world.count("SELECT count(*) FROM {t}policy_documents WHERE kind = 'policy_set'").await, sets_in_force(&world).len() as i64);
        let twice = "SELECT count(*) FROM (SELECT digest FROM {t}policy_documents GROUP BY environment, kind, digest HAVING count(*) > 1) AS more";
        assert_eq!(world.count(twice).await, 0);
        let set: Value = serde_json::from_str(&document(&world, &second)).unwrap();
        let texts: Vec<String> = set["files"].as_array().unwrap().iter().map(|file| document(&world, file[1].as_str().unwrap())).collect();
        assert!(texts.iter().any(|text| text == PERMIT), "{texts:?}");
        let unknown = world.guardian(&format!("audit document {}", "0".repeat(64)));
        assert!(unknown.code != 0 && unknown.stderr.contains("no document"), "{unknown:?}");

        assert_eq!(Digest::of(document(&world, &second).as_bytes()).to_string(), second, "byte by byte");
    }

    async fn sealed_arguments_open_with_the_key_and_not_without(world: World) {
        world.set("audit.inputs", "'sealed'").set("log.level", "'trace'");
        let (_files, key) = ana_reads_files(&mut world).await;
        world.start().await;
        let client = world.connected("files", &key).await;
        client.call("echo", json!({ "text": "canary-argument" })).await;
        client.call("echo", json!({ "text": "canary-argument" })).await;
        client.call("query", json!({ "sql": "canary-argument" })).await;
        client.call("echo", json!({ "text": 7, "other": "canary-argument" })).await;
        world.shipped().await;
        let rows = world.audit("--method tools/call");
        assert_eq!(rows.iter().map(|row| row["inputs"].as_str().unwrap()).collect::<Vec<_>>(), ["sealed"; 4]);
        let sealed: BTreeSet<&str> = rows.iter().map(|row| row["args"].as_str().unwrap()).collect();
        assert_eq!(sealed.len(), 4, "each with a nonce of its own");
        nowhere(&world, "canary-argument", &rows);

        let request = rows[0]["request"].as_str().unwrap();
        let open = || world.guardian(&format!("audit show {request} --open --json"));
        let opened = open().ok().json();
        assert_eq!(opened["args"], json!({ "text": "canary-argument" }).to_string());
        assert!(!world.guardian(&format!("audit show {request} --json")).ok().stdout.contains("canary"));

        let file = world.file("data/audit.keys");
        let secrets = std::fs::read_to_string(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        let without = open();
        assert!(without.code != 0 && without.stderr.contains("cannot read the audit keys"), "{without:?}");
        assert!(!file.exists(), "no new secret is made of it");
        let other = secrets.replacen("1:", "2:", 1);
        std::fs::write(&file, &other).unwrap();
        let of_another_version = open();
        assert!(of_another_version.stderr.contains("has no key of version 1"), "{of_another_version:?}");
        std::fs::write(&file, "1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n").unwrap();
        let wrong = open();
        assert!(wrong.code != 0 && wrong.stderr.contains("not the one that sealed"), "{wrong:?}");
        std::fs::write(&file, &secrets).unwrap();
        open().ok();

        // Somebody is erased: nobody opens the old ones any more, and nothing new is sealed.
        world.sql("DELETE FROM {t}audit_salts").await;
        let erased = open();
        assert!(erased.code != 0 && erased.stderr.contains("is erased"), "{erased:?}");
        eventually("the running instance to drop the key", async || {
            client.call("echo", json!({ "text": "canary-argument" })).await;
            world.shipped().await;
            let rows = world.audit("--method tools/call");
            let last = rows.last().unwrap();
            (last["inputs"] == "digest" && last["args_digest"].is_null() && last["args"].is_null()).then_some(())
        })
        .await;
    }

    async fn by_default_a_record_holds_a_digest_that_nobody_can_guess(world: World) {
        world.set("log.level", "'trace'");
        let (_files, anas) = ana_reads_files(&mut world).await;
        world.person("bob", &["reader"]).await;
        world.grant("bob", "files", "echo");
        let bobs = world.key("bob");
        world.start().await;
        let arguments = json!({ "text": "canary-argument" });
        for key in [&anas, &anas, &bobs] {
            world.connected("files", key).await.call("echo", arguments.clone()).await;
        }
        world.shipped().await;
        let rows = world.audit("--tool echo");
        let digests: Vec<&str> = rows.iter().map(|row| row["args_digest"].as_str().unwrap()).collect();
        assert_eq!(digests[0], digests[1], "of one person");
        assert_ne!(digests[0], digests[2], "of another");
        assert_ne!(digests[0], Digest::of(arguments.to_string().as_bytes()).to_string());
        assert!(rows.iter().all(|row| row["inputs"] == "digest" && row["inputs_key"] == 1 && row["args"].is_null()));
        nowhere(&world, "canary-argument", &rows);

        world.terminate();
        world.ended().await;
        world.set("journal.arguments", "'redacted'").set("journal.redact", "['text']");
        world.write();
        let told = world.guardian("check");
        assert_ne!(told.code, 0);
        let said = format!("{}{}", told.stdout, told.stderr);
        for sentence in ["`journal.arguments` is called `audit.inputs` now", "`journal.redact` is called `audit.redact` now"] {
            assert!(said.contains(sentence), "{said}");
        }
    }
}

/// No file of the data folder, no row and no line of the log holds the word.
fn nowhere(world: &World, word: &str, rows: &[Value]) {
    assert!(!format!("{rows:?} {}", world.log()).contains(word));
    let files = world.folder.files();
    assert!(
        files
            .iter()
            .any(|file| file.extension().is_some_and(|extension| extension == "seg"))
    );
    for file in files {
        let text = String::from_utf8_lossy(&std::fs::read(&file).unwrap()).into_owned();
        assert!(!text.contains(word), "{}", file.display());
    }
}

/// The records of the journal, each decided again; how many there are of each reason.
async fn decided_again(world: &World) -> BTreeMap<String, usize> {
    let mut seen = BTreeMap::new();
    let mut snapshots = HashMap::new();
    for record in decisions(world).await {
        if record.decided.as_deref() == Some("not_asked") || record.policy_set == Digest::ZERO {
            continue;
        }
        let snapshot = snapshots.entry((record.policy_set, record.catalogue)).or_insert_with(|| {
            let found: RefCell<HashMap<Digest, Arc<str>>> = RefCell::default();
            let document = |_: DocumentKind, digest: &Digest| {
                let fetch = || KeptDocument::new(DocumentKind::Tool, document(world, &digest.to_string())).text;
                Some(found.borrow_mut().entry(*digest).or_insert_with(fetch).clone())
            };
            snapshot_of(&record.policy_set, &record.catalogue, document).unwrap()
        });
        let arguments = RecordedArguments::of(&record, |_, _| None);
        let text = serde_json::to_string(&record).unwrap();
        let verdict = decide_again(&record, arguments, snapshot).unwrap_or_else(|why| panic!("{why}: {text}"));
        assert_eq!(differences(&record, &verdict), Vec::<String>::new(), "{text}");
        *seen.entry(record.reason.into_owned()).or_default() += 1;
    }
    seen
}

/// What the journal holds; read again if somebody wrote to it meanwhile.
async fn decisions(world: &World) -> Vec<Decision> {
    let folder = world.file("data/journal");
    let records = eventually("a moment in which nobody writes to the journal", async || {
        read_dir(&folder).unwrap().collect::<Result<Vec<_>, _>>().ok()
    });
    let records = records.await.into_iter();
    let events = records.map(|record| serde_json::from_slice::<Record>(&record.bytes).unwrap().event);
    let decisions = events.filter_map(|event| match event {
        Event::Decision(decision) => Some(*decision),
        _ => None,
    });
    decisions.collect()
}

/// The text of a document, as the command prints it.
fn document(world: &World, digest: &str) -> String {
    world.guardian(&format!("audit document {digest}")).ok().stdout
}

/// The policy set that a call is decided with now.
async fn decided_with(world: &World, key: &str) -> String {
    world
        .client("files")
        .modern()
        .bearer(key)
        .call("echo", json!({ "text": "hi" }))
        .await;
    decisions(world).await.last().unwrap().policy_set.to_string()
}

async fn until_other(world: &World, key: &str, than: &str) -> String {
    eventually("another policy set to be in force", async || {
        let now = decided_with(world, key).await;
        (now != than).then_some(now)
    })
    .await
}

/// The policy sets that were in force, by the trail.
fn sets_in_force(world: &World) -> BTreeSet<String> {
    let rows = world.audit("--kind policy");
    rows.iter()
        .map(|row| row["policy_set"].as_str().unwrap().to_owned())
        .collect()
}

/// Files of documents that are not in the database yet.
fn waiting(world: &World) -> Vec<String> {
    let names = std::fs::read_dir(world.file("data/journal")).unwrap();
    let names = names.map(|file| file.unwrap().file_name().into_string().unwrap());
    names
        .filter(|name| name.starts_with("documents-") && name.ends_with(".json"))
        .collect()
}
