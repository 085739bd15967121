//! What clients without a token are told: where to get one and for which scopes (RFC 9728). It is made from the configuration
//! alone. Strangers read it, so it names no tool.

use super::reply;
use super::routing::Endpoints;
use crate::config::{Config, IssuerConfig, IssuerKind};
use crate::domain::ServerName;
use crate::transport::Body;
use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::json;
use std::collections::{BTreeSet, HashMap};

/// The authorization servers that clients can use, and the scopes of their tokens.
pub struct Metadata {
    authorization_servers: Vec<String>,
    /// Scopes by server, and those of the combined endpoint, as `WWW-Authenticate` has them.
    scopes: HashMap<ServerName, String>,
    combined_scopes: String,
}

impl Metadata {
    pub fn new(config: &Config) -> Self {
        let offers_sign_in = |issuer: &&IssuerConfig| match issuer.kind {
            IssuerKind::Oidc | IssuerKind::Supabase => true,
            // Cloudflare Access runs in front of Guardian and handles sign-in itself.
            IssuerKind::CloudflareAccess => false,
        };
        let public: Vec<_> = config.issuers.iter().filter(offers_sign_in).collect();
        // Elsewhere the scopes of a token mean nothing, and a client that asks for some is only refused by its issuer.
        let mut narrowing = public.iter().filter(|issuer| issuer.scopes_claim.is_some()).peekable();
        let has_scopes = narrowing.peek().is_some();
        let listed: BTreeSet<&str> = narrowing
            .flat_map(|issuer| issuer.scopes_supported.iter().map(String::as_str))
            .collect();
        let of_servers = config.servers.iter().map(|server| {
            let needed = server.tool_scopes.values().flatten().map(String::as_str);
            let scopes = match (has_scopes, listed.is_empty()) {
                (false, _) => BTreeSet::new(),
                (true, true) => needed.collect(),
                (true, false) => listed.clone(),
            };
            (server.name.clone(), scopes)
        });
        let of_servers: Vec<_> = of_servers.collect();
        let combined: BTreeSet<&str> = of_servers.iter().flat_map(|(_, scopes)| scopes).copied().collect();
        Self {
            authorization_servers: public.iter().map(|issuer| issuer.issuer.to_string()).collect(),
            combined_scopes: joined(combined),
            scopes: of_servers.into_iter().map(|(name, scopes)| (name, joined(scopes))).collect(),
        }
    }

    /// The URL of the document, unless there is nothing to be found in it.
    pub fn url(&self, endpoints: &Endpoints, server: Option<&ServerName>) -> Option<String> {
        (!self.authorization_servers.is_empty()).then(|| endpoints.metadata_url(server))
    }

    /// The scopes that a client may ask for, between spaces; empty if the scopes of a token mean nothing.
    pub fn scopes(&self, server: Option<&ServerName>) -> &str {
        match server {
            Some(server) => self.scopes.get(server).map_or("", String::as_str),
            None => &self.combined_scopes,
        }
    }

    /// The document for one server, or for the combined endpoint; `None` if there is no authorization server.
    pub fn document(&self, endpoints: &Endpoints, server: Option<&ServerName>) -> Option<Bytes> {
        if self.authorization_servers.is_empty() {
            return None;
        }
        let name = match server {
            Some(server) => format!("{server} behind Neural Guardian"),
            None => "Neural Guardian".to_owned(),
        };
        let mut document = json!({
            "resource": endpoints.resource(server),
            "authorization_servers": self.authorization_servers,
            "bearer_methods_supported": ["header"],
            "resource_name": name,
        });
        let scopes = self.scopes(server);
        if !scopes.is_empty() {
            document["scopes_supported"] = scopes.split(' ').collect();
        }
        Some(Bytes::from(document.to_string()))
    }

    /// 404 for whoever takes Guardian for an authorization server. OAuth clients show `error_description` to their user.
    pub fn no_sign_in(&self) -> Response<Body> {
        let sentence = match self.authorization_servers.first() {
            None => "this gateway has no sign-in: send `Authorization: Bearer` with a Guardian key, which its operator gives out",
            Some(_) => {
                "this gateway is no authorization server: sign in where /.well-known/oauth-protected-resource says, or send a \
                 Guardian key"
            }
        };
        let body = json!({ "error": "invalid_request", "error_description": sentence });
        reply::json_response(StatusCode::NOT_FOUND, Bytes::from(body.to_string()))
    }
}

fn joined(scopes: BTreeSet<&str>) -> String {
    scopes.into_iter().collect::<Vec<_>>().join(" ")
}
