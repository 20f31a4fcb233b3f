//! Every value has one encoding: what is accepted is written back to the same bytes, and a changed byte is refused or read
//! as another value.

use keypool_transparency::{
    commitment::{Actor, Details, Event, LogSecret, Record},
    leaf::{BATCH_MULTIPLE, Kept, Leaf, TextLeaf, shuffled_batch},
    note::Note,
    package::{Bind, PackageId, ReservationId, Step, Tag},
    receipt::{Promise, Receipt},
    tile::{TileId, TileKind},
};
use proptest::prelude::*;

use crate::support::Log;

prop_compose! {
    fn record()(
        event in prop::sample::select(vec![Event::Reserve, Event::Spend, Event::Release, Event::Lapse, Event::Revoke]),
        package in any::<[u8; 32]>(),
        names in ("[a-zäö ]{0,9}/[a-z]{1,5}", "[a-z]{0,9}/[a-z]{1,5}"),
        times in any::<(u64, u64)>(),
        group_id in proptest::collection::vec(any::<u8>(), 0..40),
        ids in any::<([u8; 24], [u8; 32])>(),
    ) -> Record {
        Record {
            event,
            package: PackageId(package),
            owner: names.0,
            at: times.0,
            until: times.1,
            actor: names.1,
            group_id,
            reservation_id: ReservationId(ids.0),
            bind: Bind(ids.1),
        }
    }
}

/// Changes one byte.
fn flipped(bytes: &[u8], place: prop::sample::Index, bits: u8) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let place = place.index(bytes.len());
    bytes[place] ^= bits.max(1);
    bytes
}

fn step(event: Event, n: u32) -> Step {
    if event == Event::Reserve { Step::Open(n) } else { Step::End(n) }
}

proptest! {
    #[test]
    fn an_opening_opens_its_leaf_and_no_changed_one_does(
        record in record(),
        n in any::<u32>(),
        secret in any::<[u8; 32]>(),
        place in any::<prop::sample::Index>(),
        bits in any::<u8>(),
    ) {
        let step = step(record.event, n);
        let (leaf, opening) = LogSecret(secret).seal(&step, &record);
        prop_assert_eq!(opening.open(&leaf, &step), Ok(()));
        let (details, actor) = (opening.details.to_bytes(), opening.actor.clone().unwrap().to_bytes());
        prop_assert_eq!(Details::from_bytes(&details), Ok(opening.details.clone()));
        prop_assert_eq!(Actor::from_bytes(&actor), Ok(opening.actor.clone().unwrap()));
        for end in 0..details.len() {
            prop_assert!(Details::from_bytes(&details[..end]).is_err());
        }
        prop_assert!(Details::from_bytes(&[&details[..], &[0]].concat()).is_err());
        prop_assert!(Actor::from_bytes(&[&actor[..], &[0]].concat()).is_err());
        if let Ok(changed) = Details::from_bytes(&flipped(&details, place, bits)) {
            prop_assert!(changed.open(&leaf, &step).is_err());
        }
        if let Ok(changed) = Actor::from_bytes(&flipped(&actor, place, bits)) {
            let mut other = opening.clone();
            other.actor = Some(changed);
            prop_assert!(other.open(&leaf, &step).is_err());
        }
        let json = serde_json::to_string(&opening).unwrap();
        prop_assert_eq!(serde_json::from_str::<keypool_transparency::commitment::Opening>(&json).unwrap(), opening);
    }

    #[test]
    fn paths_of_tiles_have_one_form(index in 0..10_u64.pow(12), level in 0_u8..64, width in 1_u16..=256, entries in any::<bool>()) {
        let kind = if entries { TileKind::Entries } else { TileKind::Hashes(level) };
        let tile = TileId { kind, index, width };
        prop_assert_eq!(tile.to_string().parse::<TileId>(), Ok(tile));
    }

    #[test]
    fn a_receipt_with_a_changed_byte_is_refused(place in any::<prop::sample::Index>(), bits in any::<u8>(), batched in any::<bool>()) {
        let log = Log::new(1);
        let promises = vec![Promise::Leaf(Leaf::new(&Tag([1; 32]), &[2; 32])), Promise::None(Tag([3; 32]))];
        let receipt = Receipt { origin: log.name().to_owned(), size: 5, time: 9, to: "bob/phone".to_owned(), promises };
        let other = Receipt { to: "eve/phone".to_owned(), ..receipt.clone() };
        let receipts = if batched { vec![receipt, other] } else { vec![receipt] };
        let signed = Receipt::sign_batch(&receipts, &log.key).unwrap().remove(0);
        prop_assert!(Receipt::verified(&signed, log.key.verifier()).is_ok());
        if let Ok(changed) = String::from_utf8(flipped(signed.as_bytes(), place, bits)) {
            prop_assert!(Receipt::verified(&changed, log.key.verifier()).is_err(), "{changed}");
        }
    }

    #[test]
    fn a_note_with_a_changed_byte_is_refused(place in any::<prop::sample::Index>(), bits in any::<u8>()) {
        let mut log = Log::new(1);
        log.append(&[b"x"]);
        let text = log.checkpoint().to_string();
        if let Ok(changed) = String::from_utf8(flipped(text.as_bytes(), place, bits)) {
            let verified = changed.parse::<Note>().ok().map(|note| note.verify(log.key.verifier()));
            prop_assert!(!matches!(verified, Some(Ok(()))), "{changed}");
        }
    }

    #[test]
    fn public_text_has_one_form(bytes in proptest::collection::vec(any::<u8>(), 0..80), k in 1_u32..9, size in any::<u64>()) {
        let kept = Kept { origin: crate::support::origin(k).to_string(), size, root: [9; 32] };
        let name = crate::support::origin(k + 1).to_string();
        for text in [TextLeaf::Stop, TextLeaf::Origin { name: name.clone(), kept: None }, TextLeaf::Origin { name, kept: Some(kept) }] {
            prop_assert_eq!(TextLeaf::from_bytes(&text.to_bytes()), Ok(text));
        }
        if let Ok(text) = TextLeaf::from_bytes(&bytes) {
            prop_assert_eq!(text.to_bytes(), bytes);
        }
    }

    #[test]
    fn a_batch_keeps_its_leaves_and_fills_up(count in 0_usize..40, seed in any::<u64>()) {
        let leaves: Vec<_> = (0..count).map(|i| Leaf::new(&Tag([u8::try_from(i).unwrap(); 32]), &[7; 32])).collect();
        let mut state = seed;
        let mut random = |bytes: &mut [u8]| bytes.fill_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            u8::try_from(state >> 56).unwrap()
        });
        let batch = shuffled_batch(&leaves, &mut random);
        prop_assert_eq!(batch.len(), count.next_multiple_of(BATCH_MULTIPLE));
        let mut places: Vec<_> = batch.iter().filter_map(|(leaf, place)| place.map(|place| (place, *leaf))).collect();
        places.sort_unstable();
        prop_assert_eq!(places, leaves.into_iter().enumerate().collect::<Vec<_>>());
    }
}

/// All 24 orders of four leaves come about equally often: 10,000 draws, each order within 5 standard deviations.
#[test]
fn every_order_is_equally_likely() {
    let leaves: Vec<_> = (0..4).map(|i| Leaf::new(&Tag([i; 32]), &[0; 32])).collect();
    let mut counts = std::collections::BTreeMap::new();
    let mut state = 1_u64;
    let mut random = |bytes: &mut [u8]| {
        bytes.fill_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            u8::try_from(state >> 56).unwrap()
        });
    };
    for _ in 0..10_000 {
        let order: Vec<_> = shuffled_batch(&leaves, &mut random).into_iter().filter_map(|(_, place)| place).collect();
        *counts.entry(order).or_insert(0) += 1;
    }
    assert_eq!(counts.len(), 24);
    assert!(counts.values().all(|count| (317..517).contains(count)), "{counts:?}");
}

#[test]
fn an_event_has_to_fit_the_tag() {
    use Event::{Lapse, Release, Reserve, Revoke, Spend};
    let id = ReservationId([1; 24]);
    for (step, fitting) in [
        (Step::Open(0), &[Reserve][..]),
        (Step::End(0), &[Spend, Release, Lapse, Revoke]),
        (Step::Use(id), &[Reserve]),
        (Step::Used(id), &[Spend]),
    ] {
        for event in [Reserve, Spend, Release, Lapse, Revoke] {
            assert_eq!(event.fits(&step), fitting.contains(&event), "{event:?} {step:?}");
        }
    }
}

#[test]
fn a_last_resort_opens_only_with_the_reservation_of_its_tag() {
    let record = Record {
        event: Event::Reserve,
        package: PackageId([1; 32]),
        owner: "alice/laptop".to_owned(),
        at: 1,
        until: 2,
        actor: "bob/phone".to_owned(),
        group_id: b"g".to_vec(),
        reservation_id: ReservationId([2; 24]),
        bind: Bind([3; 32]),
    };
    for (id, expected) in [(2, true), (4, false)] {
        let step = Step::Use(ReservationId([id; 24]));
        let (leaf, opening) = LogSecret([9; 32]).seal(&step, &record);
        assert_eq!(opening.open(&leaf, &step).is_ok(), expected);
        assert_eq!(opening.first_level().open(&leaf, &step), Ok(()));
    }
}

#[test]
fn leaves_have_one_length_and_one_first_byte() {
    for (bytes, error) in [
        (vec![1; 64], "leaf: it must have 65 bytes, not 64"),
        (vec![1; 66], "leaf: it must have 65 bytes, not 66"),
        (vec![2; 65], "leaf: it does not begin with 0x01"),
    ] {
        assert_eq!(Leaf::from_bytes(&bytes).unwrap_err().to_string(), error);
    }
}

#[test]
fn debug_output_has_no_secrets() {
    let secret = LogSecret([0xab; 32]);
    assert_eq!(format!("{secret:?}"), "LogSecret(..)");
    let record = Record {
        event: Event::Revoke,
        package: PackageId([1; 32]),
        owner: "alice/laptop".to_owned(),
        at: 1,
        until: 0,
        actor: String::new(),
        group_id: Vec::new(),
        reservation_id: ReservationId::default(),
        bind: Bind::default(),
    };
    let (_, opening) = secret.seal(&Step::End(0), &record);
    let salt = hex::encode(opening.details.salt);
    assert!(!format!("{opening:?}").contains(&salt[..8]));
    let log = Log::new(1);
    assert!(format!("{:?}", log.key).starts_with("SignerKey(keypool/"));
}
