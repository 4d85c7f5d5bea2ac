//! A set that remembers what was seen recently, in bounded memory.

use std::{collections::HashSet, hash::Hash, mem, sync::Mutex};

/// Remembers at least the last `capacity` distinct values that were seen, at most twice as many.
///
/// Two generations instead of a list of uses: when the young one is full it becomes the old one, and what
/// nobody asked for since then is forgotten. A lookup is one or two hash probes and never allocates.
#[derive(Debug)]
pub struct RecentSet<T> {
    capacity: usize,
    generations: Mutex<Generations<T>>,
}

#[derive(Debug)]
struct Generations<T> {
    young: HashSet<T>,
    old: HashSet<T>,
}

impl<T: Eq + Hash + Copy> RecentSet<T> {
    /// An empty set; `capacity` in values, at least 1.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let generations = Mutex::new(Generations { young: HashSet::new(), old: HashSet::new() });
        Self { capacity: capacity.max(1), generations }
    }

    /// Whether the value was seen recently; if so, it counts as seen now.
    pub fn contains(&self, value: &T) -> bool {
        let mut generations = self.lock();
        if generations.young.contains(value) {
            return true;
        }
        let known = generations.old.contains(value);
        if known {
            self.add(&mut generations, *value);
        }
        known
    }

    /// Remembers the value.
    pub fn insert(&self, value: T) {
        let mut generations = self.lock();
        self.add(&mut generations, value);
    }

    fn add(&self, generations: &mut Generations<T>, value: T) {
        generations.young.insert(value);
        if generations.young.len() >= self.capacity {
            generations.old = mem::take(&mut generations.young);
        }
    }

    /// A panic while the lock was held cannot leave a set half changed in a way that matters: it is a cache.
    fn lock(&self) -> std::sync::MutexGuard<'_, Generations<T>> {
        self.generations.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_asked_for_stays() {
        let set = RecentSet::new(4);
        set.insert(0);
        for other in 1..1000 {
            set.insert(other);
            assert!(set.contains(&0), "forgotten after {other} others");
        }
    }

    proptest! {
        #[test]
        fn the_last_values_are_known_and_memory_is_bounded(
            capacity in 1_usize..50,
            values in prop::collection::vec(any::<u16>(), 0..400),
        ) {
            let set = RecentSet::new(capacity);
            for value in &values {
                set.insert(*value);
            }
            let mut recent = HashSet::new();
            for value in values.iter().rev() {
                recent.insert(*value);
                if recent.len() > capacity { break; }
                let generations = set.generations.lock().unwrap();
                prop_assert!(generations.young.contains(value) || generations.old.contains(value));
            }
            let generations = set.generations.lock().unwrap();
            prop_assert!(generations.young.len() + generations.old.len() <= 2 * capacity);
        }

        #[test]
        fn nothing_is_known_that_was_not_seen(seen in prop::collection::hash_set(0_u16..100, 0..50)) {
            let set = RecentSet::new(10);
            for value in &seen {
                set.insert(*value);
            }
            for value in 0..100 {
                prop_assert!(seen.contains(&value) || !set.contains(&value));
            }
        }
    }
}
