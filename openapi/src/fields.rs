//! How fields are read that serde alone would read too freely, or not freely enough.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error, SeqAccess, Unexpected, Visitor},
};

/// Reads an array of at most `MOST` items, and stops at the first that is too many: what is refused is never held.
pub(crate) fn bounded<'de, D, T, const MOST: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Items<T, const MOST: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for Items<T, MOST> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "an array of at most {MOST} items")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Vec<T>, A::Error> {
            let mut items = Vec::new();
            while let Some(item) = array.next_element()? {
                if items.len() == MOST {
                    return Err(A::Error::custom(format_args!("an array has more than {MOST} items")));
                }
                items.push(item);
            }
            Ok(items)
        }
    }

    deserializer.deserialize_seq(Items::<T, MOST>(PhantomData))
}

/// As [`bounded`], for an array that may be left out, but not be `null`.
pub(crate) fn some_bounded<'de, D, T, const MOST: usize>(deserializer: D) -> Result<Option<Vec<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    bounded::<D, T, MOST>(deserializer).map(Some)
}

/// Reads what may be left out, but not be `null`.
pub(crate) fn present<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    T::deserialize(deserializer).map(Some)
}

/// Reads a whole number that may be left out. `60.0` is one, too: JSON knows one kind of number (RFC 8259, section 6).
pub(crate) fn whole<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<u64>,
{
    let number: Option<Whole> = Option::deserialize(deserializer)?;
    number.map(fitting).transpose()
}

/// Reads a whole number as [`whole`] does, that may not be left out.
pub(crate) fn whole_number<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<u64>,
{
    fitting(Whole::deserialize(deserializer)?)
}

fn fitting<T: TryFrom<u64>, E: Error>(Whole(number): Whole) -> Result<T, E> {
    T::try_from(number).map_err(|_| E::custom(format_args!("{number} is too large a number")))
}

/// Reads whole numbers as [`whole`] does, and as many as [`bounded`] does.
pub(crate) fn whole_numbers<'de, D, const MOST: usize>(deserializer: D) -> Result<Vec<u64>, D::Error>
where
    D: Deserializer<'de>,
{
    let numbers = bounded::<D, Whole, MOST>(deserializer)?.into_iter().map(|Whole(number)| {
        // As the document's int64 has it.
        i64::try_from(number)
            .map(|_| number)
            .map_err(|_| D::Error::custom(format_args!("{number} is too large a number")))
    });
    numbers.collect()
}

struct Whole(u64);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WholeVisitor;

        impl Visitor<'_> for WholeVisitor {
            type Value = Whole;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number that is not negative")
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Whole, E> {
                Ok(Whole(number))
            }

            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is checked to fit")]
            fn visit_f64<E: Error>(self, number: f64) -> Result<Whole, E> {
                // Up to here every whole number is a float of its own.
                let exact = (0.0..9_007_199_254_740_992.0).contains(&number) && number.fract() == 0.0;
                if exact { Ok(Whole(number as u64)) } else { Err(E::invalid_value(Unexpected::Float(number), &self)) }
            }
        }

        deserializer.deserialize_any(WholeVisitor)
    }
}

#[cfg(test)]
mod tests {
    use crate::{MAX_TARGETS, ReserveRequest};

    #[test]
    fn a_whole_number_is_one_however_it_is_written() {
        let ttl = |text: &str| {
            let request: serde_json::Result<ReserveRequest> = serde_json::from_str(&format!(r#"{{"ttl":{text}}}"#));
            request.map(|request| request.ttl)
        };
        for (text, number) in [("60", Some(60)), ("60.0", Some(60)), ("6e1", Some(60)), ("null", None)] {
            assert_eq!(ttl(text).unwrap(), number);
        }
        for bad in ["-1", "0.5", "1e300", "\"60\""] {
            assert!(ttl(bad).is_err(), "{bad} was taken");
        }
        let suite = serde_json::from_str::<ReserveRequest>(r#"{"ciphersuite":65536}"#).unwrap_err();
        assert!(suite.to_string().contains("too large"), "{suite}");
    }

    #[test]
    fn an_array_ends_where_it_is_too_long() {
        let request = |n: usize| format!(r#"{{"targets":{}}}"#, serde_json::to_string(&vec!["bob"; n]).unwrap());
        let most: ReserveRequest = serde_json::from_str(&request(MAX_TARGETS)).unwrap();
        assert_eq!(most.targets.unwrap().len(), MAX_TARGETS);
        let error = serde_json::from_str::<ReserveRequest>(&request(MAX_TARGETS + 1)).unwrap_err();
        assert!(error.to_string().contains("more than 100 items"), "{error}");
    }
}
