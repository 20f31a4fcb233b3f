//! Deserialisers for fields that need bounds, or accept more than serde's own.

use std::{
    fmt::{self, Display},
    marker::PhantomData,
    str::FromStr,
};

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Unexpected, Visitor, value::MapAccessDeserializer},
};

/// Reads a string by a type's `FromStr`.
pub(crate) fn parsed<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: Display>,
{
    struct Text<T>(PhantomData<T>);

    impl<T: FromStr<Err: Display>> Visitor<'_> for Text<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }
    }

    deserializer.deserialize_str(Text(PhantomData))
}

/// A value that is written as a JSON object. A derived deserialiser would also accept an array of its fields.
#[derive(Debug)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(fields)).map(Object)
            }
        }

        deserializer.deserialize_map(Fields(PhantomData))
    }
}

/// An array of at most `MOST` items. Reading stops at the first one beyond, so that a refused array takes no memory.
struct List<T, const MOST: usize>(Vec<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for List<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items<T, const MOST: usize>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for Items<T, MOST> {
            type Value = List<T, MOST>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an array of at most {MOST} items")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = array.next_element()? {
                    if items.len() == MOST {
                        return Err(A::Error::custom(format_args!("an array has more than {MOST} items")));
                    }
                    items.push(item);
                }
                Ok(List(items))
            }
        }

        deserializer.deserialize_seq(Items::<T, MOST>(PhantomData))
    }
}

/// Reads an array of at most `MOST` items.
pub(crate) fn list<'de, D, T, const MOST: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    List::<T, MOST>::deserialize(deserializer).map(|List(items)| items)
}

/// Like [`list`], for an optional field: `null` is the same as no field.
pub(crate) fn optional_list<'de, D, T, const MOST: usize>(deserializer: D) -> Result<Option<Vec<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let list: Option<List<T, MOST>> = Option::deserialize(deserializer)?;
    Ok(list.map(|List(items)| items))
}

/// Like [`optional_list`], for a field that is an empty array if it is left out.
pub(crate) fn list_or_empty<'de, D, T, const MOST: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(optional_list::<D, T, MOST>(deserializer)?.unwrap_or_default())
}

/// Like [`list`], for objects.
pub(crate) fn objects<'de, D, T, const MOST: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(list::<D, Object<T>, MOST>(deserializer)?.into_iter().map(|Object(item)| item).collect())
}

/// Like [`list_or_empty`], for objects.
pub(crate) fn objects_or_empty<'de, D, T, const MOST: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(list_or_empty::<D, Object<T>, MOST>(deserializer)?.into_iter().map(|Object(item)| item).collect())
}

/// Reads an optional object.
pub(crate) fn object<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let object: Option<Object<T>> = Option::deserialize(deserializer)?;
    Ok(object.map(|Object(value)| value))
}

/// Reads a field that has its default value if it is left out or `null`.
pub(crate) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Reads an optional whole number. It may be written as `60.0`: JSON has one kind of number (RFC 8259, section 6).
pub(crate) fn whole<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<u64>,
{
    let number: Option<Whole> = Option::deserialize(deserializer)?;
    number.map(fitting).transpose()
}

/// Like [`whole`], for a required field.
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

/// Like [`whole_number`], for a number that also fits `int64`, which the OpenAPI document says.
pub(crate) fn signed_number<'de, D>(deserializer: D) -> Result<u64, D::Error>
where
    D: Deserializer<'de>,
{
    signed(Whole::deserialize(deserializer)?)
}

fn signed<E: Error>(number: Whole) -> Result<u64, E> {
    fitting::<i64, E>(number).map(i64::cast_unsigned)
}

/// Reads a number of a query, with the rules of [`signed_number`].
pub(crate) fn signed_parameter<'de, D>(deserializer: D) -> Result<Option<u64>, D::Error>
where
    D: Deserializer<'de>,
{
    Option::<u64>::deserialize(deserializer)?.map(|number| signed(Whole(number))).transpose()
}

/// Reads an array of whole numbers, with the rules of [`signed_number`] and [`list_or_empty`].
pub(crate) fn whole_numbers<'de, D, const MOST: usize>(deserializer: D) -> Result<Vec<u64>, D::Error>
where
    D: Deserializer<'de>,
{
    list_or_empty::<D, Whole, MOST>(deserializer)?.into_iter().map(signed).collect()
}

/// Reads an optional array of whole numbers, with the rules of [`whole`] and [`list_or_empty`].
pub(crate) fn whole_list<'de, D, T, const MOST: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<u64>,
{
    list_or_empty::<D, Whole, MOST>(deserializer)?.into_iter().map(fitting).collect()
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
                // Below 2^53, every whole number has a float of its own.
                let exact = (0.0..9_007_199_254_740_992.0).contains(&number) && number.fract() == 0.0;
                if exact { Ok(Whole(number as u64)) } else { Err(E::invalid_value(Unexpected::Float(number), &self)) }
            }
        }

        deserializer.deserialize_any(WholeVisitor)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde::de::DeserializeOwned;

    use super::Object;
    use crate::{
        AckRequest, CommitRequest, LookupRequest, MAX_TARGETS, MessageRequest, ProofsRequest, ReserveRequest,
        RevokeRequest, SpendRequest, UploadRequest,
    };

    fn read<T: DeserializeOwned>(text: &str) -> Result<(), String> {
        serde_json::from_str::<Object<T>>(text).map(drop).map_err(|error| error.to_string())
    }

    #[rstest]
    #[case(read::<SpendRequest>, r#"["1f-67e55044-10b1-426f-9247-bb680e5fe0c8", "AQ=="]"#)]
    #[case(read::<LookupRequest>, r#"[["alice"], false]"#)]
    #[case(read::<MessageRequest>, r#"{"message": "AQ==", "recipients": [["bob", "phone"]]}"#)]
    #[case(read::<CommitRequest>, r#"{"commit": "AQ==", "recipients": [["bob", "phone"]]}"#)]
    #[case(read::<UploadRequest>, r#"{"keypackages": [], "signature_key_changes": [[1, "AQ==", "AQ=="]]}"#)]
    #[case(read::<AckRequest>, r#"{"refused": [[1, "invalid"]]}"#)]
    #[case(read::<ProofsRequest>, r#"{"of": [], "since": ["keypool/0123456789abcdef/1-89abcdef", 7]}"#)]
    fn an_array_is_no_object(#[case] read: fn(&str) -> Result<(), String>, #[case] text: &str) {
        let error = read(text).unwrap_err();
        assert!(error.contains("invalid type: sequence, expected an object"), "{error}");
    }

    #[rstest]
    #[case(read::<LookupRequest>, r#"{"users": [], "removed": null}"#)]
    #[case(
        read::<ReserveRequest>,
        r#"{"target_user": null, "targets": null, "device": null, "ciphersuite": null, "group_id": null, "ttl": null}"#
    )]
    #[case(read::<RevokeRequest>, r#"{"refs": null, "all": null}"#)]
    #[case(read::<AckRequest>, r#"{"ids": null, "unreadable": null, "refused": null}"#)]
    #[case(read::<ProofsRequest>, r#"{"of": [], "receipt": null, "since": null}"#)]
    #[case(read::<UploadRequest>, r#"{"keypackages": [], "signature_key_changes": null}"#)]
    #[case(
        read::<CommitRequest>,
        r#"{"commit": "AQ==", "welcome": null, "proof": null, "next_proof_digest": null, "reservations": null,
            "recipients": null}"#
    )]
    fn null_is_the_same_as_no_field(#[case] read: fn(&str) -> Result<(), String>, #[case] text: &str) {
        assert_eq!(read(text), Ok(()));
    }

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
