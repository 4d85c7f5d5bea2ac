//! The planner beside Citus' own: what it plans leaves the shards no less even, and copies no more bytes.

use anyhow::{Result, ensure};
use dialog_operator::names::Group;

use crate::comparison::{LAYOUTS, Pair, random_layouts, real_catalogs};
use crate::needs_citus;
use crate::world::{World, wanted};

/// Makes sure that none of our plans is worse than Citus'.
fn none_is_worse(pairs: &[Pair]) -> Result<()> {
    let moves = |of: fn(&Pair) -> usize| pairs.iter().map(of).sum::<usize>();
    println!("{} moves against {}", moves(|pair| pair.ours.moves), moves(|pair| pair.citus.moves));
    let complaints: Vec<String> = pairs.iter().filter_map(Pair::complaint).collect();
    ensure!(complaints.is_empty(), "{} of {}:\n{}", complaints.len(), pairs.len(), complaints.join("\n"));
    Ok(())
}

#[tokio::test]
async fn random_layouts_end_no_less_even_and_copy_no_more_than_with_citus() -> Result<()> {
    needs_citus!();
    let world = World::start(0)?;
    world.round(&wanted(0)).await?;
    let pairs = random_layouts(&world.ask_client(Group::Coordinator).await?).await?;
    ensure!(pairs.len() == 2 * LAYOUTS, "{} plans", pairs.len());
    none_is_worse(&pairs)
}

#[tokio::test]
async fn real_catalogs_end_no_less_even_and_copy_no_more_than_with_citus() -> Result<()> {
    needs_citus!();
    let pairs = real_catalogs().await?;
    for Pair { ours, citus, .. } in &pairs {
        println!("ours {ours:?}, theirs {citus:?}");
        ensure!(ours.misplaced == 0, "{} shard groups are left", ours.misplaced);
    }
    none_is_worse(&pairs)
}
