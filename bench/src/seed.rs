//! The data that SQL writes into both kinds of databases.

use anyhow::Result;
use keypool_validation::token::Token;

/// KeyPackages in the pool of a device that reads its status: a full pool.
pub(crate) const ADDERS_POOL: usize = 32;

/// About how many rows one statement writes.
const STEP: u64 = 250_000;

/// The range of each user's KeyPackages that one statement writes.
pub(crate) fn steps(users: u64, packages: u64) -> impl Iterator<Item = (u64, u64)> {
    let each = packages / users;
    let step = (STEP / users).max(1);
    (0..each.div_ceil(step)).map(move |number| (number * step + 1, ((number + 1) * step).min(each)))
}

/// The adders: name, token, and its hash in hex.
pub(crate) fn adders(count: usize) -> Result<Vec<(String, String, String)>> {
    (1..=count)
        .map(|number| {
            let token = Token::generate()?;
            Ok((format!("adder-{number}"), token.reveal().to_owned(), hex::encode(token.hash())))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steps_have_each_package_once() {
        assert_eq!(steps(10_000, 1_000_000).collect::<Vec<_>>(), [(1, 25), (26, 50), (51, 75), (76, 100)]);
        assert_eq!(steps(1, 300_000).collect::<Vec<_>>(), [(1, 250_000), (250_001, 300_000)]);
        assert_eq!(steps(1_000_000, 2_000_000).collect::<Vec<_>>(), [(1, 1), (2, 2)]);
    }
}
