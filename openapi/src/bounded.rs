use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error, SeqAccess, Visitor},
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

#[cfg(test)]
mod tests {
    use crate::{MAX_TARGETS, ReserveRequest};

    #[test]
    fn an_array_ends_where_it_is_too_long() {
        let request = |n: usize| format!(r#"{{"targets":{}}}"#, serde_json::to_string(&vec!["bob"; n]).unwrap());
        let most: ReserveRequest = serde_json::from_str(&request(MAX_TARGETS)).unwrap();
        assert_eq!(most.targets.unwrap().len(), MAX_TARGETS);
        let error = serde_json::from_str::<ReserveRequest>(&request(MAX_TARGETS + 1)).unwrap_err();
        assert!(error.to_string().contains("more than 100 items"), "{error}");
    }
}
