//! Updates of servers while shards move. There are no databases here: what the controller of shards answers is said by hand.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dialog_operator::api::{DialogClusterStatus, HeldMovesStatus};
use dialog_operator::cluster::report;
use dialog_operator::condition::{self, AFTER_MOVES, CLUSTER_MANAGER, PROGRESSING};
use dialog_operator::{shards, status};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Api;
use serde_json::{Value, json};

use crate::bed::{Bed, eventually};
use crate::controller::{Running, looks, settle};
use crate::needs_apiserver;
use crate::servers::Servers;

/// The servers in the order in which an update takes them.
const ORDER: [&str; 3] = ["chat-worker-0-0", "chat-worker-1-0", "chat-coordinator-0"];
/// For so long a server that does not come back keeps moves from beginning.
const AWAY: SignedDuration = SignedDuration::from_mins(3);

/// A cluster with this image of PostgreSQL: another one is another template of each server.
fn spec(image: u32) -> Value {
    json!({ "workers": { "count": 2 }, "image": format!("example.org/postgres:{image}") })
}

async fn status_of(bed: &Bed) -> Result<DialogClusterStatus> {
    Ok(bed.clusters().get("chat").await?.status.unwrap_or_default())
}

/// An update of a cluster all of whose servers serve, from the moment when moves are to be held.
struct Update<'a> {
    bed: &'a Bed,
    servers: Servers<'a>,
    controller: Running,
    /// Since when they are.
    since: MicroTime,
}

impl<'a> Update<'a> {
    async fn begin(bed: &'a Bed) -> Result<Self> {
        bed.apply("chat", &spec(1)).await?;
        let controller = Running::start(bed);
        let mut servers = Servers::of(bed);
        eventually("both workers serve", async || {
            servers.go_on().await?;
            Ok((status_of(bed).await?.workers == Some(2)).then_some(()))
        })
        .await?;
        settle(bed).await?;
        let at_rest = status_of(bed).await?;
        ensure!(at_rest.hold_moves.is_none() && servers.replaced.is_empty(), "{at_rest:?}");
        bed.apply("chat", &spec(2)).await?;
        let since = held(&mut servers, bed).await?;
        // A look that began before it would write what it has read.
        settle(bed).await?;
        Ok(Self { bed, servers, controller, since })
    }

    /// Has moves be held for so much longer already.
    async fn ask_earlier(&mut self, longer: SignedDuration) -> Result<()> {
        self.since = MicroTime(self.since.0 - longer);
        let mut before = serde_json::to_value(status_of(self.bed).await?)?;
        let fragment = before.as_object_mut().context("a status is an object")?;
        fragment.insert("holdMoves".to_owned(), json!(self.since));
        fragment.retain(|field, _| field == "conditions" || report::PART.fields.contains(&field.as_str()));
        let Bed { context, namespace, .. } = self.bed;
        status::apply(context, namespace, "chat", None, CLUSTER_MANAGER, before).await?;
        Ok(())
    }

    /// Says which groups are needed by what is under way since `since`.
    async fn answer(&self, since: &MicroTime, busy: &[&str]) -> Result<()> {
        let busy = busy.iter().map(ToString::to_string).collect();
        let held_moves = Some(HeldMovesStatus { since: since.clone(), busy });
        let said = DialogClusterStatus { held_moves, ..DialogClusterStatus::default() };
        let cluster = self.bed.clusters().get("chat").await?;
        status::write(&self.bed.context, &cluster, shards::status::PART, &said, Vec::new()).await?;
        Ok(())
    }

    /// Waits until so many servers were replaced: the first ones of the order. Moves are held all the while.
    async fn until_replaced(&mut self, count: usize) -> Result<()> {
        eventually(&format!("{count} servers are replaced"), async || {
            let asked = status_of(self.bed).await?.hold_moves;
            self.servers.go_on().await?;
            let replaced = &self.servers.replaced;
            ensure!(ORDER.iter().take(replaced.len()).eq(replaced), "{replaced:?}");
            ensure!(asked.as_ref() == Some(&self.since), "held since {asked:?} after {replaced:?}");
            Ok((replaced.len() >= count).then_some(()))
        })
        .await
    }

    /// The controller looks twice, as one look may have begun before, and restarts nothing: it waits for moves that need `group`.
    async fn stays(&mut self, group: &str) -> Result<()> {
        let before = self.servers.replaced.len();
        self.servers.go_on().await?;
        looks(self.bed, 2).await?;
        self.servers.go_on().await?;
        let (status, replaced) = (status_of(self.bed).await?, &self.servers.replaced);
        ensure!(replaced.len() == before, "{replaced:?} without an answer: {:?}", status.held_moves);
        ensure!(status.hold_moves.as_ref() == Some(&self.since), "held since {:?}", status.hold_moves);
        let said = condition::find(&status.conditions, PROGRESSING).context("nothing is said")?;
        let is_named = said.message.starts_with(&format!("an update goes on with {group} once no move"));
        ensure!(said.reason == AFTER_MOVES && is_named, "{}: {}", said.reason, said.message);
        Ok(())
    }

    /// Waits until it is said when they may begin again.
    async fn until_in_doubt(&mut self) -> Result<Time> {
        eventually("the end is known", async || {
            self.servers.go_on().await?;
            Ok(status_of(self.bed).await?.hold_moves_until)
        })
        .await
    }

    /// Waits until moves may begin although the update is not over.
    async fn until_meanwhile(&mut self) -> Result<()> {
        let limit = Duration::try_from(AWAY)? + Duration::from_mins(1);
        testbed::wait::eventually("moves may begin meanwhile", limit, async || {
            self.servers.go_on().await?;
            Ok(status_of(self.bed).await?.hold_moves.is_none().then_some(()))
        })
        .await
    }

    /// Waits until moves may begin again.
    async fn until_over(mut self) -> Result<()> {
        eventually("moves may begin again", async || {
            self.servers.go_on().await?;
            Ok(status_of(self.bed).await?.hold_moves.is_none().then_some(()))
        })
        .await?;
        ensure!(self.servers.replaced == ORDER, "{:?}", self.servers.replaced);
        self.controller.stop().await
    }
}

/// Waits until moves are to be held: since when.
async fn held(servers: &mut Servers<'_>, bed: &Bed) -> Result<MicroTime> {
    eventually("moves are to be held", async || {
        servers.go_on().await?;
        Ok(status_of(bed).await?.hold_moves)
    })
    .await
}

#[tokio::test]
async fn a_server_is_restarted_once_no_move_is_known_to_need_it() -> Result<()> {
    needs_apiserver!();
    let bed = Bed::new("after-moves").await?;
    let mut update = Update::begin(&bed).await?;
    update.stays("worker-0").await?;
    // What was said before moves were held is no answer: others have begun since.
    let earlier = MicroTime(update.since.0 - SignedDuration::from_secs(1));
    update.answer(&earlier, &[]).await?;
    update.stays("worker-0").await?;

    // A shard is moved between the coordinator and one worker: the other is of no use to that.
    let since = update.since.clone();
    update.answer(&since, &["coordinator", "worker-1"]).await?;
    update.until_replaced(1).await?;
    update.stays("worker-1").await?;
    update.answer(&since, &[]).await?;
    update.until_replaced(3).await?;
    update.until_over().await
}

#[tokio::test]
async fn what_nobody_answers_keeps_no_update_for_good() -> Result<()> {
    needs_apiserver!();
    let bed = Bed::new("unanswered").await?;
    let mut update = Update::begin(&bed).await?;
    update.ask_earlier(SignedDuration::from_mins(9)).await?;
    update.stays("worker-0").await?;
    update.ask_earlier(SignedDuration::from_mins(2)).await?;
    update.until_replaced(3).await?;
    update.until_over().await
}

#[tokio::test]
async fn a_server_that_does_not_come_back_holds_moves_for_minutes_only() -> Result<()> {
    needs_apiserver!();
    let bed = Bed::new("not-back").await?;
    let mut update = Update::begin(&bed).await?;
    let since = update.since.clone();
    update.servers.get_ready = false;
    update.answer(&since, &[]).await?;
    update.until_replaced(1).await?;
    let pods: Api<Pod> = Api::namespaced(bed.client.clone(), &bed.namespace);
    let made = pods.get(ORDER[0]).await?.metadata.creation_timestamp.context("since when is it there?")?;
    update.until_meanwhile().await?;
    let held = Timestamp::now().duration_since(made.0);
    ensure!(held >= AWAY, "after {held}");

    // It comes back after all. What has begun meanwhile is asked for anew.
    update.servers.get_ready = true;
    update.since = self::held(&mut update.servers, &bed).await?;
    ensure!(update.since > since, "{:?} and {since:?}", update.since);
    update.stays("worker-1").await?;
    let since = update.since.clone();
    update.answer(&since, &[]).await?;
    update.until_replaced(3).await?;
    update.until_over().await
}

#[tokio::test]
async fn a_server_that_cannot_be_created_holds_moves_for_minutes_only() -> Result<()> {
    needs_apiserver!();
    let bed = Bed::new("not-created").await?;
    let mut update = Update::begin(&bed).await?;
    let since = update.since.clone();
    update.servers.make = false;
    update.answer(&since, &[]).await?;
    let until = update.until_in_doubt().await?;
    let left = until.0.duration_since(Timestamp::now());
    ensure!(left > SignedDuration::ZERO && left <= AWAY, "for {left}");
    looks(&bed, 2).await?;
    let status = status_of(&bed).await?;
    ensure!(status.hold_moves.as_ref() == Some(&since), "{status:?}");
    ensure!(status.hold_moves_until.as_ref() == Some(&until), "{status:?}");

    update.until_meanwhile().await?;
    ensure!(Timestamp::now() >= until.0, "before {until:?}");
    looks(&bed, 2).await?;
    let status = status_of(&bed).await?;
    ensure!(status.hold_moves.is_none() && status.hold_moves_until.is_none(), "{status:?}");

    // It can be after all. What has begun meanwhile is asked for anew.
    update.servers.make = true;
    update.since = held(&mut update.servers, &bed).await?;
    ensure!(update.since > since, "{:?} and {since:?}", update.since);
    update.stays("worker-1").await?;
    let since = update.since.clone();
    update.answer(&since, &[]).await?;
    update.until_replaced(3).await?;
    update.until_over().await
}

/// Until the StatefulSets' controller has seen a template, nobody knows which servers are out of date.
#[tokio::test]
async fn a_look_that_lacks_what_groups_say_lets_no_move_begin() -> Result<()> {
    needs_apiserver!();
    let bed = Bed::new("in-doubt").await?;
    let mut update = Update::begin(&bed).await?;
    bed.apply("chat", &spec(3)).await?;
    eventually("it is in doubt", async || {
        let status = status_of(&bed).await?;
        ensure!(status.hold_moves.as_ref() == Some(&update.since), "since {:?}", status.hold_moves);
        Ok(status.hold_moves_until)
    })
    .await?;
    update.stays("worker-0").await?;
    let status = status_of(&bed).await?;
    ensure!(status.hold_moves_until.is_none(), "it is known again: {:?}", status.hold_moves_until);
    let since = update.since.clone();
    update.answer(&since, &[]).await?;
    update.until_replaced(3).await?;
    update.until_over().await
}
