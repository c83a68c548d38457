//! gRPC messages in a stream of bytes: each is a flag, a length of four bytes, and so many bytes.

use bytes::{Buf as _, Bytes, BytesMut};

/// Bytes before each message.
const HEADER_BYTES: usize = 5;

/// A longer message passes as it is: the proxy does not hold it in memory.
const MESSAGE_BYTES_MAX: usize = 32 << 20;

/// What came out of the stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Bytes that pass as they are.
    Raw(Bytes),
    /// A whole message, without what stands before it.
    Message(Bytes),
}

/// Where the stream is.
///
/// # Invariants
/// - All bytes that were fed came out in their order, or are the beginning of a message in `whole`.
#[derive(Debug, Default)]
pub(crate) struct Splitter {
    /// What is known of the header of the message under way.
    header: [u8; HEADER_BYTES],
    have: usize,
    /// Bytes of that message that are still to come, once its header is known.
    left: usize,
    /// The message under way; `None` if it passes as it is.
    whole: Option<BytesMut>,
}

impl Splitter {
    /// Takes in what has arrived. If it is `quiet`, messages that begin in it pass as they are.
    pub(crate) fn feed(&mut self, mut bytes: Bytes, quiet: bool) -> Vec<Piece> {
        let mut pieces = Vec::new();
        // What passes as it is passes in as large pieces as it came.
        let mut raw = bytes.clone();
        let mut passed = 0;
        while !bytes.is_empty() {
            if self.have == 0 {
                self.whole = (!quiet).then(BytesMut::new);
            }
            let was_whole = self.whole.is_some();
            if was_whole && passed > 0 {
                pieces.push(Piece::Raw(raw.split_to(passed)));
                passed = 0;
            }
            let taken = self.advance(&bytes);
            let chunk = bytes.split_to(taken);
            match &mut self.whole {
                Some(whole) => {
                    whole.extend_from_slice(&chunk);
                    raw.advance(taken);
                }
                None => {
                    if was_whole {
                        // It turned out to be too long to hold.
                        pieces.push(Piece::Raw(Bytes::copy_from_slice(&self.header)));
                        raw.advance(taken);
                    } else {
                        passed += taken;
                    }
                }
            }
            if self.have == HEADER_BYTES && self.left == 0 {
                self.have = 0;
                if let Some(mut whole) = self.whole.take() {
                    whole.advance(HEADER_BYTES);
                    pieces.push(Piece::Message(whole.freeze()));
                }
            }
        }
        if passed > 0 {
            pieces.push(Piece::Raw(raw.split_to(passed)));
        }
        pieces
    }

    /// Reads on, to the end of the header or of the message; how many bytes that were.
    fn advance(&mut self, bytes: &[u8]) -> usize {
        if self.have == HEADER_BYTES {
            let taken = self.left.min(bytes.len());
            self.left -= taken;
            return taken;
        }
        let taken = (HEADER_BYTES - self.have).min(bytes.len());
        for (place, byte) in self.header.iter_mut().skip(self.have).zip(bytes) {
            *place = *byte;
        }
        self.have += taken;
        if self.have == HEADER_BYTES {
            let [_, length @ ..] = self.header;
            self.left = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
            if self.left > MESSAGE_BYTES_MAX {
                self.whole = None;
            }
        }
        taken
    }

    /// Whether a message is under way that was not handed out: its stream broke in the middle of it.
    #[cfg(test)]
    fn is_between(&self) -> bool {
        self.have == 0
    }
}

/// A message with what stands before it.
pub(crate) fn framed(message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(HEADER_BYTES + message.len());
    bytes.extend_from_slice(&[0]);
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(message);
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes_of(pieces: &[Piece]) -> Vec<u8> {
        let piece = |piece: &Piece| match piece {
            Piece::Raw(bytes) => bytes.to_vec(),
            Piece::Message(message) => framed(message).to_vec(),
        };
        pieces.iter().flat_map(piece).collect()
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_turned_around_wherever_it_is_cut_and_whenever_it_is_quiet(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..12),
            cuts in prop::collection::vec((1..30usize, any::<bool>()), 1..20),
        ) {
            let wire: Vec<u8> = messages.iter().flat_map(|message| framed(message).to_vec()).collect();
            let (mut splitter, mut pieces, mut rest) = (Splitter::default(), Vec::new(), Bytes::from(wire.clone()));
            for (length, quiet) in cuts.iter().cycle() {
                if rest.is_empty() { break }
                pieces.extend(splitter.feed(rest.split_to((*length).min(rest.len())), *quiet));
            }
            prop_assert!(splitter.is_between());
            prop_assert_eq!(bytes_of(&pieces), wire);
        }

        #[test]
        fn without_quiet_every_message_comes_whole(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..12),
            length in 1..40usize,
        ) {
            let wire: Vec<u8> = messages.iter().flat_map(|message| framed(message).to_vec()).collect();
            let mut splitter = Splitter::default();
            let pieces: Vec<_> =
                wire.chunks(length).flat_map(|chunk| splitter.feed(Bytes::copy_from_slice(chunk), false)).collect();
            let whole: Vec<_> = messages.into_iter().map(|message| Piece::Message(message.into())).collect();
            prop_assert_eq!(pieces, whole);
        }
    }

    #[test]
    fn what_is_quiet_passes_in_one_piece() {
        let wire = Bytes::from([framed(b"one"), framed(b"two")].concat());
        assert_eq!(Splitter::default().feed(wire.clone(), true), [Piece::Raw(wire)]);
    }

    #[test]
    fn a_message_too_long_to_hold_passes_as_it_is() {
        let mut splitter = Splitter::default();
        let length = u32::try_from(MESSAGE_BYTES_MAX + 1).unwrap().to_be_bytes();
        assert_eq!(splitter.feed(Bytes::from_static(&[0]), false), []);
        let header = Piece::Raw([&[0][..], &length].concat().into());
        assert_eq!(splitter.feed(Bytes::copy_from_slice(&length), false), [header]);
        let body = Bytes::from_static(b"some of it");
        assert_eq!(splitter.feed(body.clone(), false), [Piece::Raw(body)]);
    }
}
