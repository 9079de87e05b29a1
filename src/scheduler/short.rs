//! Numbers that take little room.

/// A number from 1 to some four billion, in half a word: five bits of its exponent and eleven of its mantissa. It is off by a
/// four-thousandth at most; what is less, or more, is taken for the least or the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Short(u16);

/// Bits of a [`f32`]'s mantissa that are left out.
const LEFT_OUT: u32 = 12;
/// A one, without these.
const ONE: u32 = 1f32.to_bits() >> LEFT_OUT;

impl Short {
    pub(super) const LEAST: Self = Self(0);
    pub(super) const MOST: Self = Self(u16::MAX);

    pub(super) fn new(number: f32) -> Self {
        let number = number.max(Self::LEAST.get()).min(Self::MOST.get());
        let rounded = (number.to_bits() + (1 << (LEFT_OUT - 1))) >> LEFT_OUT;
        Self((rounded - ONE) as u16)
    }

    pub(super) const fn get(self) -> f32 {
        f32::from_bits((self.0 as u32 + ONE) << LEFT_OUT)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_beyond_is_taken_for_the_least_or_the_most() {
        for (number, is) in [
            (f32::NAN, Short::LEAST),
            (-1.0, Short::LEAST),
            (0.0, Short::LEAST),
            (1.0, Short::LEAST),
            (4_294_000_000.0, Short::MOST),
            (f32::INFINITY, Short::MOST),
        ] {
            assert_eq!(Short::new(number), is, "{number}");
        }
        assert_eq!((Short::LEAST.get(), Short::MOST.get()), (1.0, 4_293_918_720.0));
    }

    proptest! {
        #[test]
        fn others_are_kept_as_they_are_but_for_a_little(number in 1f32..4e9) {
            let short = Short::new(number);
            prop_assert!((short.get() - number).abs() <= number / 4096.0);
            prop_assert_eq!(Short::new(short.get()), short);
        }
    }
}
