//! The user's devices on the command line.

use clap::Subcommand;
use keypool_client::MlsClient;
use keypool_openapi::DeviceName;
use secrecy::ExposeSecret as _;

use crate::{
    error::Result,
    link::{LinkArgs, link},
    output::Output,
};

/// The subcommands of `keypool device`.
#[derive(Debug, Subcommand)]
pub enum DeviceCommand {
    /// List your devices, with their signature keys
    List,
    /// Let a further device of yours in
    ///
    /// Prints a code, with which the new device registers, once and within 10 minutes. On a terminal it is a QR code, too. Then
    /// waits for the new device, and offers to add it to your groups. A new code ends the earlier one. With --json, prints one
    /// object with the code, and another one when the device is registered.
    #[command(after_help = "Example: keypool device link")]
    Link(LinkArgs),
    /// Remove one of your devices from the server
    ///
    /// Its token ends, and nobody can add it to groups any more. It stays in its groups: remove it there with `keypool group
    /// remove`, which removes your other devices as well, and have them invited again.
    #[command(after_help = "Example: keypool device remove phone")]
    Remove {
        /// The device's name
        device: DeviceName,
    },
    /// Give one of your devices a new bearer token, and end the old one
    ///
    /// This device uses its new token from then on. The token of another device is printed, which is a secret: give it to
    /// `keypool token --set` there.
    #[command(after_help = "Example: keypool device rotate-token phone")]
    RotateToken {
        /// The device's name
        device: DeviceName,
    },
}

pub async fn device(command: DeviceCommand, client: &MlsClient, output: &Output) -> Result<()> {
    match command {
        DeviceCommand::Link(args) => link(&args, client, output).await,
        DeviceCommand::List => output.devices(client.identity().device(), &client.devices().await?),
        DeviceCommand::Remove { device } => output.device_removed(&client.remove_device(&device).await?),
        DeviceCommand::RotateToken { device } => {
            let token = client.new_token(&device).await?;
            let is_other = device != *client.identity().device();
            output.token_rotated(&device, is_other.then(|| token.expose_secret()))
        }
    }
}
