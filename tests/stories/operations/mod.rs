//! Running Guardian: starting, reloading, stopping, limits, several replicas, and what its commands say of mistakes.

mod directory;
mod errors;
mod lifecycle;
mod limits;
mod metrics;
mod reload;
mod replicas;
mod start_and_stop;
mod store_faults;
