//! JSON objects as structs, and nothing else as one.
//!
//! serde's derive also takes a list for a struct: its elements are the fields, in the order of our source code. No other
//! reader of manifests does, and what two readers could understand in two ways is refused.

use serde::{Deserializer, de::Visitor, forward_to_deserialize_any};

/// Lets structs that derive `Deserialize` with `#[serde(remote = "Self")]` be read from objects only.
macro_rules! from_objects_only {
    ($($name:ident),+) => {$(
        impl<'de> ::serde::Deserialize<'de> for $name {
            fn deserialize<D: ::serde::Deserializer<'de>>(
                deserializer: D,
            ) -> ::std::result::Result<Self, D::Error> {
                // The derived one, which is no longer the trait's.
                $name::deserialize($crate::image::Object(deserializer))
            }
        }
    )+};
}

pub(crate) use from_objects_only;

/// A source of which structs take objects only.
pub(crate) struct Object<D>(pub(crate) D);

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Object<D> {
    type Error = D::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_map(visitor)
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}
