//! Clients that people really use, against `guardian quickstart`.

use crate::support::folder::Folder;
use crate::support::ports::free_port;
