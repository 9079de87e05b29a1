//! The tasks of a worker.

use smallvec::SmallVec;

use super::task::TaskRef;

/// Tasks, listed in the order in which they came. Of many, those that are no members any more linger until they are the
/// majority, so that adding and removing cost next to nothing; few lie in place, in a line of a processor's cache. They are
/// listed by their places: whoever asks knows whether the tenant there is a member.
#[derive(Default)]
pub(super) struct TaskList {
    listed: SmallVec<[u32; 4]>,
    members: u32,
}

const _: () = assert!(size_of::<TaskList>() == 32);

/// So many are looked through for one that is no member any more.
const FEW: usize = 64;

impl TaskList {
    pub(super) fn len(&self) -> usize {
        self.members as usize
    }

    /// Lists a task. Says whether it is time to [`Self::tidy`].
    pub(super) fn add(&mut self, task: TaskRef) -> bool {
        self.listed.push(task.index);
        self.members += 1;
        self.listed.len() > FEW && self.listed.len() > 2 * self.len()
    }

    /// One of those listed is no member any more.
    pub(super) fn remove(&mut self, task: TaskRef) {
        let exact = self.listed.len() == self.len() && self.len() <= FEW;
        self.members -= 1;
        if exact && let Some(place) = self.listed.iter().position(|place| *place == task.index) {
            self.listed.remove(place);
        }
    }

    /// The places of all that are listed, the latest first; some may be no members any more.
    pub(super) fn latest(&self) -> impl Iterator<Item = u32> {
        self.listed.iter().rev().copied()
    }

    /// The places of the members: `belongs` tells them from those that linger.
    pub(super) fn members(&self, belongs: impl Fn(u32) -> bool) -> Vec<u32> {
        let mut members: Vec<u32> = self.listed.iter().copied().filter(|place| belongs(*place)).collect();
        members.sort_unstable();
        members.dedup();
        members
    }

    pub(super) fn tidy(&mut self, belongs: impl Fn(u32) -> bool) {
        self.listed = SmallVec::from_vec(self.members(belongs));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn task_at(index: u32) -> TaskRef {
        TaskRef { index, tenant: 0 }
    }

    proptest! {
        /// Few or many, in whatever order they come, go and come again.
        #[test]
        fn members_are_listed_whatever_comes_and_goes(
            steps in prop::collection::vec((0u32..120, any::<bool>()), 0..600),
        ) {
            let (mut list, mut members) = (TaskList::default(), BTreeSet::new());
            for (index, comes) in steps {
                let task = task_at(index);
                if comes && members.insert(task) {
                    if list.add(task) {
                        list.tidy(|place| members.contains(&task_at(place)));
                    }
                    prop_assert!(list.listed.len() <= FEW.max(2 * members.len()), "few linger");
                } else if !comes && members.remove(&task) {
                    list.remove(task);
                }
                prop_assert_eq!(list.len(), members.len());
                let listed = list.members(|place| members.contains(&task_at(place)));
                prop_assert_eq!(listed, Vec::from_iter(members.iter().map(|task| task.index)));
            }
        }
    }
}
