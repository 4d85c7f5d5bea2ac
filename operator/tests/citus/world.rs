//! Real servers, and the controller's engine over them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dialog_bench::database::DatabaseArguments;
use dialog_operator::api::{DialogClusterSpec, MOST_WORKERS, Table, TableKind};
use dialog_operator::cluster::patroni::config;
use dialog_operator::condition::Finding;
use dialog_operator::names::{DATABASE, Group};
use dialog_operator::pg::{self, Endpoint, Identity, Limits, Login, Session};
use dialog_operator::shards::observe::Sizes;
use dialog_operator::shards::round::{Brief, Carried, Round, carry_out, round};
use dialog_operator::shards::sessions::Sessions;
use dialog_operator::shards::step::Step;
use dialog_operator::shards::topology::Topology;
use dialog_operator::shards::wanted::{Gate, Wanted};
use futures::future::{BoxFuture, ready, try_join_all};
use serde_json::json;
use testbed::certificates::Authority;
use testbed::postgres::{Access, Builder, Installation, Server};
use tokio_postgres::{Client, Row};

/// Longest time that a cluster may take to come to rest.
const REST_LIMIT: Duration = Duration::from_mins(10);

/// Servers of one cluster, and the authority that they trust.
pub struct World {
    pub authority: Authority,
    servers: BTreeMap<Group, Server>,
    /// The ports of this machine that lead to servers by a detour.
    detours: BTreeMap<Group, u16>,
}

impl World {
    /// A coordinator and `workers` workers, empty.
    pub fn start(workers: u32) -> Result<Self> {
        let mut world = Self::empty()?;
        world.add(Group::Coordinator)?;
        for number in 0..workers {
            world.add(Group::Worker(number))?;
        }
        Ok(world)
    }

    /// No servers yet.
    pub fn empty() -> Result<Self> {
        Ok(Self { authority: Authority::new()?, servers: BTreeMap::new(), detours: BTreeMap::new() })
    }

    /// Starts `group`'s server as in a cluster.
    pub fn add(&mut self, group: Group) -> Result<()> {
        self.add_with(group, |builder| builder)
    }

    /// Starts `group`'s server with something changed.
    pub fn add_with(&mut self, group: Group, change: impl FnOnce(Builder<'_>) -> Builder<'_>) -> Result<()> {
        let name = group.to_string();
        let mut builder = self.server_named(&name).citus();
        let defaults = config::DEFAULTS.map(|(name, value)| (name, value.to_owned()));
        for (name, value) in config::owned(200).into_iter().chain(defaults) {
            // Of a pod's file system, or known to some minor versions only, as Patroni knows.
            let is_local =
                name.starts_with("ssl") || name == "unix_socket_directories" || name.ends_with("conninfo");
            if !is_local && (name != "output_plugin_libraries" || knows_output_plugins()?) {
                builder = builder.parameter(name, &value);
            }
        }
        let server = change(builder).start()?;
        self.servers.insert(group, server);
        Ok(())
    }

    /// Starts `group`'s server as from an image without Citus.
    pub fn add_plain(&mut self, group: Group) -> Result<()> {
        let server = self.server_named(&group.to_string()).parameter("wal_level", "logical").start()?;
        self.servers.insert(group, server);
        Ok(())
    }

    /// Takes `group`'s server away, and its data with it.
    pub fn remove(&mut self, group: Group) {
        self.servers.remove(&group);
    }

    /// A server whom the product's own rules say who may connect.
    fn server_named(&self, name: &str) -> Builder<'_> {
        let access =
            Access { rules: config::PG_HBA.map(str::to_owned).to_vec(), identities: config::pg_ident() };
        Server::builder(name).tls(&self.authority).access(access).parameter("fsync", "off")
    }

    /// The server of `group`.
    pub fn server(&mut self, group: Group) -> &mut Server {
        self.servers.get_mut(&group).unwrap()
    }

    /// Has everybody who is told where `group`'s server is go by way of this port.
    pub fn lead_by(&mut self, group: Group, port: u16) {
        self.detours.insert(group, port);
    }

    /// Where the servers are reached; groups without one lead nowhere.
    pub fn topology(&self) -> Topology {
        let nowhere = (0..MOST_WORKERS).map(|number| (Group::Worker(number), Endpoint::new("localhost", 1)));
        let servers = self.servers.iter().map(|(group, server)| {
            let port = self.detours.get(group).copied().unwrap_or_else(|| server.port());
            (*group, Endpoint::new(server.host(), port))
        });
        nowhere.chain(servers).collect()
    }

    /// A program's certificate of the cluster's authority.
    pub fn identity(&self, name: &str) -> Result<Identity> {
        let files = self.authority.client(name)?;
        let authority = self.authority.certificate();
        Ok(Identity::from_pem(authority.as_bytes(), files.certificate.as_bytes(), files.key.as_bytes())?)
    }

    /// The operator's sessions, none open.
    pub fn sessions(&self) -> Result<Sessions> {
        Ok(Sessions::new(self.topology(), self.identity("dialog-operator")?))
    }

    /// The sessions of a step that takes long, none open.
    pub fn long_sessions(&self, step: &Step) -> Result<Sessions> {
        Ok(Sessions::long(self.topology(), self.identity("dialog-operator")?, step.purpose()))
    }

    /// The groups that have a server.
    pub fn existing(&self) -> BTreeSet<Group> {
        self.servers.keys().copied().collect()
    }

    /// One round of an operator that has just started.
    pub async fn round(&self, wanted: &Wanted) -> Result<Round> {
        self.round_of(wanted, usize::MAX).await
    }

    /// One round that ends after `most` steps, as if the operator had been killed.
    pub async fn round_of(&self, wanted: &Wanted, most: usize) -> Result<Round> {
        let existing = self.existing();
        let ask = || -> BoxFuture<'_, BTreeSet<Group>> { Box::pin(ready(existing.clone())) };
        let brief = Brief { most, ..brief(wanted, &ask) };
        Ok(round(&brief, &self.sessions()?).await)
    }

    /// One round that does nothing but look.
    pub async fn look(&self, wanted: &Wanted, sizes: Sizes) -> Result<Round> {
        let existing = self.existing();
        let ask = || -> BoxFuture<'_, BTreeSet<Group>> { Box::pin(ready(existing.clone())) };
        Ok(round(&Brief { sizes, ..brief(wanted, &ask) }, &self.sessions()?).await)
    }

    /// Brings empty servers to where they serve: what dialog-api waits for, its tables, and their distribution.
    pub async fn serve(&self, wanted: &Wanted) -> Result<()> {
        self.round(wanted).await?;
        self.migrate().await?;
        self.settle(wanted).await?;
        Ok(())
    }

    /// Runs rounds until nothing is left to do or to wait for; the steps that were done.
    pub async fn settle(&self, wanted: &Wanted) -> Result<Vec<Step>> {
        self.settle_by(wanted, usize::MAX).await
    }

    /// As [`World::settle`], by operators that each end after `most` steps.
    pub async fn settle_by(&self, wanted: &Wanted, most: usize) -> Result<Vec<Step>> {
        let started = Instant::now();
        let mut performed = Vec::new();
        loop {
            let round = self.round_of(wanted, most).await?;
            ensure!(round.failed.is_empty(), "failed: {:?}", round.failed);
            let done = round.performed.len();
            performed.extend(round.performed.iter().cloned());
            if !round.long.is_empty() {
                try_join_all(round.long.iter().map(|step| self.carry_out(wanted, step))).await?;
                performed.extend(round.long.iter().cloned());
            } else if round.is_settled() {
                return Ok(performed);
            } else if done == 0 {
                // Nothing could be done: something else has to happen first.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            if started.elapsed() > REST_LIMIT {
                bail!("not at rest after {REST_LIMIT:?}: {:?}, {:?}", round.plan.steps, round.plan.waits);
            }
        }
    }

    /// Performs a step that takes long.
    pub async fn carry_out(&self, wanted: &Wanted, step: &Step) -> Result<()> {
        let carried = self.try_carry_out(wanted, step).await?;
        ensure!(!matches!(carried, Carried::Held(_)), "{carried:?}");
        Ok(())
    }

    /// As [`World::carry_out`]; says what became of it.
    pub async fn try_carry_out(&self, wanted: &Wanted, step: &Step) -> Result<Carried> {
        let existing = self.existing();
        let ask = || -> BoxFuture<'_, BTreeSet<Group>> { Box::pin(ready(existing.clone())) };
        let sessions = self.long_sessions(step)?;
        Ok(carry_out(&brief(wanted, &ask), &sessions, step, || {}).await?)
    }

    /// A session of dialog-api on `group`'s server, with the certificate and the role that it has in a cluster.
    pub async fn api(&self, group: Group) -> Result<Session> {
        let login = Login {
            endpoint: self.topology().endpoint(group).context("no such group")?.clone(),
            database: DATABASE.to_owned(),
            role: "dialog_api".to_owned(),
        };
        let session = pg::connect(&self.identity("dialog-api")?, &login, &Limits::short()).await?;
        session.run("SET search_path = public").await?;
        Ok(session)
    }

    /// What a program is told that reaches the servers as dialog-api does, whose certificate is written to `folder`.
    pub fn database(&self, folder: &Path) -> Result<DatabaseArguments> {
        let files = self.authority.write(&self.authority.client("dialog-api")?, folder)?;
        let topology = self.topology();
        let coordinator = topology.endpoint(Group::Coordinator).context("there is no coordinator")?;
        Ok(DatabaseArguments {
            host: Some(coordinator.host.clone()),
            port: coordinator.port,
            name: DATABASE.to_owned(),
            user: "dialog_api".to_owned(),
            tls_ca: Some(files.ca),
            tls_cert: Some(files.certificate),
            tls_key: Some(files.key),
        })
    }

    /// Runs dialog-api's own migrations, under its role. They wait for the topology lock.
    pub async fn migrate(&self) -> Result<()> {
        let mut client = self.ask_client(Group::Coordinator).await?;
        client.batch_execute("SET ROLE dialog_api").await?;
        let migrations = dialog_api::migrations::run(&mut client, || {});
        let ended = tokio::time::timeout(REST_LIMIT, migrations).await;
        ended.context("somebody keeps the topology lock from the migrations")?.map_err(Into::into)
    }

    /// Rows of a statement that the superuser runs on `group`'s server.
    pub async fn ask(&self, group: Group, statement: &str) -> Result<Vec<Row>> {
        Ok(self.ask_client(group).await?.query(statement, &[]).await?)
    }

    /// The superuser in the database `dialog` of `group`'s server.
    pub async fn ask_client(&self, group: Group) -> Result<Client> {
        self.servers[&group].connect(DATABASE).await
    }

    /// The superuser in another database of `group`'s server.
    pub async fn ask_elsewhere(&self, group: Group) -> Result<Client> {
        self.servers[&group].connect("postgres").await
    }

    /// One number.
    pub async fn number(&self, group: Group, statement: &str) -> Result<i64> {
        Ok(self.ask(group, statement).await?[0].get(0))
    }
}

/// What a round of an operator that has just started is given.
pub fn brief<'a>(
    wanted: &'a Wanted,
    existing: &'a (dyn Fn() -> BoxFuture<'a, BTreeSet<Group>> + Send + Sync),
) -> Brief<'a> {
    let (sizes, most) = (Sizes::Measure, usize::MAX);
    Brief {
        wanted,
        unchanged: &|| Box::pin(ready(true)),
        existing,
        blank: &|| Box::pin(ready(Some(BTreeSet::new()))),
        sizes,
        before: None,
        most,
        paused: false,
        deferred: &[],
        failed_moves: &[],
        stalls: &[],
        held: None,
        shown: None,
        overtaken: None,
        heat: None,
    }
}

/// Stores so many messages with this text, an expression of SQL, each in a dialog of its own.
pub async fn store_messages(world: &World, rows: i64, text: &str) -> Result<()> {
    let insert = format!(
        "INSERT INTO messages (dialog_id, message_id, from_user_id, to_user_id, text, created_at)
         SELECT gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), {text}, now()
         FROM generate_series(1, {rows})"
    );
    world.api(Group::Coordinator).await?.run(&insert).await?;
    Ok(())
}

/// Waits until `condition` holds, for as long as a cluster may take to come to rest.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    testbed::wait::eventually(what, REST_LIMIT, async || Ok(condition().await?.then_some(()))).await
}

/// What a resource asks for that says nothing but its number of workers: dialog-api's tables, 48 shards.
pub fn wanted(workers: u32) -> Wanted {
    let spec: DialogClusterSpec = serde_json::from_value(json!({"workers": {"count": workers}})).unwrap();
    Wanted::from(&spec)
}

/// As [`few_shards`], with moves that only make the spread more even as `gate` allows.
pub fn gated(workers: u32, gate: Gate) -> Wanted {
    let mut wanted = few_shards(workers);
    wanted.rebalance.gate = gate;
    wanted
}

/// No such moves for now.
pub fn closed() -> Gate {
    Gate::Closed { reason: "OutsideWindow", message: "the next window opens tomorrow".to_owned() }
}

/// One more worker than shards are spread over.
pub async fn with_an_empty_worker() -> Result<World> {
    let mut world = World::start(1)?;
    world.serve(&few_shards(1)).await?;
    world.add(Group::Worker(1))?;
    world.settle(&gated(2, closed())).await?;
    Ok(world)
}

/// Shards of each colocation group where a test moves them.
pub const SHARDS: i32 = 12;

/// As [`wanted`], with fewer shards.
pub fn few_shards(workers: u32) -> Wanted {
    Wanted { shard_count: SHARDS, ..wanted(workers) }
}

/// How many shards each of two workers has once all tables of such a resource are distributed.
pub fn shards_of_each_worker(wanted: &Wanted) -> i64 {
    24 * i64::try_from(wanted.tables.len()).unwrap()
}

/// A table that is copied whole to every node.
pub fn reference(name: &str) -> Table {
    Table { name: name.to_owned(), kind: TableKind::Reference, column: None, group: None }
}

/// A table that is cut by `column`, beside the others of `group`.
pub fn distributed(name: &str, column: &str, group: &str) -> Table {
    Table {
        name: name.to_owned(),
        kind: TableKind::Distributed,
        column: Some(column.to_owned()),
        group: Some(group.to_owned()),
    }
}

/// Shards of each distributed table on each node, by Citus' group numbers.
pub async fn placements(world: &World) -> Result<Vec<(String, i32, i64)>> {
    let rows = world
        .ask(
            Group::Coordinator,
            "SELECT logicalrelid::text, p.groupid, count(*) FROM pg_dist_partition JOIN pg_dist_shard USING (logicalrelid)
             JOIN pg_dist_placement AS p USING (shardid) WHERE partmethod = 'h' GROUP BY 1, 2 ORDER BY 1, 2",
        )
        .await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect())
}

/// The condition of type `kind`, as status, reason and message.
pub fn condition(round: &Round, kind: &str) -> (&'static str, &'static str, String) {
    let Finding { holds, reason, message, .. } =
        round.findings().into_iter().find(|finding| finding.kind == kind).unwrap();
    (holds.as_str(), reason, message)
}

/// Whether this machine's server has the setting for output plugins.
fn knows_output_plugins() -> Result<bool> {
    let output = std::process::Command::new(Installation::find()?.binary("postgres"))
        .arg("--describe-config")
        .output()
        .context("run postgres --describe-config")?;
    Ok(String::from_utf8_lossy(&output.stdout).contains("output_plugin_libraries"))
}
