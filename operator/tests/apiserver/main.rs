//! The resource and the controller of Kubernetes objects against a real API server, without controllers or kubelets.
//!
//! Needs etcd and kube-apiserver, named by `ETCD` and `KUBE_APISERVER`; otherwise every test says that it was skipped,
//! and why.

mod bed;
mod controller;
mod lease;
mod obstacles;
mod plan;
mod refusals;
mod resource;
mod rest;
mod rights;
mod servers;
mod updates;

/// Ends a test on a machine where it cannot run, by name.
macro_rules! needs_apiserver {
    () => {
        if let Err(reason) = testbed::apiserver::available() {
            println!("SKIPPED apiserver: {reason}");
            return Ok(());
        }
    };
}
pub(crate) use needs_apiserver;
