//! What each step is called in logs, Events and messages.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::{API_ROLE, Beside, Distribution, OPERATOR_ROLE, Split, Step};
use crate::shards::observed::End;
use crate::shards::rebalance::Bytes;

impl Step {
    /// What is told of its end, if it `lasted` so long: of a move also what was copied, by the `sizes` of shard groups in bytes as
    /// they were measured last. For example `21.4 MiB in 3.2 s`.
    #[must_use]
    pub fn figures(&self, sizes: &BTreeMap<i64, i64>, lasted: Duration) -> String {
        let seconds = lasted.as_secs_f64();
        let bytes = if let Self::MoveShard { shard_id, .. } = self { sizes.get(shard_id) } else { None };
        match bytes {
            Some(bytes) => format!("{} in {seconds:.1} s", Bytes(bytes.unsigned_abs())),
            None => format!("{seconds:.1} s"),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateOperatorRole { group } => write!(f, "create the role {OPERATOR_ROLE} on {group}"),
            Self::CreateApiRole { group } => write!(f, "create the role {API_ROLE} on {group}"),
            Self::CreateDatabase { group } => write!(f, "create the database on {group}"),
            Self::SetDatabaseOwner { group } => {
                write!(f, "make {API_ROLE} the owner of the database on {group}")
            }
            Self::CreateExtension { group } => write!(f, "create the extension citus on {group}"),
            Self::CreateOwnTables => f.write_str("create the operator's own tables on the coordinator"),
            Self::ResetSetting { group, name } => {
                write!(f, "take back the ALTER SYSTEM of {name} on {group}")
            }
            Self::AllowLogin { group } => write!(f, "let {API_ROLE} log in on {group}"),
            Self::SetCoordinatorHost => f.write_str("register the coordinator's address"),
            Self::AddNode { group } => write!(f, "register {group}"),
            Self::ActivateNode { group } => write!(f, "activate {group}"),
            Self::UpdateNode { group, .. } => write!(f, "correct the address of {group}"),
            Self::RestoreNode { group, group_id } => {
                write!(f, "register {group} again as the node of group {group_id}, which it is")
            }
            Self::SyncMetadata { group } => write!(f, "send the catalogs to {group}"),
            Self::RemoveNode { group } => write!(f, "take {group} out of the cluster"),
            Self::ForgetCleanup { group_id } => {
                write!(f, "forget what was to be taken away on the node of group {group_id}, which is gone")
            }
            Self::CleanUp => f.write_str("take away what moves have left behind"),
            Self::SetShouldHaveShards { group, value: true } => {
                write!(f, "let new shards be placed on {group}")
            }
            Self::SetShouldHaveShards { group, value: false } => write!(f, "keep new shards off {group}"),
            Self::CreateReferenceTable { table, .. } => write!(f, "copy the table {table} to every node"),
            Self::ReplicateReferenceTables => f.write_str("copy the reference tables to every node"),
            Self::DistributeTable(distribution) => write!(f, "distribute {distribution}"),
            Self::DistributeConcurrently(distribution) => {
                write!(f, "distribute {distribution}, while it is written to")
            }
            Self::MoveShard { shard_id, from, to } => {
                write!(f, "move shard {shard_id} from {from} to {to}")
            }
            Self::SplitShard(split) => split.fmt(f),
            Self::BeginIsolation { why, .. } => write!(f, "write down what is to be done: {why}"),
            Self::RemovePin { called, why, .. } => write!(f, "take the pin of {called} away: {why}"),
            Self::SetPin { pin, called, .. } => write!(f, "pin {called} to {}", pin.node),
            Self::Retarget { pin, from, called, .. } => {
                write!(f, "pin {called} to {}, as {from} leaves", pin.node)
            }
            Self::SetStrategy { default: true, .. } => {
                f.write_str("have Citus' rebalancer leave pinned shards where they are")
            }
            Self::SetStrategy { default: false, .. } => {
                f.write_str("tell Citus' rebalancer of pinned shards, without making that its default")
            }
            Self::DropStrategy => f.write_str("take the operator's strategy of Citus' rebalancer away"),
            Self::EndAction { id, outcome, note: None } => {
                write!(f, "note action {id} as {}", outcome.name())
            }
            Self::EndAction { id, outcome, note: Some(note) } => {
                write!(f, "note action {id} as {}: {note}", outcome.name())
            }
            Self::CancelMove { pid, application, end } => {
                let (verb, why) = match end {
                    End::Cancel => ("cancel", "which does not get on"),
                    End::Terminate => ("terminate", "which was cancelled and has not ended"),
                };
                write!(f, "{verb} {application} (pid {pid}), {why}")
            }
        }
    }
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by {}", self.table, self.column)?;
        match &self.beside {
            Beside::Nothing { shard_count, .. } => write!(f, " into {shard_count} shards"),
            Beside::Table(table) => write!(f, " beside {table}"),
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |parts: Vec<String>| parts.join(", ");
        let points = list(self.points.iter().map(ToString::to_string).collect());
        let nodes = list(self.nodes.iter().map(ToString::to_string).collect());
        write!(f, "split shard {} on {} after {points}, onto {nodes}", self.shard_id, self.from)?;
        if self.blocking { f.write_str(", while writers wait") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Group;

    #[test]
    fn the_end_of_a_move_is_told_with_what_was_copied_if_that_is_known() {
        let lasted = Duration::from_millis(3_240);
        let step = Step::MoveShard { shard_id: 102_008, from: Group::Worker(0), to: Group::Worker(1) };
        let sizes = BTreeMap::from([(102_008, 22 << 20)]);
        assert_eq!(step.figures(&sizes, lasted), "22 MiB in 3.2 s");
        assert_eq!(step.figures(&BTreeMap::new(), lasted), "3.2 s");
        assert_eq!(Step::ReplicateReferenceTables.figures(&sizes, lasted), "3.2 s");
    }
}
