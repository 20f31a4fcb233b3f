//! The end of a history: all devices are online, and each one that should be a member reads what every other one sends.

use std::collections::BTreeSet;

use keypool_client::{Event, GroupState};

use super::{step::GROUPS, world::World};

/// The most rounds in which all devices process their queues until nothing arrives any more.
const ROUNDS: usize = 8;

impl World {
    /// All devices come online, what happened meanwhile settles, and they talk.
    pub async fn ends(&mut self) {
        self.settles().await;
        for group in 0..GROUPS {
            self.all_speak(group, "is anybody there?").await;
        }
        self.settles().await;
        for holder in self.devices.iter().filter(|holder| holder.has_restored) {
            holder.client().unwrap().refresh_key_packages(&|_| ()).await.unwrap();
        }
        self.settles().await;
        let alive: Vec<_> = (0..GROUPS).filter(|group| self.is_alive(*group)).collect();
        for &group in &alive {
            self.has_its_members(group);
        }
        for &group in &alive {
            // It can be changed, too.
            let first = *self.should[group].first().unwrap();
            let membership = self.devices[first].client().unwrap().membership();
            membership.update_keys(&self.groups[group]).await.unwrap();
        }
        self.all_hear_each_other(&alive, "I am here").await;
    }

    /// All devices process their queues until nothing arrives any more.
    async fn settles(&mut self) {
        for _ in 0..ROUNDS {
            let mut is_quiet = true;
            for index in 0..self.devices.len() {
                for (group, event) in self.devices[index].hears().await {
                    is_quiet = false;
                    self.log.push(format!("  {} in {group:.4}: {event:?}", self.devices[index].name));
                }
            }
            if is_quiet {
                return;
            }
        }
        panic!("devices have something to do after {ROUNDS} rounds");
    }

    /// Each device that has the group says something in it. Answers those that could.
    async fn all_speak(&mut self, group: usize, text: &str) -> BTreeSet<usize> {
        let mut spoke = BTreeSet::new();
        for index in 0..self.devices.len() {
            let (holder, group_id) = (&self.devices[index], &self.groups[group]);
            if holder.state(group_id).is_none() {
                continue;
            }
            let membership = holder.client().unwrap().membership();
            let said = membership.send(group_id, &format!("{group} {text}")).await;
            if let Ok(undelivered) = &said {
                spoke.insert(index);
                let members = membership.members(group_id).unwrap();
                for gone in self.gone[group].iter().map(|gone| &self.devices[*gone].name) {
                    let is_told = undelivered.iter().any(|one| (&one.user, &one.device) == (&gone.user, &gone.device));
                    assert!(is_told || !members.contains(gone), "{} is not told that {gone} is gone", holder.name);
                }
            }
            self.log.push(format!("  {} says in group {group}: {said:?}", holder.name));
        }
        spoke
    }

    /// Whether a group has a member that can go on with it. If all of them lost their data, it is beyond help.
    fn is_alive(&self, group: usize) -> bool {
        let is_active = |device: &usize| self.devices[*device].state(&self.groups[group]) == Some(GroupState::Active);
        self.should[group].iter().any(is_active)
    }

    /// Each device that should be a member is one, and all of them agree about the members.
    fn has_its_members(&mut self, group: usize) {
        let group_id = &self.groups[group];
        let names = |set: &BTreeSet<usize>| -> BTreeSet<String> {
            set.iter().map(|one| self.devices[*one].name.to_string()).collect()
        };
        let (should, may, gone) = (names(&self.should[group]), names(&self.may[group]), names(&self.gone[group]));
        let mut views = BTreeSet::new();
        for &device in &self.should[group] {
            let holder = &self.devices[device];
            assert_eq!(holder.state(group_id), Some(GroupState::Active), "{} in group {group}", holder.name);
            let members = holder.client().unwrap().membership().members(group_id).unwrap();
            views.insert(members.iter().map(ToString::to_string).collect::<BTreeSet<_>>());
        }
        assert_eq!(views.len(), 1, "the members of group {group}");
        let members = views.pop_first().unwrap();
        let is_known = |member: &String| should.contains(member) || may.contains(member) || gone.contains(member);
        assert!(should.is_subset(&members), "of {should:?}, {members:?} are in group {group}");
        assert!(members.iter().all(is_known), "{members:?} are in group {group}, for {should:?}, {may:?} and {gone:?}");
    }

    /// Each device that should be a member of these groups reads what every other one says.
    async fn all_hear_each_other(&mut self, groups: &[usize], round: &str) {
        for &group in groups {
            let spoke = self.all_speak(group, round).await;
            assert!(self.should[group].is_subset(&spoke), "group {group}: {:?}, {spoke:?}", self.should[group]);
        }
        for index in 0..self.devices.len() {
            let texts = self.devices[index].hears().await.into_iter().filter_map(|(_, event)| match event {
                Event::Text { sender, text } => Some((sender, text)),
                _ => None,
            });
            let texts: BTreeSet<_> = texts.collect();
            for &group in groups.iter().filter(|group| self.should[**group].contains(&index)) {
                for other in self.should[group].iter().filter(|other| **other != index) {
                    let said = (self.devices[*other].name.to_string(), format!("{group} {round}"));
                    assert!(texts.contains(&said), "{} does not read {said:?}", self.devices[index].name);
                }
            }
        }
    }
}
