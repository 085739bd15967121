//! Servers that are local programs (stdio transport). A program gets only a short list of Guardian's environment
//! variables, is spoken to line by line, and is ended together with every process it started. No other file starts
//! processes.

use super::mux::{MuxChannel, Outbound, Sink, UnsolicitedRouting};
use super::stderr::{self, LastLines};
use super::supervisor::ChannelLease;
use crate::config::{Secret, ServerConfig};
use crate::domain::{ClientRequests, CutBy, Reason};
use crate::upstream::error::ForwardError;
use crate::upstream::line_reader::LineReader;
use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process_group};
use secrecy::ExposeSecret;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// A configured program.
pub struct Program {
    /// The program and its arguments.
    command: Vec<String>,
    dir: PathBuf,
    env: BTreeMap<OsString, OsString>,
    /// Values of `env`, replaced in log lines.
    secrets: Arc<[String]>,
}

/// The environment variables that a program inherits if Guardian has them. All others come from the configuration.
const INHERITED: [&str; 6] = ["PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR"];

/// The most messages queued for the program.
const QUEUE: usize = 64;
/// How long a program may take to exit after its input closed, and again after SIGTERM.
const GRACE: Duration = Duration::from_secs(2);
/// How long to wait for output that a program wrote before it ended.
const LAST_WORDS: Duration = Duration::from_secs(1);
impl Program {
    /// Whether it can be started is found out when it is: a program that cannot keeps no other server from serving.
    pub fn new(config: &ServerConfig) -> Self {
        let dir = config.working_dir.clone().unwrap_or_default();
        Self {
            command: config.command.clone(),
            dir: if dir.as_os_str().is_empty() { PathBuf::from(".") } else { dir },
            env: environment(config.env.iter(), |name| std::env::var_os(name)),
            secrets: stderr::secrets(&config.env),
        }
    }

    /// The text without the secrets of the program's environment.
    pub fn without_secrets(&self, text: &str) -> String {
        stderr::redact(&self.secrets, text.as_bytes())
    }

    /// Starts the program and a task that reads and writes its pipes until the channel ends.
    pub fn start(
        &self,
        routing: UnsolicitedRouting,
        allowed_requests: ClientRequests,
        max_line: usize,
        lease: ChannelLease,
    ) -> Result<Arc<MuxChannel>, ForwardError> {
        let mut child = self.spawn().map_err(|why| ForwardError {
            cause: Some(why),
            ..ForwardError::before_sending(Reason::UpstreamUnreachable, "its program cannot be started")
        })?;
        let (lines, queue) = mpsc::channel(QUEUE);
        let last_lines = Arc::new(LastLines::default());
        let sink = Sink::Lines(lines, last_lines.clone());
        let channel = MuxChannel::new(sink, routing, allowed_requests, lease.end());
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
            return Err(ForwardError::bad_response("its program has no pipes"));
        };
        let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let tasks = lease.supervisor.tasks.clone();
        let running = RunningProcess {
            channel: channel.clone(),
            child,
            group,
            lease,
        };
        let server = running.lease.supervisor.server.clone();
        let logged = stderr::follow(server, self.secrets.clone(), last_lines.clone(), stderr);
        tasks.spawn(running.run(stdin, stdout, queue, max_line, logged, last_lines));
        Ok(channel)
    }

    /// The process, or why there is none. The program is looked for each time: it may have been installed meanwhile.
    fn spawn(&self) -> Result<Child, String> {
        let [program, arguments @ ..] = self.command.as_slice() else {
            return Err("it has neither a URL nor a command".to_owned());
        };
        let program = locate(program, self.env.get(&OsString::from("PATH")))?;
        if !self.dir.is_dir() {
            return Err(format!("its `working_dir` `{}` is not a folder", self.dir.display()));
        }
        let spawned = Command::new(program)
            .args(arguments)
            .current_dir(&self.dir)
            .env_clear()
            .envs(&self.env)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn();
        spawned.map_err(|error| error.to_string())
    }
}

/// A running process and its channel.
struct RunningProcess {
    channel: Arc<MuxChannel>,
    child: Child,
    /// The process group: the program and every process it started in that group.
    group: Option<Pid>,
    lease: ChannelLease,
}

impl RunningProcess {
    /// Reads and writes until either pipe ends, the process exits or the session ends; then ends the process.
    async fn run(
        mut self,
        stdin: ChildStdin,
        stdout: ChildStdout,
        queue: mpsc::Receiver<Outbound>,
        max_line: usize,
        logged: impl Future<Output = ()>,
        last_lines: Arc<LastLines>,
    ) {
        let server = self.lease.supervisor.server.clone();
        let mut logged = pin!(logged);
        let mut lines = LineReader::new(stdout, max_line);
        let mut silent = false;
        let why = {
            let mut read = pin!(read_messages(&self.channel, &mut lines));
            let mut ended = pin!(self.child.wait());
            let logs = async {
                logged.as_mut().await;
                silent = true;
                std::future::pending::<()>().await
            };
            tokio::select! {
                why = read.as_mut() => Some(why),
                _ = ended.as_mut() => match timeout(LAST_WORDS, read).await {
                    Ok(why) => Some(why),
                    Err(_) => Some(Gone::Itself("its program ended")),
                },
                why = write(&self.channel, stdin, queue) => Some(why),
                () = self.channel.end.cancelled() => None,
                () = logs => None,
            }
        };
        match why {
            Some(why) if !self.channel.end.is_cancelled() => {
                let logged = (!silent).then_some(logged);
                let error = self.died(why, logged, &last_lines).await;
                self.lease.note_failure(&self.channel, &error);
                self.channel.fail_all(error);
            }
            _ => self.channel.fail_all(ForwardError::cut(
                CutBy::SessionEnded,
                Reason::UpstreamBroken,
                CutBy::SessionEnded.detail(),
            )),
        }
        let status = self.end(lines).await;
        tracing::debug!(%server, status, "the server's program has ended");
    }

    /// Why the process ended by itself: how it exited, if it has, and what it wrote about that. `logged` is `None` if it has
    /// closed its standard error before.
    async fn died(&mut self, why: Gone, logged: Option<Pin<&mut impl Future<Output = ()>>>, last: &LastLines) -> ForwardError {
        let last_words = async {
            if let Some(logged) = logged {
                let _ = timeout(LAST_WORDS, logged).await;
            }
        };
        let why = match why {
            Gone::Itself(why) => {
                let (status, ()) = tokio::join!(timeout(LAST_WORDS, self.child.wait()), last_words);
                status.ok().and_then(Result::ok).map_or(why.to_owned(), ending)
            }
            Gone::Unreadable(why) => why,
        };
        let last_lines = last.text();
        let server = &self.lease.supervisor.server;
        let gone = if self.channel.has_answered() {
            let stderr = last_lines.as_deref().unwrap_or_default();
            tracing::warn!(%server, why, stderr, "the server's program is gone");
            ForwardError::bad_response(format!("the server is gone: {why}"))
        } else {
            // Whoever waits for its first answer tells why there is none.
            tracing::debug!(%server, why, "the server's program did not start");
            ForwardError::after_sending(Reason::UpstreamUnreachable, why)
        };
        ForwardError { last_lines, ..gone }
    }

    /// Ends the process, whose standard input is closed by now: wait, SIGTERM, wait, SIGKILL to the group. Its output
    /// is read meanwhile, so that a full pipe cannot block its exit.
    async fn end(mut self, mut lines: LineReader<ChildStdout>) -> String {
        let mut emptied = pin!(async {
            while let Ok(Some(_)) = lines.next_cut().await {}
            std::future::pending::<()>().await
        });
        for signal in [None, Some(Signal::TERM)] {
            self.signal(signal);
            tokio::select! {
                ended = timeout(GRACE, self.child.wait()) => if let Ok(Ok(status)) = ended {
                    self.signal(Some(Signal::KILL));
                    return status.to_string();
                },
                () = emptied.as_mut() => {}
            }
        }
        self.signal(Some(Signal::KILL));
        match self.child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        }
    }

    fn signal(&self, signal: Option<Signal>) {
        if let (Some(group), Some(signal)) = (self.group, signal) {
            // An error means that no process of the group is left.
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for RunningProcess {
    /// Kills the group also if the runtime shuts down before the process has ended.
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            self.signal(Some(Signal::KILL));
        }
    }
}

/// Why a process is spoken to no more.
enum Gone {
    /// It exited, or closed a pipe.
    Itself(&'static str),
    /// Its output cannot be read as lines.
    Unreadable(String),
}

/// Reads messages until the output ends or cannot be parsed into lines; returns why.
async fn read_messages(channel: &MuxChannel, lines: &mut LineReader<ChildStdout>) -> Gone {
    loop {
        match lines.next().await {
            Ok(Some(line)) if line.trim_ascii().is_empty() => {}
            Ok(Some(line)) => channel.received(line).await,
            Ok(None) => return Gone::Itself("its program ended its output"),
            Err(error) => return Gone::Unreadable(error.to_string()),
        }
    }
}

/// Writes messages until the process reads no more; returns why. A request that nobody waits for any more is left out.
async fn write(channel: &MuxChannel, mut stdin: ChildStdin, mut queue: mpsc::Receiver<Outbound>) -> Gone {
    while let Some(Outbound { request, text }) = queue.recv().await {
        if !request.is_none_or(|number| channel.begin_sending(number)) {
            continue;
        }
        let line = one_line(&text);
        let mut rest = line.as_slice();
        while !rest.is_empty() {
            match stdin.write(rest).await {
                Ok(written @ 1..) => rest = &rest[written..],
                Ok(0) | Err(_) => {
                    if rest.len() == line.len() {
                        request.into_iter().for_each(|number| channel.not_sent(number));
                    }
                    return Gone::Itself("its program reads no more");
                }
            }
        }
    }
    Gone::Itself("nobody speaks to its program any more")
}

/// Makes a message a single line. A raw line feed in JSON is always white space, so replacing it changes nothing.
fn one_line(message: &Bytes) -> Vec<u8> {
    let mut line: Vec<u8> = message
        .iter()
        .map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte })
        .collect();
    line.push(b'\n');
    line
}

/// How a process ended.
fn ending(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("its program exited with code {code}"),
        (None, Some(signal)) => {
            let name = match signal {
                4 => " (SIGILL)",
                6 => " (SIGABRT)",
                9 => " (SIGKILL)",
                11 => " (SIGSEGV)",
                15 => " (SIGTERM)",
                _ => "",
            };
            format!("its program was ended by signal {signal}{name}")
        }
        (None, None) => "its program ended".to_owned(),
    }
}

/// The program's environment: the inherited variables, overridden by the configured ones.
fn environment<'a>(
    set: impl Iterator<Item = (&'a String, &'a Secret)>,
    inherited: impl Fn(&str) -> Option<OsString>,
) -> BTreeMap<OsString, OsString> {
    let mut env: BTreeMap<OsString, OsString> = INHERITED
        .into_iter()
        .filter_map(|name| Some((name.into(), inherited(name)?)))
        .collect();
    env.extend(set.map(|(name, value)| (name.into(), value.expose_secret().into())));
    env
}

/// The path of the program; a bare name is looked up in PATH.
fn locate(program: &str, path: Option<&OsString>) -> Result<PathBuf, String> {
    let named = Path::new(program);
    if program.contains('/') {
        if !named.is_file() {
            return Err(format!("its command `{program}` does not exist"));
        }
        if !is_executable(named) {
            return Err(format!("its command `{program}` is not executable"));
        }
        return Ok(std::path::absolute(named).unwrap_or_else(|_| named.to_owned()));
    }
    let folders = path.map(std::env::split_paths).into_iter().flatten();
    folders
        .map(|folder| folder.join(program))
        .find(|file| is_executable(file))
        .ok_or_else(|| format!("its command `{program}` is in no folder of PATH"))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(pairs: &[(&str, &str)]) -> BTreeMap<String, Secret> {
        let secret = |(name, value): &(&str, &str)| ((*name).to_owned(), Secret::from((*value).to_owned()));
        pairs.iter().map(secret).collect()
    }

    #[test]
    fn the_environment_is_a_short_list_and_what_is_set() {
        let set = set(&[("TOKEN", "t"), ("LANG", "C.UTF-8")]);
        let env = environment(set.iter(), |name| Some(format!("own {name}").into()));
        let names: Vec<_> = env
            .iter()
            .map(|(name, value)| format!("{}={}", name.display(), value.display()))
            .collect();
        assert_eq!(
            names,
            [
                "HOME=own HOME",
                "LANG=C.UTF-8",
                "LC_ALL=own LC_ALL",
                "PATH=own PATH",
                "TMPDIR=own TMPDIR",
                "TOKEN=t",
                "TZ=own TZ"
            ]
        );
        assert!(environment(BTreeMap::new().iter(), |_| None).is_empty());
    }

    #[test]
    fn a_message_is_one_line() {
        assert_eq!(one_line(&Bytes::from_static(b"{\r\n\"a\": 1\n}")), b"{  \"a\": 1 }\n");
    }

    #[test]
    fn a_program_that_is_not_there_or_cannot_be_run_is_refused() {
        let path = OsString::from("/nonexistent:/bin");
        assert_eq!(locate("sh", Some(&path)).unwrap(), Path::new("/bin/sh"));
        assert_eq!(locate("/bin/sh", None).unwrap(), Path::new("/bin/sh"));
        for (program, why) in [
            ("no-such-program", "its command `no-such-program` is in no folder of PATH"),
            ("/bin/no-such-program", "its command `/bin/no-such-program` does not exist"),
            ("/etc/passwd", "its command `/etc/passwd` is not executable"),
            ("/bin/", "its command `/bin/` does not exist"),
        ] {
            let refused = locate(program, Some(&path)).unwrap_err();
            assert_eq!(refused, why);
        }
    }
}
