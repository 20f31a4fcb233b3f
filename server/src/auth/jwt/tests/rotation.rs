//! The keys change, and their source comes and goes.

use actix_web::http::StatusCode;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinSet,
};

use super::{
    provider::{Provider, Reserved},
    *,
};

const THIRTY_SECONDS: SignedDuration = SignedDuration::from_secs(30);
const TEN_MINUTES: SignedDuration = SignedDuration::from_mins(10);
const MOMENT: SignedDuration = SignedDuration::from_millis(1);

fn ed(kid: &str) -> Signer {
    Signer::new(kid, Algorithm::EdDSA)
}

#[actix_web::test]
async fn a_new_key_in_the_file_is_found_when_a_token_names_it() {
    let (old, new, clock) = (ed("old"), ed("new"), clock());
    let keys = file(&jwks([old.jwk()]));
    let verifier = verifier(keys.path().to_str().unwrap(), &clock);
    std::fs::write(keys.path(), jwks([new.jwk()]).to_string()).unwrap();
    let (by_old, by_new) = (old.sign(&claims()), new.sign(&claims()));
    assert!(refusal(&verifier, &by_new).await.contains("no key"), "read twice within 30 seconds");
    assert_eq!(verifier.verify(&by_old).await, alice());
    clock.advance(THIRTY_SECONDS);
    assert_eq!(verifier.verify(&by_new).await, alice());
    assert!(refusal(&verifier, &by_old).await.contains("no key"));
    // A file that is gone, or half written, takes no key away.
    for broken in [Some("{\"keys\":["), None] {
        match broken {
            Some(half) => std::fs::write(keys.path(), half).unwrap(),
            None => std::fs::remove_file(keys.path()).unwrap(),
        }
        clock.advance(TEN_MINUTES + MOMENT);
        let later = new.sign(&claims_with(&json!({ "exp": clock.now().as_second() + 1 })));
        assert_eq!(verifier.verify(&later).await, alice());
    }
}

#[actix_web::test]
async fn a_new_key_at_the_url_is_found_when_a_token_names_it_or_none() {
    for kid in [Some("new"), None] {
        let (old, new, clock) = (ed("old"), ed("new"), clock());
        let provider = Provider::start(&jwks([old.jwk()]));
        let verifier = verifier(&provider.url, &clock);
        assert_eq!(provider.fetches(), 0, "asked before the first token");
        assert_eq!(verifier.verify(&old.sign(&claims())).await, alice());
        provider.answer(StatusCode::OK, &jwks([old.jwk(), new.jwk()]));
        clock.advance(THIRTY_SECONDS);
        assert_eq!(verifier.verify(&new.called(kid).sign(&claims())).await, alice());
        assert_eq!(verifier.verify(&old.sign(&claims())).await, alice());
        assert_eq!(provider.fetches(), 2);
    }
}

#[actix_web::test]
async fn tokens_of_unknown_keys_ask_the_provider_once_in_30_seconds() {
    let (signer, clock) = (ed("key"), clock());
    let provider = Provider::start(&jwks([signer.jwk()]));
    let verifier = verifier(&provider.url, &clock);
    for round in 1..=3 {
        for attempt in 0..20 {
            let kid = format!("{round}-{attempt}");
            refusal(&verifier, &ed(&kid).sign(&claims())).await;
            refusal(&verifier, &ed(&kid).called(None).sign(&claims())).await;
        }
        assert_eq!(provider.fetches(), round);
        clock.advance(THIRTY_SECONDS - MOMENT);
        refusal(&verifier, &ed("early").sign(&claims())).await;
        assert_eq!(provider.fetches(), round);
        clock.advance(MOMENT);
    }
    // What needs no key asks nobody.
    refusal(&verifier, "keypool").await;
    assert_eq!(verifier.verify(&signer.sign(&claims())).await, alice());
    refusal(&verifier, &ed("key").sign(&claims())).await;
    assert_eq!(provider.fetches(), 3);
}

#[actix_web::test]
async fn a_withdrawn_key_is_good_for_ten_minutes_more() {
    let (withdrawn, kept, clock) = (ed("withdrawn"), ed("kept"), clock());
    let provider = Provider::start(&jwks([withdrawn.jwk(), kept.jwk()]));
    let verifier = verifier(&provider.url, &clock);
    let claims = claims_with(&json!({ "exp": NOW + 3_600 }));
    assert_eq!(verifier.verify(&withdrawn.sign(&claims)).await, alice());
    provider.answer(StatusCode::OK, &jwks([kept.jwk()]));
    clock.advance(TEN_MINUTES);
    assert_eq!(verifier.verify(&withdrawn.sign(&claims)).await, alice());
    assert_eq!(provider.fetches(), 1);
    clock.advance(MOMENT);
    assert!(refusal(&verifier, &withdrawn.sign(&claims)).await.contains("no key"));
    assert_eq!(verifier.verify(&kept.sign(&claims)).await, alice());
    assert_eq!(provider.fetches(), 2);
    // Nothing is left: that is an answer, too.
    provider.answer(StatusCode::OK, &jwks([]));
    clock.advance(TEN_MINUTES + MOMENT);
    assert!(refusal(&verifier, &kept.sign(&claims)).await.contains("no key"));
}

#[actix_web::test]
async fn a_provider_that_comes_back_is_asked_again() {
    let (signer, clock, away) = (ed("key"), clock(), Reserved::new());
    let verifier = verifier(away.url(), &clock);
    let token = signer.sign(&claims());
    assert_eq!(verifier.verify(&token).await, Err(JwtError::Unavailable));
    let provider = away.start(&jwks([signer.jwk()]));
    clock.advance(THIRTY_SECONDS - MOMENT);
    assert_eq!(verifier.verify(&token).await, Err(JwtError::Unavailable));
    assert_eq!(provider.fetches(), 0, "a provider that is away was asked again within 30 seconds");
    clock.advance(MOMENT);
    assert_eq!(verifier.verify(&token).await, alice());
}

#[actix_web::test]
async fn old_keys_serve_while_the_provider_is_away() {
    let (signer, clock) = (ed("key"), clock());
    let provider = Provider::start(&jwks([signer.jwk()]));
    let verifier = verifier(&provider.url, &clock);
    let token = signer.sign(&claims_with(&json!({ "exp": NOW + 36_000 })));
    assert_eq!(verifier.verify(&token).await, alice());
    for (status, body) in [
        (StatusCode::INTERNAL_SERVER_ERROR, String::new()),
        (StatusCode::NOT_FOUND, jwks([]).to_string()),
        (StatusCode::OK, "<html>".to_owned()),
        (StatusCode::OK, "[]".to_owned()),
    ] {
        let fetches = provider.fetches();
        provider.answer(status, &body);
        clock.advance(TEN_MINUTES + MOMENT);
        assert_eq!(verifier.verify(&token).await, alice(), "{status}");
        assert_eq!(provider.fetches(), fetches + 1);
    }
    provider.stop().await;
    clock.advance(TEN_MINUTES + MOMENT);
    assert_eq!(verifier.verify(&token).await, alice());
    refusal(&verifier, &ed("unknown").sign(&claims())).await;
}

#[actix_web::test]
async fn callers_share_one_fetch() {
    let (signer, clock) = (ed("key"), clock());
    let provider = Provider::start(&jwks([signer.jwk()]));
    let verifier = Arc::new(verifier(&provider.url, &clock));
    provider.hold();
    let mut callers = JoinSet::new();
    for _ in 0..8 {
        let (verifier, token) = (Arc::clone(&verifier), signer.sign(&claims()));
        callers.spawn(async move { verifier.verify(&token).await });
    }
    provider.asked().await;
    provider.release();
    assert!(callers.join_all().await.into_iter().all(|verdict| verdict == alice()));
    assert_eq!(provider.fetches(), 1);
}

#[actix_web::test]
async fn a_caller_who_hangs_up_does_not_end_the_fetch() {
    let (signer, clock) = (ed("key"), clock());
    let provider = Provider::start(&jwks([signer.jwk()]));
    let verifier = Arc::new(verifier(&provider.url, &clock));
    provider.hold();
    let (hasty, token) = (Arc::clone(&verifier), signer.sign(&claims()));
    let caller = tokio::spawn(async move { hasty.verify(&token).await });
    provider.asked().await;
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    provider.release();
    assert_eq!(verifier.verify(&signer.sign(&claims())).await, alice());
    assert_eq!(provider.fetches(), 1);
}

#[actix_web::test]
async fn a_large_answer_and_a_redirect_are_no_keys() {
    let (signer, limit) = (ed("key"), 1024 * 1024);
    let provider = Provider::start(&jwks([]));
    let keys = jwks([signer.jwk()]).to_string();
    for (size, verdict) in [(limit, alice()), (limit + 1, Err(JwtError::Unavailable))] {
        provider.answer(StatusCode::OK, &format!("{keys}{}", " ".repeat(size - keys.len())));
        assert_eq!(verifier(&provider.url, &clock()).verify(&signer.sign(&claims())).await, verdict, "{size}");
    }
    provider.answer(StatusCode::OK, &keys);
    let fetches = provider.fetches();
    let moved = verifier(provider.url.replace("/keys", "/moved"), &clock());
    assert_eq!(moved.verify(&signer.sign(&claims())).await, Err(JwtError::Unavailable));
    assert_eq!(provider.fetches(), fetches, "the redirect was followed");
    let large = file(&json!({ "keys": [signer.jwk()], "more": " ".repeat(limit) }));
    let error = JwtVerifier::from_config(&config(large.path().to_str().unwrap()), Arc::new(clock())).err().unwrap();
    assert!(format!("{error:#}").contains("larger than 1048576 bytes"), "{error:#}");
}

#[actix_web::test]
async fn a_provider_that_does_not_answer_is_cut_off() {
    for beginning in ["", "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"keys\":["] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap());
        let silent = tokio::spawn(async move {
            let (mut connection, _) = listener.accept().await.unwrap();
            connection.read_u8().await.unwrap();
            connection.write_all(beginning.as_bytes()).await.unwrap();
            std::future::pending::<()>().await;
        });
        let timeout = Duration::from_millis(50);
        let verifier = JwtVerifier::with_timeout(&config(url), Arc::new(clock()), timeout).unwrap().unwrap();
        assert_eq!(verifier.verify(&ed("key").sign(&claims())).await, Err(JwtError::Unavailable));
        silent.abort();
    }
}

#[actix_web::test]
async fn a_provider_that_does_not_speak_https_at_an_https_url_has_no_keys() {
    let signer = ed("key");
    let provider = Provider::start(&jwks([signer.jwk()]));
    let verifier = verifier(provider.url.replace("http:", "https:"), &clock());
    assert_eq!(verifier.verify(&signer.sign(&claims())).await, Err(JwtError::Unavailable));
    assert_eq!(provider.fetches(), 0);
}
