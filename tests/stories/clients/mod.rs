//! Real MCP clients and the published conformance suites. `bash tests/clients/install` and `tests/run` install them.

mod browser;
mod conformance;
mod first_steps;
mod foreign;
mod foreign_sign_in;
mod sdks;
mod sign_in;
