//! Passwords: argon2id, a few at a time.
//!
//! Hashing is made to be expensive, so a flood of logins could take the processors from everything else.
//! Hence three bounds: how many are hashed at a time (on threads of their own), how many may wait for that, and
//! how long. Beyond them the answer is at once that there is too much to do.

use std::{sync::Arc, time::Duration};

use argon2::{
    Algorithm, Argon2, Block, Params, Version,
    password_hash::{
        Error, generate_salt,
        phc::{Output, ParamsString, PasswordHash, Salt},
    },
};
use tokio::{sync::Semaphore, task, time::timeout};

/// Passes over the memory.
const ITERATIONS: u32 = 2;
/// Lanes of one hash; more would only spread one hash over more threads.
const PARALLELISM: u32 = 1;

/// Why a password was not hashed or checked.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// Too many passwords are waiting already, or this one waited for too long.
    #[error("too many logins at the moment")]
    Overloaded,
    /// The hash in the database is not one, or the system gave no random numbers.
    #[error("hashing failed: {0}")]
    Failed(String),
}

/// Hashes and checks passwords within its bounds.
pub struct Passwords {
    argon2: Argon2<'static>,
    /// One permit per password that is being hashed or waits for that.
    admitted: Semaphore,
    /// One permit per password that is being hashed.
    running: Arc<Semaphore>,
    wait: Duration,
}

impl Passwords {
    /// `concurrency` passwords at a time, `queue` more may wait for at most `wait`; `memory` in KiB per hash.
    ///
    /// # Errors
    /// When argon2 does not allow this amount of memory.
    pub fn new(concurrency: usize, queue: usize, wait: Duration, memory: u32) -> Result<Self, PasswordError> {
        let params = Params::new(memory, ITERATIONS, PARALLELISM, None)
            .map_err(|error| PasswordError::Failed(error.to_string()))?;
        Ok(Self {
            argon2: Argon2::new(Algorithm::Argon2id, Version::V0x13, params),
            admitted: Semaphore::new(concurrency + queue),
            running: Arc::new(Semaphore::new(concurrency)),
            wait,
        })
    }

    /// Hashes a new password with a random salt; the result is a PHC string, parameters included.
    ///
    /// # Errors
    /// [`PasswordError::Overloaded`] when it would have to wait for too long.
    pub async fn hash(&self, password: String) -> Result<String, PasswordError> {
        let argon2 = self.argon2.clone();
        self.run(move || new_hash(&argon2, password.as_bytes()))
            .await?
            .map_err(|error| PasswordError::Failed(error.to_string()))
    }

    /// Whether the password belongs to the hash. Without a hash, which is to say without such a user, the
    /// answer is no, and takes as long: otherwise the time would tell who exists.
    ///
    /// # Errors
    /// [`PasswordError::Overloaded`] when it would have to wait for too long.
    pub async fn verify(&self, password: String, hash: Option<String>) -> Result<bool, PasswordError> {
        let argon2 = self.argon2.clone();
        self.run(move || match hash {
            Some(hash) => matches(&hash, password.as_bytes()),
            None => new_hash(&argon2, password.as_bytes()).map(|_| false),
        })
        .await?
        .map_err(|error| PasswordError::Failed(error.to_string()))
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PasswordError> {
        let _admitted = self.admitted.try_acquire().map_err(|_| PasswordError::Overloaded)?;
        let running = timeout(self.wait, Arc::clone(&self.running).acquire_owned())
            .await
            .map_err(|_| PasswordError::Overloaded)?
            .map_err(|error| PasswordError::Failed(error.to_string()))?;
        task::spawn_blocking(move || {
            // Kept until the work is done, even if whoever asked for it is gone by then.
            let _running = running;
            work()
        })
        .await
        .map_err(|error| PasswordError::Failed(error.to_string()))
    }
}

/// Hashes with a new random salt; the result is a PHC string.
fn new_hash(argon2: &Argon2<'_>, password: &[u8]) -> Result<String, Error> {
    let salt = generate_salt();
    let hash = PasswordHash {
        algorithm: Algorithm::Argon2id.ident(),
        version: Some(Version::V0x13.into()),
        params: ParamsString::try_from(argon2.params())?,
        salt: Some(Salt::new(&salt)?),
        hash: Some(compute(argon2, password, &salt)?),
    };
    Ok(hash.to_string())
}

/// Whether the password is that of the PHC string, by the string's own parameters.
fn matches(hash: &str, password: &[u8]) -> Result<bool, Error> {
    let hash = PasswordHash::new(hash)?;
    let (Some(salt), Some(expected)) = (&hash.salt, &hash.hash) else { return Err(Error::SaltInvalid) };
    let algorithm = Algorithm::try_from(hash.algorithm.as_str())?;
    let version = hash.version.map_or(Ok(Version::V0x13), Version::try_from)?;
    let argon2 = Argon2::new(algorithm, version, Params::try_from(&hash)?);
    // Outputs are compared in constant time.
    Ok(compute(&argon2, password, salt)? == *expected)
}

fn compute(argon2: &Argon2<'_>, password: &[u8], salt: &[u8]) -> Result<Output, Error> {
    let params = argon2.params();
    let mut memory = vec![Block::default(); params.block_count()];
    let mut output = vec![0; params.output_len().unwrap_or(Params::DEFAULT_OUTPUT_LEN)];
    argon2.hash_password_into_with_memory(password, salt, &mut output, &mut memory[..])?;
    Ok(Output::new(&output)?)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn passwords(concurrency: usize, queue: usize, wait: Duration) -> Passwords {
        Passwords::new(concurrency, queue, wait, 64).unwrap()
    }

    #[tokio::test]
    async fn the_right_password_and_no_other() {
        let passwords = passwords(1, 8, Duration::from_secs(5));
        let hash = passwords.hash("correct horse".into()).await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=64,t=2,p=1$"), "{hash}");
        assert!(passwords.verify("correct horse".into(), Some(hash.clone())).await.unwrap());
        assert!(!passwords.verify("correct horsf".into(), Some(hash)).await.unwrap());
        assert!(!passwords.verify("correct horse".into(), None).await.unwrap());
    }

    /// The known answer of the reference implementation for `argon2 somesalt -id -t 2 -k 256 -p 1`.
    #[tokio::test]
    async fn hashes_made_elsewhere_verify() {
        let hash = "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4";
        let passwords = passwords(1, 1, Duration::from_secs(5));
        assert!(passwords.verify("password".into(), Some(hash.into())).await.unwrap());
        assert!(!passwords.verify("Password".into(), Some(hash.into())).await.unwrap());
    }

    #[tokio::test]
    async fn the_same_password_has_different_hashes() {
        let passwords = passwords(1, 8, Duration::from_secs(5));
        assert_ne!(
            passwords.hash("same".into()).await.unwrap(),
            passwords.hash("same".into()).await.unwrap()
        );
    }

    #[tokio::test]
    async fn a_hash_of_other_parameters_still_verifies() {
        let old = Passwords::new(1, 1, Duration::from_secs(5), 128).unwrap();
        let hash = old.hash("password".into()).await.unwrap();
        let new = passwords(1, 1, Duration::from_secs(5));
        assert!(new.verify("password".into(), Some(hash)).await.unwrap());
    }

    #[tokio::test]
    async fn garbage_instead_of_a_hash_is_an_error_and_not_a_match() {
        let passwords = passwords(1, 1, Duration::from_secs(5));
        let outcome = passwords.verify("password".into(), Some("garbage".into())).await;
        assert!(matches!(outcome, Err(PasswordError::Failed(_))), "{outcome:?}");
    }

    #[tokio::test]
    async fn one_more_than_may_wait_is_turned_away_at_once() {
        let passwords = passwords(1, 1, Duration::from_mins(1));
        let (release, blocked) = std::sync::mpsc::channel::<()>();
        let running = passwords.run(move || blocked.recv().is_ok());
        let waiting = passwords.hash("waits".into());
        let turned_away = async {
            // Polled after the two before it, which therefore hold both permits.
            let started = Instant::now();
            let outcome = passwords.hash("too many".into()).await;
            let elapsed = started.elapsed();
            release.send(()).unwrap();
            (outcome, elapsed)
        };
        let (running, waiting, (outcome, elapsed)) =
            futures::future::join3(running, waiting, turned_away).await;
        assert!(matches!(outcome, Err(PasswordError::Overloaded)));
        assert!(elapsed < Duration::from_secs(1), "{elapsed:?}");
        assert!(running.unwrap());
        assert!(waiting.is_ok());
    }

    #[tokio::test]
    async fn waiting_has_an_end() {
        let passwords = passwords(1, 1, Duration::from_millis(20));
        let (release, blocked) = std::sync::mpsc::channel::<()>();
        let running = passwords.run(move || blocked.recv().is_ok());
        let waiting = async {
            let outcome = passwords.hash("waits".into()).await;
            release.send(()).unwrap();
            outcome
        };
        let (_, outcome) = futures::future::join(running, waiting).await;
        assert!(matches!(outcome, Err(PasswordError::Overloaded)));
    }
}
