//! Somebody who writes all the time, and notices every interruption.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use dialog_operator::names::Group;

use crate::bed::Bed;

/// Longest time without an acknowledged message: it was 2.4 to 2.9 s where a switchover was measured.
const LONGEST_GAP: Duration = Duration::from_secs(10);
/// An interruption that is shorter costs a wait and no answer: as long dialog-api waits for a server that was lost.
const AWAITED: Duration = Duration::from_secs(4);
/// From one message to the next, so that nothing is refused for coming too often: dialog-api takes 50 a second from one
/// user to another.
const PACE: Duration = Duration::from_millis(25);

/// Sends one message after the other through the ingress until it is stopped.
pub(crate) struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Written>,
}

struct Written {
    acknowledged: Vec<String>,
    /// Why others were not.
    refused: Vec<String>,
    gap: Duration,
}

impl Writer {
    /// Starts to write to the cluster of `bed`, which serves.
    pub(crate) fn start(bed: &Bed) -> Result<Self> {
        let (service, ada, grace) = bed.two_people()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut written = Written { acknowledged: Vec::new(), refused: Vec::new(), gap: Duration::ZERO };
            let mut last = Instant::now();
            for number in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let text = format!("message {number}");
                let started = Instant::now();
                match service.send(&ada, &grace, &text) {
                    Ok(()) => {
                        written.gap = written.gap.max(last.elapsed());
                        last = Instant::now();
                        written.acknowledged.push(text);
                    }
                    Err(error) => written.refused.push(format!("{error:#}")),
                }
                std::thread::sleep(PACE.saturating_sub(started.elapsed()));
            }
            // Whoever is refused up to the end has waited as well.
            written.gap = written.gap.max(last.elapsed());
            written
        });
        Ok(Self { stop, thread })
    }

    /// Stops, and makes sure that there was no long interruption, that a short one had nobody refused, and that nothing
    /// acknowledged is lost.
    pub(crate) async fn stop(self, bed: &Bed) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let Written { acknowledged, refused, gap } =
            self.thread.join().ok().context("the writer has panicked")?;
        let seconds = gap.as_secs_f64();
        bed.say(format!(
            "{} messages acknowledged, {} refused, longest gap {seconds:.1} s",
            acknowledged.len(),
            refused.len()
        ));
        for reason in refused.iter().take(3) {
            bed.say(format!("refused: {reason}"));
        }
        ensure!(!acknowledged.is_empty(), "no message was acknowledged");
        ensure!(gap < LONGEST_GAP, "no message was acknowledged for {seconds:.1} s");
        ensure!(
            refused.is_empty() || gap > AWAITED,
            "{} messages were refused although no interruption was longer than {seconds:.1} s",
            refused.len()
        );
        let stored = bed.sql(Group::Coordinator, "SELECT text FROM messages").await?;
        let stored: HashSet<_> = stored.lines().collect();
        let lost: Vec<_> = acknowledged.iter().filter(|text| !stored.contains(text.as_str())).collect();
        ensure!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        Ok(())
    }
}
