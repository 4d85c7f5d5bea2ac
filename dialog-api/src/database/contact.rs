//! What is known about reaching a server: whether there are connections, for how long not, and what that means for
//! statements.

use std::{mem, time::Duration};

use tokio::time::Instant;

/// What is known about reaching a server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Contact {
    /// Connections that work.
    pub(super) live: usize,
    /// Whether there ever was one.
    pub(super) met: bool,
    /// Since when statements wait in vain: when the last of them was lost; the start counts as a loss. A loss counts only
    /// if any of them had served. A server that comes back again and again and ends before it has answered anything
    /// has been away all the time.
    pub(super) since: Instant,
    /// Whether any has served since then.
    served: bool,
    /// While there is none: whether the coordinator reaches the server, if it was asked.
    pub(super) through_coordinator: Option<bool>,
}

/// How to get a statement to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Directly; perhaps after waiting for a connection.
    Direct,
    /// The coordinator gets there and this process does not.
    ThroughCoordinator,
}

impl Contact {
    /// There has not been any yet.
    pub(super) fn never() -> Self {
        Self { live: 0, met: false, since: Instant::now(), served: false, through_coordinator: None }
    }

    /// Takes note that so many connections work now, and whether any of those before has served.
    pub(super) fn change(&mut self, live: usize, served: bool, moment: Instant) {
        self.served |= served;
        if live > 0 {
            (self.met, self.through_coordinator) = (true, None);
        } else if self.live > 0 && mem::take(&mut self.served) {
            self.since = moment;
        }
        self.live = live;
    }

    /// Whether the server is away, and not for longer than statements wait.
    pub(super) fn is_awaited(&self, grace: Duration) -> bool {
        self.live == 0 && self.since.elapsed() < grace
    }

    pub(super) fn way(&self) -> Way {
        // A server never met may be one that only other servers can reach; the coordinator is asked soon.
        let reached = self.through_coordinator.unwrap_or(!self.met);
        if self.live == 0 && reached { Way::ThroughCoordinator } else { Way::Direct }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contact(live: usize, met: bool, through_coordinator: Option<bool>) -> Contact {
        Contact { live, met, since: Instant::now(), served: false, through_coordinator }
    }

    #[test]
    fn who_comes_back_and_serves_nobody_was_away_all_the_time() {
        let (start, mut contact) = (Instant::now(), contact(1, true, None));
        let moment = |seconds| start + Duration::from_secs(seconds);
        let (lost, again, at_last) = (moment(10), moment(20), moment(30));
        contact.change(2, true, moment(1));
        contact.change(1, false, moment(9));
        contact.change(0, false, lost);
        assert_eq!(contact.since, lost, "one had served");
        contact.change(1, false, moment(19));
        contact.change(0, false, again);
        assert_eq!(contact.since, lost, "none has served since");
        contact.change(1, false, moment(29));
        contact.change(0, true, at_last);
        assert_eq!(contact.since, at_last);
    }

    #[test]
    fn the_coordinator_is_taken_only_where_it_helps() {
        assert_eq!(contact(1, true, None).way(), Way::Direct);
        assert_eq!(contact(0, false, None).way(), Way::ThroughCoordinator, "not met yet");
        assert_eq!(contact(0, true, None).way(), Way::Direct, "lost a moment ago");
        assert_eq!(
            contact(0, true, Some(false)).way(),
            Way::Direct,
            "the coordinator cannot reach it either"
        );
        assert_eq!(contact(0, false, Some(false)).way(), Way::Direct, "nor one that was never met");
        assert_eq!(contact(0, true, Some(true)).way(), Way::ThroughCoordinator);
    }
}
