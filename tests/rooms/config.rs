//! `config`: the shipped file and its comments, overrides, secrets, and twenty broken files with the problems reported for
//! each. `BLESS=1` rewrites the expected texts.

use neural_guardian::config::{self, HumanDuration, Variables};
use neural_guardian::domain::{Problem, Severity, SourceLocation};
use serde_json::Value as Json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const SHIPPED: &str = "config/guardian.toml";

#[test]
fn the_shipped_file_loads_as_it_is() {
    let loaded = config::load(Path::new(SHIPPED), &Variables::new()).unwrap_or_else(|problems| panic!("{}", shown(&problems)));
    assert_eq!(loaded.config.data_dir, Path::new("data"));
    assert_eq!(loaded.config.policies.dir, Path::new("policies"));
    assert_eq!(loaded.config.store.file.as_deref(), Some(Path::new("data/guardian.db")));
    assert_eq!(shown(&loaded.warnings).lines().count(), 1, "only that there is no server yet");
}

#[test]
fn the_exported_schema_is_the_committed_one() {
    let schema = serde_json::to_string_pretty(&config::schema()).unwrap() + "\n";
    golden(Path::new("config/guardian.schema.json"), &schema);
}

/// Removes the `#` from every line that is a setting, and compares the values with the defaults in the schema.
#[test]
fn every_key_is_documented_and_every_default_shown_is_the_one_in_force() {
    let schema = config::schema();
    let text = uncommented();
    let file: Json = toml::from_str(&text).unwrap();
    let mut documented = BTreeSet::new();
    let mut compared = 0;
    let mut examples = BTreeSet::new();
    walk("", &file, &schema, &schema, &mut |path, value, schema| {
        documented.insert(path.to_owned());
        let default = &schema["default"];
        if default.is_null() && !value.is_object() && !value.is_array() {
            examples.insert((path.rsplit('.').next().unwrap().to_owned(), value.to_string()));
        }
        let written_out = ["data_dir", "policies.dir", "servers.command", "servers.env_from"].contains(&path);
        let example = default.as_object().is_some_and(|entries| entries.is_empty());
        if !default.is_null() && !example && !written_out {
            assert_eq!(plain(value), plain(default), "`{path}`");
            compared += 1;
        }
    });
    for (key, value) in &examples {
        assert!(says_so(key, value), "`{key}` looks like a default and is an example");
    }
    let mut known = BTreeSet::new();
    keys("", &schema, &schema, &mut known);
    let missing: Vec<_> = known.difference(&documented).collect();
    assert_eq!(missing, Vec::<&String>::new(), "not documented");
    assert!(compared > 55, "{compared} defaults compared");
}

#[test]
fn the_examples_in_the_shipped_file_are_right_apart_from_contradicting_each_other() {
    let variables = variables(&[
        ("DATABASE_URL", "postgres://guardian:Wq8-long@db.example.com/guardian"),
        ("DATABASE_ADMIN_URL", "postgres://admin:Wq9-long@db.example.com/guardian"),
        ("GITHUB_TOKEN", "ghp_0123456789"),
        ("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt"),
        ("INTROSPECTION_SECRET", "Wq10-long"),
    ]);
    let problems = config::parse(Path::new(SHIPPED), &uncommented(), &variables).unwrap_err();
    let errors = problems.iter().filter(|problem| problem.severity == Severity::Error);
    let keys: Vec<_> = errors.map(|problem| problem.key.as_str()).collect();
    assert_eq!(
        keys,
        [
            // A value and its file: the examples show both side by side.
            "store.url",
            "store.url_file",
            "store.admin_url",
            "store.admin_url_file",
            "servers[0].credential.value_file",
            "issuers[0].jwks_file",
            "issuers[0].introspection.client_secret_file",
        ],
        "{}",
        shown(&problems)
    );
}

#[test]
fn twenty_broken_files_each_get_their_sentences() {
    let folder = Path::new("tests/golden/config");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.retain(|file| file.extension().is_some_and(|ending| ending == "toml"));
    files.sort();
    assert!(files.len() >= 20, "{}", files.len());
    for file in files {
        let variables = variables(&[("TOKEN", "9f86d081884c7d65")]);
        let problems = match config::load(&file, &variables) {
            Err(problems) => problems,
            Ok(_) => panic!("{} loads", file.display()),
        };
        assert!(problems.iter().any(|problem| problem.severity == Severity::Error));
        golden(&file.with_extension("txt"), &shown(&problems));
    }
}

#[test]
fn the_environment_overrides_the_file_by_section_key_and_index() {
    let loaded = load(
        BASE,
        &[
            ("GUARDIAN__LISTEN__ADDRESS", "0.0.0.0:443"),
            ("GUARDIAN__LISTEN__LIMITS__MAX_CONNECTIONS", "7"),
            ("GUARDIAN__LISTEN__HOSTS", "a.example, b.example"),
            ("GUARDIAN__POLICIES__DENY_ALL", "true"),
            ("GUARDIAN__SERVERS__0__URL", "https://new.example/mcp"),
            ("GUARDIAN__SERVERS__1__NAME", "second"),
            ("GUARDIAN__SERVERS__1__URL", "https://two.example/mcp"),
            ("GUARDIAN__LIMITS__PER_TOOL", "{ rate = 3, per = \"1s\" }"),
            ("GUARDIAN__SERVERS__0__CREDENTIAL__VALUE", "Bearer ${not expanded}"),
        ],
    );
    let config = loaded.unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(config.listen.address.to_string(), "0.0.0.0:443");
    assert_eq!(config.listen.limits.max_connections, 7);
    assert_eq!(config.listen.hosts, ["a.example", "b.example"]);
    assert!(config.policies.deny_all);
    assert_eq!(config.servers[0].url.as_deref(), Some("https://new.example/mcp"));
    assert_eq!(config.servers[1].name.as_str(), "second");
    assert_eq!(config.limits.per_tool.unwrap().rate, 3);
    let credential = config.servers[0].credential.as_ref().unwrap().value.as_ref().unwrap();
    assert_eq!(secrecy::ExposeSecret::expose_secret(credential), "Bearer ${not expanded}");
}

#[test]
fn a_misspelt_override_is_a_problem_of_that_variable() {
    let said = load(
        BASE,
        &[
            ("GUARDIAN__LISTNE__ADDRESS", "0.0.0.0:443"),
            ("GUARDIAN__SERVERS__5__URL", "https://x.example"),
            ("GUARDIAN__SERVERS__FIRST__URL", "https://x.example"),
            ("GUARDIAN__STORE__MAX_CONNECTIONS", "many"),
            ("GUARDIAN__LISTEN__ADDRESS__PORT", "1"),
        ],
    )
    .unwrap_err();
    assert_eq!(
        said,
        "\
environment variable GUARDIAN__LISTEN__ADDRESS__PORT: `port` lies inside a setting that is not a section
environment variable GUARDIAN__LISTNE__ADDRESS: unknown key `listne` in the top level; did you mean `listen`?
environment variable GUARDIAN__SERVERS__5__URL: entry 5 cannot follow 1 entries
environment variable GUARDIAN__SERVERS__FIRST__URL: `first` is not an index; the first entry is 0
environment variable GUARDIAN__STORE__MAX_CONNECTIONS: `store.max_connections` is a text; expected a whole number
"
    );
}

#[test]
fn a_wrong_value_is_found_under_a_key_of_any_spelling() {
    let said = load(
        &format!("{BASE}[servers.env]\n\"\" = 1\n007 = 2\n\"+5\" = 3\n\"a/b~1c\" = 4\n"),
        &[],
    )
    .unwrap_err();
    assert_eq!(
        said,
        "\
guardian.toml:11:6: `servers[0].env.\"\"` is a number; expected a text in quotes
guardian.toml:12:7: `servers[0].env.007` is a number; expected a text in quotes
guardian.toml:13:8: `servers[0].env.\"+5\"` is a number; expected a text in quotes
guardian.toml:14:12: `servers[0].env.\"a/b~1c\"` is a number; expected a text in quotes
"
    );
}

#[test]
fn a_secret_is_read_from_its_file_and_never_shown() {
    let folder = Folder::new("secret");
    folder.write("url", "postgres://guardian:Xk29-hidden@db.example.com/g\n", 0o600);
    folder.write("token", "Bearer Xk29-hidden", 0o600);
    let text =
        format!("{BASE}\n[servers.credential]\nvalue_file = \"token\"\n[store]\nkind = \"postgres\"\nurl_file = \"url\"\n");
    folder.write("guardian.toml", &text, 0o644);
    let loaded = config::load(&folder.0.join("guardian.toml"), &Variables::new()).unwrap_or_else(|p| panic!("{}", shown(&p)));
    let url = loaded.config.store.url.as_ref().unwrap();
    assert_eq!(
        secrecy::ExposeSecret::expose_secret(url),
        "postgres://guardian:Xk29-hidden@db.example.com/g"
    );
    assert!(!format!("{loaded:?}").contains("hidden"));
}

#[test]
fn a_secret_file_that_is_missing_empty_or_open_to_others_is_refused() {
    let folder = Folder::new("bad-secret");
    folder.write("open", "Bearer Xk29-hidden", 0o640);
    folder.write("empty", "\n", 0o600);
    for (file, expected) in [
        ("open", "can be read by other users"),
        ("empty", "is empty"),
        ("absent", "does not exist"),
        (".", "cannot read"),
    ] {
        let text = format!("{BASE}\n[servers.credential]\nvalue_file = \"{file}\"\n");
        folder.write("guardian.toml", &text, 0o644);
        let problems = config::load(&folder.0.join("guardian.toml"), &Variables::new()).unwrap_err();
        let said = shown(&problems);
        assert!(said.contains(expected) && !said.contains("hidden"), "{said}");
        assert!(
            matches!(problems[0].location, SourceLocation::InFile { line: 12, .. }),
            "{said}"
        );
    }
}

#[test]
fn no_problem_ever_shows_the_value_of_a_secret() {
    let said = load(
        &format!("{BASE}\n[servers.credential]\nvalue = \"changeme\"\n[store]\nkind = \"postgres\"\nurl = \"mysql://u:Xk29-hidden@h/d\"\nadmin_url = \"postgres://u:password@h/d?sslmode=disable\"\n"),
        &[],
    )
    .unwrap_err();
    assert!(!said.contains("hidden") && !said.contains("u:password"), "{said}");
    assert_eq!(said.matches("placeholder").count(), 2, "{said}");
}

/// Identity takes a checked configuration and looks at none of this again.
#[test]
fn each_thing_wrong_with_an_issuer_has_its_sentence() {
    let issuer =
        |more: &str| format!("[[issuers]]\nalias = \"a\"\nkind = \"oidc\"\nissuer = \"https://id.example.com\"\n{more}\n");
    let at_url = |more: &str| issuer(&format!("jwks_url = \"https://id.example.com/keys\"\n{more}"));
    let claim = "lies in `user_metadata`, which users write themselves";
    let https = "it must begin with `https://`";
    let own = "is taken by Guardian itself";
    assert!(load(&format!("{BASE}{}", at_url("")), &[]).is_ok());
    for (issuers, sentence) in [
        (issuer(""), "has neither `jwks_url` nor `jwks_file`"),
        (at_url("jwks_file = \"x\""), "has both `jwks_url` and `jwks_file`"),
        (issuer("jwks_url = \"http://id.example.com/keys\""), https),
        (issuer("jwks_url = \"http://10.0.0.1/keys\""), https),
        (issuer("jwks_url = \"http://127.0.0.1.example.com/keys\""), https),
        (issuer("jwks_url = \"http://user@127.0.0.1/keys\""), "it holds a user name"),
        (issuer("jwks_url = \"id.example.com\""), https),
        (issuer("jwks_url = \"https://:443/keys\""), "it names no host"),
        (at_url("roles_claim = \"user_metadata.roles\""), claim),
        (at_url("environment_claim = \"custom.User_Metadata.environments\""), claim),
        (at_url("scopes_claim = \"USER_METADATA.scopes\""), claim),
        (at_url("tenant_claim = \"user_metadata\""), claim),
        (
            at_url("") + &at_url("").replace("\"a\"", "\"b\""),
            "the `iss` `https://id.example.com` is claimed twice",
        ),
        (
            at_url("also_accept = [\"https://id.example.com\"]"),
            "guardian.toml:15:16: the `iss` `https://id.example.com` is claimed twice",
        ),
        (
            at_url("") + &at_url("").replace("https://id", "https://b"),
            "two issuers have the alias `a`",
        ),
        (at_url("").replace("\"a\"", "\"guardian\""), own),
        (at_url("").replace("\"a\"", "\"certificate\""), own),
        (at_url("also_accept = [\"certificate\"]"), own),
        (at_url("").replace("https://id.example.com\"\njwks", "guardian\"\njwks"), own),
        (at_url("").replace("oidc", "cloudflare_access"), "has no `audiences`"),
    ] {
        let said = load(&format!("{BASE}{issuers}"), &[]).expect_err(sentence);
        assert!(said.contains(sentence), "{said} should say `{sentence}`");
    }
}

#[test]
fn a_url_of_a_port_alone_names_no_host() {
    let said = load(&BASE.replace("https://guardian.example", "https://:443"), &[]).unwrap_err();
    assert!(
        said.contains("`listen.public_url` is `https://:443`: it names no host"),
        "{said}"
    );
}

#[test]
fn a_credential_travels_in_no_header_that_the_exchange_needs() {
    for (header, usable) in [
        ("X-Api-Key", true),
        ("authorization", true),
        ("trailer", false),
        ("Proxy-Authorization", false),
        ("Mcp-Name", false),
        (":authority", false),
        ("a b", false),
    ] {
        let text = format!("{BASE}credential = {{ header = \"{header}\", value = \"Bearer 9f86d081884c7d65\" }}\n");
        let said = load(&text, &[]).map(drop);
        assert_eq!(said.is_ok(), usable, "{header}: {said:?}");
    }
}

const BASE: &str = r#"
[listen]
address = "127.0.0.1:8443"
public_url = "https://guardian.example"
tls = { certificate_file = "c.pem", key_file = "k.pem" }

[[servers]]
name = "demo"
url = "https://demo.example/mcp"
"#;

fn load(text: &str, set: &[(&str, &str)]) -> Result<config::CheckedConfig, String> {
    config::parse(Path::new("guardian.toml"), text, &variables(set))
        .map(|loaded| loaded.config)
        .map_err(|problems| shown(&problems))
}

fn variables(set: &[(&str, &str)]) -> Variables {
    set.iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn shown(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("{problem}\n")).collect()
}

fn golden(file: &Path, actual: &str) {
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(file, actual).unwrap();
    }
    let expected = std::fs::read_to_string(file).unwrap_or_default();
    assert!(
        expected == actual,
        "{} differs (BLESS=1 writes it anew); now:\n{actual}",
        file.display()
    );
}

/// The shipped file with every setting in force, also those that are commented out.
/// Whether every commented line of this key and value says that it is an example, or a comment before it what the default is.
fn says_so(key: &str, value: &str) -> bool {
    let text = std::fs::read_to_string(SHIPPED).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let shown = |line: &str| {
        line.strip_prefix('#')
            .is_some_and(|rest| rest.starts_with(&format!("{key} = {value}")))
    };
    let indices = (0..lines.len()).filter(|index| shown(lines[*index]));
    let mut all = indices.map(|index| {
        let above = lines[..index].iter().rev().take_while(|line| line.starts_with("# "));
        lines[index].contains("# example") || above.into_iter().any(|line| line.contains("default"))
    });
    all.all(|says| says)
}

fn uncommented() -> String {
    let text = std::fs::read_to_string(SHIPPED).unwrap();
    let is_setting = |line: &str| {
        line.strip_prefix('#')
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase() || matches!(c, '[' | '"')))
    };
    text.lines()
        .map(|line| {
            if is_setting(line) {
                format!("{}\n", &line[1..])
            } else {
                format!("{line}\n")
            }
        })
        .collect()
}

fn resolved<'a>(schema: &'a Json, root: &'a Json) -> &'a Json {
    let schema = match schema["anyOf"].as_array() {
        Some(options) => options.iter().find(|option| option["type"] != "null").unwrap(),
        None => schema,
    };
    match schema["$ref"].as_str() {
        Some(reference) => &root["$defs"][reference.trim_start_matches("#/$defs/")],
        None => schema,
    }
}

/// Calls `see` with every setting of a file and its schema, but not with the sections themselves.
fn walk(path: &str, value: &Json, schema: &Json, root: &Json, see: &mut dyn FnMut(&str, &Json, &Json)) {
    let inner = resolved(schema, root);
    match (value, inner["properties"].as_object()) {
        (Json::Object(entries), Some(known)) if !path.starts_with("limits.per_") => {
            for (name, value) in entries {
                let path = format!("{path}.{name}").trim_start_matches('.').to_owned();
                walk(&path, value, &known[name], root, see);
            }
        }
        (Json::Array(items), None) if resolved(&inner["items"], root)["properties"].is_object() => {
            for item in items {
                walk(path, item, &inner["items"], root, see);
            }
        }
        _ => see(path, value, schema),
    }
}

fn keys(path: &str, schema: &Json, root: &Json, known: &mut BTreeSet<String>) {
    let inner = resolved(schema, root);
    let items = resolved(&inner["items"], root);
    match (inner["properties"].as_object(), items["properties"].is_object()) {
        (Some(properties), _) if !path.starts_with("limits.per_") => {
            for (name, schema) in properties {
                keys(format!("{path}.{name}").trim_start_matches('.'), schema, root, known);
            }
        }
        (_, true) => keys(path, &inner["items"], root, known),
        _ => {
            known.insert(path.to_owned());
        }
    }
}

/// The value with durations as numbers, so that their spelling does not count.
fn plain(value: &Json) -> Json {
    match value {
        Json::String(text) => HumanDuration::parse(text).map_or(value.clone(), |span| Json::from(span.to_string())),
        Json::Object(entries) => Json::Object(entries.iter().map(|(key, value)| (key.clone(), plain(value))).collect()),
        _ => value.clone(),
    }
}

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("guardian-config-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn write(&self, name: &str, text: &str, mode: u32) {
        use std::os::unix::fs::PermissionsExt;
        let file = self.0.join(name);
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
