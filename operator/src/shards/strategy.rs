//! What Citus' own rebalancer is told of pins: a strategy whose functions read them, so that nobody who rebalances by hand
//! undoes what was done about load.
//!
//! The rebalancer calls the functions on the coordinator, without asking whether the caller may: they run as their owner, so
//! that the owner of the tables may rebalance, who may not read the pins.

use std::fmt::Write as _;

use serde::Deserialize;

use super::rebalance::{Policy, Strategy as Even};
use crate::pg::{Endpoint, literal};

/// The name of the strategy.
pub const NAME: &str = "dialog_operator";
/// The default of a Citus that nobody has told anything.
const FACTORY: &str = "by_disk_size";

/// Takes the strategy away. Whatever was the default before it is so again, unless somebody has chosen another since.
pub const DROP: &str = "SET LOCAL citus.enable_ddl_propagation = off;
DELETE FROM pg_dist_rebalance_strategy WHERE name = 'dialog_operator';
SELECT citus_set_default_rebalance_strategy(name) FROM (
    SELECT name::text FROM pg_dist_rebalance_strategy
    WHERE (name = 'by_disk_size' OR name = (SELECT replaced FROM dialog_operator.strategy))
      AND NOT EXISTS (SELECT FROM pg_dist_rebalance_strategy WHERE default_strategy)
    ORDER BY name = 'by_disk_size' LIMIT 1) AS before;
DELETE FROM dialog_operator.strategy;
DROP FUNCTION IF EXISTS dialog_operator.shard_cost(bigint), dialog_operator.node_capacity(integer),
    dialog_operator.shard_allowed(bigint, integer)";

/// An expression for what there is, as text: a part of another statement.
pub(super) const SEEN: &str = "(
    SELECT jsonb_build_object(
        'default', (SELECT name FROM pg_dist_rebalance_strategy WHERE default_strategy LIMIT 1),
        'own', (SELECT concat_ws(E'\\n', shard_cost_function, node_capacity_function, shard_allowed_on_node_function,
                           (default_threshold * 1000)::int, (minimum_threshold * 1000)::int,
                           (improvement_threshold * 1000)::int,
                           (SELECT string_agg(concat_ws(E'\\n', prosecdef, proconfig, prosrc), E'\\n' ORDER BY proname)
                            FROM pg_proc
                            WHERE oid IN (shard_cost_function, node_capacity_function, shard_allowed_on_node_function)))
                FROM pg_dist_rebalance_strategy WHERE name = 'dialog_operator')))::text";

/// The strategies of Citus' rebalancer, as far as they matter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Seen {
    /// The default.
    pub default: Option<String>,
    /// The operator's own, as [`Strategy::description`] has it.
    pub own: Option<String>,
}

impl Seen {
    /// Understands the value of [`SEEN`].
    pub(super) fn parse(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_default()
    }

    /// Whether the default is the operator's.
    #[must_use]
    pub fn is_own_default(&self) -> bool {
        self.default.as_deref() == Some(NAME)
    }

    /// The default, if somebody has chosen it: not this operator, nor Citus.
    #[must_use]
    pub fn chosen(&self) -> Option<&str> {
        self.default.as_deref().filter(|name| ![NAME, FACTORY].contains(name))
    }
}

/// What the strategy says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Strategy {
    /// Nodes that hold pinned shards only.
    pub dedicated: Vec<Endpoint>,
    /// Whether bytes are to be even, and not the number of shards.
    pub by_size: bool,
    /// How far a node may be from the average, in thousandths of it.
    pub threshold: u32,
}

impl Strategy {
    /// What goes with the operator's own moves.
    #[must_use]
    pub fn new(policy: &Policy, dedicated: Vec<Endpoint>) -> Self {
        // Citus knows nothing of loads.
        let by_size = policy.strategy != Even::ByCount;
        Self { dedicated, by_size, threshold: if by_size { policy.threshold } else { 0 } }
    }

    /// The statements that make it so, whatever there is; one message, so that all of it is done or nothing. `default` is
    /// whether it becomes the default.
    #[must_use]
    pub fn create(&self, default: bool) -> String {
        let [threshold, minimum, improvement] = self.thresholds();
        let [capacity, allowed, cost] = self.functions();
        // The row goes first: Citus changes none whose functions are gone.
        let mut text = format!(
            "SET LOCAL citus.enable_ddl_propagation = off;
INSERT INTO dialog_operator.strategy (replaced)
    SELECT name FROM pg_dist_rebalance_strategy WHERE default_strategy AND name <> '{NAME}'
    ON CONFLICT (one) DO UPDATE SET replaced = excluded.replaced;
DELETE FROM pg_dist_rebalance_strategy WHERE name = '{NAME}';
DROP FUNCTION IF EXISTS dialog_operator.shard_cost(bigint), dialog_operator.node_capacity(integer),
    dialog_operator.shard_allowed(bigint, integer);
CREATE FUNCTION dialog_operator.node_capacity(node integer) RETURNS real {ATTRIBUTES} $body${capacity}$body$;
CREATE FUNCTION dialog_operator.shard_allowed(shard bigint, node integer) RETURNS boolean {ATTRIBUTES} $body${allowed}$body$;
CREATE FUNCTION dialog_operator.shard_cost(shard bigint) RETURNS real {ATTRIBUTES} $body${cost}$body$;
REVOKE ALL ON FUNCTION dialog_operator.node_capacity, dialog_operator.shard_allowed, dialog_operator.shard_cost FROM PUBLIC;
SELECT citus_add_rebalance_strategy('{NAME}', 'dialog_operator.shard_cost', 'dialog_operator.node_capacity',
    'dialog_operator.shard_allowed', ({threshold} / 1000.0)::real, ({minimum} / 1000.0)::real,
    ({improvement} / 1000.0)::real)"
        );
        if default {
            // Writing to a String cannot fail.
            let _ = write!(text, ";\nSELECT citus_set_default_rebalance_strategy('{NAME}')");
        }
        text
    }

    /// What `SEEN` says where it is so.
    #[must_use]
    pub fn description(&self) -> String {
        let names =
            ["shard_cost", "node_capacity", "shard_allowed"].map(|name| format!("dialog_operator.{name}"));
        let thresholds = self.thresholds().map(|threshold| threshold.to_string());
        let functions = self.functions().map(|body| format!("t\n{{search_path=pg_catalog}}\n{body}"));
        [names, thresholds, functions].concat().join("\n")
    }

    /// The threshold, the least that may be asked for, and what a move has to improve at least, in thousandths: as Citus'
    /// own strategies have them.
    fn thresholds(&self) -> [u32; 3] {
        if self.by_size { [self.threshold, self.threshold.min(10), 500] } else { [0, 0, 0] }
    }

    /// What the functions answer, in the order of their names.
    fn functions(&self) -> [String; 3] {
        let dedicated = |node: &str| match self.dedicated.as_slice() {
            [] => "false".to_owned(),
            list => {
                let address =
                    |endpoint: &Endpoint| format!("({}, {})", literal(&endpoint.host), endpoint.port);
                let list: Vec<String> = list.iter().map(address).collect();
                format!("({node}.nodename, {node}.nodeport) IN ({})", list.join(", "))
            }
        };
        let capacity = format!(
            "
    -- What a dedicated node holds is not to be spread over it.
    SELECT CASE WHEN {} THEN 0 ELSE 1 END::real FROM pg_dist_node AS here WHERE nodeid = node
",
            dedicated("here")
        );
        // A pin to a node that leaves, or has left, is none.
        let home = "SELECT home.nodeid, home.nodename, home.nodeport
            FROM pg_dist_shard JOIN pg_dist_partition USING (logicalrelid)
            JOIN dialog_operator.pins ON colocation_id = colocationid AND hash::text = shardminvalue
            JOIN pg_dist_node AS home ON home.nodename = pins.nodename AND home.nodeport = pins.nodeport
            WHERE shardid = shard AND shardminvalue = shardmaxvalue
              AND isactive AND shouldhaveshards AND noderole = 'primary'";
        let allowed = format!(
            "
    SELECT CASE WHEN home.nodeid IS NULL THEN NOT ({}) ELSE home.nodeid = node END
    FROM pg_dist_node AS here LEFT JOIN ({home}) AS home ON true
    WHERE here.nodeid = node
",
            dedicated("here")
        );
        let cost = if self.by_size { "citus_shard_cost_by_disk_size(shard)" } else { "1" };
        let cost = format!(
            "
    -- What is on a dedicated node is nobody else's share.
    SELECT CASE WHEN EXISTS (SELECT FROM ({home}) AS home WHERE {}) THEN 0 ELSE {cost} END::real
",
            dedicated("home")
        );
        [capacity, allowed, cost]
    }
}

/// How the functions are called.
const ATTRIBUTES: &str = "LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog AS";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strategy_is_told_from_another() {
        let one = Strategy { dedicated: Vec::new(), by_size: true, threshold: 100 };
        let others = [
            Strategy { threshold: 200, ..one.clone() },
            Strategy { by_size: false, ..one.clone() },
            Strategy { dedicated: vec![Endpoint::new("it's", 5432)], ..one.clone() },
        ];
        for other in &others {
            assert_ne!(one.description(), other.description());
        }
        assert!(others[2].create(true).contains("('it''s', 5432)"));
        // Citus refuses a threshold below the least one.
        assert_eq!(Strategy { threshold: 5, ..one }.thresholds(), [5, 5, 500]);
    }

    #[test]
    fn a_choice_is_somebodys_only_if_it_is_not_as_citus_comes() {
        let chosen =
            |name: &str| Seen { default: Some(name.to_owned()), own: None }.chosen().map(str::to_owned);
        assert_eq!((chosen(NAME), chosen(FACTORY)), (None, None));
        assert_eq!(chosen("by_shard_count").as_deref(), Some("by_shard_count"));
        assert_eq!(Seen::parse("what?"), Seen::default());
    }
}
