//! The server settings that moving and splitting shards depends on.
//!
//! They are declared in one place, Patroni's dynamic configuration, where they hold for every instance and after a
//! failover. Here they are verified, and what somebody changed by `ALTER SYSTEM`, which outranks the declaration, is
//! taken back.

use std::collections::BTreeMap;

use crate::api::HotTenantsSpec;
use crate::cluster::patroni::config;

/// The setting without which no shard can be moved while it is written to.
pub const WAL_LEVEL: &str = "wal_level";
/// The setting that says which output plugins may be used. Minor releases since August 2026 know it.
pub const OUTPUT_PLUGINS: &str = "output_plugin_libraries";

/// What a setting must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// Exactly this.
    Is(&'static str),
    /// A number no smaller.
    AtLeast(i64),
    /// A list with this element.
    Lists(&'static str),
    /// Connection parameters with this one.
    Contains(&'static str),
}

impl Requirement {
    /// Whether `value` will do.
    #[must_use]
    pub fn is_met(self, value: &str) -> bool {
        match self {
            Self::Is(wanted) => value == wanted,
            Self::AtLeast(least) => value.parse::<i64>().is_ok_and(|value| value >= least),
            Self::Lists(element) => elements(value).iter().any(|item| item.eq_ignore_ascii_case(element)),
            Self::Contains(part) => value.split_whitespace().any(|word| word == part),
        }
    }
}

/// The elements of a list as the server writes it: separated by commas, in quotes where an element has one itself.
fn elements(list: &str) -> Vec<String> {
    let mut elements = vec![String::new()];
    let mut quoted = false;
    for character in list.chars() {
        match (character, elements.last_mut()) {
            ('"', _) => quoted = !quoted,
            (',', _) if !quoted => elements.push(String::new()),
            (_, Some(element)) => element.push(character),
            (_, None) => {}
        }
    }
    elements.iter().map(|element| element.trim().to_owned()).collect()
}

/// The settings and what they must be where the server knows them.
///
/// Sized for four moves at a time between two nodes with two owners of tables: a slot and a sender per move and owner,
/// an apply worker per subscription, background workers for all of these.
pub const REQUIRED: [(&str, Requirement); 8] = [
    (WAL_LEVEL, Requirement::Is("logical")),
    (OUTPUT_PLUGINS, Requirement::Lists("citus")),
    ("max_replication_slots", Requirement::AtLeast(32)),
    ("max_wal_senders", Requirement::AtLeast(32)),
    ("max_logical_replication_workers", Requirement::AtLeast(16)),
    ("max_worker_processes", Requirement::AtLeast(32)),
    // Every write over two nodes is a prepared transaction on each.
    ("max_prepared_transactions", Requirement::AtLeast(100)),
    ("citus.node_conninfo", Requirement::Contains("sslmode=verify-full")),
];

/// Settings that no `ALTER SYSTEM` may hold: all that the operator declares, whether the resource may overrule it or not, but
/// for what depends on the size of a server; that is the resource's.
#[must_use]
pub fn owned() -> Vec<&'static str> {
    let owned = config::owned(0).into_iter().map(|(name, _)| name);
    let defaults = config::DEFAULTS.into_iter().map(|(name, _)| name);
    let statistics = config::statistics(&HotTenantsSpec::default()).into_iter().map(|(name, _)| name);
    // Of the image.
    owned.chain(defaults).chain(statistics).chain(["shared_preload_libraries"]).collect()
}

/// Whether the setting `name` is as required; a server that does not know it needs none.
#[must_use]
pub fn is_met(settings: &BTreeMap<String, String>, name: &str) -> bool {
    let Some(value) = settings.get(name) else { return true };
    REQUIRED
        .iter()
        .filter(|(required, _)| *required == name)
        .all(|(_, requirement)| requirement.is_met(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_as_the_server_writes_it() {
        let citus = Requirement::Lists("citus");
        for good in ["pgoutput, test_decoding, citus", "citus", "pgoutput,\"citus\"", "pgoutput,Citus"] {
            assert!(citus.is_met(good), "{good}");
        }
        // What ALTER SYSTEM SET x = 'pgoutput, test_decoding, citus' leaves: one element.
        for bad in ["pgoutput, test_decoding", "", "\"pgoutput, test_decoding, citus\"", "citus2"] {
            assert!(!citus.is_met(bad), "{bad}");
        }
    }

    #[test]
    fn what_is_required_is_declared() {
        let owned = owned();
        for (name, _) in REQUIRED {
            assert!(owned.contains(&name), "{name}");
        }
    }

    #[test]
    fn numbers_and_words_are_compared_whole() {
        assert!(Requirement::AtLeast(32).is_met("32"));
        assert!(!Requirement::AtLeast(32).is_met("9"));
        assert!(!Requirement::AtLeast(32).is_met("many"));
        let tls = Requirement::Contains("sslmode=verify-full");
        assert!(tls.is_met("sslmode=verify-full sslrootcert=/ca.crt"));
        assert!(!tls.is_met("sslmode=require"));
        assert!(!tls.is_met("hostsslmode=verify-full-not"));
    }

    #[test]
    fn a_setting_that_the_server_does_not_know_is_not_missed() {
        assert!(is_met(&BTreeMap::new(), OUTPUT_PLUGINS));
        let old = BTreeMap::from([(OUTPUT_PLUGINS.to_owned(), "pgoutput, test_decoding".to_owned())]);
        assert!(!is_met(&old, OUTPUT_PLUGINS));
    }
}
