mod provider;
mod rotation;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::EncodingKey;
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use self::provider::{Signer, jwks};
use super::*;
use crate::clock::ManualClock;

const ISSUER: &str = "https://id.example.org";
const AUDIENCE: &str = "keypool";
/// Long ago, so that no check may have asked the system for the time.
const NOW: i64 = 1_000_000_000;

fn clock() -> ManualClock {
    ManualClock::at(Timestamp::from_second(NOW).unwrap())
}

fn config(keys: impl Into<String>) -> Config {
    Config {
        registration: Registration::Jwt,
        jwt_issuer: Some(ISSUER.to_owned()),
        jwt_audience: Some(AUDIENCE.to_owned()),
        jwt_jwks: Some(keys.into()),
        ..Config::default()
    }
}

fn verifier(keys: impl Into<String>, clock: &ManualClock) -> JwtVerifier {
    JwtVerifier::from_config(&config(keys), Arc::new(clock.clone())).unwrap().unwrap()
}

fn file(content: &Value) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), content.to_string()).unwrap();
    file
}

/// A verifier by a file of these keys.
fn by_file(keys: impl IntoIterator<Item = Value>) -> JwtVerifier {
    verifier(file(&jwks(keys)).path().to_str().unwrap(), &clock())
}

fn claims() -> Value {
    json!({ "iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": NOW + 300 })
}

/// Good claims, with these over them; `null` takes one away.
fn claims_with(others: &Value) -> Value {
    let mut claims = claims();
    for (name, value) in others.as_object().unwrap() {
        claims[name] = value.clone();
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        }
    }
    claims
}

#[expect(clippy::unnecessary_wraps, reason = "this is what a verifier answers")]
fn alice() -> Result<UserName, JwtError> {
    Ok("alice".parse().unwrap())
}

/// Why the token is refused.
async fn refusal(verifier: &JwtVerifier, token: &str) -> String {
    match verifier.verify(token).await {
        Err(JwtError::Invalid(reason)) => reason,
        other => panic!("{other:?}: {token}"),
    }
}

#[actix_web::test]
async fn a_token_of_every_algorithm_names_its_user() {
    for algorithm in key_set::ALGORITHMS {
        let signer = Signer::new("key", algorithm);
        for jwk in [
            signer.jwk(),
            signer.jwk_with(&json!({ "alg": algorithm, "use": "sig", "key_ops": ["verify"], "x5t": "and-more" })),
        ] {
            let verifier = by_file([jwk]);
            assert_eq!(verifier.verify(&signer.sign(&claims())).await, alice(), "{algorithm:?}");
            let nameless = signer.called(None).sign(&claims());
            assert_eq!(verifier.verify(&nameless).await, alice(), "{algorithm:?}");
        }
    }
}

#[actix_web::test]
async fn the_claims_have_to_be_right() {
    let signer = Signer::new("key", Algorithm::EdDSA);
    let verifier = by_file([signer.jwk()]);
    for good in [
        json!({}),
        json!({ "aud": ["elsewhere", AUDIENCE] }),
        json!({ "exp": NOW - 59 }),
        json!({ "exp": 999_999_940.5 }),
        json!({ "nbf": NOW + 60 }),
        json!({ "iat": NOW, "email": "alice@example.org" }),
    ] {
        assert_eq!(verifier.verify(&signer.sign(&claims_with(&good))).await, alice(), "{good}");
    }
    for (bad, reason) in [
        (json!({ "exp": NOW - 60 }), "expired"),
        (json!({ "exp": 0 }), "expired"),
        (json!({ "exp": -1 }), "no exp"),
        (json!({ "exp": null }), "no exp"),
        (json!({ "exp": "tomorrow" }), "exp and nbf numbers"),
        (json!({ "nbf": NOW + 61 }), "not valid yet"),
        (json!({ "nbf": "tomorrow" }), "exp and nbf numbers"),
        (json!({ "iss": "https://id.example.com" }), "iss"),
        (json!({ "iss": null }), "no iss"),
        (json!({ "iss": 7 }), "no iss"),
        (json!({ "aud": "elsewhere" }), "aud"),
        (json!({ "aud": ["elsewhere"] }), "aud"),
        (json!({ "aud": [] }), "aud"),
        (json!({ "aud": null }), "no aud"),
        (json!({ "sub": null }), "no sub"),
        (json!({ "sub": 7 }), "its sub is not a string"),
        (json!({ "sub": "" }), "its sub cannot be a user"),
        (json!({ "sub": ".." }), "its sub cannot be a user"),
        (json!({ "sub": "a".repeat(256) }), "its sub cannot be a user"),
    ] {
        let said = refusal(&verifier, &signer.sign(&claims_with(&bad))).await;
        assert!(said.contains(reason), "{bad}: {said}");
    }
}

#[actix_web::test]
async fn the_operator_chooses_the_claim_that_names_the_user() {
    let signer = Signer::new("key", Algorithm::ES256);
    let keys = file(&jwks([signer.jwk()]));
    let config = Config { jwt_user_claim: "email".to_owned(), ..config(keys.path().to_str().unwrap()) };
    let verifier = JwtVerifier::from_config(&config, Arc::new(clock())).unwrap().unwrap();
    let token = signer.sign(&claims_with(&json!({ "email": "zo\u{eb}@example.org", "sub": null })));
    assert_eq!(verifier.verify(&token).await.unwrap().as_str(), "zo\u{eb}@example.org");
    let said = refusal(&verifier, &signer.sign(&claims())).await;
    assert!(said.contains("it has no email"), "{said}");
}

#[actix_web::test]
async fn a_token_has_to_be_signed_by_a_key_of_the_provider() {
    let signer = Signer::new("key", Algorithm::ES256);
    let verifier = by_file([signer.jwk(), Signer::new("other", Algorithm::ES256).jwk()]);
    let good = signer.sign(&claims());
    let [header, _, signature] = good.split('.').collect::<Vec<_>>()[..] else { panic!("{good}") };
    let others_claims = URL_SAFE_NO_PAD.encode(claims_with(&json!({ "sub": "bob" })).to_string());
    let impostor = Signer::new("key", Algorithm::ES256);
    for (token, reason) in [
        (String::new(), "no signed JWT"),
        ("keypool".to_owned(), "no signed JWT"),
        (format!("{good}.{signature}"), "no signed JWT"),
        (format!("{header}.{others_claims}.{signature}"), "its signature"),
        (format!("{header}.{others_claims}."), "its signature"),
        (format!("{header}.{others_claims}.!"), "cannot be read"),
        (signer.called(Some("other")).sign(&claims()), "its signature"),
        (signer.called(Some("unknown")).sign(&claims()), "no key"),
        (impostor.sign(&claims()), "its signature"),
        (impostor.called(None).sign(&claims()), "no key"),
    ] {
        let said = refusal(&verifier, &token).await;
        assert!(said.contains(reason), "{token}: {said}");
    }
    let critical = Header { crit: Some(vec!["b64".to_owned()]), ..signer.header() };
    let said = refusal(&verifier, &signer.sign_with(&critical, &claims())).await;
    assert!(said.contains("crit"), "{said}");
}

#[actix_web::test]
async fn a_token_without_a_kid_is_refused_for_its_claims_as_any_other() {
    let signer = Signer::new("key", Algorithm::EdDSA);
    let verifier = by_file([Signer::new("other", Algorithm::EdDSA).jwk(), signer.jwk()]);
    let stranger = signer.called(None).sign(&claims_with(&json!({ "iss": "https://id.example.com" })));
    assert!(refusal(&verifier, &stranger).await.contains("iss"));
    assert_eq!(verifier.verify(&signer.called(None).sign(&claims())).await, alice());
}

#[actix_web::test]
async fn none_and_symmetric_algorithms_are_refused_whatever_the_keys_are() {
    let secret = "a secret that stands in the file of keys";
    let (rsa, ed) = (Signer::new("rsa", Algorithm::RS256), Signer::new("ed", Algorithm::EdDSA));
    let public = rsa.jwk()["n"].as_str().unwrap().to_owned();
    let oct = json!({ "kty": "oct", "kid": "oct", "k": URL_SAFE_NO_PAD.encode(secret) });
    let oct_named = json!({ "kty": "oct", "kid": "named", "alg": "HS256", "k": URL_SAFE_NO_PAD.encode(secret) });
    let verifier = by_file([rsa.jwk(), ed.jwk(), oct, oct_named]);
    for kid in [None, Some("rsa"), Some("ed"), Some("oct"), Some("named")] {
        let header = URL_SAFE_NO_PAD.encode(json!({ "alg": "none", "kid": kid }).to_string());
        let unsigned = format!("{header}.{}.", URL_SAFE_NO_PAD.encode(claims().to_string()));
        assert!(refusal(&verifier, &unsigned).await.contains("its alg is none of"));
        for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
            for secret in [secret.as_bytes(), public.as_bytes(), &URL_SAFE_NO_PAD.decode(&public).unwrap()] {
                let header = Header { kid: kid.map(ToOwned::to_owned), ..Header::new(algorithm) };
                let token = jsonwebtoken::encode(&header, &claims(), &EncodingKey::from_secret(secret)).unwrap();
                assert!(refusal(&verifier, &token).await.contains("its alg is none of"));
            }
        }
    }
}

#[actix_web::test]
async fn the_algorithm_has_to_fit_the_key() {
    let rsa = Signer::new("rsa", Algorithm::RS256);
    let verifier = by_file([
        rsa.jwk_with(&json!({ "alg": "PS256" })),
        Signer::new("ed", Algorithm::EdDSA).jwk(),
        Signer::new("p256", Algorithm::ES256).jwk(),
        Signer::new("p384", Algorithm::ES384).jwk(),
    ]);
    for (algorithm, kid) in [
        (Algorithm::RS256, "rsa"),
        (Algorithm::PS384, "rsa"),
        (Algorithm::PS256, "ed"),
        (Algorithm::ES256, "p384"),
        (Algorithm::ES384, "p256"),
        (Algorithm::EdDSA, "p256"),
        (Algorithm::EdDSA, "rsa"),
    ] {
        let said = refusal(&verifier, &Signer::new(kid, algorithm).sign(&claims())).await;
        assert!(said.contains("its alg"), "{algorithm:?} by {kid}: {said}");
    }
    assert_eq!(verifier.verify(&Signer::new("rsa", Algorithm::PS256).sign(&claims())).await, alice());
}

#[actix_web::test]
async fn keys_that_cannot_verify_are_skipped_and_the_others_serve() {
    let good = Signer::new("good", Algorithm::EdDSA);
    let (ed, ec) = (Signer::new("bad", Algorithm::EdDSA), Signer::new("bad", Algorithm::ES256));
    let rsa = Signer::new("bad", Algorithm::RS256);
    for bad in [
        json!("no key"),
        json!({ "kid": "bad" }),
        json!({ "kid": "bad", "kty": "AKP", "alg": "ML-DSA-65", "pub": "AAAA" }),
        json!({ "kid": "bad", "kty": "OKP", "crv": "X25519", "x": ed.jwk()["x"] }),
        ed.jwk_with(&json!({ "use": "enc" })),
        ed.jwk_with(&json!({ "use": "else" })),
        ed.jwk_with(&json!({ "key_ops": ["sign"] })),
        ed.jwk_with(&json!({ "alg": "ECDH-ES" })),
        ed.jwk_with(&json!({ "alg": "ES256" })),
        ed.jwk_with(&json!({ "crv": "P-256" })),
        ed.jwk_with(&json!({ "x": "AAAA" })),
        ed.jwk_with(&json!({ "x": "" })),
        ed.jwk_with(&json!({ "x": "not base64!" })),
        ec.jwk_with(&json!({ "crv": "P-384" })),
        ec.jwk_with(&json!({ "crv": "P-521" })),
        ec.jwk_with(&json!({ "crv": "secp256k1" })),
        ec.jwk_with(&json!({ "y": ec.jwk()["x"] })),
        rsa.jwk_with(&json!({ "n": "AAAA" })),
        rsa.jwk_with(&json!({ "n": URL_SAFE_NO_PAD.encode([255; 255]) })),
        rsa.jwk_with(&json!({ "n": URL_SAFE_NO_PAD.encode([255; 513]) })),
    ] {
        let verifier = by_file([bad.clone(), good.jwk()]);
        assert_eq!(verifier.verify(&good.sign(&claims())).await, alice(), "{bad}");
        assert_eq!(verifier.verify(&good.called(None).sign(&claims())).await, alice(), "{bad}");
        for signer in [&ed, &ec, &rsa] {
            let said = refusal(&verifier, &signer.sign(&claims())).await;
            assert!(said.contains("no key"), "{bad}: {said}");
        }
    }
}

#[actix_web::test]
async fn a_token_of_8_kib_is_judged_and_a_larger_one_is_not() {
    let signer = Signer::new("key", Algorithm::EdDSA);
    let verifier = by_file([signer.jwk()]);
    let padded = |length: usize| signer.sign(&claims_with(&json!({ "padding": "x".repeat(length) })));
    let longest = (0..MAX_TOKEN).rev().find(|length| padded(*length).len() <= MAX_TOKEN).unwrap();
    assert_eq!(verifier.verify(&padded(longest)).await, alice());
    assert!(refusal(&verifier, &padded(longest + 1)).await.contains("larger than 8192 bytes"));
}

#[test]
fn no_reason_repeats_the_token() {
    let kinds = [ErrorKind::InvalidRsaKey("secret".into()), ErrorKind::Provider("secret".into())];
    for kind in kinds {
        assert!(!reason::<()>(&kind).unwrap_err().to_string().contains("secret"));
    }
}

#[test]
fn only_the_mode_jwt_has_a_verifier_and_it_needs_its_settings() {
    let open = Config { registration: Registration::Open, ..config("/nowhere") };
    assert!(JwtVerifier::from_config(&open, Arc::new(clock())).unwrap().is_none());
    let good = file(&jwks([Signer::new("key", Algorithm::EdDSA).jwk()]));
    let keys = || config(good.path().to_str().unwrap());
    JwtVerifier::from_config(&keys(), Arc::new(clock())).unwrap().unwrap();
    let (text, none) = (file(&json!("keys")), file(&jwks([json!({ "kty": "oct", "k": "AAAA" })])));
    for (bad, said) in [
        (Config { jwt_issuer: None, ..keys() }, "jwt_issuer"),
        (Config { jwt_audience: None, ..keys() }, "jwt_audience"),
        (Config { jwt_jwks: None, ..keys() }, "jwt_jwks"),
        (config("/nowhere/keys.json"), "cannot read the keys of jwt_jwks, /nowhere/keys.json: No such file"),
        (config(text.path().to_str().unwrap()), "it is not a JWK Set"),
        (config(none.path().to_str().unwrap()), "can verify a token"),
    ] {
        let Err(error) = JwtVerifier::from_config(&bad, Arc::new(clock())) else { panic!("{said} was not said") };
        assert!(format!("{error:#}").contains(said), "{error:#}");
    }
}
