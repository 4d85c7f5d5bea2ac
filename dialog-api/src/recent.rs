//! What was seen recently, in bounded memory.

use std::{borrow::Borrow, collections::HashMap, hash::Hash, mem, sync::Mutex};

/// Remembers at least the last `capacity` distinct keys that were seen, at most twice as many.
///
/// Two generations instead of a list of uses: when the young one is full it becomes the old one, and what
/// nobody asked for since then is forgotten. A lookup is one or two hash probes and never allocates.
#[derive(Debug)]
pub struct RecentMap<K, V> {
    capacity: usize,
    generations: Mutex<Generations<K, V>>,
}

#[derive(Debug)]
struct Generations<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
}

impl<K: Eq + Hash, V: Copy> RecentMap<K, V> {
    /// An empty map; `capacity` in keys, at least 1.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let generations = Mutex::new(Generations { young: HashMap::new(), old: HashMap::new() });
        Self { capacity: capacity.max(1), generations }
    }

    /// What is remembered with the key; if anything is, it counts as seen now.
    pub fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let mut generations = self.lock();
        if let Some(value) = generations.young.get(key) {
            return Some(*value);
        }
        let (key, value) = generations.old.remove_entry(key)?;
        self.add(&mut generations, key, value);
        Some(value)
    }

    /// Remembers the key and the value.
    pub fn insert(&self, key: K, value: V) {
        let mut generations = self.lock();
        self.add(&mut generations, key, value);
    }

    fn add(&self, generations: &mut Generations<K, V>, key: K, value: V) {
        generations.young.insert(key, value);
        if generations.young.len() >= self.capacity {
            generations.old = mem::take(&mut generations.young);
        }
    }

    /// A panic while the lock was held cannot leave a map half changed in a way that matters: it is a cache.
    fn lock(&self) -> std::sync::MutexGuard<'_, Generations<K, V>> {
        self.generations.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Remembers which values were seen, as [`RecentMap`] does.
#[derive(Debug)]
pub struct RecentSet<T>(RecentMap<T, ()>);

impl<T: Eq + Hash> RecentSet<T> {
    /// An empty set; `capacity` in values, at least 1.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self(RecentMap::new(capacity))
    }

    /// Whether the value was seen recently; if so, it counts as seen now.
    pub fn contains(&self, value: &T) -> bool {
        self.0.get(value).is_some()
    }

    /// Remembers the value.
    pub fn insert(&self, value: T) {
        self.0.insert(value, ());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

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
                let generations = set.0.generations.lock().unwrap();
                prop_assert!(generations.young.contains_key(value) || generations.old.contains_key(value));
            }
            let generations = set.0.generations.lock().unwrap();
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
