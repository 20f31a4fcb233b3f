//! The words of the settings that are one of a few.

use keypool_validation::key_package::CredentialBinding;

use super::{Limits, LogAccess, LogFormat, OnLapse, OnRestore, Registration, values::Choice};

impl Choice for Registration {
    const WORDS: &'static [&'static str] = &["open", "token", "jwt"];
}
impl Choice for OnLapse {
    const WORDS: &'static [&'static str] = &["release", "retire"];
}
impl Choice for OnRestore {
    const WORDS: &'static [&'static str] = &["fence", "trust"];
}
impl Choice for CredentialBinding {
    const WORDS: &'static [&'static str] = &["strict", "off"];
}
impl Choice for Limits {
    const WORDS: &'static [&'static str] = &["on", "off"];
}
impl Choice for LogAccess {
    const WORDS: &'static [&'static str] = &["public", "registered", "off"];
}
impl Choice for LogFormat {
    const WORDS: &'static [&'static str] = &["text", "json"];
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn every_word_is_read<T: Choice>() {
        for word in T::WORDS {
            assert!(serde_json::from_value::<T>(json!(word)).is_ok(), "{word}");
        }
    }

    #[test]
    fn the_words_of_an_error_are_those_that_are_read() {
        every_word_is_read::<Registration>();
        every_word_is_read::<OnLapse>();
        every_word_is_read::<OnRestore>();
        every_word_is_read::<CredentialBinding>();
        every_word_is_read::<Limits>();
        every_word_is_read::<LogAccess>();
        every_word_is_read::<LogFormat>();
    }
}
