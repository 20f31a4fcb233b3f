//! The value of an `Authorization` header.
#![no_main]

use keypool_validation::token::Token;
use libfuzzer_sys::fuzz_target;

/// A seed that has to be accepted. Otherwise a target that refuses every input would seem to pass.
const GOOD: &str = include_str!("../seeds/token_header/bearer");

fuzz_target!(
    init: assert!(Token::from_header(GOOD).is_some(), "the server takes the good seed"),
    |header: &str| {
        if let Some(token) = Token::from_header(header) {
            check_accepted(&token, header);
        }
    }
);

fn check_accepted(token: &Token, header: &str) {
    let text = token.reveal();
    assert!(header.contains(text), "{text} is not what the header says");
    assert!(text.starts_with("keypool_"), "{text} does not begin as a token does");
    assert!(!text.contains(char::is_whitespace), "{text} has white space in it");
    let again = Token::from_header(&format!("Bearer {text}")).expect("what was accepted is accepted again");
    assert_eq!(again.reveal(), text, "another token came back");
    assert_eq!(again.hash(), token.hash(), "the same token has two hashes");
}
