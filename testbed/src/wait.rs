//! Waiting for what servers do in their own time.

use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// Between two questions: short beside what is waited for, long beside what it costs to ask.
const INTERVAL: Duration = Duration::from_millis(20);

/// Asks again and again until there is an answer.
///
/// # Errors
/// If asking fails, or after `limit` without an answer: then with `what` did not happen.
pub async fn eventually<T>(
    what: impl Display,
    limit: Duration,
    mut ask: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask().await? {
            return Ok(answer);
        }
        ensure!(started.elapsed() < limit, "{what}: not within {} s", limit.as_secs());
        tokio::time::sleep(INTERVAL).await;
    }
}
