//! Reads lines from a process. A line longer than the limit is an error or is cut, and is never buffered whole.
//!
//! Not `tokio_util::codec` (0.7.20), as tried: its delimiter and line codecs drop the beginning of a line that is too long, which
//! a log line is to keep; `LinesCodec` fails at bytes that are not UTF-8; and their lines share the read buffer, so that 1,000
//! kept lines of 7 bytes among longer ones held 68 MB. Here each line has memory of its own.

use bytes::Bytes;
use std::io;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};

/// A line reader with a limit.
pub(super) struct LineReader<R> {
    from: BufReader<R>,
    most: usize,
}

/// Why there is no next line.
#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    #[error("a line is longer than {0} bytes")]
    TooLong(usize),
    #[error(transparent)]
    Broken(#[from] io::Error),
}

impl<R: AsyncRead + Unpin> LineReader<R> {
    pub fn new(from: R, most: usize) -> Self {
        Self {
            from: BufReader::with_capacity(64 * 1024, from),
            most,
        }
    }

    /// The next line without its line end; `None` at the end of input. A line over the limit is an error.
    pub async fn next(&mut self) -> Result<Option<Bytes>, LineError> {
        let mut line = Vec::new();
        match self.fill(&mut line).await? {
            LineFill::Line => Ok(Some(without_return(line))),
            LineFill::End if line.is_empty() => Ok(None),
            LineFill::End => Ok(Some(without_return(line))),
            LineFill::TooLong => Err(LineError::TooLong(self.most)),
        }
    }

    /// The next line, cut at the limit; the rest of a long line is skipped.
    pub async fn next_cut(&mut self) -> Result<Option<Bytes>, LineError> {
        let mut line = Vec::new();
        let mut filled = self.fill(&mut line).await?;
        let mut rest = Vec::new();
        while let LineFill::TooLong = filled {
            rest.clear();
            filled = self.fill(&mut rest).await?;
        }
        match (filled, line.is_empty()) {
            (LineFill::End, true) => Ok(None),
            _ => Ok(Some(without_return(line))),
        }
    }

    /// Appends the rest of the line, up to the limit.
    async fn fill(&mut self, line: &mut Vec<u8>) -> Result<LineFill, LineError> {
        // One byte more: the line feed after a line of exactly the limit.
        let mut limited = (&mut self.from).take(self.most as u64 + 1);
        limited.read_until(b'\n', line).await?;
        if line.last() == Some(&b'\n') {
            line.pop();
            Ok(LineFill::Line)
        } else if line.len() > self.most {
            line.truncate(self.most);
            Ok(LineFill::TooLong)
        } else {
            Ok(LineFill::End)
        }
    }
}

enum LineFill {
    Line,
    End,
    TooLong,
}

fn without_return(mut line: Vec<u8>) -> Bytes {
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    line.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(text: &[u8], most: usize) -> Vec<Result<Bytes, String>> {
        let mut lines = LineReader::new(text, most);
        let mut read = Vec::new();
        loop {
            match lines.next().await {
                Ok(Some(line)) => read.push(Ok(line)),
                Ok(None) => return read,
                Err(error) => {
                    read.push(Err(error.to_string()));
                    return read;
                }
            }
        }
    }

    #[tokio::test]
    async fn lines_end_at_line_feeds_and_at_the_end() {
        assert_eq!(
            all(b"{}\r\n\nab\nrest", 8).await,
            ["{}", "", "ab", "rest"].map(|line| Ok(line.into()))
        );
        assert_eq!(all(b"", 8).await, []);
    }

    #[tokio::test]
    async fn a_line_may_be_as_long_as_the_bound_and_no_longer() {
        assert_eq!(all(b"12345678\n9", 8).await, ["12345678", "9"].map(|line| Ok(line.into())));
        let long = vec![b'x'; 1_000_000];
        assert_eq!(all(&long, 8).await, [Err("a line is longer than 8 bytes".to_owned())]);
        assert_eq!(all(&long, 1_000_000).await.len(), 1);
    }

    #[tokio::test]
    async fn the_rest_of_a_cut_line_is_skipped() {
        let mut lines = LineReader::new(b"123456789012345678901\nab\n1234567".as_slice(), 4);
        let mut read = Vec::new();
        while let Some(line) = lines.next_cut().await.unwrap() {
            read.push(line);
        }
        assert_eq!(read, ["1234", "ab", "1234"]);
    }
}
