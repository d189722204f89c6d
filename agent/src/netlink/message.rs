//! Pure: netlink messages and their attributes, written and read.
//!
//! Every other netlink file builds on this one. Bytes from the kernel are read with checked lengths:
//! a message that ends early is simply shorter, never a panic.

/// The message asks for something.
pub(crate) const REQUEST: u16 = 0x01;
/// The kernel shall say when it has done it.
pub(crate) const ACK: u16 = 0x04;
/// All objects rather than one.
pub(crate) const DUMP: u16 = 0x300;
/// Replace the object if it exists.
pub(crate) const REPLACE: u16 = 0x100;
/// Fail if the object exists.
pub(crate) const EXCLUSIVE: u16 = 0x200;
/// Create the object if it does not exist.
pub(crate) const CREATE: u16 = 0x400;
/// Add to the end of a list.
pub(crate) const APPEND: u16 = 0x800;

const HEADER_BYTES: usize = 16;
const NESTED: u16 = 0x8000;
const KIND_MASK: u16 = 0x3fff;

/// One message being written.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    pub(crate) fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        Self { bytes }
    }

    /// The fixed structure that follows the header.
    pub(crate) fn fixed(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self.pad();
        self
    }

    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).expect("attributes are small or chunked by their writer");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
    }

    /// A number in network order, as nf_tables wants its numbers.
    pub(crate) fn big_endian(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// A number in host order, as rtnetlink wants its numbers.
    pub(crate) fn native(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_ne_bytes());
    }

    pub(crate) fn string(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes);
    }

    pub(crate) fn nest(&mut self, kind: u16, write: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        write(self);
        let length = u16::try_from(self.bytes.len() - start).expect("nests over 64 KiB are chunked by their writer");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes[start + 2..start + 4].copy_from_slice(&(kind | NESTED).to_ne_bytes());
    }

    pub(crate) fn add_flags(&mut self, flags: u16) {
        let present = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]);
        self.bytes[6..8].copy_from_slice(&(present | flags).to_ne_bytes());
    }

    /// The finished bytes, numbered.
    pub(crate) fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).expect("one message stays far below 4 GiB");
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// One message that the kernel sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Received<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// What follows the header.
    pub(crate) payload: &'a [u8],
}

impl<'a> Received<'a> {
    /// The attributes after a fixed structure of this size.
    pub(crate) fn attributes(&self, fixed_bytes: usize) -> Attributes<'a> {
        attributes(self.payload.get(fixed_bytes.next_multiple_of(4)..).unwrap_or_default())
    }
}

/// The messages in one datagram.
pub(crate) fn messages(mut buffer: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let length = u32_at(buffer, 0)? as usize;
        let whole = buffer.get(..length).filter(|whole| whole.len() >= HEADER_BYTES)?;
        buffer = buffer.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Received {
            kind: u16_at(whole, 4)?,
            flags: u16_at(whole, 6)?,
            sequence: u32_at(whole, 8)?,
            payload: &whole[HEADER_BYTES..],
        })
    })
}

/// The attributes in a payload or in another attribute: kind without flags, and value.
#[derive(Debug, Clone)]
pub(crate) struct Attributes<'a>(&'a [u8]);

pub(crate) fn attributes(payload: &[u8]) -> Attributes<'_> {
    Attributes(payload)
}

impl<'a> Attributes<'a> {
    /// The first attribute of this kind.
    pub(crate) fn find(&self, kind: u16) -> Option<&'a [u8]> {
        self.clone().find_map(|(found, value)| (found == kind).then_some(value))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = u16_at(self.0, 0)? as usize;
        let kind = u16_at(self.0, 2)? & KIND_MASK;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// A string attribute without its final zero byte.
pub(crate) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(crate) fn big_endian_u32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests;
