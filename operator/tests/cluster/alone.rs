//! Tests that need the machine and the operator for themselves.

mod approval;
mod hot_pair;
mod interrupted;
mod killed;
mod obstacles;
mod scaling;
mod switchover;
mod two_workers;
mod update;
mod vanished;
mod wal_level;

/// Where the operator is installed.
fn operator_namespace() -> String {
    std::env::var("DIALOG_OPERATOR_NAMESPACE").unwrap_or_else(|_| "dialog-system".to_owned())
}
