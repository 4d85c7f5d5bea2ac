//! Kubernetes quantities as people write them: `10Gi`, `500m`, or a bare number.

use std::borrow::Cow;
use std::fmt;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A non-negative Kubernetes quantity; a string or a whole number in the object, as everywhere in Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Amount(String);

impl Amount {
    /// The quantity as it was written.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The same for objects that Kubernetes defines.
    #[must_use]
    pub fn to_quantity(&self) -> Quantity {
        Quantity(self.0.clone())
    }

    /// The amount in whole units, rounded down; `None` if it is not a quantity or too large.
    #[must_use]
    pub fn units(&self) -> Option<u64> {
        self.times(1.0)
    }

    /// The amount in thousandths of a unit, as CPU is counted, rounded down; `None` if it is not a quantity or too large.
    #[must_use]
    pub fn thousandths(&self) -> Option<u64> {
        self.times(1000.0)
    }

    fn times(&self, unit: f64) -> Option<u64> {
        let end = self.0.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(self.0.len());
        let (number, suffix) = self.0.split_at(end);
        let number: f64 = number.parse().ok()?;
        let power = |base: f64, name: &str| {
            let exponent = ["k", "M", "G", "T", "P", "E"].iter().position(|prefix| *prefix == name)?;
            Some(base.powi(i32::try_from(exponent).ok()? + 1))
        };
        let factor = match suffix {
            "" => 1.0,
            "n" => 1e-9,
            "u" => 1e-6,
            "m" => 1e-3,
            "Ki" => 1024.0,
            _ => match (suffix.strip_suffix('i'), suffix.strip_prefix(['e', 'E'])) {
                (Some(name), _) => power(1024.0, name)?,
                (None, Some(exponent)) if !exponent.is_empty() => 10_f64.powi(exponent.parse().ok()?),
                (None, _) => power(1000.0, suffix)?,
            },
        };
        let units = (number * factor * unit).floor();
        // 2^53: below this every whole number is exact.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked")]
        (0.0..=9_007_199_254_740_992.0).contains(&units).then_some(units as u64)
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u64),
            Text(String),
        }
        Ok(Self(match Written::deserialize(deserializer)? {
            Written::Number(number) => number.to_string(),
            Written::Text(text) => text,
        }))
    }
}

impl JsonSchema for Amount {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Amount".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // The pattern applies to strings only; `minimum` to numbers only.
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "minimum": 0,
            "maxLength": 32,
            "pattern": "^([0-9]+([.][0-9]*)?|[.][0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, units) in [
            ("1Gi", Some(1 << 30)),
            ("1.5Gi", Some(3 << 29)),
            ("512Ki", Some(512 << 10)),
            ("2G", Some(2_000_000_000)),
            ("1k", Some(1000)),
            ("1500m", Some(1)),
            ("2e3", Some(2000)),
            ("1E", Some(1_000_000_000_000_000_000)),
            ("128974848", Some(128_974_848)),
            ("lots", None),
            ("1Qi", None),
        ] {
            let expected = units.filter(|units| *units <= 1 << 53);
            assert_eq!(Amount::new(text).units(), expected, "{text}");
        }
    }

    #[test]
    fn cores_are_counted_in_thousandths() {
        for (text, thousandths) in
            [("2", Some(2000)), ("300m", Some(300)), ("0.5", Some(500)), ("many", None)]
        {
            assert_eq!(Amount::new(text).thousandths(), thousandths, "{text}");
        }
    }
}
