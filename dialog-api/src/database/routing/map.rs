//! Which node holds which hashes: sorted ranges, searched by halving. No IO here.

use std::fmt;

use crate::database::tables::Table;

/// One shard of the tables that are cut alike: the hashes from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range<N> {
    /// Smallest hash.
    pub first: i32,
    /// Greatest hash.
    pub last: i32,
    /// Where the shard is.
    pub node: N,
}

/// Tables that are cut at the same hashes and lie together (a colocation group), and where their shards are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group<N> {
    ranges: Vec<Range<N>>,
}

/// Ranges that cannot be: two of them claim the same hash, or one ends before it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the shard of hashes {} to {} and the one of hashes {} to {} contradict each other", .0.0, .0.1, .1.0, .1.1)]
pub struct Contradiction(pub (i32, i32), pub (i32, i32));

impl<N: Copy> Group<N> {
    /// Sorts the ranges. They may leave gaps: nobody is known to hold those hashes. A range given twice is a shard
    /// with two placements; the first is taken.
    ///
    /// # Errors
    /// When ranges overlap otherwise, or one ends before it begins.
    pub fn new(mut ranges: Vec<Range<N>>) -> Result<Self, Contradiction> {
        // Stable: among equal ranges the first given stays the first.
        ranges.sort_by_key(|range| (range.first, range.last));
        ranges.dedup_by_key(|range| (range.first, range.last));
        let ends = |range: &Range<N>| (range.first, range.last);
        for range in &ranges {
            if range.first > range.last {
                return Err(Contradiction(ends(range), ends(range)));
            }
        }
        for pair in ranges.windows(2) {
            if pair[0].last >= pair[1].first {
                return Err(Contradiction(ends(&pair[0]), ends(&pair[1])));
            }
        }
        Ok(Self { ranges })
    }

    /// Who holds this hash, as far as is known.
    #[must_use]
    pub fn node(&self, hash: i32) -> Option<N> {
        let after = self.ranges.partition_point(|range| range.first <= hash);
        let range = &self.ranges[after.checked_sub(1)?];
        (hash <= range.last).then_some(range.node)
    }

    /// Number of shards.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.ranges.len()
    }
}

/// Where the rows of every table are. Tables that are not in it are not distributed, or not known to be.
#[derive(Clone, PartialEq, Eq)]
pub struct ShardMap<N> {
    groups: Vec<Group<N>>,
    /// For each table the index of its group.
    group_of: [Option<usize>; Table::ALL.len()],
}

impl<N> Default for ShardMap<N> {
    /// The map that knows nothing.
    fn default() -> Self {
        Self { groups: Vec::new(), group_of: [None; Table::ALL.len()] }
    }
}

impl<N: Copy> ShardMap<N> {
    /// Adds a group and the tables in it.
    pub fn insert(&mut self, tables: &[Table], group: Group<N>) {
        for table in tables {
            self.group_of[*table as usize] = Some(self.groups.len());
        }
        self.groups.push(group);
    }

    /// Who holds the rows of this table whose key has this hash, as far as is known.
    #[must_use]
    pub fn node(&self, table: Table, hash: i32) -> Option<N> {
        self.groups[self.group_of[table as usize]?].node(hash)
    }

    /// Number of shards; tables that lie together count once.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.groups.iter().map(Group::shards).sum()
    }

    /// Whether nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }
}

impl<N> fmt::Debug for ShardMap<N> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tables = Table::ALL.iter().filter(|table| self.group_of[**table as usize].is_some()).count();
        write!(formatter, "ShardMap of {tables} tables in {} groups", self.groups.len())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Cuts all hashes at these places; the ranges are numbered in order.
    fn cut(after: &BTreeSet<i32>) -> Vec<Range<usize>> {
        let firsts = std::iter::once(i32::MIN)
            .chain(after.iter().filter(|last| **last < i32::MAX).map(|last| last + 1));
        let lasts = after.iter().copied().filter(|last| *last < i32::MAX).chain([i32::MAX]);
        firsts.zip(lasts).enumerate().map(|(node, (first, last))| Range { first, last, node }).collect()
    }

    #[test]
    fn the_empty_group_knows_nothing() {
        let group = Group::<u8>::new(Vec::new()).unwrap();
        assert_eq!((group.node(0), group.node(i32::MIN), group.shards()), (None, None, 0));
    }

    #[test]
    fn hashes_in_a_gap_are_nobodys() {
        let range = |first, last, node| Range { first, last, node };
        let group = Group::new(vec![range(10, 20, 'b'), range(i32::MIN, 5, 'a')]).unwrap();
        for (hash, node) in [
            (i32::MIN, Some('a')),
            (5, Some('a')),
            (6, None),
            (9, None),
            (10, Some('b')),
            (20, Some('b')),
            (21, None),
        ] {
            assert_eq!(group.node(hash), node, "{hash}");
        }
    }

    #[test]
    fn a_second_placement_changes_nothing_and_an_overlap_is_refused() {
        let range = |first, last, node| Range { first, last, node };
        let twice = Group::new(vec![range(0, 9, 'a'), range(0, 9, 'b')]).unwrap();
        assert_eq!((twice.node(5), twice.shards()), (Some('a'), 1));
        assert_eq!(Group::new(vec![range(5, 9, 'a'), range(0, 5, 'b')]), Err(Contradiction((0, 5), (5, 9))));
        assert_eq!(Group::new(vec![range(1, 0, 'a')]), Err(Contradiction((1, 0), (1, 0))));
    }

    #[test]
    fn tables_are_found_in_their_own_group_only() {
        let all = |node| Group::new(vec![Range { first: i32::MIN, last: i32::MAX, node }]).unwrap();
        let mut map = ShardMap::default();
        assert!(map.is_empty());
        map.insert(&[Table::Messages, Table::Dialogs], all('d'));
        map.insert(&[Table::Users], all('u'));
        assert_eq!(map.node(Table::Dialogs, 1), Some('d'));
        assert_eq!(map.node(Table::Users, 1), Some('u'));
        assert_eq!(map.node(Table::Credentials, 1), None);
        assert_eq!(map.shards(), 2);
    }

    proptest! {
        /// However the hashes are cut and in whatever order the catalog lists the shards, each hash is found
        /// where a search from one end to the other finds it.
        #[test]
        fn every_hash_is_where_it_belongs(
            after in prop::collection::btree_set(any::<i32>(), 0..200),
            hashes in prop::collection::vec(any::<i32>(), 100),
            shuffle in any::<u64>(),
        ) {
            let ranges = cut(&after);
            let mut listed = ranges.clone();
            listed.sort_by_key(|range| u64::from(range.first.cast_unsigned()).wrapping_mul(shuffle | 1));
            let group = Group::new(listed).unwrap();
            let edges = ranges.iter().flat_map(|range| [range.first, range.last]);
            for hash in hashes.into_iter().chain(edges) {
                let expected = ranges.iter().find(|range| range.first <= hash && hash <= range.last);
                prop_assert_eq!(group.node(hash), expected.map(|range| range.node));
            }
        }
    }
}
