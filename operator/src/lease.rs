//! One of several operators leads, by a Lease.
//!
//! What to do is decided by a pure function; what was decided is written by compare-and-swap on the resource version.
//! No clocks are compared between machines: a lease is expired if we have seen it unchanged for its duration, and we
//! hold ours only up to a deadline of our own monotonic clock. Who loses it stops the process, and does not try to
//! tidy up. The database is fenced apart from this, by an advisory lock.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::core::ObjectMeta;
use kube::{Api, Client};
use tracing::{debug, info, warn};

use crate::health::Health;

/// After this time without a renewal, others may take the lease.
const DURATION: Duration = Duration::from_secs(15);
/// After this time without a renewal, the holder stops: well before others start.
const DEADLINE: Duration = Duration::from_secs(10);
/// Time between two looks at the lease.
const PERIOD: Duration = Duration::from_secs(3);
/// Time limit of one call.
const CALL: Duration = Duration::from_secs(3);

/// What to do about a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nobody holds it: take it.
    Acquire,
    /// It is ours: renew it.
    Renew,
    /// It is somebody else's.
    Yield,
}

/// Decides about a lease that has not changed for `unchanged`, as far as we saw.
#[must_use]
pub fn decide(lease: Option<&LeaseSpec>, me: &str, unchanged: Duration) -> Decision {
    let Some(lease) = lease else { return Decision::Acquire };
    match lease.holder_identity.as_deref() {
        None | Some("") => Decision::Acquire,
        Some(holder) if holder == me => Decision::Renew,
        Some(_) => {
            let duration = lease.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
            if unchanged >= duration.map_or(DURATION, Duration::from_secs) {
                Decision::Acquire
            } else {
                Decision::Yield
            }
        }
    }
}

/// The specification to write for a decision; `None` if there is nothing to write.
fn next(lease: Option<&LeaseSpec>, me: &str, decision: Decision, now: Timestamp) -> Option<LeaseSpec> {
    let before = lease.cloned().unwrap_or_default();
    let renewed = LeaseSpec {
        holder_identity: Some(me.to_owned()),
        lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
        renew_time: Some(MicroTime(now)),
        ..before.clone()
    };
    match decision {
        Decision::Acquire => Some(LeaseSpec {
            acquire_time: Some(MicroTime(now)),
            lease_transitions: Some(
                before.lease_transitions.map_or(0, |transitions| transitions.saturating_add(1)),
            ),
            ..renewed
        }),
        Decision::Renew => Some(renewed),
        Decision::Yield => None,
    }
}

/// A candidate for the lead.
#[derive(Debug)]
pub struct Candidate {
    leases: Api<Lease>,
    name: String,
    identity: String,
    health: Health,
    /// The lease as it was seen last, and since when it has looked like that.
    seen: Option<(Lease, Instant)>,
}

impl Candidate {
    /// A candidate named `identity` for the lease `name` in `namespace`.
    #[must_use]
    pub fn new(client: Client, namespace: &str, name: &str, identity: String, health: Health) -> Self {
        let leases = Api::namespaced(client, namespace);
        Self { leases, name: name.to_owned(), identity, health, seen: None }
    }

    /// Waits until the lease is ours.
    pub async fn acquire(mut self) -> Leader {
        loop {
            match self.step().await {
                Ok(Some(until)) => {
                    info!(lease = %self.name, identity = %self.identity, "leading");
                    return Leader { candidate: self, until };
                }
                Ok(None) => debug!(lease = %self.name, "somebody else leads"),
                Err(error) => warn!(lease = %self.name, %error, "cannot get the lease; trying on"),
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    /// Looks once and does what is to be done. Returns until when the lease is ours, if it is.
    async fn step(&mut self) -> anyhow::Result<Option<Instant>> {
        let started = Instant::now();
        let found = tokio::time::timeout(CALL, self.leases.get_opt(&self.name)).await??;
        self.health.reached();
        let version = |lease: &Lease| (lease.metadata.uid.clone(), lease.metadata.resource_version.clone());
        let since = match (&self.seen, &found) {
            (Some((seen, since)), Some(found)) if version(seen) == version(found) => *since,
            _ => Instant::now(),
        };
        self.seen = found.clone().map(|lease| (lease, since));
        let spec = found.as_ref().and_then(|lease| lease.spec.as_ref());
        let decision = decide(spec, &self.identity, since.elapsed());
        let Some(spec) = next(spec, &self.identity, decision, Timestamp::now()) else { return Ok(None) };
        self.swap(found, spec).await?;
        Ok(Some(started + DEADLINE))
    }

    /// Writes `spec`, provided that the lease is still the one that was found.
    async fn swap(&mut self, found: Option<Lease>, spec: LeaseSpec) -> anyhow::Result<()> {
        let create = found.is_none();
        let metadata = found.map_or_else(
            || ObjectMeta { name: Some(self.name.clone()), ..Default::default() },
            |lease| ObjectMeta { managed_fields: None, ..lease.metadata },
        );
        let lease = Lease { metadata, spec: Some(spec) };
        let parameters = PostParams::default();
        let written = if create {
            tokio::time::timeout(CALL, self.leases.create(&parameters, &lease)).await??
        } else {
            // The resource version that was read goes along; if somebody was faster, this is refused.
            tokio::time::timeout(CALL, self.leases.replace(&self.name, &parameters, &lease)).await??
        };
        self.seen = Some((written, Instant::now()));
        Ok(())
    }
}

/// The holder of the lease.
#[derive(Debug)]
pub struct Leader {
    candidate: Candidate,
    until: Instant,
}

impl Leader {
    /// Renews the lease for as long as that works; returns when it is lost, with the reason.
    pub async fn keep(&mut self) -> anyhow::Error {
        loop {
            tokio::time::sleep(PERIOD.min(self.until.saturating_duration_since(Instant::now()))).await;
            match tokio::time::timeout_at(self.until.into(), self.candidate.step()).await {
                Ok(Ok(Some(until))) => self.until = until,
                Ok(Ok(None)) => return anyhow::anyhow!("the lease was taken by somebody else"),
                Ok(Err(error)) if Instant::now() < self.until => {
                    warn!(%error, "cannot renew the lease; trying on");
                }
                Ok(Err(error)) => return error.context("the lease could not be renewed in time"),
                Err(_) => {
                    return anyhow::anyhow!("the lease could not be renewed within {} s", DEADLINE.as_secs());
                }
            }
        }
    }

    /// Gives the lease back, so that the next one need not wait until it expires.
    ///
    /// # Errors
    /// If it cannot be read or written.
    pub async fn release(mut self) -> anyhow::Result<()> {
        // A renewal that was cut off may be written after all, also while this goes on: what was seen last is no evidence.
        let mut attempts = 3;
        loop {
            let found =
                tokio::time::timeout(CALL, self.candidate.leases.get_opt(&self.candidate.name)).await??;
            let Some(spec) = given_back(found.as_ref(), &self.candidate.identity) else { return Ok(()) };
            attempts -= 1;
            match self.candidate.swap(found, spec).await {
                Err(error) if attempts > 0 && is_conflict(&error) => {
                    debug!(lease = %self.candidate.name, "written meanwhile");
                }
                written => return written,
            }
        }
    }
}

/// The lease as nobody's, if it is `me` who has it.
fn given_back(lease: Option<&Lease>, me: &str) -> Option<LeaseSpec> {
    let spec = lease?.spec.clone()?;
    (spec.holder_identity.as_deref() == Some(me)).then_some(LeaseSpec { holder_identity: None, ..spec })
}

/// Whether somebody else was faster.
fn is_conflict(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(kube::Error::Api(status)) if status.code == 409)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held_by(holder: &str) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(15),
            lease_transitions: Some(4),
            ..Default::default()
        }
    }

    #[test]
    fn a_lease_is_taken_only_when_nobody_holds_it() {
        let seconds = Duration::from_secs;
        assert_eq!(decide(None, "me", seconds(0)), Decision::Acquire);
        assert_eq!(decide(Some(&LeaseSpec::default()), "me", seconds(0)), Decision::Acquire);
        assert_eq!(decide(Some(&held_by("")), "me", seconds(0)), Decision::Acquire);
        assert_eq!(decide(Some(&held_by("me")), "me", seconds(99)), Decision::Renew);
        assert_eq!(decide(Some(&held_by("you")), "me", seconds(14)), Decision::Yield);
        assert_eq!(decide(Some(&held_by("you")), "me", seconds(15)), Decision::Acquire);
    }

    #[test]
    fn the_duration_is_the_holders_own() {
        let lease = LeaseSpec { lease_duration_seconds: Some(60), ..held_by("you") };
        assert_eq!(decide(Some(&lease), "me", Duration::from_secs(59)), Decision::Yield);
    }

    #[test]
    fn only_a_change_of_the_holder_counts_as_a_transition() {
        let now = Timestamp::UNIX_EPOCH;
        let renewed = next(Some(&held_by("me")), "me", Decision::Renew, now).unwrap();
        assert_eq!((renewed.lease_transitions, renewed.acquire_time), (Some(4), None));
        let acquired = next(Some(&held_by("you")), "me", Decision::Acquire, now).unwrap();
        assert_eq!(acquired.lease_transitions, Some(5));
        assert_eq!(acquired.holder_identity.as_deref(), Some("me"));
        assert_eq!(next(Some(&held_by("you")), "me", Decision::Yield, now), None);
    }

    #[test]
    fn the_holder_stops_before_others_start() {
        assert!(DEADLINE + CALL < DURATION);
    }
}
