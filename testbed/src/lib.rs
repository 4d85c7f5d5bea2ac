//! Real servers for the tests: PostgreSQL, Citus and the Kubernetes API on loopback, with the certificates they need.
//!
//! Nothing here pretends to be a server. What cannot run on a machine is reported by name
//! (see [`postgres::citus_available`]), so that a test can say what it skipped and why.

pub mod apiserver;
pub mod certificates;
pub mod postgres;
pub mod wait;
