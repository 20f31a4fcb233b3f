//! Tests of the sorted files of tags.

use super::*;

/// Spreads numbers over all 64 bits.
fn spread(number: u64) -> u64 {
    let mut hash = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

struct Fixture {
    directory: tempfile::TempDir,
    tags: Tags,
    met: BTreeSet<Group>,
}

impl Fixture {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), tags: Tags::default(), met: BTreeSet::new() }
    }

    fn add(&mut self, entries: impl IntoIterator<Item = Entry>) {
        let mut entries: Vec<_> = entries.into_iter().collect();
        self.met.extend(self.tags.add(self.directory.path(), &mut entries).unwrap());
        assert!(entries.is_empty());
        self.tags.remove_others(self.directory.path()).unwrap();
        self.tags.check_files(self.directory.path()).unwrap();
    }

    fn check(&mut self) -> BTreeSet<Group> {
        self.met.extend(self.tags.check(self.directory.path()).unwrap());
        std::mem::take(&mut self.met)
    }

    fn find(&self, tag: u64) -> Vec<u64> {
        let mut found = self.tags.find(self.directory.path(), tag).unwrap();
        found.sort_unstable();
        found
    }
}

#[test]
fn sixteen_runs_of_a_size_become_one() {
    let mut fixture = Fixture::new();
    for run in 0..300 {
        fixture.add((0..10).map(|i| (spread(run * 10 + i), run * 10 + i)));
    }
    // 300 is 1 * 256 + 2 * 16 + 12.
    let levels: Vec<_> = fixture.tags.runs.iter().map(|run| run.level).collect();
    assert_eq!(levels, [vec![2], vec![1; 2], vec![0; 12]].concat());
    assert_eq!((fixture.tags.count(), fixture.tags.names().count()), (3000, 15));
    assert_eq!(fixture.check(), BTreeSet::new());
    for number in 0..3000 {
        assert_eq!(fixture.find(spread(number)), [number]);
        assert_eq!(fixture.find(spread(number) ^ 1), [0; 0]);
    }
}

/// Equal tags are found whether they meet in one run, in a merge, or only in the check; by few lookups or by reading all.
#[test]
fn equal_tags_are_found_wherever_they_are() {
    for (first, second, size) in [(3, 7, 10), (3, 25, 10), (3, 950, 10), (9_999, 10_001, 10_000), (5, 39_999, 10_000)] {
        let mut fixture = Fixture::new();
        let tag = |index| if index == second { spread(first) } else { spread(index) };
        for run in 0..=second / size {
            fixture.add((run * size..(run + 1) * size).map(|index| (tag(index), index)));
        }
        assert_eq!(fixture.check(), BTreeSet::from([vec![first, second]]), "{first} {second} {size}");
    }
}

#[test]
fn few_new_tags_are_looked_up_and_many_are_read_with_all() {
    let mut fixture = Fixture::new();
    fixture.add((0..20_000).map(|index| (spread(index), index)));
    assert_eq!(fixture.check(), BTreeSet::new());
    for (new, repeats) in [(20_000..20_003, 7), (20_003..21_000, 8)] {
        let few = (new.end - new.start) * LOOKUP_RATIO < fixture.tags.count();
        assert_eq!(few, repeats == 7);
        let last = new.end - 1;
        let tag = |index| if index == last { spread(repeats) } else { spread(index) };
        fixture.add(new.map(|index| (tag(index), index)));
        assert!(fixture.check().contains(&vec![repeats, last]));
    }
    assert!(fixture.tags.runs.iter().all(|run| run.checked));
    assert_eq!(fixture.find(spread(7)), [7, 20_002]);
}

/// Tags need not be random: a log can choose them. The search gets slower then, and stays right.
#[test]
fn tags_that_are_not_random_are_found() {
    let mut fixture = Fixture::new();
    let low = |index| (index / 3, index);
    fixture.add((0..3000).map(low));
    assert_eq!(fixture.check().len(), 1000);
    for tag in [0, 1, 500, 999] {
        assert_eq!(fixture.find(tag), [tag * 3, tag * 3 + 1, tag * 3 + 2]);
    }
    assert_eq!((fixture.find(1000), fixture.find(u64::MAX)), (Vec::new(), Vec::new()));
    let mut fixture = Fixture::new();
    fixture.add((0..1000).map(|index| (u64::MAX - index, index)));
    assert_eq!((fixture.find(u64::MAX), fixture.find(u64::MAX - 999), fixture.find(5)), (vec![0], vec![999], vec![]));
}

/// A log puts other tags with the same beginning between two equal ones: all of a group are compared.
#[test]
fn a_group_has_all_tags_with_one_beginning() {
    for runs in [1, 2, 5] {
        let mut fixture = Fixture::new();
        let entries: Vec<_> = (0..2000).map(|index| (spread(index / 5), index)).collect();
        for run in 0..runs {
            fixture.add(entries.iter().copied().filter(|(_, index)| index % runs == run));
        }
        let groups = fixture.check();
        let whole = |first: u64| groups.contains(&(first..first + 5).collect::<Vec<_>>());
        assert!((0..2000).step_by(5).all(whole), "{runs}");
        // The same by lookups.
        fixture.add((10_000..60_000).map(|index| (spread(index), index)));
        fixture.check();
        fixture.add([(spread(3), 70_000)]);
        assert_eq!(fixture.check(), BTreeSet::from([vec![15, 16, 17, 18, 19, 70_000]]));
    }
}

#[test]
fn a_log_of_equal_beginnings_is_given_up_and_does_not_fill_the_memory() {
    let fixture = Fixture::new();
    let mut tags = Tags::default();
    let mut entries: Vec<_> = (0..70_000).map(|index| (7, index)).collect();
    let error = tags.add(fixture.directory.path(), &mut entries).unwrap_err();
    assert!(error.to_string().contains("more than 65536"), "{error}");
}
