//! Groups and messages on the command line.

use clap::{Args, Subcommand};
use keypool_openapi::{DeviceOf, InvalidId, UserName};

use super::output::Output;
use crate::{
    client::MlsClient,
    error::{Error, Result},
};

/// What to do with groups.
#[derive(Debug, Subcommand)]
pub(super) enum GroupCommand {
    /// Make a group with this device as its only member
    #[command(
        after_help = "Example: keypool group create friends\n\nThe name travels encrypted: the server never sees it."
    )]
    Create {
        /// How its members call it
        name: String,
    },
    /// List the groups that this device is in
    List,
    /// Add all devices of users to a group
    #[command(after_help = "Example: keypool group invite friends bob carol")]
    Invite {
        /// The group, by its name or the beginning of its id
        group: String,
        /// Whom
        #[arg(required = true)]
        users: Vec<UserName>,
    },
    /// Remove all devices of a user from a group
    Remove {
        /// The group, by its name or the beginning of its id
        group: String,
        /// Whom
        user: UserName,
    },
    /// Make a new group of the same name with everybody else, where a group cannot be changed any more
    ///
    /// That is so after a change that was refused because somebody in it is not who they say they are. The old group is
    /// read-only from then on.
    #[command(after_help = "Example: keypool group renew friends --without mallory/laptop")]
    Renew {
        /// The group, by its name or the beginning of its id
        group: String,
        /// A device that is not to be in the new group; may be given several times
        #[arg(long, value_name = "USER/DEVICE", value_parser = device)]
        without: Vec<DeviceOf>,
    },
    /// List the devices in a group
    Members {
        /// The group, by its name or the beginning of its id
        group: String,
    },
    /// Replace this device's keys in a group
    Update {
        /// The group, by its name or the beginning of its id
        group: String,
    },
    /// Leave a group
    ///
    /// The others are asked to remove this device; it is out when one of them has. Asked for once more in the meantime, this
    /// device forgets the group without waiting for them.
    Leave {
        /// The group, by its name or the beginning of its id
        group: String,
    },
}

/// What to say.
#[derive(Debug, Args)]
pub(super) struct SendArgs {
    /// The group, by its name or the beginning of its id
    group: String,
    /// What to say
    text: String,
}

/// What to wait for.
#[derive(Debug, Args)]
pub(super) struct ReceiveArgs {
    /// How many seconds to wait for something, where there is nothing
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=60))]
    wait: u32,
}

pub(super) async fn group(command: GroupCommand, client: &MlsClient, output: &Output) -> Result<()> {
    let membership = client.membership();
    match command {
        GroupCommand::Create { name } => output.group_created(&membership.create_named_group(&name)?),
        GroupCommand::List => output.groups(&membership.groups()?),
        GroupCommand::Invite { group, users } => {
            let group = membership.find_group(&group)?;
            output.invited(&group, &membership.invite(&group.group_id, &users).await?);
        }
        GroupCommand::Remove { group, user } => {
            let group = membership.find_group(&group)?;
            output.removed(&group, &membership.remove(&group.group_id, &user).await?);
        }
        GroupCommand::Renew { group, without } => {
            let group = membership.find_group(&group)?;
            output.renewed(&membership.renew(&group.group_id, &without).await?);
        }
        GroupCommand::Members { group } => {
            output.members(&membership.members(&membership.find_group(&group)?.group_id)?);
        }
        GroupCommand::Update { group } => {
            let group = membership.find_group(&group)?;
            let undelivered = membership.update_keys(&group.group_id).await?;
            output.delivered(&format!("This device has new keys in {}.", group.name), &undelivered);
        }
        GroupCommand::Leave { group } => {
            let group = membership.find_group(&group)?;
            let undelivered = membership.leave(&group.group_id).await?;
            output.delivered(&format!("The members of {} are asked to let this device go.", group.name), &undelivered);
        }
    }
    Ok(())
}

/// Reads `USER/DEVICE`.
pub(super) fn device(text: &str) -> std::result::Result<DeviceOf, String> {
    let (user, device) = text.split_once('/').ok_or("give it as USER/DEVICE, as `keypool group members` prints it")?;
    let user = user.parse().map_err(|error: InvalidId| error.to_string())?;
    let device = device.parse().map_err(|error: InvalidId| error.to_string())?;
    Ok(DeviceOf { user, device })
}

pub(super) async fn send(args: SendArgs, client: &MlsClient, output: &Output) -> Result<()> {
    let membership = client.membership();
    let group = membership.find_group(&args.group)?;
    let undelivered = membership.send(&group.group_id, &args.text).await?;
    output.delivered(&format!("Sent to {}.", group.name), &undelivered);
    Ok(())
}

/// Prints what came, and only when that is out says that it is dealt with: the server has it no more.
pub(super) async fn receive(args: &ReceiveArgs, client: &MlsClient, output: &Output) -> Result<()> {
    let membership = client.membership();
    let incoming = membership.receive(args.wait).await?;
    output.received(&membership.groups()?, &incoming).map_err(|source| Error::Unprinted { source })?;
    membership.done(&incoming)
}
