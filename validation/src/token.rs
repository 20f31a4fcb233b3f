//! Bearer tokens of the server: their format, and the hash that the server stores.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::{
    TryRng,
    rngs::{SysError, SysRng},
};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

/// The prefix of every device's token, by which secret scanners recognise it.
const PREFIX: &str = "keypool_";
/// The prefix of an enrolment token.
const ENROLMENT_PREFIX: &str = "keypool_enrol_";
const SECRET_BYTES: usize = 32;
/// The length of the checksum at the end, in bytes.
const CHECKSUM_BYTES: usize = 4;

/// A bearer token of this server: 256 random bits and a checksum. The server shows it once, and stores only its hash.
/// The checksum is the first bytes of the SHA-256 of the prefix and the secret. It reveals a mistyped or cut token
/// without a look-up. Tokens of older versions have no checksum, and stay valid.
#[derive(Clone)]
pub struct Token(SecretString);

impl Token {
    /// A new token of a device.
    ///
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn generate() -> Result<Self, SysError> {
        Self::random(PREFIX)
    }

    /// A new enrolment token.
    ///
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn enrolment() -> Result<Self, SysError> {
        Self::random(ENROLMENT_PREFIX)
    }

    /// A device's token with this secret, which nobody else may be able to guess.
    #[must_use]
    pub fn with_secret(secret: [u8; SECRET_BYTES]) -> Self {
        Self::of(PREFIX, &secret)
    }

    fn random(prefix: &str) -> Result<Self, SysError> {
        let mut secret = [0; SECRET_BYTES];
        SysRng.try_fill_bytes(&mut secret)?;
        Ok(Self::of(prefix, &secret))
    }

    fn of(prefix: &str, secret: &[u8; SECRET_BYTES]) -> Self {
        let bytes = [&secret[..], &checksum(prefix, secret)].concat();
        Self(format!("{prefix}{}", URL_SAFE_NO_PAD.encode(bytes)).into())
    }

    /// Reads a device's token from the value of an `Authorization` header; `None` if it is not one.
    #[must_use]
    pub fn from_header(value: &str) -> Option<Self> {
        Self::with_prefix(PREFIX, bearer(value)?)
    }

    /// Reads an enrolment token from the [bearer token](bearer) of a header; `None` if it is not one.
    #[must_use]
    pub fn enrolment_from(token: &str) -> Option<Self> {
        Self::with_prefix(ENROLMENT_PREFIX, token)
    }

    fn with_prefix(prefix: &str, token: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(token.strip_prefix(prefix)?).ok()?;
        let (secret, rest) = bytes.split_first_chunk::<SECRET_BYTES>()?;
        (rest.is_empty() || rest == checksum(prefix, secret)).then(|| Self(token.into()))
    }

    /// The hash that the server stores.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.0.expose_secret()).into()
    }

    /// The token as text, for the one answer that shows it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        self.0.expose_secret()
    }
}

/// The prefix of a code in an `Authorization` header.
const LINK_PREFIX: &str = "keypool_link_";
/// The digits of a code: Crockford's Base32, which leaves out letters that look like others.
const LINK_DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const LINK_LENGTH: usize = 12;

/// A code by which a device registers a further device of its user: 60 random bits, in 12 letters and digits. People type it.
#[derive(Clone)]
pub struct LinkCode(SecretString);

impl LinkCode {
    /// A new code.
    ///
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn generate() -> Result<Self, SysError> {
        let mut random = [0; LINK_LENGTH];
        SysRng.try_fill_bytes(&mut random)?;
        // 256 is a multiple of 32, so that each digit is as likely as any other.
        let code: String = random.map(|byte| char::from(LINK_DIGITS[usize::from(byte % 32)])).iter().collect();
        Ok(Self(code.into()))
    }

    /// Reads a code from the [bearer token](bearer) of a header; `None` if it is not one. Hyphens and spaces do not count, nor does
    /// the case of letters.
    #[must_use]
    pub fn from_bearer(token: &str) -> Option<Self> {
        let typed = token.strip_prefix(LINK_PREFIX)?.chars().filter(|letter| !matches!(letter, '-' | ' '));
        let digit = |letter: char| match letter.to_ascii_uppercase() {
            'O' => Some('0'),
            'I' | 'L' => Some('1'),
            digit => u8::try_from(digit).is_ok_and(|digit| LINK_DIGITS.contains(&digit)).then_some(digit),
        };
        let code = typed.take(LINK_LENGTH + 1).map(digit).collect::<Option<String>>()?;
        (code.len() == LINK_LENGTH).then(|| Self(code.into()))
    }

    /// The hash that the server stores.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        Sha256::new().chain_update(LINK_PREFIX).chain_update(self.0.expose_secret()).finalize().into()
    }

    /// The code as people read it, for the one answer that shows it.
    #[must_use]
    pub fn reveal(&self) -> String {
        let code = self.0.expose_secret();
        format!("{}-{}-{}", &code[..4], &code[4..8], &code[8..])
    }
}

fn checksum(prefix: &str, secret: &[u8; SECRET_BYTES]) -> [u8; CHECKSUM_BYTES] {
    let digest = Sha256::new().chain_update(prefix).chain_update(secret).finalize();
    std::array::from_fn(|byte| digest[byte])
}

/// The token in the value of an `Authorization` header; `None` if the scheme is not `Bearer`.
#[must_use]
pub fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_the_header_and_nothing_else_does() {
        let token = Token::generate().unwrap();
        let read = Token::from_header(&format!("Bearer {}", token.reveal())).unwrap();
        assert_eq!(read.hash(), token.hash());
        assert!(Token::from_header(&format!("bearer {}", token.reveal())).is_some());
        for bad in [
            "",
            "Bearer",
            "Bearer keypool_",
            "Bearer keypool_AAAA",
            &format!("Basic {}", token.reveal()),
            &format!("Bearer {}", &token.reveal()[PREFIX.len()..]),
            &format!("Bearer {}A", token.reveal()),
        ] {
            assert!(Token::from_header(bad).is_none(), "{bad:?} was taken");
        }
        assert_ne!(Token::generate().unwrap().hash(), token.hash());
    }

    #[test]
    fn a_token_with_a_wrong_letter_is_no_token() {
        let token = Token::generate().unwrap();
        let text = token.reveal();
        for at in PREFIX.len()..text.len() {
            let mut wrong = text.to_owned();
            wrong.replace_range(at..=at, if &text[at..=at] == "A" { "B" } else { "A" });
            assert!(Token::from_header(&format!("Bearer {wrong}")).is_none(), "{wrong}, with a wrong letter at {at}");
        }
        // A cut token is refused, and so is a token with the checksum of the other kind.
        assert!(Token::from_header(&format!("Bearer {}", &text[..text.len() - 1])).is_none());
        let secret = [7; SECRET_BYTES];
        let of_enrolment = [&secret[..], &checksum(ENROLMENT_PREFIX, &secret)].concat();
        assert!(Token::from_header(&format!("Bearer {PREFIX}{}", URL_SAFE_NO_PAD.encode(of_enrolment))).is_none());
    }

    #[test]
    fn a_token_from_before_checksums_is_one() {
        let token = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode([7; SECRET_BYTES]));
        assert_eq!(Token::from_header(&format!("Bearer {token}")).unwrap().reveal(), token);
    }

    #[test]
    fn a_code_is_read_as_people_type_it() {
        let read = |typed: &str| LinkCode::from_bearer(&format!("keypool_link_{typed}")).map(|code| code.reveal());
        for typed in ["0123-45AB-CDYZ", "0123 45ab cdyz", "O12345abCDyz", "0L23-45AB-CDYZ", "oi2345abcdyz"] {
            assert_eq!(read(typed).as_deref(), Some("0123-45AB-CDYZ"), "{typed}");
        }
        for bad in ["", "0123-45AB-CDY", "0123-45AB-CDYZ0", "0123-45AB-CDYU", "0123-45AB-CDY\u{e9}", "0123_45AB_CDYZ"] {
            assert_eq!(read(bad), None, "{bad}");
        }
        assert!(LinkCode::from_bearer("0123-45AB-CDYZ").is_none());
        let (one, other) = (LinkCode::generate().unwrap(), LinkCode::generate().unwrap());
        assert_ne!(one.hash(), other.hash());
        let typed = LinkCode::from_bearer(&format!("keypool_link_{}", one.reveal())).unwrap();
        assert_eq!(typed.hash(), one.hash());
    }

    #[test]
    fn an_enrolment_token_is_no_devices_token() {
        let enrolment = Token::enrolment().unwrap();
        assert!(Token::from_header(&format!("Bearer {}", enrolment.reveal())).is_none());
        assert!(Token::enrolment_from(enrolment.reveal()).is_some());
        assert!(Token::enrolment_from(Token::generate().unwrap().reveal()).is_none());
    }
}
