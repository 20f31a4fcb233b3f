use super::*;

#[test]
fn only_what_time_can_heal_is_retryable() {
    let refused = |status| Error::Refused {
        kind: None,
        code: "new".to_owned(),
        status,
        title: "".into(),
        detail: "".into(),
        retry_after: None,
        reservation_id: None,
        epoch: None,
    };
    assert!(refused(503).is_retryable());
    for status in [408, 425, 429, 500, 502, 504, 520, 527] {
        assert!(refused(status).is_retryable(), "{status}");
    }
    for status in [400, 401, 404, 409, 501, 505, 519, 528] {
        assert!(!refused(status).is_retryable(), "{status}");
    }
    assert!(!Error::Config(String::new()).is_retryable());
}
