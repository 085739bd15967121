//! What clients and servers say to each other in MCP, in both eras, and what Guardian makes of each message.

mod browsers;
mod client_requests;
mod handles;
mod messages;
pub mod resources_and_prompts;
mod streams;
mod tasks;
