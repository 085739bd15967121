//! What a program writes to its standard error: it is logged line by line, and its last lines are kept to say why the
//! program ended or does not answer. Secrets of its environment are in neither.

use crate::config::Secret;
use crate::domain::{SafeText, ServerName};
use crate::upstream::line_reader::LineReader;
use secrecy::ExposeSecret;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::AsyncRead;
use tokio::time::Instant;

/// Limits for logging standard error: bytes of a line, lines a second.
const LONGEST_LOGGED: usize = 2_048;
const MOST_LOGGED: u32 = 20;
/// How many lines are kept, and the most bytes of each.
const MOST_KEPT: usize = 8;
const LONGEST_KEPT: usize = 300;
/// Shorter values are not replaced, because they occur in any text by chance.
const SHORTEST_SECRET: usize = 6;

/// The last lines of one process.
#[derive(Debug, Default)]
pub struct LastLines(Mutex<VecDeque<String>>);

impl LastLines {
    /// The lines as one text, the newest last; `None` if the process wrote none.
    pub fn text(&self) -> Option<String> {
        let lines = self.lines();
        (!lines.is_empty()).then(|| lines.iter().map(String::as_str).collect::<Vec<_>>().join(" | "))
    }

    /// Keeps a line. Lines without a word and the frames of a JavaScript stack trace would push out the line that says why.
    fn keep(&self, line: &str) {
        let line = line.trim();
        if !line.contains(char::is_alphanumeric) || line.starts_with("at ") {
            return;
        }
        let mut lines = self.lines();
        if lines.len() == MOST_KEPT {
            lines.pop_front();
        }
        lines.push_back(SafeText::new(line, LONGEST_KEPT).to_string());
    }

    fn lines(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Logs the program's standard error and keeps its last lines; of the lines beyond `MOST_LOGGED` a second, only the count
/// is logged.
pub async fn follow(server: ServerName, secrets: Arc<[String]>, last: Arc<LastLines>, stderr: impl AsyncRead + Unpin) {
    let mut lines = LineReader::new(stderr, LONGEST_LOGGED);
    let (mut second, mut logged, mut left_out) = (Instant::now(), 0_u32, 0_u64);
    while let Ok(Some(line)) = lines.next_cut().await {
        if second.elapsed() >= Duration::from_secs(1) {
            if left_out > 0 {
                tracing::debug!(%server, left_out, "the server's program logs too much");
            }
            (second, logged, left_out) = (Instant::now(), 0, 0);
        }
        let line = redact(&secrets, &line);
        last.keep(&line);
        if logged < MOST_LOGGED {
            tracing::debug!(%server, line = %SafeText::uncut(&line), "the server's program says");
        } else {
            left_out += 1;
        }
        logged = logged.saturating_add(1);
    }
}

/// A line with secrets replaced.
pub fn redact(secrets: &[String], line: &[u8]) -> String {
    let mut line = String::from_utf8_lossy(line).into_owned();
    for secret in secrets {
        if line.contains(secret.as_str()) {
            line = line.replace(secret.as_str(), "[secret]");
        }
    }
    line
}

/// The configured values to hide. All count as secrets; the longest comes first, so that no part of it is left over
/// when another secret is its prefix.
pub fn secrets(env: &BTreeMap<String, Secret>) -> Arc<[String]> {
    let lines = env.values().flat_map(|value| value.expose_secret().lines());
    let values = lines.map(|line| line.trim().to_owned());
    let mut secrets: Vec<_> = values.filter(|value| value.len() >= SHORTEST_SECRET).collect();
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    secrets.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hidden(pairs: &[(&str, &str)]) -> Arc<[String]> {
        let secret = |(name, value): &(&str, &str)| ((*name).to_owned(), Secret::from((*value).to_owned()));
        secrets(&pairs.iter().map(secret).collect())
    }

    async fn kept(secrets: Arc<[String]>, written: &str) -> Option<String> {
        let last = Arc::new(LastLines::default());
        follow(ServerName::parse("notes").unwrap(), secrets, last.clone(), written.as_bytes()).await;
        last.text()
    }

    #[test]
    fn what_is_set_is_in_no_log() {
        let secrets = hidden(&[
            ("A", "hunter2-and-more"),
            ("B", "hunter2"),
            ("C", "1"),
            ("D", "first line\nsecond line\n"),
        ]);
        let line = redact(&secrets, b"key hunter2-and-more, then hunter2 and 1, second line\xff");
        assert_eq!(line, "key [secret], then [secret] and 1, [secret]\u{fffd}");
    }

    #[tokio::test]
    async fn the_last_lines_say_why_and_are_safe_to_show() {
        assert_eq!(kept(hidden(&[]), "").await, None);
        let trace = "Error: no module\x1b[31m\n    at load (a.js:1)\n\n    at main (b.js:2)\n   ^^^\n}\ntoken s3cret-token\n";
        assert_eq!(
            kept(hidden(&[("T", "s3cret-token")]), trace).await.unwrap(),
            "Error: no module\\u{1b}[31m | token [secret]"
        );
        let many: String = (0..1_000)
            .map(|line| format!("line {line} {}\n", "x".repeat(5_000)))
            .collect();
        let text = kept(hidden(&[]), &many).await.unwrap();
        assert!(text.len() < MOST_KEPT * (LONGEST_KEPT + 10), "{}", text.len());
        assert!(text.contains("line 992 ") && !text.contains("line 991 "), "{text}");
    }
}
