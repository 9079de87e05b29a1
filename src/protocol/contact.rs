//! Where workers are reached.

use std::{fmt, ops::Deref, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Contacts in a page: so many are told without touching more than one count of references.
const PAGE: usize = 64;

type Page = Vec<Arc<str>>;

/// All addresses of a worker, separated by spaces.
///
/// With thousands of workers hardly any of them is in the processor's caches when somebody is told of it. So those that a
/// scheduler tells of lie in pages, and to clone one counts a reference to its page: the address itself is touched when it is
/// written down.
#[derive(Clone)]
pub struct Contact {
    page: Arc<Page>,
    place: u32,
}

impl Deref for Contact {
    type Target = Arc<str>;

    fn deref(&self) -> &Arc<str> {
        &self.page[self.place as usize]
    }
}

impl From<Arc<str>> for Contact {
    fn from(address: Arc<str>) -> Self {
        Self { page: Arc::new(vec![address]), place: 0 }
    }
}

impl From<Contact> for Arc<str> {
    fn from(contact: Contact) -> Self {
        contact.deref().clone()
    }
}

impl fmt::Debug for Contact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.deref().fmt(f)
    }
}

impl Serialize for Contact {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.deref().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Contact {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Arc::<str>::deserialize(deserializer).map(Self::from)
    }
}

/// The contacts of all workers, in the order of their numbers.
#[derive(Default)]
pub(crate) struct Contacts {
    pages: Vec<Arc<Page>>,
}

impl Contacts {
    /// Adds that of the next worker.
    pub(crate) fn push(&mut self, contact: Arc<str>) {
        match self.pages.last_mut().filter(|page| page.len() < PAGE) {
            // Who was told of others in it keeps the page as it was.
            Some(page) => Arc::make_mut(page).push(contact),
            None => self.pages.push(Arc::new(vec![contact])),
        }
    }

    pub(crate) fn get(&self, number: usize) -> Option<Contact> {
        let (page, place) = (self.pages.get(number / PAGE)?, number % PAGE);
        (place < page.len()).then(|| Contact { page: page.clone(), place: place as u32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serialize::{from_frames, to_frames};

    #[test]
    fn contacts_are_those_of_their_workers_whoever_comes_later() {
        let (mut contacts, mut told) = (Contacts::default(), Vec::new());
        for number in 0..3 * PAGE + 1 {
            assert!(contacts.get(number).is_none());
            contacts.push(format!("tcp://w{number}").into());
            told.push(contacts.get(number).expect("it was just added"));
        }
        for (number, contact) in told.into_iter().enumerate() {
            let address = format!("tcp://w{number}");
            assert_eq!(**contact, *address);
            let (head, frames) = to_frames(&contact).expect("it is written");
            assert_eq!((&head, frames.len()), (&to_frames(&address).expect("so is a string").0, 0));
            let read: Contact = from_frames(head, frames).expect("and read");
            assert_eq!(*Arc::<str>::from(read), *address);
            assert_eq!(contacts.get(number).as_deref(), Some(&Arc::from(address)));
        }
    }
}
