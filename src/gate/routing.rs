//! Checks of the request head: exact paths, configured host names and origins, media types. Does not read credentials.

use crate::config::{Config, Listen};
use crate::domain::{HttpVerb, Reason, Refusal, ServerName};
use crate::transport;
use http::{HeaderMap, HeaderValue, Method as HttpMethod, header, request};
use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Duration;

/// The public URLs and the limits of this instance.
pub struct Endpoints {
    /// Scheme, host and port of the public URL, without a path.
    origin: String,
    /// The URL of the combined endpoint; `resources` holds that of each configured server.
    combined: String,
    resources: HashMap<ServerName, String>,
    hosts: Vec<String>,
    origins: Vec<String>,
    pub max_body: usize,
    pub body_timeout: Duration,
    pub total_timeout: Duration,
    pub keep_alive: Duration,
}

/// What a path refers to.
#[derive(Debug, PartialEq, Eq)]
pub enum Route {
    Mcp(ServerName),
    /// `/mcp`: the combined endpoint.
    Combined,
    /// The protected resource metadata of a server, or of the combined endpoint.
    Metadata(Option<ServerName>),
    /// Where an authorization server would be, which Guardian is not.
    SignIn,
}

/// Where clients of 2025-03-26 look for an authorization server that has no metadata.
const SIGN_IN: [&str; 3] = ["/authorize", "/register", "/token"];

const METADATA: &str = "/.well-known/oauth-protected-resource";

impl Endpoints {
    pub fn new(config: &Config) -> Self {
        let Listen {
            public_url,
            hosts,
            origins,
            limits,
            ..
        } = &config.listen;
        let origin = public_url.trim_end_matches('/').to_owned();
        let own = origin
            .split_once("://")
            .map_or(origin.as_str(), |(_, host)| host)
            .to_ascii_lowercase();
        let mut hosts: Vec<String> = hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        hosts.push(own);
        let combined = format!("{origin}/mcp");
        let names = config.servers.iter().map(|server| &server.name);
        Self {
            resources: names.map(|name| (name.clone(), format!("{combined}/{name}"))).collect(),
            combined,
            origin,
            hosts,
            origins: origins
                .iter()
                .map(|origin| origin.trim_end_matches('/').to_ascii_lowercase())
                .collect(),
            max_body: limits.max_body_bytes,
            body_timeout: limits.body_timeout.0,
            total_timeout: limits.total_timeout.0,
            keep_alive: limits.keep_alive.0,
        }
    }

    /// The canonical URL of a server or of the combined endpoint (RFC 8707); a token must have it as its audience.
    pub fn resource(&self, server: Option<&ServerName>) -> Cow<'_, str> {
        let Some(server) = server else {
            return self.combined.as_str().into();
        };
        match self.resources.get(server) {
            Some(resource) => resource.as_str().into(),
            None => format!("{}/{server}", self.combined).into(),
        }
    }

    /// The URL of the protected resource metadata (RFC 9728) of a server or of the combined endpoint.
    pub fn metadata_url(&self, server: Option<&ServerName>) -> String {
        match server {
            Some(server) => format!("{}{METADATA}/mcp/{server}", self.origin),
            None => format!("{}{METADATA}/mcp", self.origin),
        }
    }

    /// Checks framing and `Host`, before authentication.
    pub fn check_head(&self, head: &request::Parts) -> Result<(), Refusal> {
        transport::framing(head).map_err(|why| Refusal::with_detail(Reason::BadFraming, why))?;
        let host = match head.uri.authority() {
            Some(authority) => authority.as_str(),
            None => header_text(&head.headers, header::HOST).unwrap_or_default(),
        };
        if !self.hosts.iter().any(|ours| ours.eq_ignore_ascii_case(host)) {
            return Err(Reason::WrongHost.into());
        }
        Ok(())
    }

    /// Checks `Origin`, and returns the origin of the web page that the request comes from. Browsers send one; if there are
    /// several, each must be configured.
    pub fn check_origin<'a>(&self, headers: &'a HeaderMap) -> Result<Option<&'a HeaderValue>, Refusal> {
        let mut page = None;
        for origin in headers.get_all(header::ORIGIN) {
            if !self.allows_origin(origin) {
                return Err(Reason::WrongOrigin.into());
            }
            page = Some(origin);
        }
        Ok(page)
    }

    /// Whether web pages of some origin are served.
    pub fn has_origins(&self) -> bool {
        !self.origins.is_empty()
    }

    fn allows_origin(&self, origin: &HeaderValue) -> bool {
        let same = |listed: &String| origin.as_bytes().eq_ignore_ascii_case(listed.as_bytes());
        self.origins.iter().any(same)
    }
}

/// Matches paths exactly, byte for byte. A query is refused rather than ignored, because no path takes one.
pub fn route(head: &request::Parts) -> Result<Route, Refusal> {
    if SIGN_IN.contains(&head.uri.path()) {
        return Ok(Route::SignIn);
    }
    if head.uri.query().is_some() {
        return Err(Refusal::with_detail(Reason::UnknownPath, "no query is taken"));
    }
    let path = head.uri.path();
    let named = |name: &str| ServerName::parse(name).map_err(|_| Refusal::new(Reason::UnknownServer));
    if path == "/mcp" {
        return Ok(Route::Combined);
    }
    if let Some(name) = path.strip_prefix("/mcp/") {
        return named(name).map(Route::Mcp);
    }
    match path.strip_prefix(METADATA) {
        Some("" | "/mcp") => Ok(Route::Metadata(None)),
        Some(rest) => match rest.strip_prefix("/mcp/") {
            Some(name) => named(name).map(|name| Route::Metadata(Some(name))),
            None => Err(Reason::UnknownPath.into()),
        },
        None => Err(Reason::UnknownPath.into()),
    }
}

/// Maps the HTTP method; any other method is refused with 405.
pub fn verb(head: &request::Parts) -> Result<HttpVerb, Refusal> {
    match head.method {
        HttpMethod::POST => Ok(HttpVerb::Post),
        HttpMethod::GET => Ok(HttpVerb::Get),
        HttpMethod::DELETE => Ok(HttpVerb::Delete),
        _ => Err(Reason::WrongHttpMethod.into()),
    }
}

/// Checks `Content-Encoding`, `Content-Type` and `Accept`. They can only cause a refusal; no media type lets a message skip
/// a later check.
pub fn media_types(headers: &HeaderMap, verb: HttpVerb) -> Result<(), Refusal> {
    if headers.contains_key(header::CONTENT_ENCODING) {
        return Err(Refusal::with_detail(Reason::WrongMediaType, "an encoded body is not taken"));
    }
    match verb {
        HttpVerb::Post => json_in_utf8(headers).and_then(|()| accepts(headers, &["application/json", "text/event-stream"])),
        HttpVerb::Get => accepts(headers, &["text/event-stream"]),
        HttpVerb::Delete => Ok(()),
    }
}

fn json_in_utf8(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(value), None) = (types.next(), types.next()) else {
        return Err(Refusal::with_detail(
            Reason::WrongMediaType,
            "exactly one Content-Type is needed",
        ));
    };
    let value = value.to_str().unwrap_or_default();
    let (essence, parameters) = value.split_once(';').unwrap_or((value, ""));
    let charset = parameters.trim();
    let utf8 = charset.is_empty()
        || charset.split_once('=').is_some_and(|(name, value)| {
            name.trim().eq_ignore_ascii_case("charset") && value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
        });
    if essence.trim().eq_ignore_ascii_case("application/json") && utf8 {
        Ok(())
    } else {
        Err(Reason::WrongMediaType.into())
    }
}

/// The `Accept` value that nearly every client sends.
const BOTH: &str = "application/json, text/event-stream";

fn accepts(headers: &HeaderMap, needed: &[&str]) -> Result<(), Refusal> {
    // Fast path: other `Accept` fields could only allow more.
    if headers.get(header::ACCEPT).is_some_and(|value| value == BOTH) {
        return Ok(());
    }
    let offered = |wanted: &str| {
        headers
            .get_all(header::ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|range| {
                let essence = range.split(';').next().unwrap_or_default().trim();
                let family = wanted.split('/').next().unwrap_or_default();
                essence.eq_ignore_ascii_case(wanted)
                    || essence == "*/*"
                    || essence
                        .strip_suffix("/*")
                        .is_some_and(|start| start.eq_ignore_ascii_case(family))
            })
    };
    if needed.iter().all(|wanted| offered(wanted)) {
        Ok(())
    } else {
        Err(Reason::NotAcceptable.into())
    }
}

fn header_text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name).map(|value| value.to_str().unwrap_or("\u{fffd}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(method: &str, uri: &str, headers: &[(&str, &str)]) -> request::Parts {
        let mut request = http::Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn paths_are_exact() {
        let to = |path: &str| route(&head("POST", path, &[]));
        assert_eq!(to("/mcp/demo").unwrap(), Route::Mcp(ServerName::parse("demo").unwrap()));
        assert_eq!(to("/mcp").unwrap(), Route::Combined);
        assert_eq!(to("/.well-known/oauth-protected-resource").unwrap(), Route::Metadata(None));
        for bad in [
            "/",
            "/mcp/",
            "/mcp/demo/",
            "/MCP/demo",
            "/mcp//demo",
            "/mcp/%64emo",
            "/mcp/demo?x=1",
            "/mcp/../mcp/demo",
        ] {
            assert!(to(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_content_type_is_json_in_utf8_however_it_is_written_and_nothing_else() {
        let with = |values: &[&str]| {
            let headers: Vec<_> = values.iter().map(|value| ("content-type", *value)).collect();
            json_in_utf8(&head("POST", "/mcp", &headers).headers).is_ok()
        };
        for good in [
            "application/json",
            "Application/JSON",
            "application/json; charset=utf-8",
            "application/json;charset=\"UTF-8\"",
        ] {
            assert!(with(&[good]), "{good}");
        }
        for bad in [
            "text/plain",
            "application/json;charset=utf-16",
            "application/json, text/plain",
            "multipart/form-data",
            "",
        ] {
            assert!(!with(&[bad]), "{bad}");
        }
        assert!(!with(&[]) && !with(&["application/json", "application/json"]));
    }

    #[test]
    fn both_kinds_of_answer_must_be_acceptable() {
        let with = |accept: &str| {
            accepts(
                &head("POST", "/mcp", &[("accept", accept)]).headers,
                &["application/json", "text/event-stream"],
            )
        };
        assert!(with("application/json, text/event-stream").is_ok());
        assert!(with("text/event-stream;q=0.5,application/*").is_ok());
        assert!(with("*/*").is_ok());
        assert!(with("application/json").is_err());
    }
}
