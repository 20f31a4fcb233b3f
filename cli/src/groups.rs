//! Groups and messages on the command line.

use std::io::{self, Read as _};

use clap::{Args, Subcommand, ValueEnum, builder::NonEmptyStringValueParser};
use keypool_client::{Group, GroupState, MlsClient, MlsMembership, Removed};
use keypool_openapi::{DeviceOf, UserName};

use crate::{
    error::{Error, Result},
    output::Output,
};

/// The subcommands of `keypool group`.
#[derive(Debug, Subcommand)]
pub enum GroupCommand {
    /// Make a group with this device as its only member
    #[command(
        after_help = "Example: keypool group create friends\n\nThe name travels encrypted: the server never sees it."
    )]
    Create {
        /// The name of the group
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
    },
    /// List the groups that this device is in
    List,
    /// Add all devices of users to a group
    #[command(after_help = "Example: keypool group invite friends bob carol")]
    Invite {
        /// The group, by its name or the beginning of its id
        group: String,
        /// The users
        #[arg(required = true)]
        users: Vec<UserName>,
    },
    /// Remove a user, with all devices, or one device from a group
    #[command(
        after_help = "Examples: keypool group remove friends bob\n          keypool group remove friends bob/phone"
    )]
    Remove {
        /// The group, by its name or the beginning of its id
        group: String,
        /// The user, or one device of it
        #[arg(value_name = "USER[/DEVICE]")]
        member: String,
    },
    /// Delete a group from this device without asking anybody
    ///
    /// For a group that is beyond help. The other members still see this device as a member: to come in again, it has to be
    /// removed and invited.
    Forget {
        /// The group, by its name or the beginning of its id
        group: String,
    },
    /// Say whether members bring new devices of the group's users in by themselves
    #[command(after_help = "Example: keypool group admit friends no\n\nBy default they do, and everybody sees it.")]
    Admit {
        /// The group, by its name or the beginning of its id
        group: String,
        /// Whether they do
        #[arg(value_enum)]
        devices: Admission,
    },
    /// Replace a group that cannot be changed any more by a new one of the same name
    ///
    /// A group cannot be changed any more after this device refused a change of it, for example because a new member
    /// has a false identity. The new group has all other members; the old one becomes read-only.
    #[command(after_help = "Example: keypool group renew friends --without mallory/laptop")]
    Renew {
        /// The group, by its name or the beginning of its id
        group: String,
        /// A device to leave out of the new group; may be given several times
        #[arg(long, value_name = "USER/DEVICE")]
        without: Vec<DeviceOf>,
    },
    /// List the devices in a group
    Members {
        /// The group, by its name or the beginning of its id
        group: String,
    },
    /// Show who added and removed whom in a group, as far as this device saw it
    #[command(
        after_help = "Example: keypool group history friends --json | jq '.[] | select(.removed != [])'\n\nThe JSON is an array, \
                      oldest first, of objects with `at`, `epoch`, `by` (null: found after this device was away), `added`, \
                      `removed` and `updated` (came back, or installed anew). This device keeps the last 1,000 changes of each \
                      group."
    )]
    History {
        /// The group, by its name or the beginning of its id; of a group that this device has left, by its id
        group: String,
    },
    /// Replace this device's keys in a group
    Update {
        /// The group, by its name or the beginning of its id
        group: String,
    },
    /// Leave a group
    ///
    /// Asks the other members to remove this device; it has left when one of them has done so. Run it again to delete
    /// the group here without waiting for them.
    Leave {
        /// The group, by its name or the beginning of its id
        group: String,
    },
}

/// Whether members bring new devices in by themselves.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Admission {
    /// They do
    Yes,
    /// They do not: somebody has to invite the user again
    No,
}

/// The arguments of `keypool send`.
#[derive(Debug, Args)]
pub struct SendArgs {
    /// The group, by its name or the beginning of its id
    group: String,
    /// The text of the message; `-` reads it from the standard input
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    text: String,
}

/// The arguments of `keypool receive`.
#[derive(Debug, Args)]
pub struct ReceiveArgs {
    /// The number of seconds to wait if there is nothing to receive
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=60))]
    wait: u32,
}

pub async fn group(command: GroupCommand, client: &MlsClient, output: &Output) -> Result<()> {
    let membership = client.membership();
    match command {
        GroupCommand::Create { name } => output.group_created(&create(&membership, &name)?)?,
        GroupCommand::List => output.groups(&membership.groups()?)?,
        GroupCommand::Invite { group, users } => {
            let group = membership.find_group(&group)?;
            output.invited(&group, &membership.invite(&group.group_id, &users).await?)?;
        }
        GroupCommand::Remove { group, member } => {
            let group = membership.find_group(&group)?;
            output.removed(&group, &remove(&membership, &group, &member).await?)?;
        }
        GroupCommand::Forget { group } => {
            let group = membership.find_group(&group)?;
            membership.forget(&group.group_id).await?;
            output.done(&format!("{} is deleted from this device.", group.name))?;
        }
        GroupCommand::Admit { group, devices } => {
            let group = membership.find_group(&group)?;
            let admits = matches!(devices, Admission::Yes);
            let undelivered = membership.set_admits_devices(&group.group_id, admits).await?;
            let now = if admits { "bring new devices in by themselves" } else { "wait until somebody invites" };
            output.delivered(&format!("The members of {} {now}.", group.name), &undelivered)?;
        }
        GroupCommand::Renew { group, without } => {
            let group = membership.find_group(&group)?;
            output.renewed(&membership.renew(&group.group_id, &without).await?)?;
        }
        GroupCommand::Members { group } => {
            output.members(&membership.members(&membership.find_group(&group)?.group_id)?)?;
        }
        GroupCommand::History { group } => {
            output.history(&membership.history(&membership.find_history(&group)?)?)?;
        }
        GroupCommand::Update { group } => {
            let group = membership.find_group(&group)?;
            let undelivered = membership.update_keys(&group.group_id).await?;
            output.delivered(&format!("This device has new keys in {}.", group.name), &undelivered)?;
        }
        GroupCommand::Leave { group } => {
            let group = membership.find_group(&group)?;
            let undelivered = membership.leave(&group.group_id).await?;
            output
                .delivered(&format!("The members of {} are asked to let this device go.", group.name), &undelivered)?;
        }
    }
    Ok(())
}

/// Removes a user with all devices, or the one device that the text names.
pub async fn remove(membership: &MlsMembership<'_>, group: &Group, member: &str) -> Result<Removed> {
    let members = membership.members(&group.group_id)?;
    let is_user = members.iter().any(|one| one.user.as_str() == member);
    match member.parse::<DeviceOf>() {
        Ok(device) if !is_user && members.contains(&device) => {
            Ok(membership.remove_device(&group.group_id, &device).await?)
        }
        _ => {
            let user = member.parse::<UserName>().map_err(|error| Error::Usage(format!("{member:?}: {error}")))?;
            Ok(membership.remove(&group.group_id, &user).await?)
        }
    }
}

/// Creates a group, unless this device is in one of that name: nobody could tell them apart.
fn create(membership: &MlsMembership<'_>, name: &str) -> Result<Group> {
    let is_taken = |group: &Group| group.name == name && group.state != GroupState::ReadOnly;
    if let Some(other) = membership.groups()?.iter().find(|group| is_taken(group)) {
        return Err(Error::Usage(format!(
            "this device is in a group named {name:?} already, with the id {}: choose another name",
            other.id
        )));
    }
    Ok(membership.create_named_group(name)?)
}

pub async fn send(args: SendArgs, client: &MlsClient, output: &Output) -> Result<()> {
    let membership = client.membership();
    let group = membership.find_group(&args.group)?;
    let text = if args.text == "-" { read_input()? } else { args.text };
    let undelivered = membership.send(&group.group_id, &text).await?;
    output.delivered(&format!("Sent to {}.", group.name), &undelivered)?;
    Ok(())
}

/// Reads a message from the standard input, without the end of its last line.
fn read_input() -> Result<String> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text).map_err(|source| Error::File {
        doing: "read the message from",
        path: "the standard input".into(),
        source,
    })?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(Error::Usage("the standard input holds no message".to_owned())),
        text => Ok(text.to_owned()),
    }
}

/// Prints what was received, and marks it as done only after that, because the server does not have it any more.
pub async fn receive(args: &ReceiveArgs, client: &MlsClient, output: &Output) -> Result<()> {
    let membership = client.membership();
    let incoming = membership.receive(args.wait).await?;
    output.received(&membership.groups()?, &incoming).map_err(|source| Error::Unprinted { source })?;
    Ok(membership.done(&incoming)?)
}
