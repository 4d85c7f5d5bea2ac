//! What stage of its life the process is in, for `/ready` and for the gate in front of the API.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

/// The stages, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The schema is being made ready; the text says what is waited for.
    Starting(String),
    /// Requests are served.
    Serving,
    /// The process was told to end: requests are still served, but load balancers should turn away.
    Draining,
}

/// The current stage, shared by all parts of the process.
#[derive(Debug)]
pub struct Readiness {
    stage: watch::Sender<Stage>,
    /// The same for each request, which takes no lock for it: whether the start is over, and whether the end has begun.
    started: AtomicBool,
    draining: AtomicBool,
}

impl Default for Readiness {
    fn default() -> Self {
        Self {
            stage: watch::Sender::new(Stage::Starting("connecting to the database".into())),
            started: AtomicBool::new(false),
            draining: AtomicBool::new(false),
        }
    }
}

impl Readiness {
    /// The stage now.
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.stage.borrow().clone()
    }

    /// Whether requests of the API can be handled: the schema is ready.
    #[must_use]
    pub fn handles_requests(&self) -> bool {
        self.started.load(Ordering::Acquire)
    }

    /// Whether the process was told to end.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Says what the start is waiting for. Ignored once the start is over.
    pub fn waiting_for(&self, what: impl Into<String>) {
        let what = what.into();
        self.stage.send_if_modified(|stage| match stage {
            Stage::Starting(old) if *old != what => {
                *old = what;
                true
            }
            _ => false,
        });
    }

    /// The schema is ready. Ignored when the process was already told to end.
    pub fn serving(&self) {
        self.stage.send_if_modified(|stage| {
            let starting = matches!(stage, Stage::Starting(_));
            if starting {
                *stage = Stage::Serving;
                self.started.store(true, Ordering::Release);
            }
            starting
        });
    }

    /// The process was told to end.
    pub fn draining(&self) {
        self.stage.send_replace(Stage::Draining);
        self.draining.store(true, Ordering::Release);
        self.started.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_was_told_to_end_never_serves_again() {
        let readiness = Readiness::default();
        assert!(!readiness.handles_requests());
        readiness.draining();
        readiness.serving();
        readiness.waiting_for("anything");
        assert_eq!(readiness.stage(), Stage::Draining);
    }

    #[test]
    fn the_reason_for_waiting_is_kept_until_it_serves() {
        let readiness = Readiness::default();
        readiness.waiting_for("the tables to be distributed");
        assert_eq!(readiness.stage(), Stage::Starting("the tables to be distributed".into()));
        readiness.serving();
        readiness.waiting_for("too late");
        assert_eq!(readiness.stage(), Stage::Serving);
    }
}
