//! Real KeyPackages of many users, generated on all cores and kept for later runs.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufReader, BufWriter, Write},
    path::Path,
};

use anyhow::{Context, Result};
use base64::{Engine, prelude::BASE64_STANDARD};
use jiff::{SignedDuration, Timestamp};
use keypool_bench::{LIFETIME, Maker};
use keypool_client::{CIPHERSUITE, Clock, SystemClock};
use serde::{Deserialize, Serialize};

use crate::{cores, progress};

/// Kept KeyPackages with less remaining lifetime are generated anew.
const MARGIN: SignedDuration = SignedDuration::from_hours(24);

/// A user, and the number of KeyPackages of the user's device.
pub(crate) type Wanted = (String, usize);

/// The file of kept KeyPackages, by user, in base64.
#[derive(Debug, Deserialize, Serialize)]
struct Kept {
    not_after: Timestamp,
    packages: BTreeMap<String, Vec<String>>,
}

impl Kept {
    /// The requested KeyPackages, if all of them are kept and live long enough.
    fn take(mut self, wanted: &[Wanted], now: Timestamp) -> Option<Vec<Vec<String>>> {
        if self.not_after.duration_since(now) < MARGIN {
            return None;
        }
        let of_one = |(user, count): &Wanted| {
            let mut packages = self.packages.remove(user).filter(|packages| packages.len() >= *count)?;
            packages.truncate(*count);
            Some(packages)
        };
        wanted.iter().map(of_one).collect()
    }
}

/// The bytes of one KeyPackage.
pub(crate) fn one() -> Result<Vec<u8>> {
    let made = make(&[("user-1".to_owned(), 1)])?;
    let text = made.first().and_then(|packages| packages.first()).context("no KeyPackage was made")?;
    BASE64_STANDARD.decode(text).context("a KeyPackage is no base64")
}

/// KeyPackages of each user in base64, in the order of the users. They come from the file beside this program if it has
/// enough; otherwise they are generated and written to the file.
pub(crate) fn kept(wanted: &[Wanted]) -> Result<Vec<Vec<String>>> {
    let path =
        std::env::current_exe().context("this program is nowhere")?.with_file_name("keypool-bench-packages.json");
    let found = File::open(&path).ok().and_then(|file| serde_json::from_reader::<_, Kept>(BufReader::new(file)).ok());
    if let Some(packages) = found.and_then(|kept| kept.take(wanted, SystemClock.now())) {
        return Ok(packages);
    }
    let made = make(wanted)?;
    let users = wanted.iter().map(|(user, _)| user.clone());
    let not_after = SystemClock.now() + SignedDuration::try_from(LIFETIME)? - SignedDuration::from_hours(1);
    write(&Kept { not_after, packages: users.zip(made.iter().cloned()).collect() }, &path)
        .with_context(|| format!("cannot keep the KeyPackages in {}", path.display()))?;
    Ok(made)
}

/// Replaces the whole file.
fn write(kept: &Kept, path: &Path) -> Result<()> {
    let mut file = BufWriter::new(tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?);
    serde_json::to_writer(&mut file, kept)?;
    file.flush()?;
    file.into_inner()?.persist(path)?;
    Ok(())
}

/// New KeyPackages of each user in base64, in the order of the users.
pub(crate) fn make(wanted: &[Wanted]) -> Result<Vec<Vec<String>>> {
    let all: usize = wanted.iter().map(|(_, count)| count).sum();
    let bar = progress::bar(u64::try_from(all)?, "KeyPackages are made")?;
    let made = cores::on_all(wanted.len(), |index| {
        let (user, count) = &wanted[index];
        let maker = Maker::new(user, CIPHERSUITE)?;
        (0..*count)
            .map(|_| {
                bar.inc(1);
                Ok(BASE64_STANDARD.encode(maker.message()?))
            })
            .collect()
    })?;
    bar.finish_and_clear();
    Ok(made)
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan;

    use super::*;

    fn kept(not_after: Timestamp) -> Kept {
        let packages = [("a".to_owned(), vec!["1".to_owned(), "2".to_owned()]), ("b".to_owned(), vec!["3".to_owned()])];
        Kept { not_after, packages: packages.into() }
    }

    #[test]
    fn kept_ones_serve_while_there_are_enough_and_they_live_for_a_day() {
        let now: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let wanted = |b, a| [("b".to_owned(), b), ("a".to_owned(), a)];
        assert_eq!(kept(now + 25.hours()).take(&wanted(1, 1), now).unwrap(), [["3"], ["1"]]);
        assert!(kept(now + 23.hours()).take(&wanted(1, 1), now).is_none(), "nearly expired");
        assert!(kept(now + 25.hours()).take(&wanted(2, 1), now).is_none(), "too few of b");
        assert!(kept(now + 25.hours()).take(&[("c".to_owned(), 1)], now).is_none(), "nobody knows c");
    }

    #[test]
    fn what_is_made_is_taken_by_the_server() {
        let made = make(&[("alice".to_owned(), 2), ("bob".to_owned(), 1)]).unwrap();
        assert_eq!(made.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
        let validator = keypool_bench::Validator::new().unwrap();
        for (user, packages) in ["alice", "bob"].into_iter().zip(made) {
            for package in packages {
                validator.validate(BASE64_STANDARD.decode(package).unwrap(), user).unwrap();
            }
        }
    }

    #[test]
    fn a_file_is_read_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("packages.json");
        let not_after: Timestamp = "2030-01-15T00:00:00Z".parse().unwrap();
        write(&kept(not_after), &path).unwrap();
        let read: Kept = serde_json::from_reader(File::open(&path).unwrap()).unwrap();
        assert_eq!((read.not_after, read.packages), (not_after, kept(not_after).packages));
    }
}
