//! Links a further device of the user: the code and its picture on one device, and what the other one reads.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use clap::Args;
use keypool_client::{Group, GroupState, Invited, MlsClient};
use keypool_openapi::{Device, DeviceLink, DeviceName, DeviceOf, LinkState, MissingReason, UserName};
use qrcodegen::{QrCode, QrCodeEcc};
use secrecy::{ExposeSecret as _, SecretString};
use url::Url;

use crate::{
    answers::LinkedDevice,
    error::{Error, Result},
    output::Output,
};

/// The pause between two looks at the server.
const PAUSE: Duration = Duration::from_secs(1);

/// How often the new device is looked for, until its pool is on the server.
const LOOKS: u32 = 30;

/// The scheme of what the picture says.
const SCHEME: &str = "keypool";

/// The arguments of `keypool device link`.
#[derive(Debug, Args)]
pub struct LinkArgs {
    /// Print the code, and do not wait for the new device
    #[arg(long)]
    no_wait: bool,
    /// Add the new device to the groups of this one, without asking
    #[arg(long, conflicts_with = "no_wait")]
    groups: bool,
}

/// What `keypool init --link` reads: a code, or all that the picture says.
#[derive(Clone, Debug)]
pub struct Link {
    pub code: SecretString,
    pub server: Option<String>,
    pub user: Option<UserName>,
}

impl Link {
    /// The text of the picture.
    fn text(code: &str, server: &str, user: &UserName) -> Result<String> {
        let mut link = Url::parse(&format!("{SCHEME}:{code}"))
            .map_err(|error| Error::Usage(format!("the link cannot be written: {error}")))?;
        link.query_pairs_mut().append_pair("user", user.as_str()).append_pair("server", server);
        Ok(link.into())
    }

    /// Reads the text of the picture, or a code alone.
    pub fn read(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if !text.starts_with("keypool:") {
            return match text {
                "" => Err("it is empty".to_owned()),
                code => Ok(Self { code: code.into(), server: None, user: None }),
            };
        }
        let link = Url::parse(text).map_err(|error| error.to_string())?;
        let of = |name| link.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
        let user = of("user").map(|name| name.parse::<UserName>().map_err(|error| error.to_string())).transpose()?;
        Ok(Self { code: link.path().into(), server: of("server"), user })
    }

    /// The server, the user and the token of a new device, of which the link or the arguments have each.
    pub fn complete(
        link: Option<Self>,
        (server, user, token): (Option<String>, Option<UserName>, Option<SecretString>),
    ) -> Result<(String, UserName, Option<SecretString>)> {
        let token = link.as_ref().map(Self::token).or(token);
        let (in_link, of_link) = link.map(|link| (link.server, link.user)).unwrap_or_default();
        let lacks = |what: &str| Error::Usage(format!("the code does not name the {what}: give --{what}, too"));
        let server = server.or(in_link).ok_or_else(|| lacks("server"))?;
        let user = user.or(of_link).ok_or_else(|| lacks("user"))?;
        Ok((server, user, token))
    }

    /// What registers a device by the code.
    pub fn token(&self) -> SecretString {
        format!("keypool_link_{}", self.code.expose_secret()).into()
    }
}

/// Makes a code, shows it, and waits for the device that is registered with it.
pub async fn link(args: &LinkArgs, client: &MlsClient, output: &Output) -> Result<()> {
    let (identity, api) = (client.identity(), client.api());
    let made = api.make_device_link().await?;
    let link = Link::text(&made.code, identity.server(), identity.user())?;
    let picture = (io::stdout().is_terminal() && !output.is_json()).then(|| picture(&link)).flatten();
    let answer = LinkedDevice {
        code: Some(made.code),
        link: Some(link),
        expires_at: made.expires_at,
        device: None,
        invited: Vec::new(),
    };
    output.link_made(identity, &answer, picture.as_deref(), !args.no_wait)?;
    if args.no_wait {
        return Ok(());
    }
    let device = arrival(client).await?;
    if !output.is_json() {
        output.done(&format!("{device} is registered."))?;
    }
    let invited = invite(args, client, &device, output).await?;
    if output.is_json() {
        output.device_linked(&LinkedDevice {
            code: None,
            link: None,
            device: Some(device.device),
            invited,
            ..answer
        })?;
    }
    Ok(())
}

/// Waits for the device that uses the code of this one.
async fn arrival(client: &MlsClient) -> Result<DeviceOf> {
    let identity = client.identity();
    loop {
        let links = client.api().device_links().await?.links;
        match links.into_iter().find(|link| link.made_by == *identity.device()) {
            Some(DeviceLink { state: LinkState::Used, device: Some(device), .. }) => {
                return Ok(DeviceOf { user: identity.user().clone(), device });
            }
            Some(DeviceLink { state: LinkState::Open, .. }) => tokio::time::sleep(PAUSE).await,
            _ => return Err(Error::LinkOver),
        }
    }
}

/// Offers to add the new device to this one's groups, and adds it.
async fn invite(args: &LinkArgs, client: &MlsClient, device: &DeviceOf, output: &Output) -> Result<Vec<String>> {
    let membership = client.membership();
    let mut groups = membership.groups()?;
    groups.retain(|group| group.state == GroupState::Active);
    if groups.is_empty() || !(args.groups || !output.is_json() && is_wanted(device, &groups)?) {
        return Ok(Vec::new());
    }
    let mut invited = Vec::new();
    has_pool(client, &device.device).await?;
    for group in groups {
        let Invited { added, missing, .. } =
            membership.invite_devices(&group.group_id, std::slice::from_ref(device)).await?;
        let is_there = missing.iter().all(|one| one.reason == MissingReason::UnknownDevice);
        if !output.is_json() {
            let how = match (added.is_empty(), is_there) {
                (false, _) => "is in",
                (true, true) => "was in",
                (true, false) => "has no KeyPackage yet for",
            };
            output.done(&format!("{device} {how} {}.", group.name))?;
        }
        if !added.is_empty() {
            invited.push(group.id);
        }
    }
    Ok(invited)
}

/// Waits until the new device has uploaded KeyPackages.
async fn has_pool(client: &MlsClient, device: &DeviceName) -> Result<()> {
    for _ in 0..LOOKS {
        let is_it = |one: &Device| one.device == *device && !one.signature_keys.is_empty();
        if client.devices().await?.iter().any(is_it) {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Asks on a terminal whether to add a device to the groups.
fn is_wanted(device: &DeviceOf, groups: &[Group]) -> Result<bool> {
    if !io::stdin().is_terminal() {
        return Ok(false);
    }
    let names: Vec<_> = groups.iter().map(|group| group.name.as_str()).collect();
    let mut stdout = anstream::stdout();
    let asked =
        write!(stdout, "Add {device} to your groups: {}? [Y/n] ", names.join(", ")).and_then(|()| stdout.flush());
    asked.map_err(|source| Error::Unwritten { source })?;
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    read.map_err(|source| Error::File { doing: "read the answer from", path: "the standard input".into(), source })?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "" | "y" | "yes"))
}

/// A QR code of a text, two rows in a line. Dark on light, whatever the colours of the terminal.
fn picture(text: &str) -> Option<String> {
    const QUIET: i32 = 2;
    let code = QrCode::encode_text(text, QrCodeEcc::Low).ok()?;
    let (from, to) = (-QUIET, code.size() + QUIET);
    let line = |top: i32| {
        let half = |column| match (code.get_module(column, top), code.get_module(column, top + 1)) {
            (true, true) => '\u{2588}',
            (true, false) => '\u{2580}',
            (false, true) => '\u{2584}',
            (false, false) => ' ',
        };
        format!("\u{1b}[30;107m{}\u{1b}[0m", (from..to).map(half).collect::<String>())
    };
    let lines: Vec<_> = (from..to).step_by(2).map(line).collect();
    Some(lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_says_all_that_the_other_device_needs() {
        let user: UserName = "zoë & söhne".parse().unwrap();
        let text = Link::text("K7QP-2M4X-9TRD", "https://keys.example.org/base/", &user).unwrap();
        let read = Link::read(&format!(" {text}\n")).unwrap();
        assert_eq!(read.token().expose_secret(), "keypool_link_K7QP-2M4X-9TRD");
        assert_eq!((read.server.as_deref(), read.user), (Some("https://keys.example.org/base/"), Some(user)));
        let code = Link::read("k7qp 2m4x 9trd").unwrap();
        assert_eq!(code.token().expose_secret(), "keypool_link_k7qp 2m4x 9trd");
        assert!(code.server.is_none() && code.user.is_none());
        for bad in ["", "keypool:K7QP?user=%00"] {
            assert!(Link::read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_picture_of_a_usual_address_fits_a_terminal() {
        let link = Link::text("K7QP-2M4X-9TRD", "https://keys.example.org/", &"alice".parse().unwrap()).unwrap();
        let picture = picture(&link).unwrap();
        assert!(picture.lines().count() <= 22, "{picture}");
    }
}
