//! Tokens: JSON Web Tokens signed with HMAC-SHA-256, which any replica with the same key can check.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation,
    crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils},
    errors::ErrorKind,
    signature::{self, Signer, Verifier},
};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use uuid::Uuid;

use crate::recent::RecentMap;

/// Tokens whose signature was checked that are remembered, at least; some 300 bytes each.
const REMEMBERED_TOKENS: usize = 10_000;
/// Shortest key, in bytes: as long as the hash.
const SHORTEST_KEY: usize = 32;

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

/// Issues and checks tokens.
pub struct Tokens {
    encoding: EncodingKey,
    decoding: DecodingKey,
    validation: Validation,
    lifetime: Duration,
    /// What good tokens say. Checking one costs more than all else that a request does before its statement.
    checked: RecentMap<Box<str>, Claims>,
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
        // Whoever came first installed the same.
        let _ = HMAC_SHA256_ONLY.install_default();
        let mut validation = Validation::new(Algorithm::HS256);
        // The time is given to us, so that it is compared here.
        validation.validate_exp = false;
        Self {
            encoding: EncodingKey::from_secret(key),
            decoding: DecodingKey::from_secret(key),
            validation,
            lifetime,
            checked: RecentMap::new(REMEMBERED_TOKENS),
        }
    }

    /// A token for this user, valid from now for the configured time.
    ///
    /// # Errors
    /// When signing fails, which takes a broken program.
    pub fn issue(&self, user: Uuid, now: Timestamp) -> Result<String, jsonwebtoken::errors::Error> {
        let iat = now.as_second();
        let lifetime = i64::try_from(self.lifetime.as_secs()).unwrap_or(i64::MAX);
        let claims = Claims { sub: user, iat, exp: iat.saturating_add(lifetime) };
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.encoding)
    }

    /// Whose token this is.
    ///
    /// # Errors
    /// When the signature or the form is wrong, or the token has ended.
    pub fn verify(&self, token: &str, now: Timestamp) -> Result<Uuid, InvalidToken> {
        let claims = match self.checked.get(token) {
            Some(claims) => claims,
            None => self.check(token)?,
        };
        if now.as_second() < claims.exp { Ok(claims.sub) } else { Err(InvalidToken) }
    }

    /// What a token says, if it is one of ours; such a token is remembered.
    fn check(&self, token: &str) -> Result<Claims, InvalidToken> {
        let decoded = jsonwebtoken::decode::<Claims>(token, &self.decoding, &self.validation);
        let claims = decoded.map_err(|_| InvalidToken)?.claims;
        self.checked.insert(token.into(), claims);
        Ok(claims)
    }
}

/// The only algorithm we issue and accept. The providers that come with the crate bring all the others,
/// RSA included, that a token could never use here.
static HMAC_SHA256_ONLY: CryptoProvider = CryptoProvider {
    signer_factory: |algorithm, key| match algorithm {
        Algorithm::HS256 => Ok(Box::new(HmacSha256::new(key.as_bytes())?)),
        _ => Err(ErrorKind::InvalidAlgorithm.into()),
    },
    verifier_factory: |algorithm, key| match algorithm {
        Algorithm::HS256 => Ok(Box::new(HmacSha256::new(key.try_get_as_bytes()?)?)),
        _ => Err(ErrorKind::InvalidAlgorithm.into()),
    },
    key_utils: KeyUtils::new_unimplemented(),
};

struct HmacSha256(Hmac<Sha256>);

impl HmacSha256 {
    fn new(key: &[u8]) -> Result<Self, jsonwebtoken::errors::Error> {
        Hmac::new_from_slice(key).map(Self).map_err(|_| ErrorKind::InvalidKeyFormat.into())
    }
}

impl Signer<Vec<u8>> for HmacSha256 {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, signature::Error> {
        Ok(self.0.clone().chain_update(message).finalize().into_bytes().to_vec())
    }
}

impl Verifier<Vec<u8>> for HmacSha256 {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        // Compares in constant time.
        self.0.clone().chain_update(message).verify_slice(signature).map_err(|_| signature::Error::new())
    }
}

impl JwtSigner for HmacSha256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

impl JwtVerifier for HmacSha256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

#[cfg(test)]
mod tests {
    use base64::prelude::BASE64_URL_SAFE_NO_PAD;
    use proptest::prelude::*;

    use super::*;

    const KEY: &[u8] = b"0123456789abcdef0123456789abcdef";
    const HOUR: Duration = Duration::from_hours(1);

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    #[test]
    fn a_token_is_good_for_its_lifetime_at_any_replica() {
        let user = Uuid::now_v7();
        let token = Tokens::new(KEY, HOUR).issue(user, now()).unwrap();
        let other = Tokens::new(KEY, HOUR);
        assert_eq!(other.verify(&token, now()), Ok(user));
        assert_eq!(other.verify(&token, now() + jiff::SignedDuration::from_secs(3599)), Ok(user));
        assert_eq!(other.verify(&token, now() + jiff::SignedDuration::from_hours(1)), Err(InvalidToken));
    }

    /// Replicas go by one clock, but each has asked for it at another moment.
    #[test]
    fn a_token_from_a_moment_ahead_is_good_and_the_end_is_the_same_for_all() {
        let (user, one, other) = (Uuid::now_v7(), Tokens::new(KEY, HOUR), Tokens::new(KEY, HOUR));
        let token = one.issue(user, now()).unwrap();
        for seconds in [-3600, -5, -1, 0, 3599] {
            let moment = now() + jiff::SignedDuration::from_secs(seconds);
            assert_eq!(other.verify(&token, moment), Ok(user), "{seconds} s after it was issued");
        }
        // A token that is remembered ends as well, and comes back if the clock was wrong.
        let end = now() + jiff::SignedDuration::from_secs(3600);
        assert_eq!(other.verify(&token, end), Err(InvalidToken));
        assert_eq!(other.verify(&token, now()), Ok(user));
    }

    /// The example of RFC 7515, appendix A.1, which was signed by somebody else.
    #[test]
    fn signatures_are_those_of_the_standard() {
        let key = BASE64_URL_SAFE_NO_PAD
            .decode("AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow")
            .unwrap();
        let message = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.\
            eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
        let signature = HmacSha256::new(&key).unwrap().try_sign(message.as_bytes()).unwrap();
        assert_eq!(BASE64_URL_SAFE_NO_PAD.encode(signature), "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk");
    }

    #[test]
    fn other_keys_and_other_algorithms_are_refused() {
        let tokens = Tokens::new(KEY, HOUR);
        let stranger = Tokens::new(b"another key of thirty-two bytes!!", HOUR);
        let token = stranger.issue(Uuid::now_v7(), now()).unwrap();
        assert_eq!(tokens.verify(&token, now()), Err(InvalidToken));

        let claims = token.split('.').nth(1).unwrap();
        for header in [r#"{"alg":"none"}"#, r#"{"alg":"HS512"}"#, r#"{"alg":"RS256"}"#] {
            let forged = format!("{}.{claims}.", BASE64_URL_SAFE_NO_PAD.encode(header));
            assert_eq!(tokens.verify(&forged, now()), Err(InvalidToken), "{header}");
        }
    }

    #[test]
    fn keys_are_read_from_base64_and_must_be_long_enough() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        fs::write(&path, format!("{}\n", BASE64_STANDARD.encode(KEY))).unwrap();
        let user = Uuid::now_v7();
        let token = Tokens::new(&read_key(&path).unwrap(), HOUR).issue(user, now()).unwrap();
        assert_eq!(Tokens::new(KEY, HOUR).verify(&token, now()), Ok(user));

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
            prop_assert_eq!(tokens.verify(&changed, now()), Err(InvalidToken));
        }

        #[test]
        fn anything_else_is_refused_without_a_panic(text in ".*") {
            prop_assert_eq!(Tokens::new(KEY, HOUR).verify(&text, now()), Err(InvalidToken));
        }
    }
}
