//! Who there is: users and the dialogs among them, computed from their numbers.
//!
//! The loader writes them and the load draws from them, so both need only agree on two sizes and a seed.

use dialog_api::dialogs::pair::Pair;
use uuid::Uuid;

/// What user ids are derived in, so that they meet no other ids.
const NAMESPACE: Uuid = Uuid::from_u128(0x7d1f_5b1e_4c0e_4b7a_9a51_0c2f_6d0a_be4c);

/// Users and dialogs, numbered from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Population {
    users: u64,
    dialogs: u64,
    seed: u64,
}

/// Why there cannot be such a population.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PopulationError {
    /// A pair takes two.
    #[error("a population needs at least 2 users")]
    TooFewUsers,
    /// There are not so many pairs.
    #[error("{users} users have at most {most} dialogs, not {dialogs}")]
    TooManyDialogs {
        /// Users asked for.
        users: u64,
        /// Dialogs asked for.
        dialogs: u64,
        /// Dialogs there can be.
        most: u64,
    },
}

impl Population {
    /// So many users, and so many dialogs among them. Another seed makes other users.
    ///
    /// # Errors
    /// When there are fewer than two users, no dialog, or more dialogs than pairs.
    pub fn new(users: u64, dialogs: u64, seed: u64) -> Result<Self, PopulationError> {
        if users < 2 {
            return Err(PopulationError::TooFewUsers);
        }
        // Users sit in a circle and talk to neighbours at a distance below half of it, so no pair is met twice.
        let most = users.saturating_mul((users - 1) / 2).max(1);
        if dialogs == 0 || dialogs > most {
            return Err(PopulationError::TooManyDialogs { users, dialogs, most });
        }
        Ok(Self { users, dialogs, seed })
    }

    /// How many users.
    #[must_use]
    pub fn users(&self) -> u64 {
        self.users
    }

    /// How many dialogs.
    #[must_use]
    pub fn dialogs(&self) -> u64 {
        self.dialogs
    }

    /// What tells it from others of the same size.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The id of a user.
    #[must_use]
    pub fn user(&self, number: u64) -> Uuid {
        let mut name = [0; 16];
        name[..8].copy_from_slice(&self.seed.to_be_bytes());
        name[8..].copy_from_slice(&number.to_be_bytes());
        Uuid::new_v5(&NAMESPACE, &name)
    }

    /// The numbers of the two users of a dialog; every dialog has another two.
    #[must_use]
    pub fn members(&self, dialog: u64) -> (u64, u64) {
        let (one, distance) = (dialog % self.users, dialog / self.users + 1);
        (one, (one + distance) % self.users)
    }

    /// The id of the dialog of two users, as the service computes it.
    #[must_use]
    pub fn dialog_id(&self, one: u64, other: u64) -> Uuid {
        Pair::new(self.user(one), self.user(other)).dialog_id()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn more_dialogs_than_pairs_are_refused() {
        assert_eq!(Population::new(1, 1, 0), Err(PopulationError::TooFewUsers));
        assert!(Population::new(2, 1, 0).is_ok());
        assert!(Population::new(2, 2, 0).is_err());
        assert!(Population::new(5, 10, 0).is_ok());
        assert!(Population::new(5, 11, 0).is_err());
        assert!(Population::new(5, 0, 0).is_err());
    }

    #[test]
    fn another_seed_makes_other_users() {
        let (one, other) = (Population::new(9, 9, 1).unwrap(), Population::new(9, 9, 2).unwrap());
        assert_eq!(one.user(3), one.user(3));
        assert_ne!(one.user(3), other.user(3));
    }

    proptest! {
        #[test]
        fn every_dialog_has_two_members_of_its_own(users in 2_u64..40) {
            let most = (users * ((users - 1) / 2)).max(1);
            let population = Population::new(users, most, 7).unwrap();
            let mut ids = HashSet::new();
            for dialog in 0..most {
                let (one, other) = population.members(dialog);
                prop_assert!(one < users && other < users && one != other);
                prop_assert!(ids.insert(population.dialog_id(one, other)), "dialog {} is not new", dialog);
            }
        }
    }
}
