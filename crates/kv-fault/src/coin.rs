//! The hash that all chance comes from. It must never change: a seed in a report stands for what it did.

use crate::{End, Link, RuleName};

/// What a coin decides, so that no two decisions about one message share one.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    Probability,
    Delay,
    Reorder,
    Flip,
    Wire,
}

/// The coins of one rule on one link for one message.
#[derive(Clone, Copy)]
pub(crate) struct Coin(u64);

impl Coin {
    pub(crate) fn new(seed: u64, rule: &RuleName, link: Link, ordinal: u64) -> Self {
        Self(hash(&[seed, text(rule.as_str()), end(link.from), end(link.to), ordinal]))
    }

    /// The `nth` coin for this purpose.
    pub(crate) fn toss(self, purpose: Purpose, nth: u64) -> u64 {
        let purpose = match purpose {
            Purpose::Probability => 1,
            Purpose::Delay => 2,
            Purpose::Reorder => 3,
            Purpose::Flip => 4,
            Purpose::Wire => 5,
        };
        hash(&[self.0, purpose, nth])
    }
}

/// No node has the number zero.
fn end(end: End) -> u64 {
    match end {
        End::Node(node) => node.get(),
        End::Clients => 0,
    }
}

/// The hash of a text: its length, then eight bytes at a time.
pub(crate) fn text(text: &str) -> u64 {
    let chunks = text.as_bytes().chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
        u64::from_le_bytes(word)
    });
    let length = u64::try_from(text.len()).unwrap_or(u64::MAX);
    chunks.fold(hash(&[length]), |state, word| hash(&[state, word]))
}

/// The hash of some words: each is taken up by the steps of SplitMix64 (Steele, Lea, Flood 2014).
pub(crate) fn hash(words: &[u64]) -> u64 {
    words.iter().fold(0, |state: u64, word| mix(state.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ mix(*word)))
}

const fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// A number from 0 up to and without `end`, by a hash; 0 if `end` is.
pub(crate) fn below(hash: u64, end: u64) -> u64 {
    let product = u128::from(hash) * u128::from(end);
    u64::try_from(product >> 64).expect("the upper half of a product of two words is a word")
}

/// `items` in an order drawn by `seed`.
pub(crate) fn shuffled<T>(items: impl IntoIterator<Item = T>, seed: u64) -> Vec<T> {
    let mut left: Vec<T> = items.into_iter().collect();
    let mut order = Vec::with_capacity(left.len());
    for nth in 0..u64::try_from(left.len()).unwrap_or(u64::MAX) {
        let at = below(hash(&[seed, nth]), u64::try_from(left.len()).unwrap_or(u64::MAX));
        order.push(left.remove(usize::try_from(at).expect("it is below a length")));
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first numbers of SplitMix64 from seed 1234567, which are published.
    #[test]
    fn the_mix_is_splitmix64() {
        let state = |nth: u64| 1_234_567_u64.wrapping_add(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(nth));
        assert_eq!(mix(state(0)), 6_457_827_717_110_365_317);
        assert_eq!(mix(state(1)), 3_203_168_211_198_807_973);
    }

    #[test]
    fn hashes_never_change() {
        let link = "n1->n2".parse().unwrap();
        let coin = Coin::new(7, &"lose-acks".parse().unwrap(), link, 1);
        let found = [
            hash(&[]),
            hash(&[0]),
            hash(&[1, 2, 3]),
            text(""),
            text("lose-acks"),
            coin.toss(Purpose::Probability, 0),
            coin.toss(Purpose::Flip, 3),
        ];
        let fixed = [
            0,
            9_048_247_064_618_004_702,
            3_902_344_945_434_905_476,
            9_048_247_064_618_004_702,
            14_824_979_072_312_363_834,
            5_557_473_368_738_037_431,
            6_358_281_663_866_649_355,
        ];
        assert_eq!(found, fixed);
    }

    #[test]
    fn what_differs_in_anything_has_another_coin() {
        let coin = |seed, rule: &str, link: &str, ordinal| {
            Coin::new(seed, &rule.parse().unwrap(), link.parse().unwrap(), ordinal).0
        };
        let coins = [
            coin(1, "a", "n1->n2", 1),
            coin(2, "a", "n1->n2", 1),
            coin(1, "b", "n1->n2", 1),
            coin(1, "a", "n2->n1", 1),
            coin(1, "a", "clients->n2", 1),
            coin(1, "a", "n1->n2", 2),
        ];
        assert_eq!(std::collections::BTreeSet::from(coins).len(), coins.len());
    }

    #[test]
    fn numbers_below_cover_all_and_stay_below() {
        let mut seen = [0; 5];
        (0..5000).for_each(|nth| seen[usize::try_from(below(hash(&[nth]), 5)).unwrap()] += 1);
        assert!(seen.iter().all(|count| (900..1100).contains(count)), "{seen:?}");
        assert_eq!(below(u64::MAX, 0), 0);
    }

    #[test]
    fn every_order_is_drawn() {
        let orders: std::collections::BTreeSet<_> = (0..200).map(|seed| shuffled(1..=3, seed)).collect();
        assert_eq!(orders.len(), 6);
    }
}
