//! Servers reached by Streamable HTTP: one exchange for each message. What an answer means is not judged here.

mod endpoint;
mod exchange;
mod headers;

pub use endpoint::Endpoint;
pub use exchange::{Media, media, read_answer_body};
pub use headers::{ForwardHeaders, SessionField, forward_headers, http_method, session_of, set_session_headers};
