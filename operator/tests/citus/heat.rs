//! Load on real servers, and what is made of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dialog_operator::api::HotTenant;
use dialog_operator::cluster::patroni::config::statistics;
use dialog_operator::condition::HOT_TENANT;
use dialog_operator::heat::{Action, Period};
use dialog_operator::names::Group;
use dialog_operator::shards::heat::{Heat, look, store};
use dialog_operator::shards::observed::Observed;
use dialog_operator::shards::round::{Brief, Round, round};
use dialog_operator::shards::wanted::Wanted;
use dialog_operator::shards::world::World as Sight;
use dialog_operator::simulate::{Scenario, simulate};
use futures::future::{BoxFuture, ready};
use jiff::Timestamp;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_postgres::error::SqlState;

use crate::needs_citus;
use crate::world::{SHARDS, World, brief, condition};

/// How long the servers count here, in seconds.
pub const PERIOD: i64 = 5;

/// Workers that may use so many thousandths of a core.
pub fn watched(workers: u32, millicores: u64) -> Wanted {
    let spec = serde_json::from_value(json!({
        "workers": {"count": workers, "resources": {"limits": {"cpu": format!("{millicores}m")}}},
        "sharding": {
            "shardCount": SHARDS,
            "hotTenants": {
                "mode": "Observe", "consecutivePeriods": 2, "cooldown": "1h", "statistics": {"period": format!("{PERIOD}s")},
            },
        },
    }));
    Wanted::from(&spec.unwrap())
}

/// Servers that count as such a resource has them count.
pub async fn start(workers: u32, wanted: &Wanted, limit: i32) -> Result<World> {
    let mut world = World::empty()?;
    for group in (0..workers).map(Group::Worker).chain([Group::Coordinator]) {
        add(&mut world, group, limit)?;
    }
    world.serve(wanted).await?;
    Ok(world)
}

/// Starts one more of these.
pub fn add(world: &mut World, group: Group, limit: i32) -> Result<()> {
    let spec = serde_json::from_value(
        json!({"mode": "Observe", "statistics": {"period": format!("{PERIOD}s"), "limit": limit}}),
    )?;
    world.add_with(group, |mut builder| {
        for (name, value) in statistics(&spec) {
            builder = builder.parameter(name, &value);
        }
        builder
    })
}

/// People who write to dialogs: each session to one of `dialogs` after the other.
pub struct Crowd {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicI64>,
    sessions: Vec<JoinHandle<Result<()>>>,
}

impl Crowd {
    pub async fn start(
        world: &World,
        sessions: usize,
        dialogs: Vec<String>,
        pause: Duration,
    ) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let written = Arc::new(AtomicI64::new(0));
        let mut tasks = Vec::new();
        for number in 0..sessions {
            let client = world.ask_client(Group::Coordinator).await?;
            client.batch_execute("SET search_path = public").await?;
            let (stop, dialogs, written) = (Arc::clone(&stop), dialogs.clone(), Arc::clone(&written));
            tasks.push(tokio::spawn(async move {
                let insert = client
                    .prepare(
                        "INSERT INTO messages (dialog_id, message_id, from_user_id, to_user_id, text, created_at)
                         VALUES ($1::text::uuid, gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 'hot', now())",
                    )
                    .await?;
                for dialog in dialogs.iter().cycle().skip(number) {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    // Refused because a split has just replaced the shard: dialog-api tries again then, too.
                    while let Err(error) = client.execute(&insert, &[dialog]).await {
                        ensure!(error.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE), "{error:?}");
                    }
                    written.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(pause).await;
                }
                Ok(())
            }));
        }
        Ok(Self { stop, written, sessions: tasks })
    }

    /// Ends it; how many messages were acknowledged.
    pub async fn end(self) -> Result<i64> {
        self.stop.store(true, Ordering::Relaxed);
        for session in self.sessions {
            session.await??;
        }
        Ok(self.written.load(Ordering::Relaxed))
    }
}

/// An operator that looks as often as there is something new.
pub struct Operator<'a> {
    pub world: &'a World,
    pub wanted: &'a Wanted,
    pub observed: Observed,
}

impl<'a> Operator<'a> {
    pub async fn new(world: &'a World, wanted: &'a Wanted) -> Result<Self> {
        Ok(Self { world, wanted, observed: world.round(wanted).await?.observed })
    }

    /// Waits for the next period to be over, and looks at it.
    pub async fn look(&self, last: Option<&Heat>) -> Result<Heat> {
        let watch = self.wanted.watch.as_ref().context("nobody is to look")?;
        while last.is_some_and(|last| !last.is_due(watch, Timestamp::now())) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.look_at(Timestamp::now()).await
    }

    /// Looks at the last period before `now`.
    pub async fn look_at(&self, now: Timestamp) -> Result<Heat> {
        let watch = self.wanted.watch.as_ref().context("nobody is to look")?;
        let topology = self.world.topology();
        let sight = Sight { wanted: self.wanted, topology: &topology, observed: &self.observed };
        look(&self.world.sessions()?, &sight, watch, now).await?.context("there is nowhere to keep it")
    }

    /// What a round makes of it.
    pub async fn round(&self, heat: &Heat) -> Round {
        let existing = self.world.existing();
        let ask = || -> BoxFuture<'_, _> { Box::pin(ready(existing.clone())) };
        let brief = Brief { heat: Some(heat), ..brief(self.wanted, &ask) };
        round(&brief, &self.world.sessions().unwrap()).await
    }
}

/// The periods that were recorded.
pub async fn recorded(world: &World) -> Result<Vec<Period>> {
    let sessions = world.sessions()?;
    let door = dialog_operator::shards::sessions::Door::Dialog;
    Ok(store::periods(&*sessions.session(Group::Coordinator, door).await?).await?)
}

pub fn uuid(number: u32) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}

/// Millicores that nobody comes near.
pub const MANY: u64 = 64_000;

/// One dialog that is written to all the time.
pub async fn spammer(world: &World) -> Result<Crowd> {
    Crowd::start(world, 3, vec![uuid(0)], Duration::from_millis(4)).await
}

/// What the spammer's worker spends on it where `wanted` is asked for: how fast a machine is, nobody knows before.
pub async fn millicores_of_the_spammer(world: &World, wanted: &Wanted) -> Result<u64> {
    let operator = Operator::new(world, wanted).await?;
    let spammer = spammer(world).await?;
    let mut heat = operator.look(None).await?;
    for _ in 0..2 {
        heat = operator.look(Some(&heat)).await?;
    }
    spammer.end().await?;
    assert_eq!(heat.hot, [], "nobody harms a worker of so many cores");
    let most = heat.nodes.values().map(|load| load.cpu).max().context("there are workers")?;
    world.ask(Group::Coordinator, "DELETE FROM public.messages").await?;
    Ok(most / 1000 / u64::try_from(PERIOD)?)
}

#[tokio::test]
async fn a_dialog_that_takes_its_worker_is_found_in_time_and_it_is_said_what_would_be_done() -> Result<()> {
    needs_citus!();
    let calm = watched(3, MANY);
    let world = start(3, &calm, 100).await?;
    let wanted = watched(3, millicores_of_the_spammer(&world, &calm).await? * 2);
    let operator = Operator::new(&world, &wanted).await?;
    let at_rest = operator.round(&Heat::default()).await;
    assert!(at_rest.performed.is_empty() && at_rest.plan.steps.is_empty(), "{:?}", at_rest.plan.steps);

    // Many people who write now and then, before anybody floods.
    let crowd = Crowd::start(&world, 2, (1..200).map(uuid).collect(), Duration::from_millis(20)).await?;
    let mut heat = operator.look(None).await?;
    for _ in 0..2 {
        heat = operator.look(Some(&heat)).await?;
    }
    assert_eq!(heat.hot, [], "nobody has done much");
    assert_eq!(condition(&operator.round(&heat).await, HOT_TENANT).1, "NoneHot");
    let measured: Vec<&str> = heat.sizes.iter().map(|size| size.group.as_str()).collect();
    assert_eq!(measured, ["dialog", "user"]);

    let spammer = spammer(&world).await?;
    // What is left of this period does not count.
    heat = operator.look(Some(&heat)).await?;
    let mut periods = 0;
    while heat.last.is_none() {
        heat = operator.look(Some(&heat)).await?;
        periods += 1;
        ensure!(periods <= 3, "not found within consecutivePeriods + 1 periods: {heat:?}");
    }
    let [hot] = &heat.hot[..] else { panic!("{heat:?}") };
    let HotTenant { tenant, group, node, share_percent, share_of, writes_per_second, cpu_millicores, .. } =
        hot;
    assert_eq!((tenant.as_str(), group.as_str()), (uuid(0).as_str(), "dialog"));
    assert!(*share_percent >= 50 && *writes_per_second > 20 && *cpu_millicores > 0, "{hot:?}");
    let (_, _, message) = condition(&operator.round(&heat).await, HOT_TENANT);
    assert!(message.contains(&format!("{share_percent} % of the {share_of} of {node}")), "{message}");
    // The worker that has it, by Citus' own word.
    let owner = "SELECT nodeport FROM citus_shards WHERE shardid = get_shard_id_for_distribution_column('public.messages', \
                 '00000000-0000-4000-8000-000000000000'::uuid)";
    let port: i32 = world.ask(Group::Coordinator, owner).await?[0].get(0);
    let endpoint = world.topology().endpoint(Group::parse(node).unwrap()).unwrap().clone();
    assert_eq!(i32::from(endpoint.port), port);

    let decided = heat.last.clone().unwrap();
    assert_eq!(decided.kind, "Isolate");
    assert!(decided.message.starts_with(&format!("dialog {tenant} takes ")), "{}", decided.message);
    assert!(decided.message.contains(" would get a shard of its own on worker-"), "{}", decided.message);
    let (status, reason, message) = condition(&operator.round(&heat).await, HOT_TENANT);
    assert_eq!((status, reason, &message), ("True", "WouldAct", &decided.message));

    // Another operator has seen it as well, and decides nothing again; the next period is no news.
    let other = Operator::new(&world, &wanted).await?.look(None).await?;
    if other.end == heat.end {
        assert_eq!(other, heat);
    }
    let next = operator.look(Some(&heat)).await?;
    assert_eq!(next.last, heat.last, "the cooldown has begun");
    assert_eq!(next.hot.len(), 1, "it is still as hot as it was: {next:?}");
    let (_, reason, message) = condition(&operator.round(&next).await, HOT_TENANT);
    assert_eq!(reason, "WouldHaveActed", "{message}");

    // What was recorded decides the same.
    let periods = recorded(&world).await?;
    assert!(periods.len() >= 5, "{periods:?}");
    let scenario = json!({
        "description": "recorded", "policy": wanted.watch.unwrap().policy, "recorded": periods,
    });
    let outcome = simulate(&Scenario::read(&scenario.to_string()).unwrap());
    let actions: Vec<Action> = outcome.actions.iter().map(|acted| acted.action).collect();
    let [Action::Isolate { from, .. }] = actions[..] else { panic!("{actions:?}") };
    assert_eq!(from.to_string(), *node);

    let written = spammer.end().await? + crowd.end().await?;
    let rows = world.number(Group::Coordinator, "SELECT count(*) FROM public.messages").await?;
    assert_eq!(rows, written);
    Ok(())
}

#[tokio::test]
async fn what_is_kept_stays_small_and_survives_what_is_found_in_it() -> Result<()> {
    needs_citus!();
    let wanted = watched(1, 10);
    let world = start(1, &wanted, 10).await?;
    let operator = Operator::new(&world, &wanted).await?;
    let tables = "SELECT count(*) FROM pg_class WHERE relnamespace = to_regnamespace('dialog_operator') AND relkind = 'r'";
    assert_eq!(world.number(Group::Coordinator, tables).await?, 6);
    assert_eq!(world.number(Group::Worker(0), tables).await?, 0, "they are the coordinator's");

    // More periods and hours than are kept, and a state of another version. The clock of whoever recorded the periods was days
    // ahead.
    let past = "INSERT INTO dialog_operator.periods
                SELECT seen + interval '5 days', '{}', seen
                FROM (SELECT now() - n * interval '1 minute' AS seen FROM generate_series(1, 3000) AS n) AS moments;
                INSERT INTO dialog_operator.sizes
                SELECT date_trunc('hour', now()) - n * interval '1 hour', c.colocationid, now() - n * interval '1 hour', 0
                FROM generate_series(1, 1000) AS n, pg_dist_colocation AS c;
                UPDATE dialog_operator.heat SET state = '{\"history\": 7}'";
    world.ask_client(Group::Coordinator).await?.batch_execute(past).await?;
    let api = world.api(Group::Coordinator).await?;
    api.run(
        "INSERT INTO messages (dialog_id, message_id, from_user_id, to_user_id, text, created_at)
         SELECT gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), gen_random_uuid(),
                (SELECT string_agg(md5(row || ' ' || part), '') FROM generate_series(1, 60) AS part), now()
         FROM generate_series(1, 5000) AS row",
    )
    .await?;
    let operator = Operator { observed: world.round(&wanted).await?.observed, ..operator };
    let heat = operator.look(None).await?;
    let count = async |table: &str| {
        world.number(Group::Coordinator, &format!("SELECT count(*) FROM dialog_operator.{table}")).await
    };
    assert_eq!((count("heat").await?, count("periods").await?), (1, 1440));
    let newest = "SELECT count(*) FROM dialog_operator.periods WHERE ended < now() AND period <> '{}'";
    assert_eq!(world.number(Group::Coordinator, newest).await?, 1, "the true period is not kept");
    let groups = world.number(Group::Coordinator, "SELECT count(*) FROM pg_dist_colocation").await?;
    assert!(count("sizes").await? <= 336 * groups + 2, "{}", count("sizes").await?);
    let sizes: BTreeMap<&str, _> = heat.sizes.iter().map(|size| (size.group.as_str(), size)).collect();
    let dialogs = sizes["dialog"];
    assert_eq!(dialogs.shards, i64::from(SHARDS));
    assert!(dialogs.bytes >= 1900 * 5000 && dialogs.largest_bytes < dialogs.bytes, "{dialogs:?}");
    // Nothing a day ago.
    let growth = dialogs.growth_per_hour.context("it has grown for hours")?;
    assert!((dialogs.bytes / 26..=dialogs.bytes / 20).contains(&growth), "{growth} of {}", dialogs.bytes);

    // A hot tenant is not lost in a list that is full.
    let crowd = Crowd::start(&world, 2, (1..400).map(uuid).collect(), Duration::from_millis(5)).await?;
    let spammer = Crowd::start(&world, 2, vec![uuid(0)], Duration::ZERO).await?;
    let mut heat = heat;
    for _ in 0..4 {
        heat = operator.look(Some(&heat)).await?;
    }
    assert_eq!(heat.hot.iter().map(|hot| hot.tenant.as_str()).collect::<Vec<_>>(), [uuid(0)], "{heat:?}");
    // There is no other worker: it stays, and it is said why.
    let (status, reason, message) = condition(&operator.round(&heat).await, HOT_TENANT);
    assert_eq!((status, reason), ("True", "NothingHelps"), "{message}");
    // One that is missing from it may have done something.
    let list = "SELECT count(*) FROM citus_stat_tenants_local(true)";
    assert!(world.number(Group::Worker(0), list).await? >= 20);
    let unlisted = |heat: &Heat| heat.nodes[&Group::Worker(0)].unlisted;
    assert!(unlisted(&heat) > 100, "{heat:?}");
    spammer.end().await?;
    crowd.end().await?;
    // Once nobody takes places any more, a list that is as long as ever tells of all.
    while unlisted(&heat) >= 100 {
        heat = operator.look(Some(&heat)).await?;
    }
    assert!(world.number(Group::Worker(0), list).await? >= 20);
    Ok(())
}
