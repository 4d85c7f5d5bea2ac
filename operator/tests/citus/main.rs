//! The controller of the database against real servers: a coordinator and workers on loopback that speak to each other
//! and to the operator with client certificates, as in a cluster.
//!
//! Needs PostgreSQL with the citus extension on this machine; otherwise every test says that it was skipped, and why.

#![allow(clippy::unwrap_used, reason = "what cannot go on fails its test")]

mod acting;
mod adopt;
mod alone;
mod astray;
mod by_load;
mod comparison;
mod copies;
mod crashes;
mod detour;
mod drift;
mod edited;
mod faults;
mod flood;
mod fresh;
mod growth;
mod hands;
mod heat;
mod held_up;
mod in_a_row;
mod in_use;
mod inboxes;
mod isolation;
mod journey;
mod killed;
mod killer;
mod lacks;
mod large;
mod leaving;
mod leftovers;
mod moves;
mod operator;
mod pace;
mod pins;
mod planner;
mod records;
mod released;
mod resource;
mod restored;
mod retirement;
mod seeds;
mod sends;
mod sooner;
mod splits;
mod stalls;
mod steady;
mod told;
mod too_hot;
mod traffic;
mod updates;
mod world;

/// Ends a test on a machine where it cannot run, by name.
macro_rules! needs_citus {
    () => {
        if let Err(reason) = testbed::postgres::citus_available() {
            println!("SKIPPED citus: {reason}");
            return Ok(());
        }
    };
}
pub(crate) use needs_citus;
