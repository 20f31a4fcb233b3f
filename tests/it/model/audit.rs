//! The audit trail, played from its beginning: it tells what became of each KeyPackage, and breaks no rule on the way.

use std::collections::BTreeMap;

use keypool_openapi::{Action, AuditEvent, DeviceOf, KeyPackageRef, State};

use super::reference::{End, Hold, Life, Seconds, Who};

/// The lives of the KeyPackages of one device, as its trail tells them; the oldest event is the first.
pub fn replay(events: &[AuditEvent], names: &[DeviceOf], retire: bool) -> BTreeMap<KeyPackageRef, Life> {
    let mut lives = BTreeMap::new();
    for event in events {
        let who = event.actor.as_ref().map(|actor| names.iter().position(|name| name == actor).unwrap());
        if event.action == Action::Upload {
            let (not_after, hold, end) = (event.until.unwrap().as_second(), None, None);
            let life = Life { not_after, last_resort: event.last_resort, hold, end };
            assert!(lives.insert(event.keypackage_ref.clone(), life).is_none(), "uploaded twice: {event:?}");
        } else {
            let life = lives.get_mut(&event.keypackage_ref).unwrap_or_else(|| panic!("never uploaded: {event:?}"));
            assert_eq!(life.last_resort, event.last_resort, "{event:?}");
            play(life, event, who, retire);
        }
    }
    lives
}

fn play(life: &mut Life, event: &AuditEvent, who: Option<Who>, retire: bool) {
    let at: Seconds = event.at.as_second();
    let state = life.state(at, retire);
    let is_about_the_hold = life.hold.map(|hold| (hold.id, hold.by)) == event.reservation_id.zip(who);
    let follows = match event.action {
        Action::Reserve => state == State::Available,
        Action::Spend => life.last_resort || is_about_the_hold && life.end.is_none(),
        Action::Release => is_about_the_hold && state == State::Reserved,
        Action::Revoke => matches!(state, State::Available | State::Reserved),
        Action::Lapse => is_about_the_hold && life.end.is_none() && life.hold.is_some_and(|hold| hold.until == at),
        Action::Expire => life.end.is_none() && life.not_after == at,
        // The model changes no signature key.
        Action::Upload | Action::SignatureKeyChanged => false,
    };
    assert!(follows, "{event:?} cannot follow on {life:?}");
    match event.action {
        _ if life.last_resort && event.action != Action::Revoke => {}
        Action::Reserve => {
            let (id, by, until) = (event.reservation_id.unwrap(), who.unwrap(), event.until.unwrap().as_second());
            life.hold = Some(Hold { id, by, until });
        }
        Action::Spend => life.end = Some(End::Spent { group: event.group_id.clone().unwrap().0, at }),
        Action::Release => life.hold = life.hold.map(|hold| Hold { until: at, ..hold }),
        Action::Revoke => life.end = Some(End::Revoked),
        // Time has done these already.
        Action::Lapse | Action::Expire | Action::Upload | Action::SignatureKeyChanged => {}
    }
}
