//! The protected resource metadata document (RFC 9728), which tells clients where to get a token. It is made from the
//! configuration alone.

use super::routing::Endpoints;
use crate::config::{Config, IssuerKind};
use crate::domain::ServerName;
use bytes::Bytes;
use serde_json::json;

/// The authorization servers that clients can use.
pub struct Metadata {
    authorization_servers: Vec<String>,
}

impl Metadata {
    pub fn new(config: &Config) -> Self {
        let public = config.issuers.iter().filter(|issuer| match issuer.kind {
            IssuerKind::Oidc | IssuerKind::Supabase => true,
            // Cloudflare Access runs in front of Guardian and handles sign-in itself.
            IssuerKind::CloudflareAccess => false,
        });
        Self {
            authorization_servers: public.map(|issuer| issuer.issuer.to_string()).collect(),
        }
    }

    /// The document for one server, or for the combined endpoint.
    pub fn document(&self, endpoints: &Endpoints, server: Option<&ServerName>) -> Bytes {
        let name = match server {
            Some(server) => format!("{server} behind Neural Guardian"),
            None => "Neural Guardian".to_owned(),
        };
        let mut document = json!({
            "resource": endpoints.resource(server),
            "bearer_methods_supported": ["header"],
            "resource_name": name,
        });
        if !self.authorization_servers.is_empty() {
            document["authorization_servers"] = self.authorization_servers.clone().into();
        }
        Bytes::from(document.to_string())
    }
}
