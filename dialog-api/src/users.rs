//! Users: registration, login, and whether somebody exists.

use std::sync::Arc;

use jiff::civil::Date;
use uuid::Uuid;

use crate::{
    clock::Clock,
    database::{Database, error::DatabaseError, statements::Sql, wire::rows::Row},
    erased::Erased,
    passwords::{PasswordError, Passwords},
    recent::RecentSet,
    tokens::Tokens,
};

/// Users known to exist that are remembered, at least; 16 bytes each and some for the set.
const REMEMBERED_USERS: usize = 50_000;
/// Longest name or city, in characters.
const NAME_LIMIT: usize = 200;
/// Longest biography, in characters.
const BIOGRAPHY_LIMIT: usize = 4_096;
/// Longest password, in characters; hashing reads all of it.
const PASSWORD_LIMIT: usize = 1_024;
/// Nobody alive was born before.
const EARLIEST_BIRTH_YEAR: i16 = 1_900;
/// Users that a search finds at most.
const SEARCH_LIMIT: i64 = 1_000;

/// Somebody who wants to register, as checked by [`NewUser::check`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewUser {
    /// First name, not empty.
    pub first_name: String,
    /// Second name, not empty.
    pub second_name: String,
    /// Date of birth.
    pub birthdate: Option<Date>,
    /// Free text.
    pub biography: Option<String>,
    /// City.
    pub city: Option<String>,
}

impl NewUser {
    /// Checks what a client sent.
    ///
    /// # Errors
    /// A sentence that names the field and says what is allowed.
    pub fn check(&self, password: &str, today: Date) -> Result<(), String> {
        check_text("first_name", &self.first_name, 1, NAME_LIMIT)?;
        check_text("second_name", &self.second_name, 1, NAME_LIMIT)?;
        check_text("password", password, 1, PASSWORD_LIMIT)?;
        if let Some(city) = &self.city {
            check_text("city", city, 0, NAME_LIMIT)?;
        }
        if let Some(biography) = &self.biography {
            check_text("biography", biography, 0, BIOGRAPHY_LIMIT)?;
        }
        match self.birthdate {
            Some(date) if date > today => Err("birthdate lies in the future".into()),
            Some(date) if date.year() < EARLIEST_BIRTH_YEAR => {
                Err(format!("birthdate lies before the year {EARLIEST_BIRTH_YEAR}"))
            }
            _ => Ok(()),
        }
    }
}

/// Reads a date written as `YYYY-MM-DD`, and in no other way.
///
/// # Errors
/// When it is not such a date.
pub fn parse_date(text: &str) -> Result<Date, String> {
    let form = text.len() == 10
        && text
            .bytes()
            .enumerate()
            .all(|(at, byte)| if at == 4 || at == 7 { byte == b'-' } else { byte.is_ascii_digit() });
    form.then(|| text.parse().ok())
        .flatten()
        .ok_or_else(|| "birthdate is not a date of the form YYYY-MM-DD".to_owned())
}

/// Checks the length of a text in characters, and that the database can hold it.
///
/// # Errors
/// A sentence that names the field and says what is allowed.
pub fn check_text(field: &str, text: &str, least: usize, most: usize) -> Result<(), String> {
    if text.contains('\0') {
        return Err(format!("{field} contains the character NUL"));
    }
    let length = text.chars().count();
    if length < least {
        return Err(format!("{field} is empty"));
    }
    if length > most {
        return Err(format!("{field} has {length} characters, at most {most} are allowed"));
    }
    Ok(())
}

/// What everybody may know of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The id.
    pub id: Uuid,
    /// First name.
    pub first_name: String,
    /// Second name.
    pub second_name: String,
    /// Date of birth.
    pub birthdate: Option<Date>,
    /// Free text.
    pub biography: Option<String>,
    /// City.
    pub city: Option<String>,
}

impl From<Row<'_>> for User {
    fn from(row: Row<'_>) -> Self {
        Self {
            id: row.get(0),
            first_name: row.get(1),
            second_name: row.get(2),
            birthdate: row.get(3),
            biography: row.get(4),
            city: row.get(5),
        }
    }
}

/// The pattern of `LIKE` for names that begin so.
fn pattern(prefix: &str) -> String {
    let mut pattern = String::with_capacity(prefix.len() + 1);
    for character in prefix.chars() {
        if matches!(character, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern.push('%');
    pattern
}

/// Why somebody was not registered or logged in.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// There is no such user.
    #[error("there is no such user")]
    Unknown,
    /// The password is not the user's.
    #[error("the password is wrong")]
    WrongPassword,
    /// The password could not be hashed or checked.
    #[error(transparent)]
    Password(#[from] PasswordError),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The token could not be signed.
    #[error("sign the token: {0}")]
    Token(#[from] serde_json::Error),
}

/// Why nobody was searched for.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// A prefix is not allowed; the sentence says why.
    #[error("{0}")]
    BadName(String),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

/// Registers users, logs them in, and knows who exists.
pub struct Users {
    database: Arc<Database>,
    passwords: Passwords,
    tokens: Arc<Tokens>,
    clock: Arc<Clock>,
    known: RecentSet<Uuid>,
    erased: Erased,
}

impl Users {
    /// Users in this database.
    #[must_use]
    pub fn new(
        database: Arc<Database>,
        passwords: Passwords,
        tokens: Arc<Tokens>,
        clock: Arc<Clock>,
    ) -> Self {
        let erased = Erased::new(Arc::clone(&database));
        Self { database, passwords, tokens, clock, known: RecentSet::new(REMEMBERED_USERS), erased }
    }

    /// Who was erased lately.
    #[must_use]
    pub fn erased(&self) -> &Erased {
        &self.erased
    }

    /// Registers a user whose data were checked, and returns the new id.
    ///
    /// Two statements, no transaction: the credentials come first, so that a user who can be found can log in.
    /// If the service dies in between, credentials are left over for an id that nobody was told.
    ///
    /// # Errors
    /// When there is too much to do, or the database failed.
    pub async fn register(&self, user: &NewUser, password: String) -> Result<Uuid, UserError> {
        let hash = self.passwords.hash(password).await?;
        let (id, now) = self.clock.next_id();
        self.database.query(Sql::InsertCredentials, &[&id, &hash, &now]).await?;
        self.database
            .query(
                Sql::InsertUser,
                &[
                    &id,
                    &user.first_name,
                    &user.second_name,
                    &user.birthdate,
                    &user.biography,
                    &user.city,
                    &now,
                ],
            )
            .await?;
        self.known.insert(id);
        Ok(id)
    }

    /// A token for the user, if the password is right. Somebody unknown is found out no sooner than a wrong
    /// password.
    ///
    /// # Errors
    /// [`UserError::Unknown`], [`UserError::WrongPassword`], or when there is too much to do or the database
    /// failed.
    pub async fn login(&self, id: Uuid, password: String) -> Result<String, UserError> {
        let rows = self.database.query(Sql::SelectCredentials, &[&id]).await?;
        let hash: Option<String> = rows.first().map(|row| row.get(0));
        let known = hash.is_some();
        match (self.passwords.verify(password, hash).await?, known) {
            (true, _) => Ok(self.tokens.issue(id, self.clock.now())?),
            (false, true) => Err(UserError::WrongPassword),
            (false, false) => Err(UserError::Unknown),
        }
    }

    /// Erases the user, if the password is right. When this returns nobody can log in as them any more, and what is
    /// left of them goes by and by ([`crate::jobs`]).
    ///
    /// # Errors
    /// [`UserError::Unknown`], [`UserError::WrongPassword`], or when there is too much to do or the database
    /// failed; then asking again goes on.
    pub async fn erase(&self, id: Uuid, password: String) -> Result<(), UserError> {
        let rows = self.database.query(Sql::SelectCredentials, &[&id]).await?;
        let hash: String = rows.first().map(|row| row.get(0)).ok_or(UserError::Unknown)?;
        if !self.passwords.verify(password, Some(hash)).await? {
            return Err(UserError::WrongPassword);
        }
        // First of all: whatever happens to this process now, the rest will be done.
        self.database.query(Sql::InsertErasure, &[&id, &self.clock.now()]).await?;
        self.erased.add(id);
        self.database.query(Sql::DeleteCredentials, &[&id]).await?;
        self.database.query(Sql::DeleteUser, &[&id]).await?;
        Ok(())
    }

    /// Whether the user exists. Asks the database once for each user it has not seen for a while.
    ///
    /// # Errors
    /// When the database failed.
    pub async fn exists(&self, id: Uuid) -> Result<bool, DatabaseError> {
        if self.erased.contains(id) {
            return Ok(false);
        }
        if self.known.contains(&id) {
            return Ok(true);
        }
        let exists = !self.database.query(Sql::SelectUserExists, &[&id]).await?.is_empty();
        if exists {
            self.known.insert(id);
        }
        Ok(exists)
    }

    /// What everybody may know of a user, if there is one of this id.
    ///
    /// # Errors
    /// When the database failed.
    pub async fn get(&self, id: Uuid) -> Result<Option<User>, DatabaseError> {
        Ok(self.database.query(Sql::SelectUser, &[&id]).await?.first().map(User::from))
    }

    /// The users whose names begin so, whatever their case, in the order of their registration; at most 1,000. Every
    /// shard is asked: no one of them knows all such names. (PostgreSQL decides what a letter's other case is; a
    /// database with the locale C knows those of ASCII.)
    ///
    /// # Errors
    /// [`SearchError::BadName`] when a prefix is empty or cannot begin a name, or when the database failed.
    pub async fn search(&self, first_name: &str, last_name: &str) -> Result<Vec<User>, SearchError> {
        check_text("first_name", first_name, 1, NAME_LIMIT).map_err(SearchError::BadName)?;
        check_text("last_name", last_name, 1, NAME_LIMIT).map_err(SearchError::BadName)?;
        let (first, second) = (pattern(first_name), pattern(last_name));
        let rows = self.database.query(Sql::SearchUsers, &[&first, &second, &SEARCH_LIMIT]).await?;
        Ok(rows.iter().map(User::from).collect())
    }
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;
    use proptest::prelude::*;

    use super::*;

    fn somebody() -> NewUser {
        NewUser {
            first_name: "Ада".into(),
            second_name: "Lovelace".into(),
            birthdate: Some(date(1915, 12, 10)),
            biography: None,
            city: None,
        }
    }

    #[test]
    fn each_field_has_its_limits() {
        let today = date(2026, 1, 2);
        let check = |change: &dyn Fn(&mut NewUser)| {
            let mut user = somebody();
            change(&mut user);
            user.check("secret", today)
        };
        assert_eq!(check(&|_| ()), Ok(()));
        assert_eq!(check(&|user| user.first_name = "я".repeat(200)), Ok(()));
        assert_eq!(check(&|user| user.birthdate = Some(today)), Ok(()));
        for (name, change) in [
            ("first_name", &(|user: &mut NewUser| user.first_name.clear()) as &dyn Fn(&mut NewUser)),
            ("first_name", &|user| user.first_name = "я".repeat(201)),
            ("second_name", &|user| user.second_name = "a\0b".into()),
            ("city", &|user| user.city = Some("a".repeat(201))),
            ("biography", &|user| user.biography = Some("a".repeat(4097))),
            ("birthdate", &|user| user.birthdate = Some(date(2026, 1, 3))),
            ("birthdate", &|user| user.birthdate = Some(date(1899, 12, 31))),
        ] {
            let error = check(change).unwrap_err();
            assert!(error.starts_with(name), "{name}: {error}");
        }
        assert!(somebody().check("", today).unwrap_err().starts_with("password"));
        assert!(somebody().check(&"p".repeat(1025), today).unwrap_err().starts_with("password"));
    }

    #[test]
    fn dates_are_written_in_one_way() {
        assert_eq!(parse_date("2017-02-01"), Ok(date(2017, 2, 1)));
        for text in [
            "",
            "2017-02-30",
            "20170201",
            "2017-2-1",
            "2017-02-01T00:00:00Z",
            "01.02.2017",
            "-009999-01-01",
            "0000-00-00",
            "2017-02-0１",
            "99999-01-01",
            "+2017-01-1",
        ] {
            assert!(parse_date(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_prefix_is_no_pattern() {
        assert_eq!(pattern("Ада"), "Ада%");
        assert_eq!(pattern(r"100%_\"), r"100\%\_\\%");
    }

    proptest! {
        #[test]
        fn any_text_is_a_date_or_an_error(text in ".*") {
            if let Ok(date) = parse_date(&text) {
                prop_assert_eq!(date.to_string(), text);
            }
        }

        #[test]
        fn length_is_counted_in_characters(text in "[^\0]{0,40}", most in 0_usize..40) {
            prop_assert_eq!(check_text("text", &text, 0, most).is_ok(), text.chars().count() <= most);
        }
    }
}
