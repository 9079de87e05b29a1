//! A list of tasks, by their places in the arena.

use std::ops::Deref;

/// So many lie in place: two lists and a key are a line of a processor's cache.
const FEW: usize = 5;
/// Room that is made for one more.
const SEVERAL: usize = 8;

/// Places of tasks in the arena. Most tasks have so few neighbours that these lie in place.
pub(super) enum Places {
    Few {
        length: u8,
        places: [u32; FEW],
    },
    Many {
        length: u32,
        /// And vacant ones behind these.
        places: Box<[u32]>,
    },
}

const _: () = assert!(size_of::<Places>() == 24);

impl Default for Places {
    fn default() -> Self {
        Self::Few { length: 0, places: [0; FEW] }
    }
}

impl Deref for Places {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        match self {
            Self::Few { length, places } => &places[..usize::from(*length)],
            Self::Many { length, places } => &places[..*length as usize],
        }
    }
}

impl Places {
    /// Makes room for so many in all.
    pub(super) fn reserve(&mut self, room: usize) {
        if room <= FEW {
            return;
        }
        let length = self.len();
        let mut places = match self {
            Self::Few { places, .. } => places.to_vec(),
            Self::Many { places, .. } => std::mem::take(places).into_vec(),
        };
        places.reserve_exact(room.saturating_sub(places.len()));
        places.resize(room.max(length), 0);
        *self = Self::Many { length: length as u32, places: places.into() };
    }

    pub(super) fn push(&mut self, place: u32) {
        let length = self.len();
        match self {
            Self::Few { length, places } if usize::from(*length) < FEW => {
                places[usize::from(*length)] = place;
                *length += 1;
            }
            Self::Many { length, places } if (*length as usize) < places.len() => {
                places[*length as usize] = place;
                *length += 1;
            }
            _ => {
                self.reserve(SEVERAL.max(2 * length));
                self.push(place);
            }
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

impl FromIterator<u32> for Places {
    fn from_iter<I: IntoIterator<Item = u32>>(all: I) -> Self {
        let mut places = Self::default();
        all.into_iter().for_each(|place| places.push(place));
        places
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Few or many, whatever room was made before.
        #[test]
        fn all_that_are_pushed_are_listed_in_order(
            pushed in prop::collection::vec(any::<u32>(), 0..100),
            rooms in prop::collection::vec((0usize..100, 0usize..20), 0..4),
        ) {
            let mut places = Places::default();
            for (number, place) in pushed.iter().enumerate() {
                if let Some((_, room)) = rooms.iter().find(|(at, _)| *at == number) {
                    places.reserve(*room);
                }
                places.push(*place);
                prop_assert_eq!(&places[..], &pushed[..=number]);
            }
            prop_assert_eq!(&Places::from_iter(pushed.iter().copied())[..], &pushed[..]);
            places.clear();
            prop_assert!(places.is_empty());
        }
    }
}
