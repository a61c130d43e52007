//! Fields of a request body that take no more memory than they may: 32 MiB of JSON hold ten million empty lists, which
//! as a tree would be ten times as large. Lists end with an error where they grow too long, and what is refused
//! anyway is read past.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{
    Deserialize, Deserializer, Error, Expected, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor,
};

/// A list of at most `MOST` values.
pub(super) struct Bounded<T, const MOST: usize>(pub Vec<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for Bounded<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(BoundedVisitor(PhantomData))
    }
}

struct BoundedVisitor<T, const MOST: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for BoundedVisitor<T, MOST> {
    type Value = Bounded<T, MOST>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MOST} values")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
        values(seq, MOST, &self).map(Bounded)
    }
}

/// The values of a list, `most` at most.
fn values<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(
    mut seq: A,
    most: usize,
    expected: &dyn Expected,
) -> Result<Vec<T>, A::Error> {
    let mut values = Vec::new();
    while let Some(value) = seq.next_element()? {
        values.push(value);
        if values.len() > most {
            return Err(A::Error::invalid_length(values.len(), expected));
        }
    }
    Ok(values)
}

/// What a field may hold that takes one value or several.
pub(super) trait Alternatives {
    /// One value alone.
    type One;
    /// What stands in the list.
    type Each;
    /// Length of the list at most.
    const MOST: usize;
    /// Stands after "expected" in the message about anything else.
    const EXPECTED: &'static str;

    /// The one value as a string.
    fn text(_: &str) -> Option<Self::One> {
        None
    }

    /// The one value as a whole number.
    fn number(_: i64) -> Option<Self::One> {
        None
    }
}

/// A field that takes one value or several.
pub(super) enum OneOrMany<L: Alternatives> {
    One(L::One),
    Many(Vec<L::Each>),
}

impl<'de, L: Alternatives> Deserialize<'de> for OneOrMany<L>
where
    L::Each: Deserialize<'de>,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneOrManyVisitor(PhantomData))
    }
}

struct OneOrManyVisitor<L>(PhantomData<L>);

impl<'de, L: Alternatives> Visitor<'de> for OneOrManyVisitor<L>
where
    L::Each: Deserialize<'de>,
{
    type Value = OneOrMany<L>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, at most {} of them", L::EXPECTED, L::MOST)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        let one = L::text(text).ok_or_else(|| E::invalid_type(Unexpected::Str(text), &self))?;
        Ok(OneOrMany::One(one))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
        let one = L::number(number).ok_or_else(|| E::invalid_type(Unexpected::Signed(number), &self))?;
        Ok(OneOrMany::One(one))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        let signed =
            i64::try_from(number).map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &self))?;
        self.visit_i64(signed)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
        values(seq, L::MOST, &self).map(OneOrMany::Many)
    }
}

/// What a field holds that is not served; null is left to `Option`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unserved {
    /// An empty string, list or object, which asks for nothing.
    Empty,
    /// The word "none".
    None,
    /// Anything else.
    Something,
}

impl<'de> Deserialize<'de> for Unserved {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UnservedVisitor)
    }
}

struct UnservedVisitor;

impl<'de> Visitor<'de> for UnservedVisitor {
    type Value = Unserved;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Unserved, E> {
        Ok(Unserved::Something)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Unserved, E> {
        Ok(Unserved::Something)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Unserved, E> {
        Ok(Unserved::Something)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Unserved, E> {
        Ok(Unserved::Something)
    }

    fn visit_str<E>(self, text: &str) -> Result<Unserved, E> {
        Ok(match text {
            "" => Unserved::Empty,
            "none" => Unserved::None,
            _ => Unserved::Something,
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Unserved, A::Error> {
        let mut held = Unserved::Empty;
        while seq.next_element::<IgnoredAny>()?.is_some() {
            held = Unserved::Something;
        }
        Ok(held)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unserved, A::Error> {
        let mut held = Unserved::Empty;
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
            held = Unserved::Something;
        }
        Ok(held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_served() {
        for (json, expected) in [
            ("[]", Unserved::Empty),
            ("{}", Unserved::Empty),
            ("\"\"", Unserved::Empty),
            ("\"none\"", Unserved::None),
            ("\"x\"", Unserved::Something),
            ("[[]]", Unserved::Something),
            ("[null, {\"a\": [1]}]", Unserved::Something),
            ("{\"a\": {\"b\": []}}", Unserved::Something),
            ("false", Unserved::Something),
            ("-1.5", Unserved::Something),
            ("-1", Unserved::Something),
            ("0", Unserved::Something),
        ] {
            assert_eq!(serde_json::from_str::<Unserved>(json).unwrap(), expected, "{json}");
        }
        assert_eq!(serde_json::from_str::<Option<Unserved>>("null").unwrap(), None);
        assert!(serde_json::from_str::<Unserved>("[1,").is_err());
    }

    #[test]
    fn lists_end_where_they_are_too_long() {
        let list = |json: &str| serde_json::from_str::<Bounded<u32, 3>>(json).map(|b| b.0);
        assert_eq!(list("[1,2,3]").unwrap(), [1, 2, 3]);
        // What follows the fourth is not read.
        let error = list("[1,2,3,4,\"x\"").err().unwrap().to_string();
        assert!(error.contains("at most 3"), "{error}");
    }
}
