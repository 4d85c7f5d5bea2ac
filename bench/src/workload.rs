//! What is asked: the mix of sends and lists, and which dialogs they go to.

use std::str::FromStr;

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use rand_distr::{Distribution as _, Zipf};

use crate::population::Population;

/// How many others the one heavy sender writes to, and how many write to the one receiver.
const CROWD: u64 = 100_000;

/// How requests are spread over dialogs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Skew {
    /// Every dialog alike.
    Uniform,
    /// By Zipf's law: the dialog of rank r is drawn in proportion to r to the power of minus this.
    Zipf(f64),
    /// This share of requests comes from one user and goes to 100,000 others in turn.
    HeavySender(f64),
    /// This share of requests belongs to one pair.
    HotPair(f64),
    /// This share of requests comes from 100,000 users and goes to one.
    FanIn(f64),
}

impl FromStr for Skew {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORMS: &str = "uniform, zipf:EXPONENT, heavy-sender:SHARE, hot-pair:SHARE or fan-in:SHARE";
        let (name, value) = text.split_once(':').map_or((text, None), |(name, value)| (name, Some(value)));
        let number = value
            .map(|value| value.parse::<f64>().map_err(|_| format!("`{value}` is no number: write {FORMS}")))
            .transpose()?;
        match (name, number) {
            ("uniform", None) => Ok(Self::Uniform),
            ("zipf", Some(exponent)) if exponent > 0.0 && exponent <= 10.0 => Ok(Self::Zipf(exponent)),
            ("heavy-sender", Some(share)) if is_share(share) => Ok(Self::HeavySender(share)),
            ("hot-pair", Some(share)) if is_share(share) => Ok(Self::HotPair(share)),
            ("fan-in", Some(share)) if is_share(share) => Ok(Self::FanIn(share)),
            _ => Err(format!("write {FORMS}; a share is above 0 and at most 1, an exponent at most 10")),
        }
    }
}

impl std::fmt::Display for Skew {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Uniform => formatter.write_str("uniform"),
            Self::Zipf(exponent) => write!(formatter, "zipf:{exponent}"),
            Self::HeavySender(share) => write!(formatter, "heavy-sender:{share}"),
            Self::HotPair(share) => write!(formatter, "hot-pair:{share}"),
            Self::FanIn(share) => write!(formatter, "fan-in:{share}"),
        }
    }
}

fn is_share(number: f64) -> bool {
    number > 0.0 && number <= 1.0
}

/// Whether a message is sent or a dialog is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `POST /dialog/{user_id}/send`
    Send,
    /// `GET /dialog/{user_id}/list`
    List,
}

/// One request, by the numbers of its users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// What is asked.
    pub kind: Kind,
    /// Who asks.
    pub from: u64,
    /// Whose dialog with the one who asks it is about.
    pub to: u64,
}

/// An endless sequence of operations, the same for the same seed.
pub struct Workload {
    population: Population,
    skew: Skew,
    lists: f64,
    ranks: Option<Zipf<f64>>,
    random: SmallRng,
    turn: u64,
}

impl Workload {
    /// Operations on this population; `lists` is the share of lists among them, 0 to 1.
    ///
    /// # Errors
    /// When the share is none, or the skew has an impossible exponent.
    #[allow(clippy::cast_precision_loss, reason = "the number of dialogs is far below 2^53")]
    pub fn new(population: Population, skew: Skew, lists: f64, seed: u64) -> Result<Self, String> {
        if !(0.0..=1.0).contains(&lists) {
            return Err(format!("the share of lists is 0 to 1, not {lists}"));
        }
        let ranks = match skew {
            Skew::Zipf(exponent) => Some(
                Zipf::new(population.dialogs() as f64, exponent)
                    .map_err(|error| format!("Zipf's law: {error}"))?,
            ),
            _ => None,
        };
        Ok(Self { population, skew, lists, ranks, random: SmallRng::seed_from_u64(seed), turn: 0 })
    }

    fn pair(&mut self) -> (u64, u64) {
        match self.skew {
            Skew::HotPair(share) if self.random.random_bool(share) => self.either_way(0),
            Skew::HeavySender(share) if self.random.random_bool(share) => (0, self.one_of_the_crowd()),
            Skew::FanIn(share) if self.random.random_bool(share) => (self.one_of_the_crowd(), 0),
            _ => {
                let dialog = self.dialog();
                self.either_way(dialog)
            }
        }
    }

    /// The others take turns, so that each gets as much as any.
    fn one_of_the_crowd(&mut self) -> u64 {
        self.turn += 1;
        1 + self.turn % CROWD.min(self.population.users() - 1)
    }

    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank is a whole number from 1 to the number of dialogs"
    )]
    fn dialog(&mut self) -> u64 {
        let last = self.population.dialogs() - 1;
        match &self.ranks {
            Some(ranks) => (ranks.sample(&mut self.random) as u64).saturating_sub(1).min(last),
            None => self.random.random_range(0..=last),
        }
    }

    fn either_way(&mut self, dialog: u64) -> (u64, u64) {
        let (one, other) = self.population.members(dialog);
        if self.random.random() { (one, other) } else { (other, one) }
    }
}

impl Iterator for Workload {
    type Item = Operation;

    fn next(&mut self) -> Option<Operation> {
        let kind = if self.random.random_bool(self.lists) { Kind::List } else { Kind::Send };
        let (from, to) = self.pair();
        Some(Operation { kind, from, to })
    }
}

#[cfg(test)]
#[allow(clippy::cast_precision_loss, reason = "small counts")]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    const DRAWS: usize = 200_000;

    fn draw(skew: Skew, lists: f64) -> Vec<Operation> {
        let population = Population::new(1_000, 10_000, 1).unwrap();
        Workload::new(population, skew, lists, 42).unwrap().take(DRAWS).collect()
    }

    fn share(operations: &[Operation], wanted: impl Fn(&Operation) -> bool) -> f64 {
        operations.iter().filter(|operation| wanted(operation)).count() as f64 / operations.len() as f64
    }

    #[test]
    fn skews_are_written_as_they_are_read() {
        for text in ["uniform", "zipf:0.99", "heavy-sender:0.3", "hot-pair:0.2", "fan-in:1"] {
            assert_eq!(text.parse::<Skew>().unwrap().to_string(), text);
        }
        for text in ["zipf", "uniform:1", "hot-pair:2", "hot-pair:x", "zipf:0", "zipf:-1", "normal:1", ""] {
            assert!(text.parse::<Skew>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_mix_is_as_asked_for() {
        let lists = |operation: &Operation| operation.kind == Kind::List;
        assert!((share(&draw(Skew::Uniform, 0.8), lists) - 0.8).abs() < 0.01);
        assert!(!draw(Skew::Uniform, 0.0).iter().any(lists));
        assert!(draw(Skew::Uniform, 1.0).iter().all(lists));
    }

    #[test]
    fn the_same_seed_asks_the_same() {
        assert_eq!(draw(Skew::Zipf(0.9), 0.5), draw(Skew::Zipf(0.9), 0.5));
    }

    /// Against the law itself: the first rank's share is 1 / H(n, s), and rank 10 has 10^-s of it.
    #[test]
    fn zipf_is_zipf() {
        let population = Population::new(1_000, 10_000, 1).unwrap();
        for exponent in [0.8, 1.0, 1.2] {
            let harmonic: f64 = (1..=10_000).map(|rank| f64::from(rank).powf(-exponent)).sum();
            let operations = draw(Skew::Zipf(exponent), 0.0);
            for rank in [1_u64, 10] {
                let (one, other) = population.members(rank - 1);
                let found = share(&operations, |operation| {
                    [(one, other), (other, one)].contains(&(operation.from, operation.to))
                });
                let law = (rank as f64).powf(-exponent) / harmonic;
                assert!((found - law).abs() < 0.15 * law, "rank {rank}, s {exponent}: {found} for {law}");
            }
        }
    }

    #[test]
    fn uniform_leaves_nobody_out() {
        let mut counts = BTreeMap::new();
        for operation in draw(Skew::Uniform, 0.0) {
            *counts
                .entry(operation.from.min(operation.to) * 1_000 + operation.from.max(operation.to))
                .or_insert(0) += 1;
        }
        assert!(counts.len() > 9_990, "{} of 10000 dialogs", counts.len());
        assert!(counts.values().all(|count| *count < 60), "none is hot");
    }

    #[test]
    fn one_pair_one_sender_one_receiver_have_their_share() {
        let (one, other) = Population::new(1_000, 10_000, 1).unwrap().members(0);
        let operations = draw(Skew::HotPair(0.2), 0.0);
        let hot = share(&operations, |operation| {
            [(one, other), (other, one)].contains(&(operation.from, operation.to))
        });
        assert!((hot - 0.2).abs() < 0.01, "{hot}");

        let operations = draw(Skew::HeavySender(0.5), 0.0);
        let heavy = share(&operations, |operation| operation.from == 0);
        assert!((heavy - 0.5).abs() < 0.02, "{heavy}");
        let peers: BTreeSet<u64> =
            operations.iter().filter(|operation| operation.from == 0).map(|operation| operation.to).collect();
        assert!(peers.len() == 999 && !peers.contains(&0), "{} peers", peers.len());

        let operations = draw(Skew::FanIn(0.3), 0.0);
        let into = share(&operations, |operation| operation.to == 0);
        assert!((into - 0.3).abs() < 0.02, "{into}");
    }
}
