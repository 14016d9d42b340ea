//! Pseudo-random numbers, the same for the same seed on every machine and in every version.

/// Sebastiano Vigna's splitmix64. Each seed gives a different sequence.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64-bit number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to `bound` - 1.
    ///
    /// # Panics
    /// `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        // For the small bounds of tests, the bias of the remainder is below 2^-40.
        (self.number() % bound as u64) as usize
    }

    /// True with a probability of `percent` percent.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of `choices`.
    ///
    /// # Panics
    /// `choices` is empty.
    pub fn choose<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// One of `choices`, with probabilities in proportion to the weights.
    ///
    /// # Panics
    /// All weights are 0.
    pub fn weighted<T: Copy>(&mut self, choices: &[(usize, T)]) -> T {
        let mut left = self.below(choices.iter().map(|(weight, _)| weight).sum());
        for (weight, choice) in choices {
            if left < *weight {
                return *choice;
            }
            left -= weight;
        }
        unreachable!("a number below the sum of the weights is below one of them");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers() {
        let numbers = |seed| {
            let mut random = Random::new(seed);
            (0..50).map(|_| random.number()).collect::<Vec<_>>()
        };
        assert_eq!(numbers(7), numbers(7));
        assert_ne!(numbers(7), numbers(8));
        // Published together with the generator.
        assert_eq!(numbers(1_234_567)[0], 6_457_827_717_110_365_317);
    }

    #[test]
    fn weights_are_kept() {
        let mut random = Random::new(1);
        let drawn: Vec<_> = (0..1000).map(|_| random.weighted(&[(0, 'a'), (9, 'b'), (1, 'c')])).collect();
        let count = |letter| drawn.iter().filter(|drawn| **drawn == letter).count();
        assert_eq!(count('a'), 0);
        assert!((800..1000).contains(&count('b')), "{}", count('b'));
    }
}
