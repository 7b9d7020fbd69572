//! Counter-based random numbers: Threefry-2x32 with 20 rounds (Salmon et al., *Parallel random numbers: as easy as
//! 1, 2, 3*, SC 2011). The same words come out on the host and in `shaders/gather_augment.wgsl`, in any order, so a run
//! that is resumed in the middle of an epoch draws what it would have drawn.

use sha2::{Digest, Sha256};

/// A 64-bit key; every draw is a pure function of a key and a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key(pub [u32; 2]);

impl Key {
    /// The root of all draws of a run.
    pub fn new(seed: u64) -> Self {
        Self([seed as u32, (seed >> 32) as u32])
    }

    /// A key of its own for `(stream, index)` below this one, for example (epoch, step).
    pub fn child(self, stream: u32, index: u32) -> Self {
        Self(self.words(stream, index))
    }

    /// Two random words for a counter.
    pub fn words(self, high: u32, low: u32) -> [u32; 2] {
        const ROTATIONS: [[u32; 4]; 2] = [[13, 15, 26, 6], [17, 29, 16, 24]];
        let [k0, k1] = self.0;
        let schedule = [k0, k1, 0x1BD1_1BDA ^ k0 ^ k1];
        let (mut x0, mut x1) = (high.wrapping_add(k0), low.wrapping_add(k1));
        for round in 0..5u32 {
            for rotation in ROTATIONS[round as usize % 2] {
                x0 = x0.wrapping_add(x1);
                x1 = x1.rotate_left(rotation) ^ x0;
            }
            let next = round as usize + 1;
            x0 = x0.wrapping_add(schedule[next % 3]);
            x1 = x1.wrapping_add(schedule[(next + 1) % 3]).wrapping_add(round + 1);
        }
        [x0, x1]
    }

    /// A uniform number in [0, 1) with 24 bits, for a counter.
    pub fn uniform(self, high: u32, low: u32) -> f32 {
        unit(self.words(high, low)[0])
    }

    /// The numbers 0..n in random order (Fisher-Yates).
    pub fn permutation(self, n: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..n as u32).collect();
        for i in (1..n).rev() {
            let [high, low] = self.words(i as u32, 0);
            let word = (u64::from(high) << 32) | u64::from(low);
            order.swap(i, (word % (i as u64 + 1)) as usize);
        }
        order
    }
}

/// The upper 24 bits of a word as a number in [0, 1).
pub fn unit(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// A hash of a name that is the same on every machine and in every version of this program (first bytes of SHA-256).
pub fn stable_hash(name: &str) -> u64 {
    let digest = Sha256::digest(name);
    u64::from_le_bytes(digest[..8].try_into().expect("SHA-256 has 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the authors' Random123 library (kat_vectors, threefry 2x32, 20 rounds).
    #[test]
    fn threefry_gives_the_published_answers() {
        assert_eq!(Key([0, 0]).words(0, 0), [0x6b20_0159, 0x99ba_4efe]);
        assert_eq!(Key([!0, !0]).words(!0, !0), [0x1cb9_96fc, 0xbb00_2be7]);
        assert_eq!(
            Key([0x1319_8a2e, 0x0370_7344]).words(0x243f_6a88, 0x85a3_08d3),
            [0xc492_3a9c, 0x483d_f7a0]
        );
    }

    #[test]
    fn a_permutation_holds_every_number_once() {
        let mut order = Key::new(7).permutation(1000);
        assert_ne!(order, Key::new(8).permutation(1000));
        order.sort_unstable();
        assert_eq!(order, (0..1000).collect::<Vec<u32>>());
    }
}
