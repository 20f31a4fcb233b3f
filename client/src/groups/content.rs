//! What a message to a group says, and its form on the wire.

use keypool_openapi::Base64Bytes;
use serde::{Deserialize, Serialize};

/// The media type of a text.
const TEXT: &str = "text/plain";

/// A message to a group. A text becomes one of the type `text/plain`.
///
/// Within MLS, it is sent as JSON: `{"text": "hello"}`, or for another type
/// `{"data": {"content_type": "image/png", "data": "<base64>"}}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its media type (RFC 6838), for the receiving application.
    pub content_type: String,
    /// What is sent.
    pub bytes: Vec<u8>,
}

impl Message {
    /// A message of a media type.
    #[must_use]
    pub fn new(content_type: &str, bytes: impl Into<Vec<u8>>) -> Self {
        Self { content_type: content_type.to_owned(), bytes: bytes.into() }
    }
}

/// The content of an application message.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Content {
    /// A text.
    Text(String),
    /// A message of another media type.
    Data { content_type: String, data: Base64Bytes },
    /// The name of the group. The server never sees it.
    GroupName(String),
    /// The id, in hex, of the group that this one replaces.
    Renews(String),
    /// Whether members bring new devices of the group's users in by themselves.
    AdmitsDevices(bool),
}

impl From<Message> for Content {
    fn from(Message { content_type, bytes }: Message) -> Self {
        if content_type != TEXT {
            return Self::Data { content_type, data: Base64Bytes(bytes) };
        }
        match String::from_utf8(bytes) {
            Ok(text) => Self::Text(text),
            Err(error) => Self::Data { content_type, data: Base64Bytes(error.into_bytes()) },
        }
    }
}

impl From<String> for Message {
    fn from(text: String) -> Self {
        Self { content_type: TEXT.to_owned(), bytes: text.into_bytes() }
    }
}

impl From<&String> for Message {
    fn from(text: &String) -> Self {
        text.clone().into()
    }
}

impl From<&str> for Message {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(message: impl Into<Message>) -> String {
        serde_json::to_string(&Content::from(message.into())).unwrap()
    }

    #[test]
    fn a_message_is_written_as_documented() {
        assert_eq!(written("hello"), r#"{"text":"hello"}"#);
        assert_eq!(written(Message::new("text/plain", "hello")), r#"{"text":"hello"}"#);
        let image = written(Message::new("image/png", [0xff, 0]));
        assert_eq!(image, r#"{"data":{"content_type":"image/png","data":"/wA="}}"#);
        assert!(written(Message::new("text/plain", [0xff])).contains("data"), "it is no text");
    }

    #[test]
    fn what_another_client_says_is_a_text() {
        assert!(serde_json::from_slice::<Content>(br#"{"text":"hello"}"#).is_ok());
        assert!(serde_json::from_slice::<Content>(b"hello").is_err());
    }
}
