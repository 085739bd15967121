//! Log lines on standard error: text for a terminal, JSON for programs. An event is always one line, because control
//! characters in its values are escaped.

use crate::config::{LogConfig, LogFormat};
use crate::domain::SafeText;
use std::fmt;
use tracing::field::Field;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::format::{Writer, debug_fn};

/// Why logging cannot start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    #[error(
        "`log.level` has `{directive}`, which is neither a level (`error`, `warn`, `info`, `debug`, `trace`, `off`) nor `target=level`"
    )]
    Directive { directive: String },
    #[error("logging was started before")]
    Started,
}

/// Starts logging for the whole process; a second call is an error.
pub fn start(config: &LogConfig, is_terminal: bool) -> Result<(), LogError> {
    let filter = filter(&config.level)?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let json = match config.format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !is_terminal,
    };
    let started = if json {
        lines.json().flatten_event(true).with_span_list(false).try_init()
    } else {
        lines
            .with_ansi(is_terminal)
            .fmt_fields(debug_fn(plain_field).delimited(" "))
            .try_init()
    };
    started.map_err(|_| LogError::Started)
}

/// Whether `start` would accept this configuration.
pub fn check_level(config: &LogConfig) -> Result<(), LogError> {
    filter(&config.level).map(drop)
}

/// Parses `log.level`. A misspelt level is refused here, because `EnvFilter` would take it for the name of a module.
fn filter(level: &str) -> Result<EnvFilter, LogError> {
    let wrong = |directive: &str| LogError::Directive {
        directive: directive.escape_debug().to_string(),
    };
    for directive in level.split(',').map(str::trim) {
        let level = directive.rsplit_once('=').map_or(directive, |(_, level)| level);
        if level.is_empty() || level.parse::<LevelFilter>().is_err() {
            return Err(wrong(directive));
        }
    }
    EnvFilter::builder().parse(level).map_err(|_| wrong(level))
}

/// Writes a field with control and invisible characters escaped, so that no value can forge a line or move the cursor.
fn plain_field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    if field.name() != "message" {
        write!(writer, "{}=", field.name())?;
    }
    write!(writer, "{}", SafeText::uncut(&format!("{value:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn a_misspelt_level_is_refused() {
        for good in ["info", "INFO", "off", "warn,neural_guardian::gate=debug"] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["infoo", "", "info,", "neural_guardian=loud", "info;debug"] {
            assert!(filter(bad).is_err(), "{bad}");
        }
    }

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn no_value_can_forge_a_line_or_an_escape_sequence() {
        let kept = Captured::default();
        let writer = kept.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .fmt_fields(debug_fn(plain_field).delimited(" "))
            .finish();
        let foreign = "x\n2026-01-01 INFO forged \u{1b}[31m";
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(tool = foreign, shown = %foreign, "called {foreign}");
        });
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
        assert_eq!(text.matches("forged").count(), 3, "{text}");
    }
}
