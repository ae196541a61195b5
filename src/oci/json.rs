//! Strict JSON: a bounded tree in which no key occurs twice.
//!
//! `serde_json` refuses what is not JSON (byte order marks, trailing bytes, `NaN`, lone surrogates, bad UTF-8). What it lets
//! pass, and two parsers may read in two ways, is refused here: duplicate keys, and shapes that cost more than they say.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};

/// Objects and arrays nested deeper than this are refused.
const DEPTH_MAX: usize = 32;
/// Keys of one object.
const KEYS_MAX: usize = 10_000;
/// Elements of one array.
const ELEMENTS_MAX: usize = 10_000;
/// Values of the whole document.
const VALUES_MAX: usize = 200_000;
/// Objects up to this many keys are searched for duplicates by comparing; larger ones through a set.
const KEYS_COMPARED: usize = 16;

/// A JSON value that borrows its strings from the document where they have no escapes.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value<'a> {
    Null,
    Bool,
    /// A whole number in the range of `u64`.
    Unsigned(u64),
    /// Any other number: negative, fractional or too large.
    OtherNumber,
    String(Cow<'a, str>),
    Array(Vec<Value<'a>>),
    Object(Object<'a>),
}

/// A JSON object; no key occurs twice.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Object<'a>(Vec<(Cow<'a, str>, Value<'a>)>);

impl<'a> Object<'a> {
    /// Returns the value of a key; `null` counts as absent, as every writer of manifests means it.
    pub(super) fn get(&self, key: &str) -> Option<&Value<'a>> {
        self.entries().find(|(name, value)| *name == key && !matches!(value, Value::Null)).map(|(_, value)| value)
    }

    pub(super) fn contains(&self, key: &str) -> bool {
        self.entries().any(|(name, _)| name == key)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&str, &Value<'a>)> {
        self.0.iter().map(|(name, value)| (name.as_ref(), value))
    }
}

/// Parses a whole document; time and memory are bounded by its length and by the limits above.
pub(super) fn parse(document: &[u8]) -> Result<Value<'_>, serde_json::Error> {
    let budget = Cell::new(VALUES_MAX);
    let mut deserializer = serde_json::Deserializer::from_slice(document);
    let value = Node { depth: 0, budget: &budget }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

/// Reads one value at some depth, against what is left of the document's budget.
#[derive(Clone, Copy)]
struct Node<'b> {
    depth: usize,
    budget: &'b Cell<usize>,
}

impl<'b> Node<'b> {
    fn spend<E: Error>(self) -> Result<(), E> {
        let left = self.budget.get().checked_sub(1).ok_or_else(|| E::custom("too many values"))?;
        self.budget.set(left);
        Ok(())
    }

    fn child<E: Error>(self) -> Result<Node<'b>, E> {
        if self.depth >= DEPTH_MAX {
            return Err(E::custom("nested too deep"));
        }
        Ok(Node { depth: self.depth + 1, budget: self.budget })
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value<'de>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value<'de>, D::Error> {
        self.spend()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value<'de>, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Value<'de>, E> {
        Ok(Value::Bool)
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value<'de>, E> {
        Ok(Value::Unsigned(number))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value<'de>, E> {
        Ok(u64::try_from(number).map_or(Value::OtherNumber, Value::Unsigned))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value<'de>, E> {
        Ok(Value::OtherNumber)
    }

    fn visit_str<E>(self, text: &str) -> Result<Value<'de>, E> {
        Ok(Value::String(Cow::Owned(text.to_owned())))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Value<'de>, E> {
        Ok(Value::String(Cow::Borrowed(text)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value<'de>, A::Error> {
        let child = self.child()?;
        let mut array = Vec::new();
        while let Some(element) = elements.next_element_seed(child)? {
            if array.len() >= ELEMENTS_MAX {
                return Err(A::Error::custom("too many elements"));
            }
            array.push(element);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value<'de>, A::Error> {
        let child = self.child()?;
        let mut object: Vec<(Cow<'de, str>, Value<'de>)> = Vec::new();
        // Filled only when an object outgrows comparing, so that small ones, which are nearly all, allocate nothing.
        let mut seen: HashSet<Cow<'de, str>> = HashSet::new();
        while let Some(key) = entries.next_key_seed(Key)? {
            if object.len() >= KEYS_MAX {
                return Err(A::Error::custom("too many keys"));
            }
            if object.len() == KEYS_COMPARED {
                seen.extend(object.iter().map(|(name, _)| name.clone()));
            }
            let duplicate = if object.len() < KEYS_COMPARED {
                object.iter().any(|(name, _)| *name == key)
            } else {
                !seen.insert(key.clone())
            };
            if duplicate {
                return Err(A::Error::custom("duplicate key"));
            }
            object.push((key, entries.next_value_seed(child)?));
        }
        Ok(Value::Object(Object(object)))
    }
}

/// Reads a key, borrowed where it has no escapes.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Cow<'de, str>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(document: &[u8], accepted: bool) {
        assert_eq!(
            parse(document).is_ok(),
            accepted,
            "{}",
            String::from_utf8_lossy(&document[..document.len().min(80)])
        );
    }

    #[test]
    fn documents_that_two_parsers_could_read_in_two_ways_are_refused() {
        check(br#"{"a":1,"b":{"a":1}}"#, true);
        check(br#"{"a":1,"a":1}"#, false);
        check(br#"{"a":1,"\u0061":2}"#, false);
        check(br#"[{"x":[{"k":1,"k":2}]}]"#, false);
        check(b"\xef\xbb\xbf{}", false);
        check(b"\xff\xfe{\x00}\x00", false);
        check(b"{} {}", false);
        check(b"{}x", false);
        check(b"{}\n", true);
        check(b"{\"a\":NaN}", false);
        check(br#"{"a":"\ud800"}"#, false);
        check(br#"{"a":"\ud800\u0041"}"#, false);
        check(b"{\"a\":\"\xed\xa0\x80\"}", false);
        check(b"{\"a\":\"\x01\"}", false);
        check(b"{'a':1}", false);
        check(b"{\"a\":1,}", false);
        check(b"{\"a\":01}", false);
        check(b"{\"a\":1e999}", false);
        check(b"", false);
    }

    #[test]
    fn duplicate_keys_are_found_in_objects_of_any_size() {
        for count in [1, 15, 16, 17, 1000] {
            let keys: Vec<String> = (0..count).map(|key| format!("\"k{key}\":0")).collect();
            check(format!("{{{}}}", keys.join(",")).as_bytes(), true);
            check(format!("{{{},\"k0\":1}}", keys.join(",")).as_bytes(), false);
        }
    }

    #[test]
    fn numbers_keep_only_what_a_size_may_be() {
        assert_eq!(parse(b"18446744073709551615").unwrap(), Value::Unsigned(u64::MAX));
        for other in ["18446744073709551616", "-1", "1.5", "1e3", "-0"] {
            assert_eq!(parse(other.as_bytes()).unwrap(), Value::OtherNumber, "{other}");
        }
    }

    #[test]
    fn shapes_that_cost_more_than_they_say_are_refused_at_once() {
        const BYTES: usize = 4 << 20;
        let fill = |unit: &str| unit.repeat(BYTES / unit.len());
        let keys: String = (0..300_000).map(|key| format!("\"{key:x}\":0,")).collect();
        let hostile = [
            fill("["),
            fill("{\"a\":"),
            format!("[{}0]", fill("0,")),
            format!("[{}[]]", fill("[],")),
            format!("[{}{{}}]", fill("{},")),
            format!("{{{keys}\"z\":0}}"),
            format!("[{}[0]]", fill("[0,0,0,0,0,0,0,0,0],")),
            format!("\"{}", fill("\\u0041")),
        ];
        for document in hostile {
            let started = tokio::time::Instant::now();
            check(document.as_bytes(), false);
            // The limit is 50 ms in a release build; an unoptimised one on a busy machine gets more.
            assert!(started.elapsed() < std::time::Duration::from_secs(2), "{:?}", started.elapsed());
        }
    }
}
