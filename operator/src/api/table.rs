//! The shard policy: one entry per table.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How one table is distributed. Entries are immutable.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.kind == 'Distributed' ? has(self.column) && has(self.group) : \
    !has(self.column) && !has(self.group)")
    .message("sharding.tables: a Distributed table needs column and group; a Reference table has neither"))]
pub struct Table {
    /// Name of the table in the schema `public`.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z_][a-z0-9_]*$"))]
    pub name: String,
    /// Distributed over the nodes in shards, or copied whole to every node.
    pub kind: TableKind,
    /// The column whose hash decides the shard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z_][a-z0-9_]*$"))]
    pub column: Option<String>,
    /// Tables of one group are colocated: equal column values live on the same node and move together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub group: Option<String>,
}

/// The two ways a table can be distributed.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum TableKind {
    /// In shards, by the hash of a column.
    Distributed,
    /// Copied whole to every node.
    Reference,
}

impl Table {
    fn distributed(name: &str, column: &str, group: &str) -> Self {
        Self {
            name: name.to_owned(),
            kind: TableKind::Distributed,
            column: Some(column.to_owned()),
            group: Some(group.to_owned()),
        }
    }

    /// The tables of dialog-api: a dialog on one shard, a user on one shard.
    ///
    /// They are not a default of the resource: the API server would write today's list into every object, and a table
    /// that a later version of dialog-api adds would never be distributed in the clusters that exist by then.
    #[must_use]
    pub fn dialog_api() -> Vec<Self> {
        let dialog = ["messages", "messages_archive", "dialogs", "dialog_state"];
        let user = ["users", "credentials", "user_dialogs", "erasures"];
        dialog
            .iter()
            .map(|name| Self::distributed(name, "dialog_id", "dialog"))
            .chain(user.iter().map(|name| Self::distributed(name, "user_id", "user")))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::api::DialogCluster;
    use kube::CustomResourceExt as _;

    #[test]
    fn the_tables_of_dialog_api_are_the_ones_it_makes_and_nobody_else_may_name() {
        let made = BTreeSet::from(dialog_api::migrations::TABLES);
        let ours = Table::dialog_api();
        assert_eq!(ours.iter().map(|table| table.name.as_str()).collect::<BTreeSet<_>>(), made);

        let schema = serde_json::to_string(&DialogCluster::crd()).unwrap();
        let (_, rest) = schema.split_once("!(t.name in [").unwrap();
        let (list, _) = rest.split_once(']').unwrap();
        let refused: BTreeSet<_> = list.split(',').map(|name| name.trim().trim_matches('\'')).collect();
        assert_eq!(refused, made.into_iter().chain(["schema_migrations", "sweeps"]).collect());
    }
}
