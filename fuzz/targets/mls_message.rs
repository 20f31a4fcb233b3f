//! Bytes that claim to be an `MLSMessage`. The server reads the header before it delivers them.
#![no_main]

use keypool_validation::mls_message::{Header, header};
use libfuzzer_sys::fuzz_target;

/// Wire formats (RFC 9420, section 17.2).
const PUBLIC_MESSAGE: u16 = 1;
const PRIVATE_MESSAGE: u16 = 2;
const WELCOME: u16 = 3;

/// The content type of a Commit (RFC 9420, section 6).
const COMMIT: u8 = 3;

/// Seeds that have to be accepted; otherwise no input would get past the headers. In the order of [`Header`], with a
/// Commit in both wire formats.
const GOOD: [&[u8]; 5] = [
    include_bytes!("../seeds/mls_message/welcome"),
    include_bytes!("../seeds/mls_message/commit-public"),
    include_bytes!("../seeds/mls_message/commit-private"),
    include_bytes!("../seeds/mls_message/application"),
    include_bytes!("../seeds/mls_message/key-package"),
];

fuzz_target!(
    init: for good in GOOD {
        check_read(&header(good).expect("the server reads the good seeds"), good);
    },
    |bytes: &[u8]| {
        if let Some(header) = header(bytes) {
            check_read(&header, bytes);
        }
    }
);

fn check_read(read: &Header, bytes: &[u8]) {
    let wire_format = u16::from_be_bytes([bytes[2], bytes[3]]);
    match read {
        Header::Welcome => assert_eq!(wire_format, WELCOME),
        Header::OfGroup { group_id, epoch, is_commit, .. } => {
            // A varint before the group's id; its first two bits are its own length (RFC 9420, section 2.1.2).
            let id = &bytes[4 + (1 << (bytes[4] >> 6))..];
            let (id, rest) = id.split_at(group_id.len());
            assert_eq!(id, group_id, "the group is not the message's");
            assert_eq!(rest[..8], epoch.to_be_bytes(), "the epoch is not the message's");
            match wire_format {
                PRIVATE_MESSAGE => assert_eq!(*is_commit, rest[8] == COMMIT, "it is of content type {}", rest[8]),
                _ => assert_eq!(wire_format, PUBLIC_MESSAGE),
            }
        }
        Header::Other => assert!(![PUBLIC_MESSAGE, PRIVATE_MESSAGE, WELCOME].contains(&wire_format)),
    }
    assert_eq!(header(&bytes[..bytes.len() - 1]), None, "it is a message without its last byte, too");
    assert_eq!(header(&[bytes, &[0]].concat()), None, "it is a message with another byte, too");
}
