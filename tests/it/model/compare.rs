//! Compares the pools, as the devices see them, with the model.

use keypool_openapi::{AuditEvent, AuditPage, InventoryItem, InventoryPage, PoolStatus};
use serde_json::{Value, json};

use super::{
    audit::replay,
    reference::Who,
    step::DEVICES,
    view::item,
    world::{World, parse},
};

impl World<'_> {
    pub fn is_the_pool(&self, who: Who, mut shown: PoolStatus) {
        shown.draining.clear();
        shown.log = None;
        let parts = [shown.available, shown.reserved, shown.spent, shown.expired, shown.revoked];
        assert_eq!(parts.iter().sum::<u64>(), shown.total, "the counts do not add up: {shown:?}");
        assert_eq!(json!(shown), json!(self.model.status(who)));
    }

    pub fn there(&self) -> impl Iterator<Item = Who> {
        (0..DEVICES).filter(|who| self.model.registered[*who])
    }

    /// The devices see their pools as the model shows them.
    pub fn compare(&self, closely: &[Who], page: usize) {
        for who in self.there() {
            self.is_the_pool(who, parse(self.get(who, "status")));
        }
        for who in closely {
            let shown = self.inventory(*who, page);
            assert_eq!(shown, self.model.inventory(*who));
            self.is_the_story(&self.trail(*who, page), &shown);
        }
    }

    fn get(&self, who: Who, what: &str) -> Value {
        self.arena.runtime.block_on(self.callers[who].get(&format!("/keypackages/{what}"))).ok()
    }

    fn inventory(&self, who: Who, page: usize) -> Vec<InventoryItem> {
        let (mut items, mut after) = (Vec::new(), String::new());
        loop {
            let page: InventoryPage = parse(self.get(who, &format!("inventory?limit={page}{after}")));
            items.extend(page.keypackages);
            let Some(next) = page.next else { return items };
            after = format!("&after={next}");
        }
    }

    /// All that happened, the oldest first.
    fn trail(&self, who: Who, page: usize) -> Vec<AuditEvent> {
        let (mut events, mut before) = (Vec::new(), String::new());
        loop {
            let page: AuditPage = parse(self.get(who, &format!("audit?limit={page}{before}")));
            events.extend(page.events);
            let Some(next) = page.next else { break };
            before = format!("&before={next}");
        }
        events.reverse();
        assert!(events.iter().all(|event| event.owner == self.names[who]));
        events
    }

    /// The trail, replayed, tells the inventory, and what the inventory has forgotten.
    fn is_the_story(&self, events: &[AuditEvent], inventory: &[InventoryItem]) {
        let (now, retire) = (self.model.now, self.arena.rules.retire);
        let mut lives = replay(events, &self.names, retire);
        for shown in inventory {
            let life = lives.remove(&shown.keypackage_ref).unwrap_or_else(|| panic!("{shown:?} is not in the trail"));
            let state = life.state(now, retire);
            assert_eq!(*shown, item(shown.keypackage_ref.clone(), &life, shown.ciphersuite, state, &self.names));
        }
        let gone = lives.iter().find(|(_, life)| life.not_after > now);
        assert_eq!(gone, None, "it is in the trail, and not in the inventory");
    }
}
