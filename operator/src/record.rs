//! What `dialog-operator observe` does: the periods that the operator has recorded of a cluster, as a scenario for
//! `dialog-operator simulate`.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, Config};
use serde_json::json;

use crate::api::DialogCluster;
use crate::cli::Observe;
use crate::cluster::certificates::identity;
use crate::heat::{Period, Policy, Tenant};
use crate::names::{Group, Names};
use crate::pg::Identity;
use crate::shards::heat::store;
use crate::shards::sessions::{Door, Sessions};
use crate::shards::topology::Topology;

/// Writes what was recorded to a file, or prints it.
///
/// # Errors
/// If Kubernetes or the coordinator cannot be asked, nothing was recorded, or the file cannot be written.
pub async fn run(arguments: &Observe) -> anyhow::Result<()> {
    let config =
        Config::infer().await.context("cannot find out how to reach Kubernetes; is KUBECONFIG set?")?;
    let namespace = arguments.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config).context("cannot make a client of Kubernetes")?;
    let names = Names::new(&arguments.name, &namespace);
    let cluster = Api::<DialogCluster>::namespaced(client.clone(), &namespace)
        .get(&arguments.name)
        .await
        .with_context(|| format!("cannot read DialogCluster {namespace}/{}", arguments.name))?;
    let sessions = Sessions::new(Topology::of_services(&names), certificate(&client, &names).await?);
    let (periods, names) = recorded(&sessions).await?;
    let name = format!("{namespace}/{}", arguments.name);
    write(&arguments.out, |out| scenario(out, &name, &cluster, &periods, &names))?;
    if arguments.out != Path::new(PRINTED) {
        println!("{} periods written to {}", periods.len(), arguments.out.display());
    }
    Ok(())
}

/// The name of the file that is none: it is printed.
const PRINTED: &str = "-";

/// Writes to a file, or to the standard output.
fn write(file: &Path, content: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>) -> anyhow::Result<()> {
    if file == Path::new(PRINTED) {
        return content(&mut io::stdout().lock());
    }
    let failed = || format!("cannot write {}; `--out -` prints it", file.display());
    let mut out = BufWriter::new(File::create(file).with_context(failed)?);
    content(&mut out)?;
    out.flush().with_context(failed)
}

/// The operator's certificate.
async fn certificate(client: &Client, names: &Names) -> anyhow::Result<Identity> {
    let name = names.operator_certificate();
    let secret = Api::<Secret>::namespaced(client.clone(), names.namespace())
        .get(&name)
        .await
        .with_context(|| format!("cannot read Secret {name}, with which the operator enters the database"))?;
    identity(&secret).with_context(|| format!("Secret {name} holds no certificate"))
}

/// The periods that were recorded, in order, and what their tenants are called, as far as anybody speaks of them.
///
/// # Errors
/// If the coordinator cannot be asked, or there are none.
pub async fn recorded(sessions: &Sessions) -> anyhow::Result<(Vec<Period>, Vec<(Tenant, String)>)> {
    let session = sessions.session(Group::Coordinator, Door::Dialog).await.context(
        "this has to run where the cluster's Services can be reached, such as in the operator's pod",
    )?;
    let periods = match store::periods(&session).await {
        // Before the first node is registered there is nothing to be seen.
        Ok(periods) => periods.into_iter().filter(|period| !period.nodes.is_empty()).collect::<Vec<_>>(),
        Err(error) if error.sqlstate() == Some(&tokio_postgres::error::SqlState::UNDEFINED_TABLE) => {
            bail!(
                "nothing was recorded: spec.sharding.hotTenants.mode is Off, or the operator has not looked yet"
            )
        }
        Err(error) => return Err(error.into()),
    };
    ensure!(!periods.is_empty(), "nothing was recorded yet: wait for two periods to pass");
    Ok((periods, store::names(&session).await?))
}

/// Writes a scenario, one period a line. Of a large cluster it is tens of megabytes: of its text no more than a line is in
/// memory, beside the periods themselves.
fn scenario(
    out: &mut dyn Write,
    name: &str,
    cluster: &DialogCluster,
    periods: &[Period],
    names: &[(Tenant, String)],
) -> anyhow::Result<()> {
    let policy = serde_json::to_string(&Policy::new(&cluster.spec.sharding))?;
    let (description, names) =
        (json!(format!("{name}, as the operator has seen it")), serde_json::to_string(names)?);
    write!(
        out,
        "{{\"description\": {description}, \"policy\": {policy}, \"names\": {names}, \"recorded\": ["
    )?;
    for (number, period) in periods.iter().enumerate() {
        let separator = if number == 0 { "" } else { "," };
        write!(out, "{separator}\n{}", serde_json::to_string(period)?)?;
    }
    writeln!(out, "\n]}}")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use clap::Parser;
    use jiff::SignedDuration;

    use super::*;
    use crate::cli::{Cli, Command};
    use crate::heat::{NodeLoad, Relief};
    use crate::shards::rebalance::Role;
    use crate::simulate::Scenario;

    #[test]
    fn a_record_goes_to_a_file_or_is_printed() {
        let flags = |out: &[&str]| {
            let cli = Cli::parse_from([&["dialog-operator", "observe", "chat"], out].concat());
            let Command::Observe(Observe { out, .. }) = cli.command else { panic!("{cli:?}") };
            out
        };
        let printed = Path::new(PRINTED);
        assert_eq!([flags(&[]), flags(&["--out", "-"])], [printed, printed]);
        let text = |out: &mut dyn Write| Ok(out.write_all(b"{}\n")?);
        write(printed, text).unwrap();
        assert!(!printed.exists());
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("chat.json");
        write(&flags(&["--out", file.to_str().unwrap()]), text).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "{}\n");
        let error = write(&folder.path().join("none/chat.json"), text).unwrap_err().to_string();
        assert!(error.ends_with("`--out -` prints it"), "{error}");
    }

    #[test]
    fn a_record_is_a_scenario() {
        let load = NodeLoad {
            role: Role::Shared,
            queries: 6000,
            writes: 1200,
            cpu: 15_000_000,
            cpu_limit: 18_000_000,
            free_bytes: Some(1 << 30),
            unseen: 0,
            unlisted: 0,
        };
        let period = |minute: i64| Period {
            end: jiff::Timestamp::from_second(1_800_000_000 + 60 * minute).unwrap(),
            length: SignedDuration::from_mins(1),
            nodes: BTreeMap::from([(Group::Worker(0), load)]),
            tenants: Vec::new(),
            pins: Vec::new(),
            held: Vec::new(),
            empty: Vec::new(),
            uses: Vec::new(),
            large: Vec::new(),
            shard_groups: 48,
            underway: false,
            relief: Relief::Ready,
            splits_held: false,
        };
        let spec = json!({"sharding": {"hotTenants": {"sharePercent": 35}, "maxShardSize": "3Gi"}});
        let cluster = DialogCluster::new("chat", serde_json::from_value(spec).unwrap());
        let periods = [period(1), period(2)];
        let names =
            [(Tenant { colocation_id: 1, hash: -7 }, "6f1c2c1e-5c0e-5a53-9c6a-3f7b1f6f6a10".to_owned())];
        let mut text = Vec::new();
        scenario(&mut text, "ns/chat", &cluster, &periods, &names).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text.lines().count(), 4, "{text}");
        let read = Scenario::read(&text).unwrap();
        assert_eq!(read.recorded.as_deref(), Some(&periods[..]));
        assert_eq!(read.names, names);
        assert_eq!(read.policy, Policy::new(&cluster.spec.sharding));
        assert_eq!((read.policy.share_percent, read.policy.max_shard_bytes), (35, Some(3 << 30)));
    }
}
