//! Tokens: JSON Web Tokens signed with HMAC-SHA-256, which any replica with the same key can check.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};
use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use hmac::{Hmac, KeyInit as _, Mac as _, digest::Key};
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// Shortest key, in bytes: as long as the hash.
const SHORTEST_KEY: usize = 32;
/// `{"typ":"JWT","alg":"HS256"}`, the header of our own tokens.
const HEADER: &str = "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9";

/// Room for a signature, which is 32 bytes, and for what may be of the same length before it is decoded.
const SIGNATURE_ROOM: usize = 33;
/// Room for the claims of a token of ours, without a place on the heap.
const CLAIMS_ROOM: usize = 192;

/// What the header of a token says, as far as it matters.
#[derive(Deserialize)]
struct Header {
    alg: String,
}

/// What a token says.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Claims {
    /// Whose token it is.
    sub: Uuid,
    /// When it was issued, in seconds since 1970.
    iat: i64,
    /// When it ends, in seconds since 1970.
    exp: i64,
}

/// The token is not one of ours, was changed, or has ended. Which of these, is nobody's business.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the token is not valid")]
pub struct InvalidToken;

/// What a valid token says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Whose token it is.
    pub user: Uuid,
    /// When it ends.
    pub until: Timestamp,
}

/// Issues and checks tokens.
///
/// There is one algorithm, so this is all of it: a library of all algorithms took 6 to 10 µs to check a token, which
/// was an eighth of what a list costs here, and this takes 1.5 µs. That is too little to remember tokens for.
pub struct Tokens {
    /// Has taken the key in.
    mac: Hmac<Sha256>,
    lifetime: Duration,
}

/// Reads the key that replicas share from a file: base64 of at least 32 random bytes, or the bytes themselves.
///
/// # Errors
/// When the file cannot be read or the key is too short.
pub fn read_key(path: &Path) -> Result<Vec<u8>> {
    let content = fs::read(path).with_context(|| format!("read the token key {}", path.display()))?;
    let key = BASE64_STANDARD.decode(content.trim_ascii()).unwrap_or(content);
    if key.len() < SHORTEST_KEY {
        bail!(
            "the token key {} has {} bytes, at least {SHORTEST_KEY} are needed: make one with \
             `openssl rand -base64 32`",
            path.display(),
            key.len()
        );
    }
    Ok(key)
}

impl Tokens {
    /// Takes the key as it is.
    #[must_use]
    pub fn new(key: &[u8], lifetime: Duration) -> Self {
        // Of any length, as RFC 2104 has it: one longer than a block counts by its hash.
        let mut block = Key::<Hmac<Sha256>>::default();
        if key.len() > block.len() {
            block[..32].copy_from_slice(&Sha256::digest(key));
        } else {
            block[..key.len()].copy_from_slice(key);
        }
        Self { mac: Hmac::new(&block), lifetime }
    }

    /// A token for this user, valid from now for the configured time.
    ///
    /// # Errors
    /// When the claims cannot be written as JSON, which takes a broken program.
    pub fn issue(&self, user: Uuid, now: Timestamp) -> Result<String, serde_json::Error> {
        let iat = now.as_second();
        let lifetime = i64::try_from(self.lifetime.as_secs()).unwrap_or(i64::MAX);
        let claims = Claims { sub: user, iat, exp: iat.saturating_add(lifetime) };
        let claims = BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(&claims)?);
        let signed = format!("{HEADER}.{claims}");
        let signature = self.mac.clone().chain_update(&signed).finalize().into_bytes();
        Ok(format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature)))
    }

    /// Whose token this is, and until when.
    ///
    /// # Errors
    /// When the signature or the form is wrong, or the token has ended.
    pub fn verify(&self, token: &str, now: Timestamp) -> Result<Verified, InvalidToken> {
        let claims = self.signed(token).and_then(claims).ok_or(InvalidToken)?;
        if now.as_second() >= claims.exp {
            return Err(InvalidToken);
        }
        // A time that is none lies behind all that are.
        Ok(Verified { user: claims.sub, until: Timestamp::from_second(claims.exp).unwrap_or(Timestamp::MAX) })
    }

    /// The part of a token that is signed, if it is by us. Nothing else of a token is looked at before that.
    fn signed<'a>(&self, token: &'a str) -> Option<&'a str> {
        let (signed, signature) = token.rsplit_once('.')?;
        let mut room = [0; SIGNATURE_ROOM];
        let length = BASE64_URL_SAFE_NO_PAD.decode_slice(signature, &mut room).ok()?;
        // Compares in constant time.
        self.mac.clone().chain_update(signed).verify_slice(&room[..length]).ok()?;
        Some(signed)
    }
}

/// What the signed part of a token says. Whoever else has the key may write the header in another way, and may mean
/// another algorithm by it, which is then none of ours.
fn claims(signed: &str) -> Option<Claims> {
    let (header, claims) = signed.split_once('.')?;
    if header != HEADER && part::<Header>(header)?.alg != "HS256" {
        return None;
    }
    part(claims)
}

fn part<T: DeserializeOwned>(text: &str) -> Option<T> {
    let mut room = [0; CLAIMS_ROOM];
    match BASE64_URL_SAFE_NO_PAD.decode_slice(text, &mut room) {
        Ok(length) => serde_json::from_slice(&room[..length]).ok(),
        // Somebody else's, who has the key as well, may say more.
        Err(_) => serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(text).ok()?).ok(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &[u8] = b"0123456789abcdef0123456789abcdef";
    const HOUR: Duration = Duration::from_hours(1);

    impl Tokens {
        fn user(&self, token: &str, now: Timestamp) -> Result<Uuid, InvalidToken> {
            self.verify(token, now).map(|verified| verified.user)
        }
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    #[test]
    fn a_token_is_good_for_its_lifetime_at_any_replica() {
        let user = Uuid::now_v7();
        let token = Tokens::new(KEY, HOUR).issue(user, now()).unwrap();
        let other = Tokens::new(KEY, HOUR);
        let until = now() + jiff::SignedDuration::from_hours(1);
        assert_eq!(other.verify(&token, now()), Ok(Verified { user, until }));
        assert_eq!(other.user(&token, now() + jiff::SignedDuration::from_secs(3599)), Ok(user));
        assert_eq!(other.user(&token, now() + jiff::SignedDuration::from_hours(1)), Err(InvalidToken));
    }

    /// Replicas go by one clock, but each has asked for it at another moment.
    #[test]
    fn a_token_from_a_moment_ahead_is_good_and_the_end_is_the_same_for_all() {
        let (user, one, other) = (Uuid::now_v7(), Tokens::new(KEY, HOUR), Tokens::new(KEY, HOUR));
        let token = one.issue(user, now()).unwrap();
        for seconds in [-3600, -5, -1, 0, 3599] {
            let moment = now() + jiff::SignedDuration::from_secs(seconds);
            assert_eq!(other.user(&token, moment), Ok(user), "{seconds} s after it was issued");
        }
        // A token that was taken ends as well, and comes back if the clock was wrong.
        let end = now() + jiff::SignedDuration::from_secs(3600);
        assert_eq!(other.user(&token, end), Err(InvalidToken));
        assert_eq!(other.user(&token, now()), Ok(user));
    }

    /// The example of RFC 7515, appendix A.1, which was signed by somebody else.
    #[test]
    fn signatures_are_those_of_the_standard() {
        let key = BASE64_URL_SAFE_NO_PAD
            .decode("AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow")
            .unwrap();
        let signed = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.\
            eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
        let token = format!("{signed}.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk");
        assert_eq!(Tokens::new(&key, HOUR).signed(&token), Some(signed));
        assert_eq!(Tokens::new(&key[1..], HOUR).signed(&token), None);
    }

    /// Signed with our key and its claims in order: then the header decides.
    #[test]
    fn a_signed_token_of_another_algorithm_is_refused() {
        let (tokens, user) = (Tokens::new(KEY, HOUR), Uuid::now_v7());
        let token = tokens.issue(user, now()).unwrap();
        let claims = token.split('.').nth(1).unwrap();
        for (header, expected) in [
            (r#"{"alg":"HS256","typ":"JWT"}"#, Ok(user)),
            (r#"{"alg":"HS512"}"#, Err(InvalidToken)),
            (r#"{"alg":"none"}"#, Err(InvalidToken)),
            (r#"{"typ":"JWT"}"#, Err(InvalidToken)),
            ("HS256", Err(InvalidToken)),
        ] {
            let signed = format!("{}.{claims}", BASE64_URL_SAFE_NO_PAD.encode(header));
            let signature = tokens.mac.clone().chain_update(&signed).finalize().into_bytes();
            let token = format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature));
            assert_eq!(tokens.user(&token, now()), expected, "{header}");
        }
    }

    #[test]
    fn keys_of_any_length_are_taken_as_the_standard_has_it() {
        for length in [32, 63, 64, 65, 200] {
            let key = vec![7; length];
            let expected = Hmac::<Sha256>::new_from_slice(&key).unwrap().chain_update("text").finalize();
            let mac = Tokens::new(&key, HOUR).mac;
            assert_eq!(mac.chain_update("text").finalize().into_bytes(), expected.into_bytes(), "{length}");
        }
    }

    #[test]
    fn the_header_is_what_it_is_said_to_be() {
        assert_eq!(BASE64_URL_SAFE_NO_PAD.encode(r#"{"typ":"JWT","alg":"HS256"}"#), HEADER);
    }

    #[test]
    fn other_keys_and_other_algorithms_are_refused() {
        let tokens = Tokens::new(KEY, HOUR);
        let stranger = Tokens::new(b"another key of thirty-two bytes!!", HOUR);
        let token = stranger.issue(Uuid::now_v7(), now()).unwrap();
        assert_eq!(tokens.user(&token, now()), Err(InvalidToken));

        let claims = token.split('.').nth(1).unwrap();
        for header in [r#"{"alg":"none"}"#, r#"{"alg":"HS512"}"#, r#"{"alg":"RS256"}"#] {
            let forged = format!("{}.{claims}.", BASE64_URL_SAFE_NO_PAD.encode(header));
            assert_eq!(tokens.user(&forged, now()), Err(InvalidToken), "{header}");
        }
    }

    #[test]
    fn keys_are_read_from_base64_and_must_be_long_enough() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        fs::write(&path, format!("{}\n", BASE64_STANDARD.encode(KEY))).unwrap();
        let user = Uuid::now_v7();
        let token = Tokens::new(&read_key(&path).unwrap(), HOUR).issue(user, now()).unwrap();
        assert_eq!(Tokens::new(KEY, HOUR).user(&token, now()), Ok(user));

        fs::write(&path, "short").unwrap();
        assert!(read_key(&path).is_err());
        assert!(read_key(&directory.path().join("absent")).is_err());
    }

    proptest! {
        #[test]
        fn no_change_of_a_token_is_accepted(position in 0_usize..200, replacement in any::<char>()) {
            let tokens = Tokens::new(KEY, HOUR);
            let token = tokens.issue(Uuid::nil(), now()).unwrap();
            let mut characters: Vec<char> = token.chars().collect();
            let position = position % characters.len();
            let original = std::mem::replace(&mut characters[position], replacement);
            let changed: String = characters.into_iter().collect();
            prop_assume!(original != replacement);
            prop_assert_eq!(tokens.user(&changed, now()), Err(InvalidToken));
        }

        #[test]
        fn anything_else_is_refused_without_a_panic(text in ".*") {
            prop_assert_eq!(Tokens::new(KEY, HOUR).user(&text, now()), Err(InvalidToken));
        }
    }
}
