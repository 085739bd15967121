//! Servers reached over persistent channels: a stdio process or an event stream for each session, or one process that
//! all sessions share.

mod channels;
mod control_channel;
mod legacy_sse;
mod mux;
mod queue;
mod sessions;
mod stderr;
mod stdio;
mod supervisor;

pub use channels::{ChannelConnector, Channels};
pub use control_channel::ControlChannel;
pub use mux::MuxChannel;
pub use queue::{ChannelMessage, QueueReceiver};
pub use sessions::PendingSession;
pub use stdio::Program;
