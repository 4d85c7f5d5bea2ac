//! The tables of the service, as far as their distribution is concerned.

/// A table that can be distributed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum Table {
    /// Messages of dialogs.
    Messages,
    /// Old ones.
    MessagesArchive,
    /// The pair behind each dialog.
    Dialogs,
    /// How far each of the two has read.
    DialogState,
    /// Who there is.
    Users,
    /// Passwords.
    Credentials,
    /// Each user's dialogs.
    UserDialogs,
    /// Who is being erased.
    Erasures,
}

impl Table {
    /// All tables, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Messages,
        Self::MessagesArchive,
        Self::Dialogs,
        Self::DialogState,
        Self::Users,
        Self::Credentials,
        Self::UserDialogs,
        Self::Erasures,
    ];

    /// The names of all tables, in the same order.
    pub const NAMES: [&'static str; Self::ALL.len()] = {
        let mut names = [""; Self::ALL.len()];
        let mut number = 0;
        while number < names.len() {
            names[number] = Self::ALL[number].name();
            number += 1;
        }
        names
    };

    /// Its name in the schema `public`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::MessagesArchive => "messages_archive",
            Self::Dialogs => "dialogs",
            Self::DialogState => "dialog_state",
            Self::Users => "users",
            Self::Credentials => "credentials",
            Self::UserDialogs => "user_dialogs",
            Self::Erasures => "erasures",
        }
    }

    /// The column by which it has to be distributed for a statement's first parameter to be its key. Of type uuid.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::Messages | Self::MessagesArchive | Self::Dialogs | Self::DialogState => "dialog_id",
            Self::Users | Self::Credentials | Self::UserDialogs | Self::Erasures => "user_id",
        }
    }

    /// The table of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_is_found_under_its_own_number_and_name() {
        for (number, table) in Table::ALL.into_iter().enumerate() {
            assert_eq!(table as usize, number, "{}", table.name());
            assert_eq!(Table::named(Table::NAMES[number]), Some(table));
        }
        assert_eq!(Table::named("pg_class"), None);
    }
}
