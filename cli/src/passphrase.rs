//! The passphrase of the device's file on the command line.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use keypool_client::{LocalStore, Settings};

use crate::{error::Result, output::Output, secrets};

/// The subcommands of `keypool passphrase`.
#[expect(clippy::doc_markdown, reason = "clap prints these lines as they stand")]
#[derive(Debug, Subcommand)]
pub enum PassphraseCommand {
    /// Encrypt this device's file with a new passphrase
    ///
    /// Asks for the old passphrase, if there is one, and twice for the new one. The file is written anew, and the old one
    /// overwritten. Backups keep the passphrase that they had.
    #[command(after_help = "Example: keypool passphrase change")]
    Change {
        /// A file with the new passphrase; KEYPOOL_NEW_PASSPHRASE may hold the new passphrase itself
        #[arg(long, value_name = "FILE")]
        new_passphrase_file: Option<PathBuf>,
    },
    /// Decrypt this device's file: anybody who can read it can act as the device
    #[command(after_help = "Example: keypool passphrase remove")]
    Remove,
}

/// Changes the passphrase. Works without the server.
pub fn passphrase(command: &PassphraseCommand, directory: &Path, settings: Settings, output: &Output) -> Result<()> {
    let old = secrets::with_passphrase(directory, settings)?.passphrase;
    match command {
        PassphraseCommand::Change { new_passphrase_file } => {
            let given = secrets::read_passphrase(new_passphrase_file.as_deref(), "KEYPOOL_NEW_PASSPHRASE")?;
            let new = match given {
                Some(new) => new,
                None => {
                    secrets::ask_new_passphrase(directory, "in KEYPOOL_NEW_PASSPHRASE or by --new-passphrase-file")?
                }
            };
            LocalStore::change_passphrase(directory, old.as_ref(), Some(&new))?;
            output.done("The file of this device is encrypted with the new passphrase.")
        }
        PassphraseCommand::Remove => {
            LocalStore::change_passphrase(directory, old.as_ref(), None)?;
            output.done("The file of this device is not encrypted any more.")
        }
    }
}
