//! One of two operators leads.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use dialog_operator::health::Health;
use dialog_operator::lease::Candidate;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::bed::{Bed, LIMIT, eventually};
use crate::needs_apiserver;

fn candidate(bed: &Bed, identity: &str) -> Candidate {
    Candidate::new(bed.client.clone(), &bed.namespace, "lead", identity.to_owned(), Health::default())
}

async fn holder(bed: &Bed) -> Result<Option<String>> {
    let leases: Api<Lease> = Api::namespaced(bed.client.clone(), &bed.namespace);
    Ok(leases.get("lead").await?.spec.and_then(|spec| spec.holder_identity))
}

/// Waits until the lease was renewed this many times.
async fn renewals(bed: &Bed, count: usize) -> Result<()> {
    let leases: Api<Lease> = Api::namespaced(bed.client.clone(), &bed.namespace);
    let renewed =
        async || Ok::<_, anyhow::Error>(leases.get("lead").await?.spec.and_then(|spec| spec.renew_time));
    let mut last = renewed().await?;
    for _ in 0..count {
        last = eventually("a renewal", async || {
            let now = renewed().await?;
            Ok((now != last).then_some(now))
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn of_two_candidates_one_leads_and_the_other_follows() -> Result<()> {
    needs_apiserver!();
    let bed = Bed::new("lease-release").await?;
    let mut first = tokio::time::timeout(LIMIT, candidate(&bed, "first").acquire()).await?;
    let second = tokio::spawn(candidate(&bed, "second").acquire());
    // Candidates look as often as a leader renews.
    tokio::select! {
        lost = first.keep() => bail!("the lead was lost: {lost}"),
        renewed = renewals(&bed, 2) => renewed?,
    }
    ensure!(!second.is_finished(), "both lead");
    ensure!(holder(&bed).await?.as_deref() == Some("first"));

    // Given back, it need not expire.
    let released = Instant::now();
    first.release().await?;
    tokio::time::timeout(LIMIT, second).await.context("nobody followed")??;
    ensure!(released.elapsed() < Duration::from_secs(10), "the lease had to expire");
    ensure!(holder(&bed).await?.as_deref() == Some("second"));
    Ok(())
}

#[tokio::test]
async fn a_lease_that_was_written_since_it_was_seen_is_given_back_and_somebody_elses_is_not() -> Result<()> {
    needs_apiserver!();
    let bed = Bed::new("lease-again").await?;
    let leases: Api<Lease> = Api::namespaced(bed.client.clone(), &bed.namespace);
    let write = async |patch| leases.patch("lead", &PatchParams::default(), &Patch::Merge(&patch)).await;
    let first = tokio::time::timeout(LIMIT, candidate(&bed, "first").acquire()).await?;
    // As a renewal does whose answer nobody has waited for.
    write(json!({ "spec": { "renewTime": "2026-01-01T00:00:00.000000Z" } })).await?;
    first.release().await?;
    ensure!(holder(&bed).await?.is_none(), "it was kept");

    let second = tokio::time::timeout(LIMIT, candidate(&bed, "second").acquire()).await?;
    write(json!({ "spec": { "holderIdentity": "thief" } })).await?;
    second.release().await?;
    ensure!(holder(&bed).await?.as_deref() == Some("thief"));
    Ok(())
}

#[tokio::test]
async fn a_leader_that_vanished_is_replaced_only_after_its_lease_expired() -> Result<()> {
    needs_apiserver!();
    let bed = Bed::new("lease-expiry").await?;
    let first = tokio::time::timeout(LIMIT, candidate(&bed, "first").acquire()).await?;
    let vanished = Instant::now();
    drop(first);
    tokio::time::timeout(LIMIT, candidate(&bed, "second").acquire()).await.context("nobody followed")?;
    ensure!(vanished.elapsed() >= Duration::from_secs(15), "it was taken after {:?}", vanished.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_leader_whose_lease_was_taken_stops() -> Result<()> {
    needs_apiserver!();
    let bed = Bed::new("lease-loss").await?;
    let mut first = tokio::time::timeout(LIMIT, candidate(&bed, "first").acquire()).await?;
    let leases: Api<Lease> = Api::namespaced(bed.client.clone(), &bed.namespace);
    let taken = json!({ "spec": { "holderIdentity": "thief" } });
    leases.patch("lead", &PatchParams::default(), &Patch::Merge(&taken)).await?;
    let reason = tokio::time::timeout(LIMIT, first.keep()).await.context("it leads on")?;
    ensure!(reason.to_string().contains("taken by somebody else"), "{reason}");
    Ok(())
}

#[tokio::test]
async fn a_leader_renews() -> Result<()> {
    needs_apiserver!();
    let bed = Bed::new("lease-renewal").await?;
    let mut first = tokio::time::timeout(LIMIT, candidate(&bed, "first").acquire()).await?;
    let second = tokio::spawn(candidate(&bed, "second").acquire());
    // Longer than a lease lasts.
    let kept = tokio::time::timeout(Duration::from_secs(20), first.keep()).await;
    ensure!(kept.is_err(), "the lead was lost: {kept:?}");
    ensure!(!second.is_finished(), "both lead");
    second.abort();
    Ok(())
}
