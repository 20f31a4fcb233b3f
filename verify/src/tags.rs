//! Which tags a log has had: 8 bytes of each and its index, in sorted files, in bounded memory.
//!
//! A million of them are collected in memory, sorted and written to a run. Sixteen runs of one size are merged into one. Equal ones
//! are found when runs meet: while they are merged, or in the check of new ones against all runs.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap},
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// The bytes of an entry: 8 of the tag, and 5 of the index.
const ENTRY: usize = 13;

/// How many runs of one size are merged.
const FAN_IN: usize = 16;

/// New tags are looked up one by one if there are fewer than one in this many of the old ones, else all runs are read.
const LOOKUP_RATIO: u64 = 512;

/// The beginning of a tag, and the index of its leaf.
pub type Entry = (u64, u64);

/// The indexes of all tags that begin with the same 8 bytes: two or more.
///
/// All of them have to be compared in full, not only neighbours: the log chooses its random leaves, and could put one with
/// such a beginning between two equal tags.
pub type Group = Vec<u64>;

/// The most tags with equal beginnings that are compared. Of a billion random tags, 0.03 are expected to have one.
const MAX_EQUAL: usize = 65_536;

/// A sorted file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Its name in the directory.
    pub name: String,
    /// The number of its entries.
    pub count: u64,
    /// How often it was merged.
    pub level: u32,
    /// Whether its tags were checked against all older ones.
    pub checked: bool,
}

/// The tags of the leaves below some index. `Tags` is a value: what is on disk is what its owner saves with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tags {
    runs: Vec<Run>,
    /// Names runs.
    next: u64,
}

fn encode((tag, index): Entry) -> [u8; ENTRY] {
    let mut bytes = [0; ENTRY];
    bytes[..8].copy_from_slice(&tag.to_be_bytes());
    bytes[8..].copy_from_slice(&index.to_be_bytes()[3..]);
    bytes
}

fn decode(bytes: &[u8; ENTRY]) -> Entry {
    let (mut tag, mut index) = ([0; 8], [0; 8]);
    tag.copy_from_slice(&bytes[..8]);
    index[3..].copy_from_slice(&bytes[8..]);
    (u64::from_be_bytes(tag), u64::from_be_bytes(index))
}

/// Reads a run from its beginning.
struct RunReader {
    file: BufReader<File>,
    left: u64,
}

impl RunReader {
    fn open(directory: &Path, run: &Run) -> io::Result<Self> {
        Ok(Self { file: BufReader::with_capacity(1 << 16, File::open(directory.join(&run.name))?), left: run.count })
    }

    fn next(&mut self) -> io::Result<Option<Entry>> {
        if self.left == 0 {
            return Ok(None);
        }
        let mut bytes = [0; ENTRY];
        self.file.read_exact(&mut bytes)?;
        self.left -= 1;
        Ok(Some(decode(&bytes)))
    }
}

/// Gives the entries of all runs in order.
struct Merge {
    readers: Vec<RunReader>,
    heads: BinaryHeap<Reverse<(Entry, usize)>>,
}

impl Merge {
    fn new(directory: &Path, runs: &[Run]) -> io::Result<Self> {
        let mut merge = Self { readers: Vec::new(), heads: BinaryHeap::new() };
        for (index, run) in runs.iter().enumerate() {
            let mut reader = RunReader::open(directory, run)?;
            merge.heads.extend(reader.next()?.map(|entry| Reverse((entry, index))));
            merge.readers.push(reader);
        }
        Ok(merge)
    }

    fn next(&mut self) -> io::Result<Option<Entry>> {
        let Some(mut head) = self.heads.peek_mut() else { return Ok(None) };
        let Reverse((entry, reader)) = *head;
        match self.readers[reader].next()? {
            Some(next) => *head = Reverse((next, reader)),
            None => drop(std::collections::binary_heap::PeekMut::pop(head)),
        }
        Ok(Some(entry))
    }
}

/// Collects tags with equal beginnings from entries in order.
#[derive(Default)]
struct Equal {
    last: Option<Entry>,
    groups: Vec<Group>,
    /// Whether the last entry is in the last group.
    open: bool,
    count: usize,
}

impl Equal {
    fn see(&mut self, entry: Entry) -> io::Result<()> {
        let (tag, index) = entry;
        match self.last.replace(entry) {
            Some((other, _)) if other != tag => self.open = false,
            Some((_, first)) => {
                if !self.open {
                    self.groups.push(vec![first]);
                }
                self.open = true;
                self.groups.last_mut().into_iter().for_each(|group| group.push(index));
                self.count += 1;
                if self.count > MAX_EQUAL {
                    return Err(too_many());
                }
            }
            None => {}
        }
        Ok(())
    }
}

fn too_many() -> io::Error {
    io::Error::other(
        "more than 65536 tags begin as other ones: honest tags are random, so the log is made to stop auditors",
    )
}

impl Tags {
    /// The number of tags.
    pub fn count(&self) -> u64 {
        self.runs.iter().map(|run| run.count).sum()
    }

    /// The files that it consists of.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.runs.iter().map(|run| run.name.as_str())
    }

    /// Writes entries as a run, and merges runs while there are sixteen of one size. Gives groups of equal ones that met.
    /// Files that are not needed any more stay until [`Self::remove_others`].
    pub fn add(&mut self, directory: &Path, entries: &mut Vec<Entry>) -> io::Result<Vec<Group>> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        entries.sort_unstable();
        let mut met = Equal::default();
        let mut file = self.create(directory)?;
        for entry in entries.drain(..) {
            met.see(entry)?;
            file.write(entry)?;
        }
        self.runs.push(file.finish(0, false)?);
        let mut groups = met.groups;
        while let Some(merged) = self.merge_last(directory)? {
            groups.extend(merged);
        }
        Ok(groups)
    }

    fn create(&mut self, directory: &Path) -> io::Result<RunWriter> {
        let name = format!("tags-{}", self.next);
        self.next += 1;
        let path = directory.join(&name);
        let file = BufWriter::with_capacity(1 << 18, File::create(&path)?);
        Ok(RunWriter { name, file, count: 0 })
    }

    /// Merges the last sixteen runs if they are of one level.
    fn merge_last(&mut self, directory: &Path) -> io::Result<Option<Vec<Group>>> {
        let Some(start) = self.runs.len().checked_sub(FAN_IN) else { return Ok(None) };
        let level = self.runs[start].level;
        if self.runs[start..].iter().any(|run| run.level != level) {
            return Ok(None);
        }
        let runs = self.runs.split_off(start);
        let mut merge = Merge::new(directory, &runs)?;
        let (mut met, mut file) = (Equal::default(), self.create(directory)?);
        while let Some(entry) = merge.next()? {
            met.see(entry)?;
            file.write(entry)?;
        }
        // It was checked against all others only if each of the runs was.
        self.runs.push(file.finish(level + 1, runs.iter().all(|run| run.checked))?);
        Ok(Some(met.groups))
    }

    /// Checks the tags that were never compared with all others, and gives groups of equal ones.
    pub fn check(&mut self, directory: &Path) -> io::Result<Vec<Group>> {
        let new: u64 = self.runs.iter().filter(|run| !run.checked).map(|run| run.count).sum();
        let few = new.saturating_mul(LOOKUP_RATIO) < self.count();
        let groups = if few { self.check_few(directory)? } else { self.check_all(directory)? };
        for run in &mut self.runs {
            run.checked = true;
        }
        Ok(groups)
    }

    fn check_all(&self, directory: &Path) -> io::Result<Vec<Group>> {
        let mut merge = Merge::new(directory, &self.runs)?;
        let mut met = Equal::default();
        while let Some(entry) = merge.next()? {
            met.see(entry)?;
        }
        Ok(met.groups)
    }

    fn check_few(&self, directory: &Path) -> io::Result<Vec<Group>> {
        let (mut groups, mut count) = (BTreeSet::new(), 0);
        for run in self.runs.iter().filter(|run| !run.checked) {
            let mut reader = RunReader::open(directory, run)?;
            while let Some((tag, _)) = reader.next()? {
                let mut group = self.find(directory, tag)?;
                if group.len() > 1 {
                    group.sort_unstable();
                    count += group.len();
                    groups.insert(group);
                }
                if count > MAX_EQUAL {
                    return Err(too_many());
                }
            }
        }
        Ok(groups.into_iter().collect())
    }

    /// The indexes of tags that begin with these 8 bytes.
    pub fn find(&self, directory: &Path, tag: u64) -> io::Result<Vec<u64>> {
        let mut found = Vec::new();
        for run in &self.runs {
            let file = File::open(directory.join(&run.name))?;
            let read = |place: u64| {
                let mut bytes = [0; ENTRY];
                file.read_exact_at(&mut bytes, place * ENTRY as u64).map(|()| decode(&bytes))
            };
            let mut place = first_at_least(tag, run.count, read)?;
            while place < run.count {
                let (other, index) = read(place)?;
                if other != tag {
                    break;
                }
                found.push(index);
                place += 1;
            }
        }
        Ok(found)
    }

    /// Removes files of runs that are not of these tags.
    pub fn remove_others(&self, directory: &Path) -> io::Result<()> {
        for file in fs::read_dir(directory)? {
            let file = file?;
            let name = file.file_name();
            let name = name.to_string_lossy();
            if name.starts_with("tags-") && !self.names().any(|own| own == name) {
                fs::remove_file(file.path())?;
            }
        }
        Ok(())
    }

    /// Checks that each file has the length that it should have.
    pub fn check_files(&self, directory: &Path) -> Result<(), PathBuf> {
        for run in &self.runs {
            let path = directory.join(&run.name);
            if !fs::metadata(&path).is_ok_and(|file| file.len() == run.count * ENTRY as u64) {
                return Err(path);
            }
        }
        Ok(())
    }
}

/// The first place in a sorted run whose tag is not less. Tags are random, so the search begins near the expected place.
fn first_at_least(tag: u64, count: u64, read: impl Fn(u64) -> io::Result<Entry>) -> io::Result<u64> {
    let (mut low, mut high) = (0, count);
    let guess = u64::try_from((u128::from(tag) * u128::from(count)) >> 64).unwrap_or(0);
    let mut step = (count.isqrt() * 2).max(8);
    let (mut left, mut right) = (guess.saturating_sub(step), guess.saturating_add(step).min(count));
    // The window around the guess nearly always holds the place; else the whole run is searched.
    if left > 0 && read(left - 1)?.0 >= tag {
        (left, right) = (0, left);
    } else if right < count && read(right)?.0 < tag {
        (left, right) = (right, count);
    }
    (low, high) = (low.max(left), high.min(right));
    while low < high {
        step = low + (high - low) / 2;
        if read(step)?.0 < tag {
            low = step + 1;
        } else {
            high = step;
        }
    }
    Ok(low)
}

/// Writes a run.
struct RunWriter {
    name: String,
    file: BufWriter<File>,
    count: u64,
}

impl RunWriter {
    fn write(&mut self, entry: Entry) -> io::Result<()> {
        self.count += 1;
        self.file.write_all(&encode(entry))
    }

    fn finish(self, level: u32, checked: bool) -> io::Result<Run> {
        let file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        Ok(Run { name: self.name, count: self.count, level, checked })
    }
}

#[cfg(test)]
mod tests;
