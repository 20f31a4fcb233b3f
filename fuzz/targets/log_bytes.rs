//! Binary parts of the transparency log: entries, bundles of them, openings, and KeyPackages whose names are computed. A server
//! shows them to clients and auditors, and anybody puts them into evidence.
#![no_main]

use keypool_transparency::{
    commitment::{Actor, Details},
    key_package::KeyPackageFields,
    leaf::{Leaf, TextLeaf},
    tile::{bundle_entries, bundle_prefix, exact_bundle},
};
use libfuzzer_sys::fuzz_target;

/// Seeds that have to be read; otherwise a target that refuses every input would seem to pass.
const DETAILS: &[u8] = include_bytes!("../seeds/log_bytes/details");
const ACTOR: &[u8] = include_bytes!("../seeds/log_bytes/actor");
const LEAF: &[u8] = include_bytes!("../seeds/log_bytes/leaf");
const ORIGIN: &[u8] = include_bytes!("../seeds/log_bytes/origin");
const KEY_PACKAGE: &[u8] = include_bytes!("../seeds/log_bytes/key-package");
const BUNDLE: &[u8] = include_bytes!("../seeds/log_bytes/bundle");

fuzz_target!(
    init: {
        Details::from_bytes(DETAILS).expect("the good details are read");
        Actor::from_bytes(ACTOR).expect("the good actor is read");
        Leaf::from_bytes(LEAF).expect("the good leaf is read");
        TextLeaf::from_bytes(ORIGIN).expect("the good text is read");
        KeyPackageFields::parse(KEY_PACKAGE).expect("the good KeyPackage is read");
        assert_eq!(exact_bundle(BUNDLE, 2).map(|entries| entries.len()), Ok(2), "the good bundle is read");
    },
    |bytes: &[u8]| {
        // What is read is written again in the same way: two forms of one thing would be two leaves, or two openings.
        if let Ok(details) = Details::from_bytes(bytes) {
            assert_eq!(details.to_bytes(), bytes, "the details are others");
        }
        if let Ok(actor) = Actor::from_bytes(bytes) {
            assert_eq!(actor.to_bytes(), bytes, "the actor is another");
        }
        if let Ok(leaf) = Leaf::from_bytes(bytes) {
            assert_eq!(leaf.as_bytes().as_slice(), bytes, "the leaf is another");
            assert!(TextLeaf::from_bytes(bytes).is_err(), "it is a leaf and a text");
        }
        if let Ok(text) = TextLeaf::from_bytes(bytes) {
            assert_eq!(text.to_bytes(), bytes, "the text is another");
        }
        if let Ok(fields) = KeyPackageFields::parse(bytes) {
            assert!(fields.signature.end == bytes.len() && fields.signature.start > 4, "{:?}", fields.signature);
            let mut other = bytes.to_vec();
            if let Some(last) = other.last_mut().filter(|_| fields.signature.len() > 4) {
                *last ^= 1;
                let other = KeyPackageFields::parse(&other).expect("a signature may be any bytes");
                assert_eq!(other.signed, fields.signed, "the name depends on the signature");
            }
        }
        check_bundle(bytes);
    }
);

fn check_bundle(bytes: &[u8]) {
    let Some((first, bundle)) = bytes.split_first() else { return };
    let width = u16::from(*first) + 1;
    let Ok(entries) = bundle_entries(bundle, width) else { return };
    assert_eq!(entries.len(), usize::from(width), "a bundle has as many entries as it is wide");
    let prefix = bundle_prefix(bundle, width).expect("what has entries has their bytes");
    assert!(bundle.starts_with(prefix), "the prefix is not the bundle's");
    assert_eq!(exact_bundle(prefix, width).as_ref(), Ok(&entries), "the prefix has other entries");
    assert_eq!(exact_bundle(bundle, width).is_ok(), bundle.len() == prefix.len(), "bytes follow an exact bundle");
}
