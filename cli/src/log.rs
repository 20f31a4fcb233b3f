//! The server's transparency log on the command line.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use keypool_client::{MlsClient, ServerLog};
use keypool_openapi::ReservationId;

use crate::{
    answers::Exported,
    error::{Error, Result},
    output::Output,
};

/// The arguments of `keypool log`.
#[derive(Debug, Args)]
pub struct LogArgs {
    #[command(subcommand)]
    command: Option<LogCommand>,
}

/// The subcommands of `keypool log`.
#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// Show what this device has checked in the log, and up to where; the same as `keypool log`
    Status,
    /// Write files that `keypool-verify` checks, without this device and without the server
    ///
    /// Without a reservation, they show which devices were handed this device's KeyPackages. With one, they show that this device
    /// alone has the KeyPackage that it reserved.
    #[command(after_help = "Example: keypool log export proofs --reservation 1f-67e55044-10b1-426f-9247-bb680e5fe0c8")]
    Export {
        /// The directory for the files; it is made if it does not exist
        directory: PathBuf,
        /// A reservation of this device, as `keypool reserve` printed it
        #[arg(long, value_name = "RESERVATION_ID")]
        reservation: Option<ReservationId>,
    },
    /// Believe another key of the server's log, which the operator gave you after the old one was lost or stolen
    ///
    /// A key that the old one has named is believed without this.
    #[command(after_help = "Example: keypool log trust keypool/0123456789abcdef/2-89abcdef+1a2b3c4d+AZ…")]
    Trust {
        /// The key, as GET /log of the server shows it
        #[arg(value_name = "VKEY")]
        key: String,
    },
    /// Use the server again in spite of what was found
    ///
    /// The files with the evidence stay. Read them first: a server that hands a KeyPackage to two lets one of them join groups in
    /// the place of the other.
    Dismiss,
}

pub async fn log(args: LogArgs, client: &MlsClient, output: &Output) -> Result<()> {
    let log = client.log();
    match args.command.unwrap_or(LogCommand::Status) {
        LogCommand::Status => output.log_state(&log.state()?),
        LogCommand::Trust { key } => {
            log.trust(&key)?;
            output.done("This device believes that key from now on.")
        }
        LogCommand::Dismiss => {
            log.dismiss_findings()?;
            output.done("This device uses the server again.")
        }
        LogCommand::Export { directory, reservation } => export(&log, &directory, reservation, output).await,
    }
}

async fn export(
    log: &ServerLog<'_>,
    directory: &Path,
    reservation: Option<ReservationId>,
    output: &Output,
) -> Result<()> {
    let key = log.state()?.first_key.unwrap_or_default();
    let mut exported = Exported { files: Vec::new(), commands: Vec::new() };
    if let Some(id) = reservation {
        let proof = log.export_proof(id).await?;
        make(directory)?;
        let file = exported.write(directory, &format!("proof-{id}.json"), proof.proof.as_bytes())?;
        let key_package = exported.write(directory, &format!("keypackage-{id}"), &proof.key_package)?;
        let bind = proof.bind;
        exported.commands.push(format!(
            "keypool-verify proof {} --vkey {key} --keypackage {} --bind {bind}",
            file.display(),
            key_package.display()
        ));
    } else {
        let files = log.export_hand_outs().await?;
        make(directory)?;
        for (number, content) in (1..).zip(files) {
            let file = exported.write(directory, &format!("handouts-{number}.json"), content.as_bytes())?;
            exported.commands.push(format!("keypool-verify handouts {} --vkey {key}", file.display()));
        }
    }
    output.exported(&exported)
}

fn make(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).map_err(|source| Error::File {
        doing: "create the directory",
        path: directory.to_owned(),
        source,
    })
}

impl Exported {
    fn write(&mut self, directory: &Path, name: &str, content: &[u8]) -> Result<PathBuf> {
        let path = directory.join(name);
        fs::write(&path, content).map_err(|source| Error::File { doing: "write", path: path.clone(), source })?;
        self.files.push(path.clone());
        Ok(path)
    }
}
