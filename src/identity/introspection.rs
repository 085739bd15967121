//! Opaque tokens, by OAuth 2.0 token introspection (RFC 7662): asks the issuer of a token whether it is active. One question
//! at a time for each token, a short-lived cache, and bounds, so that nobody can flood an authorization server through
//! Guardian. What an answer must say is checked in `issuer`.

use super::jwks_source::{JwksShared, chain};
use super::jwt::{Claims, strict_object};
use crate::domain::{Backoff, Digest, IssuerAlias, Reason, network_of};
use crate::transport::{Client, read_body};
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::Full;
use moka::sync::Cache;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

const TIMEOUT: Duration = Duration::from_secs(5);
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// A shorter token could be guessed, and no longer one is shown around.
const TOKEN_BYTES: std::ops::RangeInclusive<usize> = 16..=2048;
const MAX_CACHED: u64 = 50_000;
/// How long a token that is not active is refused without another question.
const INACTIVE_TTL: Duration = Duration::from_secs(10);
/// How long a token that was active is asked about ahead of tokens that never were.
const PROVEN_TTL: Duration = Duration::from_secs(600);
/// Questions on their way at once, for each kind of tokens.
const MAX_AT_ONCE: usize = 16;
/// Questions that wait for a place.
const MAX_WAITING: usize = 512;
/// Tokens a minute that turn out not to be active, from one network and from all.
const MAX_MISSES_OF_NETWORK: u32 = 60;
const MAX_MISSES: u32 = 600;
const MISSES_WINDOW: Duration = Duration::from_secs(60);
/// How long nobody is asked after a failure, and after many in a row.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];

/// The introspection endpoint of one issuer.
pub(super) struct Introspection {
    alias: IssuerAlias,
    client: Client,
    url: http::Uri,
    /// Guardian's own credentials at the issuer.
    authorization: HeaderValue,
    token_prefix: Option<String>,
    cache_for: Duration,
    answers: Cache<Digest, TokenState>,
    proven: Cache<Digest, ()>,
    /// Tokens about which there was no usable answer, and until when they are not asked about again.
    unanswered: Cache<Digest, Instant>,
    running: Mutex<HashMap<Digest, Asking>>,
    /// Of tokens that were active lately, and of all others: what strangers send must not hold up those who are known.
    proven_queue: QuestionQueue,
    other_queue: QuestionQueue,
    misses: Mutex<Misses>,
    shared: Arc<JwksShared>,
    observer: Arc<IntrospectionObserver>,
}

/// Receives the answer to a running question.
type Asking = watch::Receiver<Option<Result<TokenState, Reason>>>;

/// Is told how each question ended.
pub(super) type IntrospectionObserver = OnceLock<Box<dyn Fn(&'static str) + Send + Sync>>;

/// What the issuer says of a token, and until when that is used.
#[derive(Clone)]
pub(super) enum TokenState {
    Active { claims: Arc<Claims>, until: Instant },
    Inactive { until: Instant },
}

impl TokenState {
    fn until(&self) -> Instant {
        match self {
            TokenState::Active { until, .. } | TokenState::Inactive { until } => *until,
        }
    }
}

impl Introspection {
    pub fn new(
        (alias, client, url): (IssuerAlias, Client, http::Uri),
        authorization: HeaderValue,
        token_prefix: Option<String>,
        cache_for: Duration,
        shared: Arc<JwksShared>,
        observer: Arc<IntrospectionObserver>,
    ) -> Self {
        Self {
            alias,
            client,
            url,
            authorization,
            token_prefix,
            cache_for,
            answers: Cache::builder()
                .max_capacity(MAX_CACHED)
                .time_to_live(cache_for.max(INACTIVE_TTL))
                .build(),
            proven: Cache::builder().max_capacity(MAX_CACHED).time_to_live(PROVEN_TTL).build(),
            unanswered: Cache::builder().max_capacity(MAX_CACHED).time_to_live(PAUSES[1]).build(),
            running: Mutex::default(),
            proven_queue: QuestionQueue::new(),
            other_queue: QuestionQueue::new(),
            misses: Mutex::new(Misses::new(Instant::now())),
            shared,
            observer,
        }
    }

    /// Whether this issuer alone could have made the token.
    pub fn may_know(&self, token: &str) -> bool {
        let prefix = self.token_prefix.as_deref().unwrap_or_default();
        TOKEN_BYTES.contains(&token.len()) && token.starts_with(prefix)
    }

    /// What the issuer says of this token, now or a moment ago. `source` is where the request came from. An issuer that gives
    /// no answer makes it `issuer_unavailable`.
    pub async fn answer(self: &Arc<Self>, token: &str, digest: Digest, source: IpAddr) -> Result<TokenState, Reason> {
        let mut answered = match self.cached(&digest) {
            Some(answer) => return Ok(answer),
            None => self.ask(token, digest, source)?,
        };
        let answer = answered.wait_for(Option::is_some).await;
        answer
            .ok()
            .and_then(|answer| answer.clone())
            .unwrap_or(Err(Reason::IssuerUnavailable))
    }

    fn cached(&self, digest: &Digest) -> Option<TokenState> {
        self.answers.get(digest).filter(|answer| Instant::now() < answer.until())
    }

    /// Asks about a token that nobody has, to see whether the issuer answers Guardian at all.
    pub async fn probe(&self) -> Result<(), String> {
        let token = "guardian-check-asks-about-a-token-that-nobody-has";
        let asked = tokio::time::timeout(TIMEOUT, post(&self.client, self.request(token)?));
        let answered = asked.await.map_err(|_| format!("no answer within {TIMEOUT:?}"))?;
        let bytes = answered.map_err(|failure| failure.why)?;
        match self.read(&bytes, Instant::now())? {
            TokenState::Inactive { .. } => Ok(()),
            TokenState::Active { .. } => Err("it calls a token active that nobody has".to_owned()),
        }
    }

    pub fn forget_all(&self) {
        self.answers.invalidate_all();
    }

    /// Starts a question, or joins the running one about this token. The question is a task of its own: it goes on when the
    /// caller disconnects.
    fn ask(self: &Arc<Self>, token: &str, digest: Digest, source: IpAddr) -> Result<Asking, Reason> {
        let mut running = self.running.lock().expect("no holder of this lock panics");
        if let Some(running) = running.get(&digest) {
            return Ok(running.clone());
        }
        // The answer may have come since.
        if let Some(answer) = self.cached(&digest) {
            return Ok(watch::channel(Some(Ok(answer))).1);
        }
        let proven = self.proven.contains_key(&digest);
        let network = network_of(source);
        if self.unanswered.get(&digest).is_some_and(|until| Instant::now() < until) {
            return Err(self.not_asked());
        }
        let Some(place) = self.queue_of(proven).enter() else {
            return Err(self.not_asked());
        };
        if !proven && !self.misses().begin(network, Instant::now()) {
            return Err(self.not_asked());
        }
        let (tell, told) = watch::channel(None);
        running.insert(digest, told.clone());
        drop(running);
        let (introspection, token) = (self.clone(), zeroize::Zeroizing::new(token.to_owned()));
        let stop = self.shared.stop.clone();
        self.shared.fetches.spawn(async move {
            let asked = introspection.ask_in_turn(&token, digest, proven, place);
            let (answer, is_miss) = stop
                .run_until_cancelled(asked)
                .await
                .unwrap_or((Err(Reason::IssuerUnavailable), false));
            if !proven && !is_miss {
                introspection.misses().take_back(network);
            }
            // The answer is in the cache before its question is gone from here.
            introspection
                .running
                .lock()
                .expect("no holder of this lock panics")
                .remove(&digest);
            tell.send_replace(Some(answer));
        });
        Ok(told)
    }

    /// Asks once there is a place. Also returns whether the token is to blame for the answer.
    async fn ask_in_turn(
        &self,
        token: &str,
        digest: Digest,
        proven: bool,
        queued: OwnedSemaphorePermit,
    ) -> (Result<TokenState, Reason>, bool) {
        let queue = self.queue_of(proven);
        let Ok(Ok(_place)) = tokio::time::timeout(TIMEOUT, queue.places.acquire()).await else {
            return (Err(self.not_asked()), false);
        };
        drop(queued);
        let at = Instant::now();
        let request = self.request(token).map_err(Unanswered::of_token);
        let asked = async { post(&self.client, request?).await };
        let asked = tokio::time::timeout(TIMEOUT, asked).await;
        let asked = asked.unwrap_or_else(|_| Err(Unanswered::of_issuer(format!("no answer within {TIMEOUT:?}"))));
        match asked.and_then(|bytes| self.read(&bytes, at).map_err(Unanswered::of_token)) {
            Ok(answer) => {
                let active = matches!(answer, TokenState::Active { .. });
                self.observe(if active { "active" } else { "inactive" });
                queue.pause().backoff.reset();
                if active {
                    self.proven.insert(digest, ());
                } else {
                    self.proven.invalidate(&digest);
                }
                self.answers.insert(digest, answer.clone());
                (Ok(answer), !active)
            }
            Err(failure) => {
                if failure.is_of_token {
                    self.unanswered.insert(digest, Instant::now() + PAUSES[1]);
                }
                (Err(self.failed(queue, &failure)), failure.is_of_token)
            }
        }
    }

    /// The request of RFC 7662, 2.1.
    fn request(&self, token: &str) -> Result<Request<Full<Bytes>>, String> {
        let body = format!("token={}&token_type_hint=access_token", form_encoded(token));
        Request::post(self.url.clone())
            .header(AUTHORIZATION, self.authorization.clone())
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Full::new(body.into()))
            .map_err(|error| error.to_string())
    }

    /// `at` is when the question was asked: what the issuer says may be that old.
    fn read(&self, bytes: &[u8], at: Instant) -> Result<TokenState, String> {
        let claims = strict_object(bytes)
            .map(Claims::new)
            .ok_or("the answer is not one JSON object")?;
        match claims.flag("active") {
            Ok(true) => Ok(TokenState::Active {
                claims: Arc::new(claims),
                until: at + self.cache_for,
            }),
            Ok(false) if claims.has("active") => Ok(TokenState::Inactive {
                until: at + INACTIVE_TTL,
            }),
            Ok(false) | Err(_) => Err("the answer does not say whether the token is active".to_owned()),
        }
    }

    fn queue_of(&self, proven: bool) -> &QuestionQueue {
        if proven { &self.proven_queue } else { &self.other_queue }
    }

    fn not_asked(&self) -> Reason {
        self.observe("not_asked");
        Reason::IssuerUnavailable
    }

    /// A failure that may lie in the token pauses nobody: anybody could send such a token.
    fn failed(&self, queue: &QuestionQueue, failure: &Unanswered) -> Reason {
        self.observe("failed");
        let now = Instant::now();
        let mut pause = queue.pause();
        // Of questions that failed together, the first makes the pause.
        if pause.until <= now {
            if !failure.is_of_token {
                pause.until = now + pause.backoff.failed();
            }
            tracing::warn!(issuer = %self.alias, endpoint = %self.url, why = failure.why, "cannot introspect a token");
        }
        Reason::IssuerUnavailable
    }

    fn observe(&self, outcome: &'static str) {
        if let Some(observe) = self.observer.get() {
            observe(outcome);
        }
    }

    fn misses(&self) -> std::sync::MutexGuard<'_, Misses> {
        self.misses.lock().expect("no holder of this lock panics")
    }
}

/// The questions about one kind of tokens.
struct QuestionQueue {
    /// Questions on their way at once.
    places: Semaphore,
    /// Questions that wait for a place.
    waiting: Arc<Semaphore>,
    pause: Mutex<Pause>,
}

/// When the issuer is asked again after a failure.
struct Pause {
    backoff: Backoff,
    until: Instant,
}

impl QuestionQueue {
    fn new() -> Self {
        Self {
            places: Semaphore::new(MAX_AT_ONCE),
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
            pause: Mutex::new(Pause {
                backoff: Backoff::new(PAUSES[0], PAUSES[1]),
                until: Instant::now(),
            }),
        }
    }

    fn pause(&self) -> MutexGuard<'_, Pause> {
        self.pause.lock().expect("no holder of this lock panics")
    }

    /// A place in the queue; `None` during a pause, and if the queue is full.
    fn enter(&self) -> Option<OwnedSemaphorePermit> {
        let paused = Instant::now() < self.pause().until;
        self.waiting.clone().try_acquire_owned().ok().filter(|_| !paused)
    }
}

/// Why there is no answer about a token.
struct Unanswered {
    why: String,
    /// It may lie in this token alone.
    is_of_token: bool,
}

impl Unanswered {
    fn of_issuer(why: String) -> Self {
        Self { why, is_of_token: false }
    }

    fn of_token(why: impl Into<String>) -> Self {
        Self {
            why: why.into(),
            is_of_token: true,
        }
    }
}

/// Counts the tokens of the current minute that were not active. A token is counted when its question begins, and taken back
/// when it proves to be active, so that many questions at once do not get past the bounds.
struct Misses {
    since: Instant,
    all: u32,
    of_network: HashMap<IpAddr, u32>,
}

impl Misses {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            all: 0,
            of_network: HashMap::new(),
        }
    }

    /// Whether another token that was never active may be asked about.
    fn begin(&mut self, network: IpAddr, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) >= MISSES_WINDOW {
            *self = Self::new(now);
        }
        let of_network = self.of_network.get(&network).copied().unwrap_or_default();
        if self.all >= MAX_MISSES || of_network >= MAX_MISSES_OF_NETWORK {
            return false;
        }
        self.all += 1;
        *self.of_network.entry(network).or_default() += 1;
        true
    }

    fn take_back(&mut self, network: IpAddr) {
        self.all = self.all.saturating_sub(1);
        if let Some(count) = self.of_network.get_mut(&network) {
            *count = count.saturating_sub(1);
        }
    }
}

/// The body of a 200 with JSON; nothing else is an answer. Redirects are not followed.
async fn post(client: &Client, request: Request<Full<Bytes>>) -> Result<Bytes, Unanswered> {
    let answer = client.send(request).await;
    let answer = answer.map_err(|error| Unanswered::of_issuer(chain(&error)))?;
    match answer.status() {
        StatusCode::OK => {}
        StatusCode::BAD_REQUEST => return Err(Unanswered::of_token("the answer was 400 Bad Request")),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let status = answer.status();
            return Err(Unanswered::of_issuer(format!(
                "the answer was {status}: check `client_id` and its secret"
            )));
        }
        status => return Err(Unanswered::of_issuer(format!("the answer was {status}"))),
    }
    let media_type = answer.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = media_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        return Err(Unanswered::of_token("the answer is not `application/json`"));
    }
    read_body(answer.into_body(), MAX_ANSWER_BYTES, TIMEOUT)
        .await
        .map_err(|problem| Unanswered::of_token(problem.to_string()))
}

/// HTTP Basic with the client's id and secret, each form-encoded first (RFC 6749, 2.3.1).
pub(super) fn basic_credentials(client_id: &str, secret: &str) -> HeaderValue {
    use base64::Engine;
    let pair = format!("{}:{}", form_encoded(client_id), form_encoded(secret));
    let encoded = base64::engine::general_purpose::STANDARD.encode(pair);
    let mut value = HeaderValue::try_from(format!("Basic {encoded}")).expect("base64 is a header value");
    value.set_sensitive(true);
    value
}

/// `application/x-www-form-urlencoded`
fn form_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'*' | b'-' | b'.' | b'_' => encoded.push(char::from(byte)),
            b' ' => encoded.push('+'),
            other => encoded.push_str(&format!("%{other:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_is_named_as_rfc_6749_says() {
        let value = basic_credentials("a b:c", "ü+/%");
        assert_eq!(value.to_str().unwrap(), "Basic YStiJTNBYzolQzMlQkMlMkIlMkYlMjU=");
        assert_eq!(format!("{value:?}"), "Sensitive");
        assert_eq!(form_encoded("a b:c"), "a+b%3Ac");
    }

    #[test]
    fn a_network_and_all_of_them_have_so_many_misses_a_minute() {
        let now = Instant::now();
        let mut misses = Misses::new(now);
        let network = |n: u8| IpAddr::from([192, 0, n, 0]);
        for _ in 0..MAX_MISSES_OF_NETWORK {
            assert!(misses.begin(network(1), now));
        }
        assert!(!misses.begin(network(1), now));
        misses.take_back(network(1));
        assert!(misses.begin(network(1), now), "a token that was active does not count");
        let mut others = 0;
        while misses.begin(network(2 + u8::try_from(others / 50).unwrap()), now) {
            others += 1;
        }
        assert_eq!(others, MAX_MISSES - MAX_MISSES_OF_NETWORK);
        assert!(misses.begin(network(1), now + MISSES_WINDOW));
        misses.take_back(network(1));
        misses.take_back(network(1));
        assert_eq!(misses.all, 0);
    }
}
