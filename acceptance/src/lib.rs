//! What `cargo xtask demo` shows and the cluster tier of the tests proves, in one place for both: people who talk
//! through the ingress, and the numbers that a release is held to.

pub mod conversation;
pub mod numbers;
