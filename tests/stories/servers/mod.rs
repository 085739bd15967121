//! Servers that do not speak Streamable HTTP: stdio processes, and the HTTP+SSE transport of 2024-11-05. And servers that
//! people use.

mod legacy_sse;
mod programs;
mod real;
mod stdio;
