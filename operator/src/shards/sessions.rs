//! The sessions of one round: opened when first needed, shared, and closed with it.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::Mutex;

use super::step::OPERATOR_ROLE;
use super::topology::Topology;
use crate::names::{DATABASE, Group};
use crate::pg::{self, Identity, Limits, Login, Session};

/// The role and the database that every server has from its start.
const BOOTSTRAP: &str = "postgres";

/// Where on a server, and as whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// The operator in the database `dialog`.
    Dialog,
    /// The operator in the server's own database, for what belongs to the server. Citus is not at work there.
    Server,
    /// The superuser from the server's start, for making the operator's role.
    Bootstrap,
}

/// The sessions of one round, or of one move after the other.
pub struct Sessions {
    topology: Topology,
    identity: Identity,
    open: Arc<Mutex<BTreeMap<Login, Arc<Session>>>>,
    /// The coordinator's session of its own, if these are for one statement that takes long.
    long: Option<Box<Long>>,
}

/// A session for one statement that takes long.
struct Long {
    /// What it is for.
    purpose: String,
    session: Mutex<Option<Arc<Session>>>,
}

impl Sessions {
    /// None yet.
    #[must_use]
    pub fn new(topology: Topology, identity: Identity) -> Self {
        Self { topology, identity, open: Arc::default(), long: None }
    }

    /// Sessions for one statement that takes long: the coordinator's has no time limit, outlives the operator, and is
    /// recognised by `purpose`. The topology lock that it holds lives as long as the statement: there is no second session in
    /// place of one that has ended.
    #[must_use]
    pub fn long(topology: Topology, identity: Identity, purpose: impl Into<String>) -> Self {
        let long = Long { purpose: purpose.into(), session: Mutex::default() };
        Self { long: Some(Box::new(long)), ..Self::new(topology, identity) }
    }

    /// These, with what `others` have open: whoever goes on at once need not connect to every server again. The two must
    /// not be used at the same time, since a look is a transaction.
    #[must_use]
    pub fn going_on(self, others: &Self) -> Self {
        Self { open: Arc::clone(&others.open), ..self }
    }

    /// These without the session for the statement that takes long: what is only asked has a time limit, and is not taken
    /// for that statement by whoever looks.
    #[must_use]
    pub fn looking(&self) -> Self {
        Self {
            topology: self.topology.clone(),
            identity: self.identity.clone(),
            open: Arc::clone(&self.open),
            long: None,
        }
    }

    /// Where the groups listen.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The session behind `door` of `group`.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub async fn session(&self, group: Group, door: Door) -> Result<Arc<Session>, pg::Error> {
        let login = self.login(group, door);
        if let (Some(long), Group::Coordinator, Door::Dialog) = (&self.long, group, door) {
            let mut session = long.session.lock().await;
            if let Some(session) = session.as_ref() {
                // Another one would not have the lock that this one has taken.
                let over = session.is_over();
                return if over { Err(pg::Error::over(&login)) } else { Ok(Arc::clone(session)) };
            }
            let limits = Limits::long(&long.purpose);
            return Ok(Arc::clone(session.insert(self.connect(&login, &limits).await?)));
        }
        if let Some(session) = self.open.lock().await.get(&login)
            && !session.is_over()
        {
            return Ok(Arc::clone(session));
        }
        // Servers are asked side by side: the list is not held while one answers.
        let session = self.connect(&login, &Limits::short()).await?;
        self.open.lock().await.insert(login, Arc::clone(&session));
        Ok(session)
    }

    async fn connect(&self, login: &Login, limits: &Limits) -> Result<Arc<Session>, pg::Error> {
        pg::connect(&self.identity, login, limits).await.map(Arc::new)
    }

    /// Closes a session: what it held, locks included, is given back by the server.
    pub async fn close(&self, group: Group, door: Door) {
        match &self.long {
            Some(long) if (group, door) == (Group::Coordinator, Door::Dialog) => {
                *long.session.lock().await = None;
            }
            _ => drop(self.open.lock().await.remove(&self.login(group, door))),
        }
    }

    fn login(&self, group: Group, door: Door) -> Login {
        let (role, database) = match door {
            Door::Dialog => (OPERATOR_ROLE, DATABASE),
            Door::Server => (OPERATOR_ROLE, BOOTSTRAP),
            Door::Bootstrap => (BOOTSTRAP, BOOTSTRAP),
        };
        // A group beyond the most workers has no address; the name in its place says so when it is looked up.
        let endpoint = self.topology.endpoint(group).cloned();
        let endpoint = endpoint.unwrap_or_else(|| pg::Endpoint::new(format!("{group}.invalid"), 0));
        Login { endpoint, database: database.to_owned(), role: role.to_owned() }
    }
}
