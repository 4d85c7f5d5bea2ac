//! Whether the making of a group's database was interrupted, and whether it may begin anew; and whether Patroni reads a
//! database that was made from no volume any more. Pure.
//!
//! Patroni writes an empty `initialize` into its store before it runs `initdb`, and the system identifier when the
//! database is whole. If it dies in between, the empty key stays: every Patroni that comes after waits for somebody who
//! is not there any more (4.1.5, `Ha.bootstrap`), and nothing in Patroni takes the key away. Without it an instance
//! makes a new database if its own volume is empty, whatever may be on the others: so it is taken away only while the
//! only volume there is was seen empty.
//!
//! That Patroni reads no database does not mean that there is none: it says the same of a volume that cannot be read, and
//! of a database whose `pg_control` is damaged (4.1.5, `Ha._run_cycle` and
//! `Postgresql.get_postgres_role_from_data_directory`). So where one was made somebody is told to look, and nothing is
//! deleted because of it.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use super::instance::Instance;
use super::observe::ObservedGroup;

/// Patroni begins within a second, and reports every five: what it reports this long after its start, or after it wrote
/// the key, is not from before.
const REPORTED: Duration = Duration::from_secs(20);
/// A volume that cannot be read for a moment, or that is being restored, is none that somebody has to look at.
const UNREAD: Duration = Duration::from_mins(3);

/// What has become of the making of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bootstrap {
    /// The database is there, is being made, or is about to be.
    Underway,
    /// Who made it died, and nothing is lost: the key may be taken away.
    Interrupted,
    /// Nobody makes it, and a volume may hold data: somebody has to look.
    Stuck,
    /// It was made, and Patroni has read it from no volume for minutes: it waits for a primary that will not come. Whether
    /// it is gone or cannot be read it does not say: somebody has to look.
    NotRead,
}

/// Looks at a group with this many claims for volumes.
#[must_use]
pub fn bootstrap(group: &ObservedGroup, claims: usize, now: Timestamp) -> Bootstrap {
    let has_lasted = |since: Option<Timestamp>, limit: Duration| {
        since.is_some_and(|since| now.duration_since(since).unsigned_abs() > limit)
    };
    let is_past = |since: Option<Timestamp>| has_lasted(since, REPORTED);
    // Patroni has no database, and does nothing about it.
    let idles = |instance: &Instance| {
        !instance.is_terminating
            && instance.trouble.is_none()
            && instance.patroni.state == "stopped"
            && is_past(instance.started)
    };
    if group.instances.is_empty() || !group.instances.iter().all(idles) {
        return Bootstrap::Underway;
    }
    let is_blank = |instance: &Instance| instance.patroni.role == "uninitialized";
    if group.is_initialized() {
        // An instance that says nothing may have it.
        let all =
            usize::try_from(group.replicas).is_ok_and(|count| count.max(claims) == group.instances.len());
        let is_unread = |instance: &Instance| {
            let since = instance.stopped.or(instance.started);
            is_blank(instance) && !instance.is_ready && has_lasted(since, UNREAD)
        };
        return if all && group.instances.iter().all(is_unread) {
            Bootstrap::NotRead
        } else {
            Bootstrap::Underway
        };
    }
    // The key without an identifier.
    let is_begun = group.system_identifier.is_some();
    if is_begun && !is_past(group.configured) || group.begun_anew.is_some_and(|at| !is_past(Some(at))) {
        return Bootstrap::Underway;
    }
    let is_alone = group.replicas == 1 && group.instances.len() == 1 && claims <= 1;
    // Patroni read no database from the volume; and what it writes once there was one is not there either.
    let is_empty = group.instances.iter().all(is_blank) && !group.has_led && group.configuration.is_none();
    if is_begun && is_alone && is_empty { Bootstrap::Interrupted } else { Bootstrap::Stuck }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cluster::instance::{Member, Trouble};

    fn at(second: i64) -> Option<Timestamp> {
        Timestamp::from_second(second).ok()
    }

    /// Patroni wrote the key at 100 and died; the Patroni after it, of 110, waits.
    fn interrupted() -> ObservedGroup {
        let instance = Instance {
            pod: "chat-worker-0-0".to_owned(),
            started: at(110),
            patroni: Member {
                state: "stopped".to_owned(),
                role: "uninitialized".to_owned(),
                ..Member::default()
            },
            ..Instance::default()
        };
        ObservedGroup {
            replicas: 1,
            system_identifier: Some(String::new()),
            configured: at(100),
            instances: vec![instance],
            ..ObservedGroup::default()
        }
    }

    fn after(change: impl FnOnce(&mut ObservedGroup)) -> Bootstrap {
        let mut group = interrupted();
        change(&mut group);
        bootstrap(&group, 1, at(300).unwrap())
    }

    #[test]
    fn an_attempt_that_was_interrupted_begins_anew() {
        assert_eq!(after(|_| ()), Bootstrap::Interrupted);
        let group = interrupted();
        assert_eq!(
            bootstrap(&group, 0, at(300).unwrap()),
            Bootstrap::Interrupted,
            "the claim is not listed yet"
        );
        assert_eq!(
            bootstrap(&group, 1, at(125).unwrap()),
            Bootstrap::Underway,
            "the report may be from before"
        );
        assert_eq!(after(|group| group.configured = at(290)), Bootstrap::Underway, "another has just begun");
        assert_eq!(after(|group| group.instances[0].started = None), Bootstrap::Underway, "it does not run");
        let begun_anew = |second| {
            after(|group| {
                group.system_identifier = None;
                group.begun_anew = at(second);
            })
        };
        assert_eq!(begun_anew(290), Bootstrap::Underway, "its Patroni has not looked yet");
        assert_eq!(begun_anew(270), Bootstrap::Stuck, "it has, and does nothing");
    }

    #[test]
    fn nothing_is_done_while_data_may_exist() {
        assert_eq!(bootstrap(&interrupted(), 2, at(300).unwrap()), Bootstrap::Stuck, "a second volume");
        assert_eq!(after(|group| group.replicas = 2), Bootstrap::Stuck, "more instances are asked for");
        assert_eq!(after(|group| group.instances.push(group.instances[0].clone())), Bootstrap::Stuck);
        assert_eq!(after(|group| group.has_led = true), Bootstrap::Stuck, "there was a primary");
        assert_eq!(after(|group| group.configuration = Some(json!({}))), Bootstrap::Stuck, "it was made");
        for role in ["", "primary", "replica"] {
            let found = after(|group| role.clone_into(&mut group.instances[0].patroni.role));
            assert_eq!(found, Bootstrap::Stuck, "the volume holds a database, or nobody says what");
        }
    }

    #[test]
    fn who_is_at_work_is_left_alone() {
        for state in
            ["", "initializing new cluster", "starting", "running", "creating replica", "start failed"]
        {
            let found = after(|group| state.clone_into(&mut group.instances[0].patroni.state));
            assert_eq!(found, Bootstrap::Underway, "{state}");
        }
        assert_eq!(after(|group| group.instances[0].is_terminating = true), Bootstrap::Underway);
        let crash = Some(Trouble::Crash(String::new()));
        assert_eq!(after(|group| group.instances[0].trouble = crash), Bootstrap::Underway);
        assert_eq!(after(|group| group.instances.clear()), Bootstrap::Underway);
    }

    #[test]
    fn a_database_is_not_read_when_every_instance_says_so_for_minutes() {
        let made = |claims, change: fn(&mut ObservedGroup)| {
            let mut group = interrupted();
            group.system_identifier = Some("7".to_owned());
            group.has_led = true;
            group.configuration = Some(json!({}));
            change(&mut group);
            bootstrap(&group, claims, at(300).unwrap())
        };
        assert_eq!(made(1, |_| ()), Bootstrap::NotRead);
        assert_eq!(made(0, |_| ()), Bootstrap::NotRead, "the claim is not listed yet");
        assert_eq!(made(2, |_| ()), Bootstrap::Underway, "a volume whose instance says nothing");
        assert_eq!(made(1, |group| group.replicas = 2), Bootstrap::Underway, "the other was not made yet");
        assert_eq!(
            made(2, |group| {
                group.replicas = 2;
                group.instances.push(group.instances[0].clone());
                "replica".clone_into(&mut group.instances[1].patroni.role);
            }),
            Bootstrap::Underway,
            "the other has it"
        );
        assert_eq!(
            made(2, |group| {
                group.replicas = 2;
                group.instances.push(group.instances[0].clone());
            }),
            Bootstrap::NotRead
        );
        assert_eq!(
            made(1, |group| group.instances[0].started = at(290)),
            Bootstrap::Underway,
            "not looked yet"
        );
        assert_eq!(made(1, |group| group.instances[0].started = at(150)), Bootstrap::Underway, "not long");
        let served_until = |second| {
            let mut group = interrupted();
            group.system_identifier = Some("7".to_owned());
            group.instances[0].stopped = at(second);
            bootstrap(&group, 1, at(300).unwrap())
        };
        assert_eq!(served_until(250), Bootstrap::Underway, "its volume may come back at any moment");
        assert_eq!(served_until(115), Bootstrap::NotRead);
        assert_eq!(
            made(1, |group| group.instances[0].is_ready = true),
            Bootstrap::Underway,
            "it has just served"
        );
    }

    #[test]
    fn who_does_not_even_begin_is_named() {
        let mut group = interrupted();
        group.system_identifier = None;
        assert_eq!(bootstrap(&group, 1, at(125).unwrap()), Bootstrap::Underway);
        assert_eq!(bootstrap(&group, 1, at(140).unwrap()), Bootstrap::Stuck);
    }
}
