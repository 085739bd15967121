//! A small authorization server for OAuth clients: metadata, registration, authorization code with PKCE, refresh. Its one
//! user is signed in already and consents to everything. It logs every request.

use super::certificates::{Authority, server_tls};
use super::issuer::Issuer;
use super::ports::free_port;
use super::server::{Answering, Body, serve};
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use uuid::Uuid;

pub struct AuthorizationServer {
    pub iss: String,
    state: Arc<State>,
}

struct State {
    issuer: Issuer,
    /// The `sub` of its tokens.
    user: &'static str,
    /// The scopes of a token when the client asks for none.
    default_scope: &'static str,
    clients: Mutex<Vec<String>>,
    codes: Mutex<BTreeMap<String, Asked>>,
    refreshes: Mutex<BTreeMap<String, Asked>>,
    issued: Mutex<Vec<Issued>>,
    log: Mutex<Vec<String>>,
}

/// An access token and its `jti`.
#[derive(Clone)]
pub struct Issued {
    pub id: String,
    pub token: String,
}

/// What a code or a refresh token was issued for.
#[derive(Clone)]
struct Asked {
    client: String,
    redirect: String,
    challenge: String,
    scope: String,
    resource: String,
}

type Form = BTreeMap<String, String>;

impl AuthorizationServer {
    pub async fn start(authority: &Authority, user: &'static str, default_scope: &'static str) -> AuthorizationServer {
        let port = free_port();
        let iss = format!("https://localhost:{port}");
        let state = Arc::new(State {
            issuer: Issuer::es256(&iss),
            user,
            default_scope,
            clients: Mutex::default(),
            codes: Mutex::default(),
            refreshes: Mutex::default(),
            issued: Mutex::default(),
            log: Mutex::default(),
        });
        let shared = state.clone();
        let answer: Answering = Arc::new(move |request| Box::pin(shared.clone().answer(request)));
        serve(port, Some(server_tls(&authority.server(), None)), answer).await;
        AuthorizationServer { iss, state }
    }

    pub fn jwks_url(&self) -> String {
        format!("{}/jwks.json", self.iss)
    }

    /// The requests since the last call of this.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.state.log.lock().unwrap())
    }

    pub fn newest_token(&self) -> Issued {
        let issued = self.state.issued.lock().unwrap();
        issued.last().expect("a token was issued").clone()
    }
}

impl State {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let Ok(body) = body.collect().await else {
            return json_with(400, &json!({ "error": "invalid_request" }));
        };
        let body = body.to_bytes();
        let form = form(head.uri.query().unwrap_or_default());
        match (head.method.as_str(), head.uri.path()) {
            ("GET", "/.well-known/oauth-authorization-server") => self.metadata(),
            ("GET", "/jwks.json") => json_with(200, &self.issuer.key_set()),
            ("POST", "/register") => self.register(&body),
            ("GET", "/authorize") => self.authorize(&form).await,
            ("POST", "/token") => self.token(&self::form(&String::from_utf8_lossy(&body))),
            _ => json_with(404, &json!({ "error": "not_found" })),
        }
    }

    fn wrote(&self, line: String) {
        self.log.lock().unwrap().push(line);
    }

    fn metadata(&self) -> Response<Body> {
        self.wrote("its metadata".into());
        let iss = &self.issuer.iss;
        let at = |path: &str| format!("{iss}/{path}");
        let document = json!({
            "issuer": iss,
            "authorization_endpoint": at("authorize"),
            "token_endpoint": at("token"),
            "registration_endpoint": at("register"),
            "jwks_uri": at("jwks.json"),
            "response_types_supported": ["code"],
            "grant_types_supported": ["authorization_code", "refresh_token"],
            "code_challenge_methods_supported": ["S256"],
            "token_endpoint_auth_methods_supported": ["none"],
            "authorization_response_iss_parameter_supported": true,
        });
        json_with(200, &document)
    }

    fn register(&self, body: &[u8]) -> Response<Body> {
        self.wrote("to be registered".into());
        let Ok(mut client) = serde_json::from_slice::<Value>(body) else {
            return json_with(400, &json!({ "error": "invalid_client_metadata" }));
        };
        let id = format!("client-{}", Uuid::new_v4());
        client["client_id"] = json!(id);
        self.clients.lock().unwrap().push(id);
        json_with(201, &client)
    }

    /// Redirects to the client at once, with a code.
    async fn authorize(&self, form: &Form) -> Response<Body> {
        let field = |name: &str| form.get(name).cloned().unwrap_or_default();
        let asked = Asked {
            client: field("client_id"),
            redirect: field("redirect_uri"),
            challenge: field("code_challenge"),
            scope: form.get("scope").map_or(self.default_scope, String::as_str).to_owned(),
            resource: field("resource"),
        };
        let scope = form
            .get("scope")
            .map_or("none in particular".into(), |scope| format!("`{scope}`"));
        self.wrote(format!("to sign its user in, for the scopes {scope}"));
        let known = self.clients.lock().unwrap().contains(&asked.client);
        let proper = field("response_type") == "code" && field("code_challenge_method") == "S256" && !asked.challenge.is_empty();
        if !known || !proper || asked.resource.is_empty() {
            return json_with(
                400,
                &json!({ "error": "invalid_request", "error_description": format!("{form:?}") }),
            );
        }
        let code = Uuid::new_v4().to_string();
        let (redirect, state, iss) = (
            &asked.redirect,
            field("state"),
            self.issuer.iss.replace(':', "%3A").replace('/', "%2F"),
        );
        let location = format!("{redirect}?code={code}&state={state}&iss={iss}");
        self.codes.lock().unwrap().insert(code, asked);
        let mut response = json_with(302, &json!({}));
        response
            .headers_mut()
            .insert("location", location.parse().expect("a header value"));
        response
    }

    fn token(&self, form: &Form) -> Response<Body> {
        let field = |name: &str| form.get(name).cloned().unwrap_or_default();
        let refused = |error: &str| json_with(400, &json!({ "error": error }));
        // Each code and each refresh token works once.
        let asked = match field("grant_type").as_str() {
            "authorization_code" => {
                let asked = self.codes.lock().unwrap().remove(&field("code"));
                let proof = URL_SAFE_NO_PAD.encode(digest(&SHA256, field("code_verifier").as_bytes()));
                asked.filter(|asked| asked.challenge == proof && asked.redirect == field("redirect_uri"))
            }
            "refresh_token" => self.refreshes.lock().unwrap().remove(&field("refresh_token")),
            _ => return refused("unsupported_grant_type"),
        };
        let same = |asked: &Asked| asked.client == field("client_id") && asked.resource == field("resource");
        let Some(asked) = asked.filter(same) else {
            self.wrote(format!("for a token by {}, wrongly", field("grant_type")));
            return refused("invalid_grant");
        };
        self.wrote(format!("for a token by {}", field("grant_type")));
        let (id, refresh) = (Uuid::new_v4().to_string(), Uuid::new_v4().to_string());
        let mut claims = self.issuer.claims(self.user, &asked.resource);
        (claims["scope"], claims["client_id"], claims["jti"]) = (json!(asked.scope), json!(asked.client), json!(id));
        let token = self.issuer.sign(&claims);
        let answer = json!({
            "access_token": token,
            "token_type": "Bearer",
            "expires_in": 600,
            "scope": asked.scope,
            "refresh_token": refresh,
        });
        self.issued.lock().unwrap().push(Issued { id, token });
        self.refreshes.lock().unwrap().insert(refresh, asked);
        json_with(200, &answer)
    }
}

fn json_with(status: u16, value: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(value.to_string()))
        .map_err(|never| match never {})
        .boxed_unsync();
    let response = Response::builder().status(status).header("content-type", "application/json");
    response
        .header("cache-control", "no-store")
        .body(body)
        .expect("a status and two headers")
}

/// `application/x-www-form-urlencoded`
fn form(text: &str) -> Form {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (decoded(name), decoded(value))).collect()
}

fn decoded(text: &str) -> String {
    let text = text.replace('+', " ");
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let code = part.get(..2).and_then(|code| u8::from_str_radix(code, 16).ok());
        bytes.extend(code);
        bytes.extend(part.bytes().skip(2));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn a_form_is_decoded() {
    let read = form("scope=echo+query&resource=https%3A%2F%2Fa%2Fb&empty=");
    assert_eq!(read["scope"], "echo query");
    assert_eq!(read["resource"], "https://a/b");
    assert_eq!(read["empty"], "");
}
