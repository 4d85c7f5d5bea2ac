//! What is told of moves while they are under way.

use anyhow::{Context, Result, ensure};
use dialog_operator::shards::status::{in_phase, status};
use dialog_operator::shards::supervise::TOLD_AFTER;
use k8s_openapi::jiff::Timestamp;

use crate::held_up::{HeldUp, TO_COPY};
use crate::needs_citus;
use crate::operator::Operator;
use crate::world::{few_shards, store_messages, with_an_empty_worker};

#[tokio::test]
async fn a_move_that_takes_long_is_told_of_in_its_phase_and_those_of_small_shards_are_not() -> Result<()> {
    needs_citus!();
    let world = with_an_empty_worker().await?;
    store_messages(&world, 1_000, "'text'").await?;
    let wanted = few_shards(2);
    let held_up = HeldUp::while_others_write(&world).await?;
    let mut operator = Operator::default();
    let told = async {
        loop {
            let round = operator.round(&world, &wanted).await?;
            ensure!(operator.done.is_empty() && operator.failed.is_empty(), "it has ended");
            if let Some(entered) = operator.entered.first() {
                return Ok((round, entered.clone()));
            }
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    };
    let told = tokio::time::timeout(TO_COPY + TOLD_AFTER, told).await;
    let (round, entered) = told.context("it was not told of")??;
    let rebalance = status(&wanted, &world.topology(), &round, None, Timestamp::now()).rebalance;
    let rebalance = rebalance.context("no moves are shown")?;
    let [current] = &rebalance.current[..] else { panic!("{:?}", rebalance.current) };
    ensure!(
        (entered.running.shard_id, &entered.phase) == (current.shard_id, &current.phase),
        "{entered:?}, {current:?}"
    );
    ensure!(entered.phase == "Final Catchup", "it is held up after it was copied: {entered:?}");
    let text = in_phase(&entered, &rebalance, Timestamp::now());
    let of_all = format!("; 0 of {} moves and 0 B made, ", rebalance.moves_total);
    for part in ["iB there, got on last at ", of_all.as_str()] {
        ensure!(text.contains(part), "{part:?} is not in {text}");
    }
    operator.round(&world, &wanted).await?;
    ensure!(operator.entered.len() == 1, "once is enough: {:?}", operator.entered);

    held_up.end().await?;
    operator.settle(&world, &wanted, TO_COPY).await?;
    ensure!(operator.done.len() > 2, "{:?}", operator.done);
    let others = operator.entered.iter().filter(|other| other.running != entered.running).count();
    ensure!(others == 0, "the others are small: {:?}", operator.entered);
    Ok(())
}
