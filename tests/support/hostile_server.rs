//! A server in front of the recorder that passes everything on, until a story tells it what to do with calls of `echo`: then
//! it writes the given bytes, whatever they are. It remembers every call.

use super::certificates::{Authority, Pair, server_tls};
use super::upstream::Upstream;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::interval;
use tokio_rustls::TlsAcceptor;

pub struct HostileServer {
    pub url: String,
    pub port: u16,
    state: Arc<State>,
    listening: JoinHandle<()>,
}

/// What the server does with a call of `echo`.
#[derive(Debug, Clone)]
pub struct Act {
    pub says: Vec<u8>,
    pub then: Then,
}

/// What the server does after it has written `says`.
#[derive(Debug, Clone)]
pub enum Then {
    Close,
    /// Writes nothing more, and waits until the peer hangs up.
    Hold,
    /// Writes these bytes again and again, with a pause between, until the peer hangs up.
    Drip(Vec<u8>, Duration),
    /// Writes these bytes so many times, then the last bytes, then nothing more.
    Repeat(Vec<u8>, usize, Vec<u8>),
    /// Goes on: the next request on the same connection gets the recorder's answer.
    GoOn,
}

struct State {
    behind: String,
    act: Mutex<Option<Act>>,
    /// The server's TLS configuration; `None` for clear text.
    shows: Mutex<Option<Arc<rustls::ServerConfig>>>,
    /// Connections opened before this number are closed when they are idle.
    epoch: watch::Sender<usize>,
    calls: Mutex<Vec<String>>,
    connections: watch::Sender<usize>,
    hung_up: watch::Sender<usize>,
    /// How many bytes of its answers the peer has read.
    pub taken: watch::Sender<u64>,
}

impl HostileServer {
    pub async fn before(recorder: &Upstream) -> HostileServer {
        Self::begin(recorder, None).await
    }

    pub async fn with_tls(recorder: &Upstream, authority: &Authority) -> HostileServer {
        Self::begin(recorder, Some(authority.server())).await
    }

    async fn begin(recorder: &Upstream, pair: Option<Pair>) -> HostileServer {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let scheme = if pair.is_some() { "https" } else { "http" };
        let behind = recorder.url.strip_prefix("http://").expect("a recorder in clear text");
        let state = Arc::new(State {
            behind: behind.split('/').next().expect("a host").to_owned(),
            act: Mutex::default(),
            shows: Mutex::new(pair.map(|pair| server_tls(&pair, None))),
            epoch: watch::Sender::new(0),
            calls: Mutex::default(),
            connections: watch::Sender::new(0),
            hung_up: watch::Sender::new(0),
            taken: watch::Sender::new(0),
        });
        let shared = state.clone();
        let listening = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                shared.connections.send_modify(|count| *count += 1);
                tokio::spawn(shared.clone().connection(stream));
            }
        });
        HostileServer {
            url: format!("{scheme}://localhost:{port}/mcp"),
            port,
            state,
            listening,
        }
    }

    /// Stops listening and closes what is open.
    pub async fn leave(&mut self) {
        self.state.epoch.send_modify(|epoch| *epoch += 1);
        self.listening.abort();
        let _ = (&mut self.listening).await;
    }

    /// From now on, does this with calls of `echo`.
    pub fn act(&self, says: impl Into<Vec<u8>>, then: Then) {
        *self.state.act.lock().unwrap() = Some(Act { says: says.into(), then });
    }

    /// From now on, uses this certificate for new connections, and closes the old ones.
    pub fn show(&self, pair: &Pair) {
        *self.state.shows.lock().unwrap() = Some(server_tls(pair, None));
        self.state.epoch.send_modify(|epoch| *epoch += 1);
    }

    pub fn behave(&self) {
        *self.state.act.lock().unwrap() = None;
    }

    /// The calls that arrived, head and body.
    pub fn calls(&self) -> Vec<String> {
        self.state.calls.lock().unwrap().clone()
    }

    pub fn connections(&self) -> usize {
        *self.state.connections.borrow()
    }

    /// How often the peer hung up during an act.
    pub fn hung_up(&self) -> watch::Receiver<usize> {
        self.state.hung_up.subscribe()
    }

    /// How many bytes of its acts the peer has read.
    pub fn taken(&self) -> watch::Receiver<u64> {
        self.state.taken.subscribe()
    }
}

impl State {
    async fn connection(self: Arc<Self>, stream: TcpStream) {
        stream.set_nodelay(true).expect("an open socket");
        let mut epoch = self.epoch.subscribe();
        epoch.mark_unchanged();
        let shows = self.shows.lock().unwrap().clone();
        // However it ends, the story checks the effects.
        let _ = match shows {
            None => self.serve(stream, epoch).await,
            Some(tls) => match TlsAcceptor::from(tls).accept(stream).await {
                Ok(stream) => self.serve(stream, epoch).await,
                Err(error) => Err(error),
            },
        };
    }

    async fn serve(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin, mut epoch: watch::Receiver<usize>) -> io::Result<()> {
        loop {
            let request = tokio::select! {
                request = read_request(&mut stream) => request?,
                _ = epoch.changed() => return Ok(()),
            };
            let act = self.act.lock().unwrap().clone();
            match act {
                Some(act) if request.contains("\"name\":\"echo\"") => {
                    self.calls.lock().unwrap().push(request);
                    if !self.perform(&mut stream, act).await? {
                        return Ok(());
                    }
                }
                _ => self.relay(&mut stream, &request).await?,
            }
        }
    }

    /// Carries out an act; says whether the connection goes on.
    async fn perform(&self, stream: &mut (impl AsyncRead + AsyncWrite + Unpin), act: Act) -> io::Result<bool> {
        let performed = self.say(stream, act).await;
        if performed.is_err() {
            self.hung_up.send_modify(|count| *count += 1);
        }
        performed
    }

    async fn say(&self, stream: &mut (impl AsyncRead + AsyncWrite + Unpin), act: Act) -> io::Result<bool> {
        let said = |bytes: usize| self.taken.send_modify(|taken| *taken += bytes as u64);
        stream.write_all(&act.says).await?;
        stream.flush().await?;
        said(act.says.len());
        match act.then {
            Then::Close => {
                stream.shutdown().await?;
                Ok(false)
            }
            Then::Hold => until_hung_up(stream).await,
            Then::Drip(bytes, rest) => {
                let mut ticks = interval(rest);
                loop {
                    tokio::select! {
                        _ = ticks.tick() => {
                            stream.write_all(&bytes).await?;
                            stream.flush().await?;
                            said(bytes.len());
                        }
                        ended = until_hung_up(stream) => return ended,
                    }
                }
            }
            Then::Repeat(bytes, times, last) => {
                for _ in 0..times {
                    stream.write_all(&bytes).await?;
                    said(bytes.len());
                }
                stream.write_all(&last).await?;
                stream.flush().await?;
                until_hung_up(stream).await
            }
            Then::GoOn => Ok(true),
        }
    }

    async fn relay(&self, stream: &mut (impl AsyncWrite + Unpin), request: &str) -> io::Result<()> {
        let mut behind = TcpStream::connect(&self.behind).await?;
        let request = request.replacen("\r\n", "\r\nconnection: close\r\n", 1);
        behind.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        behind.read_to_end(&mut answer).await?;
        stream.write_all(&answer).await?;
        stream.flush().await?;
        // The recorder's answer says that the connection ends here.
        stream.shutdown().await?;
        Err(io::ErrorKind::NotConnected.into())
    }
}

/// Waits until the peer hangs up, which is always an `Err`.
async fn until_hung_up(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<bool> {
    let mut rest = [0; 1024];
    while stream.read(&mut rest).await? > 0 {}
    Err(io::ErrorKind::ConnectionAborted.into())
}

async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<String> {
    let mut request = Vec::new();
    loop {
        let mut piece = [0; 16 * 1024];
        let read = stream.read(&mut piece).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        request.extend_from_slice(&piece[..read]);
        let text = String::from_utf8_lossy(&request).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.parse::<usize>().unwrap())
        });
        if body.len() >= length.unwrap_or(0) {
            return Ok(text);
        }
    }
}
