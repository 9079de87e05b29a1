//! Numbers for connections: small ones, used again, since each is a tag of MPI's.

/// What is known by number.
pub(crate) struct Table<T> {
    entries: Vec<Option<Box<T>>>,
    free: Vec<u32>,
    /// The largest number there may be.
    last: u32,
}

impl<T> Table<T> {
    pub(crate) fn new(last: u32) -> Self {
        Self { entries: Vec::new(), free: Vec::new(), last }
    }

    /// Gives a number to what is made for it; `None` if there is none left.
    pub(crate) fn insert_with(&mut self, make: impl FnOnce(u32) -> T) -> Option<u32> {
        let id = match self.free.pop() {
            Some(id) => id,
            None => {
                let id = u32::try_from(self.entries.len()).ok().filter(|id| *id <= self.last)?;
                self.entries.push(None);
                id
            }
        };
        *self.entries.get_mut(id as usize)? = Some(Box::new(make(id)));
        Some(id)
    }

    pub(crate) fn get_mut(&mut self, id: u32) -> Option<&mut T> {
        self.entries.get_mut(id as usize)?.as_deref_mut()
    }

    pub(crate) fn remove(&mut self, id: u32) {
        if self.entries.get_mut(id as usize).and_then(Option::take).is_some() {
            self.free.push(id);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// All numbers in use.
    pub(crate) fn ids(&self) -> Vec<u32> {
        (0u32..).zip(&self.entries).filter(|(_, entry)| entry.is_some()).map(|(id, _)| id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_used_again_and_end() {
        let mut table = Table::new(1);
        assert_eq!(table.len(), 0);
        assert_eq!((table.insert_with(|id| id), table.insert_with(|id| id)), (Some(0), Some(1)));
        assert_eq!(table.insert_with(|id| id), None);
        table.remove(0);
        table.remove(0);
        table.remove(7);
        assert_eq!(table.get_mut(0), None);
        assert_eq!(table.get_mut(1), Some(&mut 1));
        assert_eq!((table.len(), table.ids()), (1, vec![1]));
        assert_eq!((table.insert_with(|id| id), table.insert_with(|id| id)), (Some(0), None));
    }
}
