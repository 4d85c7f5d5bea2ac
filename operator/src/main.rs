//! The operator program.

use kube::CustomResourceExt;

fn main() -> anyhow::Result<()> {
    print!("{}", serde_yaml_ng::to_string(&dialog_operator::api::DialogCluster::crd())?);
    Ok(())
}
