//! Reads the presentation language of TLS as RFC 9420 uses it (section 2.1).

/// The rest of the bytes of a structure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wire<'a>(&'a [u8]);

impl<'a> Wire<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The bytes that were not read yet.
    pub(crate) const fn rest(&self) -> &'a [u8] {
        self.0
    }

    pub(crate) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        Some(u64::from_be_bytes(self.take(8)?.try_into().ok()?))
    }

    /// The content of a vector, whose length has the shortest form (section 2.1.2).
    pub(crate) fn vector(&mut self) -> Option<&'a [u8]> {
        let first = *self.0.first()?;
        let size = 1_usize << (first >> 6);
        let length = match self.take(size)? {
            [one] => usize::from(*one),
            [one, two] => usize::from(u16::from_be_bytes([one & 0x3f, *two])),
            [one, two, three, four] => usize::try_from(u32::from_be_bytes([one & 0x3f, *two, *three, *four])).ok()?,
            _ => return None,
        };
        let shortest = match length {
            0..0x40 => 1,
            0x40..0x4000 => 2,
            _ => 4,
        };
        if size == shortest { self.take(length) } else { None }
    }
}

/// A vector with its length before it, which is below 2^30.
pub(crate) fn vector(content: &[u8]) -> Option<Vec<u8>> {
    let length = u32::try_from(content.len()).ok().filter(|length| *length < 1 << 30)?.to_be_bytes();
    let length: &[u8] = match content.len() {
        0..0x40 => &length[3..],
        0x40..0x4000 => &[length[2] | 0x40, length[3]],
        _ => &[length[0] | 0x80, length[1], length[2], length[3]],
    };
    Some([length, content].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_is_read_as_it_was_written() {
        for length in [0, 1, 63, 64, 16_383, 16_384, 70_000] {
            let content = vec![7; length];
            let written = vector(&content).unwrap();
            let mut wire = Wire::new(&written);
            assert_eq!(wire.vector().map(<[u8]>::len), Some(length));
            assert!(wire.rest().is_empty());
            assert_eq!(Wire::new(&written[..written.len() - 1]).vector(), None);
        }
    }

    #[test]
    fn a_length_has_its_shortest_form() {
        for longer in [&[0x40, 1, 9][..], &[0x80, 0, 0, 1, 9], &[0x80, 0, 0x3f, 0xff], &[0xc0, 0, 0, 0, 0, 0, 0, 1, 9]]
        {
            assert_eq!(Wire::new(longer).vector(), None, "{longer:?}");
        }
    }
}
