//! Waiting, without a server.

use clap::Parser as _;
use tokio::sync::mpsc;

use super::*;
use crate::config::{Config, WaitingLimits};

const CONNECTIONS: u16 = 2;
/// Those who have a turn at a time.
const TURNS: usize = 8;
const GRACE: Duration = Duration::from_secs(4);
const TIME: Duration = Duration::from_mins(1);

/// A server that nobody connects to.
fn node(places: usize) -> Arc<Node> {
    let config =
        Config::try_parse_from(["dialog-api", "--database-host", "db", "--token-key-file", "/key"]).unwrap();
    let settings = Settings { connections: CONNECTIONS, statement_limit: TIME, grace: GRACE };
    let places = Places::new(WaitingLimits { all: places, one_server: places, readers: 1 });
    let connector = Connector::new(&config.database).unwrap();
    Arc::new(Node::new(connector, settings, places, &Metrics::new(CONNECTIONS)))
}

/// So many statements that need a session, and what they get instead.
fn ask(node: &Arc<Node>, statements: usize) -> mpsc::UnboundedReceiver<NoSession> {
    let (sender, results) = mpsc::unbounded_channel();
    for _ in 0..statements {
        let (node, sender) = (Arc::clone(node), sender.clone());
        tokio::spawn(async move {
            let outcome = node.session(Sql::ListMessages, Instant::now() + TIME).await;
            sender.send(outcome.err().unwrap()).unwrap();
        });
    }
    results
}

/// What has been answered once nothing moves any more.
async fn settled(results: &mut mpsc::UnboundedReceiver<NoSession>) -> Vec<NoSession> {
    sleep(Duration::from_millis(1)).await;
    std::iter::from_fn(|| results.try_recv().ok()).collect()
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_turn_to_the_coordinator_one_after_the_other() {
    let node = node(100);
    node.note_coordinator_reaches(false);
    let mut results = ask(&node, 20);
    assert!(settled(&mut results).await.is_empty());
    node.note_coordinator_reaches(true);
    let mut turned = settled(&mut results).await;
    assert_eq!(turned.len(), TURNS);
    // The coordinator reaches the server: nobody is told that it is away.
    sleep(2 * GRACE).await;
    assert!(settled(&mut results).await.is_empty());
    turned.pop();
    let next = settled(&mut results).await;
    assert_eq!(next.len(), 1, "whenever one is answered the next takes its turn");
    turned.extend(next);
    let mut served = 20 - TURNS - 1;
    while !turned.is_empty() {
        assert!(turned.iter().all(|answer| matches!(answer, NoSession::ThroughCoordinator(_))), "{turned:?}");
        turned.clear();
        turned = settled(&mut results).await;
        served -= turned.len();
    }
    assert_eq!(served, 0);
    assert!(node.queue.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_away_is_waited_for_by_as_many_as_there_are_places_for() {
    let node = node(5);
    node.note_coordinator_reaches(false);
    let mut results = ask(&node, 8);
    let refused = settled(&mut results).await;
    assert_eq!(refused.len(), 3, "{refused:?}");
    sleep(GRACE).await;
    let told = settled(&mut results).await;
    assert!(told.iter().all(|answer| matches!(answer, NoSession::Away(_))), "{told:?}");
    assert_eq!(told.len(), 5);
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_for_a_server_that_has_left_look_elsewhere() {
    let node = node(100);
    node.note_coordinator_reaches(false);
    let mut results = ask(&node, 20);
    assert!(settled(&mut results).await.is_empty());
    node.close();
    let told = settled(&mut results).await;
    assert!(told.len() == 20 && told.iter().all(|answer| matches!(answer, NoSession::Left)), "{told:?}");
}
