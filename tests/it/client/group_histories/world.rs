//! The devices and groups of one history, and which devices should be in which group.

use std::{collections::BTreeSet, fmt, sync::Arc};

use keypool_client::{Error, Event, GroupState, KeyPackagePoolConfig, ManualClock, MlsClient, NewDevice, Settings};
use keypool_openapi::{AckRequest, DeviceName, DeviceOf, UserName};
use tempfile::TempDir;

use super::{
    machine::{Line, Machine},
    step::{DEVICES, FOUNDERS, GROUPS, LATE, Step, What},
};
use crate::support::{copy, data_directory, new_device, now};

/// Pools are small: making KeyPackages is most of the work of a new device.
const POOL: KeyPackagePoolConfig =
    KeyPackagePoolConfig { target_pool_size: 1, low_watermark: 1, ..KeyPackagePoolConfig::DEFAULT };

/// A device of a history.
pub struct Holder {
    pub name: DeviceOf,
    line: Arc<Line>,
    directory: TempDir,
    client: Option<MlsClient>,
    backup: Option<TempDir>,
    pub has_restored: bool,
}

/// One history.
pub struct World {
    machine: Arc<Machine>,
    clock: Arc<ManualClock>,
    pub devices: Vec<Holder>,
    pub groups: Vec<Vec<u8>>,
    /// For each group, the devices that are members by all that happened.
    pub should: [BTreeSet<usize>; GROUPS],
    /// For each group, the devices that may be members or not, since the answer to what changed that was lost.
    pub may: [BTreeSet<usize>; GROUPS],
    /// For each group, the devices that the server does not know any more, and whose leaves nobody has removed.
    pub gone: [BTreeSet<usize>; GROUPS],
    pub log: Vec<String>,
}

/// The outcome of a call; `None` if the device's program ended before its end.
type Outcome<T> = Option<Result<T, Error>>;

impl Holder {
    fn settings(&self, clock: &Arc<ManualClock>) -> Settings {
        Settings {
            clock: Arc::<ManualClock>::clone(clock),
            pool: POOL,
            transport: Some(self.line.clone()),
            ..Settings::default()
        }
    }

    pub fn client(&self) -> Option<&MlsClient> {
        self.client.as_ref()
    }

    /// The state of a group here; `None` if the device does not have it.
    pub fn state(&self, group_id: &[u8]) -> Option<GroupState> {
        let groups = self.client()?.membership().groups().unwrap();
        groups.into_iter().find(|group| group.group_id == group_id).map(|group| group.state)
    }

    /// Processes its queue, and answers what happened, with the groups.
    pub async fn hears(&self) -> Vec<(String, Event)> {
        let Some(client) = self.client() else { return Vec::new() };
        let incoming = client.membership().receive(0).await.unwrap();
        client.membership().done(&incoming).unwrap();
        incoming.into_iter().map(|one| (one.group, one.event)).collect()
    }

    fn back_up(&mut self) {
        let backup = data_directory();
        copy(self.directory.path(), backup.path());
        self.backup = Some(backup);
    }

    /// Makes a call that fails as planned.
    async fn calls<T>(
        &self,
        fault: Option<(usize, super::step::Fault)>,
        call: impl AsyncFnOnce(&MlsClient) -> Result<T, Error>,
    ) -> Outcome<T> {
        let client = self.client.as_ref()?;
        self.line.plan(fault);
        let outcome = tokio::select! {
            biased;
            outcome = call(client) => Some(outcome),
            () = self.line.crashes() => None,
        };
        self.line.plan(None);
        outcome
    }
}

impl fmt::Debug for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)
    }
}

impl World {
    /// Six users with eight devices, of which six are registered, and three groups of three users.
    pub async fn new(machine: &Arc<Machine>, seed: u64) -> Self {
        let holder = |(user, device): &(&str, &str)| Holder {
            name: DeviceOf {
                user: format!("{user}-{seed}").parse().unwrap(),
                device: device.parse::<DeviceName>().unwrap(),
            },
            line: Line::to(machine),
            directory: data_directory(),
            client: None,
            backup: None,
            has_restored: false,
        };
        let mut world = Self {
            machine: Arc::clone(machine),
            clock: Arc::new(ManualClock::new(now())),
            devices: DEVICES.iter().map(holder).collect(),
            groups: Vec::new(),
            should: Default::default(),
            may: Default::default(),
            gone: Default::default(),
            log: Vec::new(),
        };
        for device in (0..DEVICES.len()).filter(|device| !LATE.contains(device)) {
            world.install(device).await;
        }
        for (group, (founder, invited)) in FOUNDERS.into_iter().enumerate() {
            let membership = world.devices[founder].client().unwrap().membership();
            let made = membership.create_named_group(&format!("group-{group}")).unwrap();
            let users: Vec<_> = invited.iter().map(|one| world.user(*one)).collect();
            membership.invite(&made.group_id, &users).await.unwrap();
            world.groups.push(made.group_id);
            world.should[group].extend([&[founder], &invited[..]].concat());
        }
        for device in &mut world.devices {
            device.hears().await;
            device.back_up();
        }
        world
    }

    fn user(&self, device: usize) -> UserName {
        self.devices[device].name.user.clone()
    }

    /// The registered devices of the same user.
    fn devices_of_user(&self, device: usize) -> Vec<usize> {
        let user = self.user(device);
        let is_of = |one: &usize| self.devices[*one].name.user == user && self.devices[*one].client.is_some();
        (0..DEVICES.len()).filter(is_of).collect()
    }

    /// Registers a device, anew if it was registered before.
    async fn install(&mut self, device: usize) {
        let holder = &mut self.devices[device];
        if let Some(client) = holder.client.take() {
            client.remove_device(&holder.name.device).await.unwrap();
        }
        (holder.directory, holder.backup, holder.has_restored) = (data_directory(), None, false);
        let new = NewDevice {
            device: holder.name.device.clone(),
            user_token: Some(self.machine.enrol(&holder.name.user)),
            ..new_device(&self.machine.base, holder.name.user.as_str())
        };
        let settings = holder.settings(&self.clock);
        let (client, _) = MlsClient::init(holder.directory.path(), &new, settings, &|_| ()).await.unwrap();
        holder.client = Some(client);
        let user = self.user(device);
        let siblings: Vec<_> = (0..DEVICES.len()).filter(|one| self.devices[*one].name.user == user).collect();
        for group in 0..GROUPS {
            // A new device comes into the groups of its user's other devices, and one that was removed may.
            let may_be_there = |one: &usize| {
                self.should[group].contains(one) || self.may[group].contains(one) || self.gone[group].contains(one)
            };
            if !self.should[group].contains(&device) && siblings.iter().any(may_be_there) {
                self.may[group].insert(device);
            }
            self.gone[group].remove(&device);
        }
    }

    /// Ends the device's program, and starts it again, after a change of its data.
    fn reopen(&mut self, device: usize, change: impl FnOnce(&Holder)) {
        let holder = &mut self.devices[device];
        holder.client = None;
        change(holder);
        let settings = holder.settings(&self.clock);
        holder.client = Some(MlsClient::open_with(holder.directory.path(), settings).unwrap());
    }

    /// The device that does a step: a member of the group, or a device that is not registered.
    fn actor(&self, step: &Step) -> Option<usize> {
        let is_member = |device: &usize| match step.what {
            What::Reinstall if self.devices[*device].client.is_none() => true,
            What::Restore | What::LoseQueue | What::Reinstall | What::Receive => {
                self.devices[*device].client.is_some() && self.should[step.group].contains(device)
            }
            _ => self.devices[*device].state(&self.groups[step.group]).is_some(),
        };
        let members: Vec<_> = (0..DEVICES.len()).filter(is_member).collect();
        (!members.is_empty()).then(|| members[step.by % members.len()])
    }

    /// Does one step, and notes what came of it.
    pub async fn take(&mut self, step: &Step) {
        let Step { group, what, fault, beside, .. } = *step;
        let Some(by) = self.actor(step) else { return };
        let said = match what {
            What::KillServer => {
                self.machine.dies().await;
                "done".to_owned()
            }
            What::Reinstall => {
                self.install(by).await;
                "done".to_owned()
            }
            What::Abandon => self.abandon(by).await,
            What::BackUp => {
                self.devices[by].back_up();
                "done".to_owned()
            }
            What::Restore => self.restore(by),
            What::LoseQueue => self.lose_queue(by).await,
            _ => {
                let other = async {
                    match beside {
                        Some((other, what)) => self.calls(other, group, what, None).await,
                        None => None,
                    }
                };
                let (outcome, beside) = tokio::join!(self.calls(by, group, what, fault), other);
                self.note(by, group, what, outcome.as_ref());
                if outcome.is_none() {
                    self.reopen(by, |_| ());
                }
                format!("{outcome:?} {}", beside.map(|beside| format!("{beside:?}")).unwrap_or_default())
            }
        };
        self.log.push(format!("{} group {group} {what:?} {fault:?} {beside:?}: {said}", self.devices[by].name));
    }

    async fn abandon(&mut self, device: usize) -> String {
        let holder = &mut self.devices[device];
        holder.client.take().unwrap().remove_device(&holder.name.device).await.unwrap();
        (holder.backup, holder.has_restored) = (None, false);
        for group in 0..GROUPS {
            if self.should[group].remove(&device) {
                self.gone[group].insert(device);
            }
        }
        "done".to_owned()
    }

    fn restore(&mut self, device: usize) -> String {
        // The library refuses to go on with a device that was restored twice: its keys have to be changed.
        if self.devices[device].backup.is_none() || self.devices[device].has_restored {
            return "no backup".to_owned();
        }
        self.reopen(device, |holder| {
            let directory = holder.directory.path();
            for file in std::fs::read_dir(directory).unwrap() {
                std::fs::remove_file(file.unwrap().path()).unwrap();
            }
            copy(holder.backup.as_ref().unwrap().path(), directory);
        });
        self.devices[device].has_restored = true;
        "done".to_owned()
    }

    async fn lose_queue(&mut self, device: usize) -> String {
        let api = self.devices[device].client().unwrap().api();
        let mut lost = 0;
        loop {
            let page = api.messages(0, 100, None).await.unwrap();
            let ids: Vec<_> = page.messages.iter().map(|message| message.id).collect();
            if ids.is_empty() {
                break;
            }
            lost += ids.len();
            api.acknowledge(&AckRequest { ids, ..AckRequest::default() }).await.unwrap();
        }
        format!("{lost} lost")
    }

    async fn calls(
        &self,
        by: usize,
        group: usize,
        what: What,
        fault: Option<(usize, super::step::Fault)>,
    ) -> Outcome<()> {
        let (holder, group_id) = (&self.devices[by], &self.groups[group]);
        let needs_group = !matches!(what, What::Receive | What::Refresh);
        if holder.client.is_none() || needs_group && holder.state(group_id).is_none() {
            return Some(Err(Error::UnknownGroup("not there".to_owned())));
        }
        holder
            .calls(fault, async |client| {
                let membership = client.membership();
                match what {
                    What::Invite(whom) => membership.invite(group_id, &[self.user(whom)]).await.map(drop),
                    What::Remove(whom) => membership.remove_device(group_id, &self.devices[whom].name).await.map(drop),
                    What::Leave => membership.leave(group_id).await.map(drop),
                    What::Update => membership.update_keys(group_id).await.map(drop),
                    What::Send => membership.send(group_id, "hello").await.map(drop),
                    What::ComeBack => membership.come_back(group_id).await,
                    What::Refresh => client.refresh_key_packages(&|_| ()).await.map(drop),
                    _ => {
                        let incoming = membership.receive(0).await?;
                        membership.done(&incoming)
                    }
                }
            })
            .await
    }

    /// Notes which devices are members from now on.
    fn note(&mut self, by: usize, group: usize, what: What, outcome: Option<&Result<(), Error>>) {
        let is_done = matches!(outcome, Some(Ok(())));
        let changed = match what {
            What::Invite(whom) => self.devices_of_user(whom),
            What::Remove(whom) => vec![whom],
            What::Leave => vec![by],
            _ => return,
        };
        // A call that failed has changed nothing, and one without an answer may have.
        if outcome.is_some_and(Result::is_err) {
            return;
        }
        for device in changed {
            self.gone[group].remove(&device);
            let (should, may) = (&mut self.should[group], &mut self.may[group]);
            match (what, is_done) {
                (What::Invite(_), true) => {
                    may.remove(&device);
                    should.insert(device);
                }
                (What::Invite(_), false) if should.contains(&device) => {}
                (What::Remove(_), true) => {
                    may.remove(&device);
                    should.remove(&device);
                }
                // One that leaves has asked, and is a member until somebody has let it go.
                _ => {
                    should.remove(&device);
                    may.insert(device);
                }
            }
        }
    }
}
