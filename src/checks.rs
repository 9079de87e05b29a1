//! How often a state machine checks itself in debug builds.

/// Looks at this many things for each turn, on average.
const EACH_TURN: usize = 16;

/// Says when it is time to look at all that there is: each turn where that is little, ever more rarely the more it is.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    unspent: usize,
}

impl Checks {
    /// A turn is over that left so many things to look at.
    pub(crate) fn are_due(&mut self, size: usize) -> bool {
        self.unspent += EACH_TURN;
        let due = self.unspent >= size;
        if due {
            self.unspent = 0;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_costs_the_same_each_turn_however_much_there_is() {
        for size in [0, 1, 16, 17, 1000, 50_000] {
            let mut checks = Checks::default();
            let looked: usize = (0..100_000).filter(|_| checks.are_due(size)).map(|_| size).sum();
            let each = looked as f64 / 100_000.0;
            assert!(each <= EACH_TURN as f64 && each >= (size as f64).min(7.0), "{size}: {each}");
        }
    }
}
