//! The dependence patterns: which tasks of the row before a task needs, and which of the next row need it.
//!
//! Both directions are computed by themselves, as a runtime that sends results to those who need them would ask for
//! them; that they agree is a property test.

use std::{fmt, ops::Range, str::FromStr};

use serde::{Deserialize, Serialize};
use smallvec::{SmallVec, smallvec};
use xxhash_rust::xxh3::xxh3_64;

use crate::Error;

/// Columns of a row; the few that most patterns name take no memory of their own.
pub type Columns = SmallVec<[u64; 4]>;

/// Which tasks of the row before a task needs. `w` is the width, `p` the task's own column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pattern {
    /// None.
    Trivial,
    /// The one of its own column.
    NoComm,
    /// Its own column and both neighbours.
    Stencil1d,
    /// The same on a ring.
    Stencil1dPeriodic,
    /// Its own column and the one before, in rows that grow to the width and shrink again: a wave front.
    Dom,
    /// Half its own column, in rows that double up to the width.
    Tree,
    /// The butterfly of a fast Fourier transform: its own column and those 2^k away, where k goes round.
    Fft,
    /// All.
    AllToAll,
    /// The `radix` nearest columns.
    Nearest,
    /// `radix` columns spread over the width, others in each of `period` rows.
    Spread,
    /// Each of the `radix` nearest columns with probability `fraction`, others in each of `period` rows, and its own.
    RandomNearest,
}

impl Pattern {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Trivial,
        Self::NoComm,
        Self::Stencil1d,
        Self::Stencil1dPeriodic,
        Self::Dom,
        Self::Tree,
        Self::Fft,
        Self::AllToAll,
        Self::Nearest,
        Self::Spread,
        Self::RandomNearest,
    ];

    /// As Task Bench calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trivial => "trivial",
            Self::NoComm => "no_comm",
            Self::Stencil1d => "stencil_1d",
            Self::Stencil1dPeriodic => "stencil_1d_periodic",
            Self::Dom => "dom",
            Self::Tree => "tree",
            Self::Fft => "fft",
            Self::AllToAll => "all_to_all",
            Self::Nearest => "nearest",
            Self::Spread => "spread",
            Self::RandomNearest => "random_nearest",
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|pattern| pattern.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("there is no pattern `{name}`; there are {names}, and all")
        })
    }
}

/// A graph as far as its dependencies go.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Shape {
    /// Which tasks of the row before a task needs.
    pub pattern: Pattern,
    /// Rows.
    pub steps: u64,
    /// Tasks of the widest row.
    pub width: u64,
    /// Of `nearest`, `spread` and `random_nearest`: how many columns there are to need.
    pub radix: u64,
    /// Of `spread` and `random_nearest`: after how many rows dependencies repeat.
    pub period: u64,
    /// Of `random_nearest`: the share of the `radix` columns that is needed, from 0 to 1.
    pub fraction: f64,
}

/// More tasks than this in a row, or rows than this, are a slip of the finger.
const MOST: u64 = 1 << 32;

impl Shape {
    /// Says what is wrong with it, if anything is.
    ///
    /// # Errors
    /// If there is no such graph.
    pub fn check(&self) -> Result<(), Error> {
        let Self { pattern, steps, width, radix, period, fraction } = *self;
        let wrong = |what: String| Err(Error::Usage(what));
        if !(1..=MOST).contains(&steps) || !(1..=MOST).contains(&width) {
            return wrong(format!(
                "a graph of {steps} steps of {width} tasks: both start at 1, and end at 2^32"
            ));
        }
        if matches!(pattern, Pattern::Spread | Pattern::RandomNearest) && period == 0 {
            return wrong(format!("{pattern} needs -period from 1 up"));
        }
        if pattern == Pattern::Spread && radix > width {
            return wrong(format!("{pattern} cannot spread -radix {radix} over -width {width}"));
        }
        if !(0.0..=1.0).contains(&fraction) {
            return wrong(format!("-fraction is from 0 to 1, not {fraction}"));
        }
        Ok(())
    }

    /// The columns that have a task in a row.
    pub fn columns(&self, step: u64) -> Range<u64> {
        let Self { pattern, steps, width, .. } = *self;
        if step >= steps {
            return 0..0;
        }
        match pattern {
            Pattern::Dom => {
                let first = (step + width).saturating_sub(steps);
                first..first + width.min(step + 1).min(steps - step)
            }
            Pattern::Tree => 0..width.min(1 << step.min(62)),
            _ => 0..width,
        }
    }

    /// How many tasks there are.
    pub fn tasks(&self) -> u64 {
        match self.pattern {
            Pattern::Dom | Pattern::Tree => (0..self.steps).map(|step| self.width_of(step)).sum(),
            _ => self.steps * self.width,
        }
    }

    fn width_of(&self, step: u64) -> u64 {
        let columns = self.columns(step);
        columns.end - columns.start
    }

    /// The columns of the row before that a task needs, in ascending order.
    pub fn inputs(&self, step: u64, column: u64) -> Columns {
        let Some(before) = step.checked_sub(1).filter(|_| self.columns(step).contains(&column)) else {
            return Columns::new();
        };
        self.of_row(before, self.needed_by(self.set(step), column))
    }

    /// The columns of the next row that need a task, in ascending order.
    pub fn users(&self, step: u64, column: u64) -> Columns {
        if !self.columns(step).contains(&column) {
            return Columns::new();
        }
        self.of_row(step + 1, self.that_need(self.set(step + 1), column))
    }

    /// Those of some columns that a row has.
    fn of_row(&self, step: u64, mut columns: Columns) -> Columns {
        let there = self.columns(step);
        columns.retain(|column| there.contains(column));
        columns.sort_unstable();
        columns.dedup();
        columns
    }

    /// Which of its dependence sets the pattern uses for a row's inputs.
    fn set(&self, step: u64) -> u64 {
        match self.pattern {
            Pattern::Fft => {
                // The first row with inputs begins with the nearest.
                let sets = u64::from(self.width.next_power_of_two().trailing_zeros()).max(1);
                (step + sets - 1) % sets
            }
            Pattern::Spread | Pattern::RandomNearest => step % self.period,
            _ => 0,
        }
    }

    fn needed_by(&self, set: u64, p: u64) -> Columns {
        let Self { pattern, width, radix, .. } = *self;
        match pattern {
            Pattern::Trivial => smallvec![],
            Pattern::Dom => smallvec![p.saturating_sub(1), p],
            Pattern::Tree => smallvec![p / 2],
            Pattern::Nearest => self.near(p, radix / 2, radix.saturating_sub(1) / 2).collect(),
            Pattern::Spread => (0..radix).map(|i| (p + self.stride(set, i)) % width).collect(),
            Pattern::RandomNearest => {
                let near = self.near(p, radix / 2, radix.saturating_sub(1) / 2);
                near.filter(|q| self.is_drawn(set, p, *q)).collect()
            }
            _ => self.symmetric(set, p),
        }
    }

    fn that_need(&self, set: u64, p: u64) -> Columns {
        let Self { pattern, width, radix, .. } = *self;
        match pattern {
            Pattern::Trivial => smallvec![],
            Pattern::Dom => smallvec![p, p + 1],
            Pattern::Tree => smallvec![2 * p, 2 * p + 1],
            Pattern::Nearest => self.near(p, radix.saturating_sub(1) / 2, radix / 2).collect(),
            Pattern::Spread => {
                (0..radix).map(|i| (p + width - self.stride(set, i) % width) % width).collect()
            }
            Pattern::RandomNearest => {
                let near = self.near(p, radix.saturating_sub(1) / 2, radix / 2);
                near.filter(|q| self.is_drawn(set, *q, p)).collect()
            }
            _ => self.symmetric(set, p),
        }
    }

    /// Of patterns where whoever needs another is needed by it.
    fn symmetric(&self, set: u64, p: u64) -> Columns {
        let width = self.width;
        match self.pattern {
            Pattern::Stencil1d => smallvec![p.saturating_sub(1), p, p + 1],
            Pattern::Stencil1dPeriodic => smallvec![(p + width - 1) % width, p, (p + 1) % width],
            Pattern::Fft => {
                [p.checked_sub(1 << set), Some(p), Some(p + (1 << set))].into_iter().flatten().collect()
            }
            Pattern::AllToAll => (0..width).collect(),
            _ => smallvec![p],
        }
    }

    /// Columns from some before to some behind; none where there is nothing to need.
    fn near(&self, p: u64, before: u64, behind: u64) -> Range<u64> {
        if self.radix == 0 { 0..0 } else { p.saturating_sub(before)..(p + behind + 1).min(self.width) }
    }

    /// How far away the i-th column of `spread` is.
    fn stride(&self, set: u64, i: u64) -> u64 {
        i * self.width / self.radix + if i > 0 { set } else { 0 }
    }

    /// Whether `p` needs `q` in `random_nearest`: the same answer everywhere.
    fn is_drawn(&self, set: u64, p: u64, q: u64) -> bool {
        p == q || uniform(&[set, p, q]) <= self.fraction
    }
}

/// A number from 0 to 1 that looks random and depends on nothing but `words`.
pub(crate) fn uniform(words: &[u64]) -> f64 {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    xxh3_64(&bytes) as f64 / u64::MAX as f64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn shape(pattern: Pattern, steps: u64, width: u64) -> Shape {
        Shape { pattern, steps, width, radix: 3, period: 3, fraction: 0.25 }
    }

    fn shapes() -> impl Strategy<Value = Shape> {
        let pattern = (0..Pattern::ALL.len()).prop_map(|place| Pattern::ALL[place]);
        (pattern, 1..12u64, 1..12u64, 0..12u64, 1..5u64, 0.0..1.0).prop_map(
            |(pattern, steps, width, radix, period, fraction)| {
                let radix = if pattern == Pattern::Spread { radix.min(width) } else { radix };
                Shape { pattern, steps, width, radix, period, fraction }
            },
        )
    }

    proptest! {
        #[test]
        fn forward_and_reverse_dependencies_agree(shape in shapes()) {
            shape.check().expect("it is a graph");
            let (mut needs, mut needed) = (BTreeSet::new(), BTreeSet::new());
            for step in 0..shape.steps {
                for column in shape.columns(step) {
                    needs.extend(shape.inputs(step, column).into_iter().map(|input| (step, input, column)));
                    needed.extend(shape.users(step, column).into_iter().map(|user| (step + 1, column, user)));
                }
            }
            prop_assert_eq!(needs, needed);
        }

        #[test]
        fn dependencies_are_tasks_of_the_row_before(shape in shapes()) {
            let mut tasks = 0;
            for step in 0..shape.steps {
                tasks += shape.columns(step).count() as u64;
                prop_assert!(shape.columns(step).end <= shape.width);
                for column in shape.columns(step) {
                    let inputs = shape.inputs(step, column);
                    prop_assert!(inputs.is_sorted_by(|one, other| one < other));
                    let before = if step == 0 { 0..0 } else { shape.columns(step - 1) };
                    prop_assert!(inputs.iter().all(|input| before.contains(input)));
                }
            }
            prop_assert_eq!(tasks, shape.tasks());
        }
    }

    #[test]
    fn each_pattern_is_what_its_name_says() {
        use Pattern::*;
        let inputs = |pattern, step, column| shape(pattern, 12, 8).inputs(step, column).to_vec();
        assert!(inputs(Trivial, 5, 3).is_empty());
        assert_eq!(inputs(NoComm, 5, 3), [3]);
        assert_eq!(inputs(Stencil1d, 5, 3), [2, 3, 4]);
        assert_eq!(inputs(Stencil1d, 5, 0), [0, 1]);
        assert!(inputs(Stencil1d, 0, 0).is_empty());
        assert_eq!(inputs(Stencil1dPeriodic, 5, 0), [0, 1, 7]);
        assert_eq!(inputs(Dom, 3, 3), [2]);
        assert_eq!(inputs(Dom, 4, 3), [2, 3]);
        assert_eq!(inputs(Tree, 3, 7), [3]);
        assert_eq!(
            (1..5).map(|step| inputs(Fft, step, 3)).collect::<Vec<_>>(),
            [vec![2, 3, 4], vec![1, 3, 5], vec![3, 7], vec![2, 3, 4],]
        );
        assert_eq!(inputs(AllToAll, 5, 3), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(inputs(Nearest, 5, 3), [2, 3, 4]);
        assert_eq!(inputs(Spread, 3, 3), [0, 3, 5]);
        assert_eq!(inputs(Spread, 4, 3), [1, 3, 6]);
        let all = Shape { fraction: 1.0, ..shape(RandomNearest, 12, 8) };
        assert_eq!(all.inputs(5, 3).to_vec(), [2, 3, 4]);
        let none = Shape { fraction: 0.0, ..all };
        assert_eq!(none.inputs(5, 3).to_vec(), [3]);
    }

    #[test]
    fn rows_of_dom_and_tree_grow() {
        let widths = |pattern| (0..8).map(|step| shape(pattern, 8, 4).width_of(step)).collect::<Vec<_>>();
        assert_eq!(widths(Pattern::Dom), [1, 2, 3, 4, 4, 3, 2, 1]);
        assert_eq!(widths(Pattern::Tree), [1, 2, 4, 4, 4, 4, 4, 4]);
        assert_eq!(shape(Pattern::Dom, 8, 4).columns(7), 3..4);
    }

    #[test]
    fn graphs_that_there_are_not_are_refused() {
        let good = shape(Pattern::Spread, 4, 4);
        assert!(good.check().is_ok());
        let bad = [
            Shape { steps: 0, ..good },
            Shape { width: 0, ..good },
            Shape { width: u64::MAX, ..good },
            Shape { period: 0, ..good },
            Shape { radix: 5, ..good },
            Shape { fraction: f64::NAN, ..good },
        ];
        assert!(bad.iter().all(|shape| shape.check().is_err()));
        assert!("nonsense".parse::<Pattern>().is_err());
        assert!(Pattern::ALL.iter().all(|pattern| pattern.name().parse() == Ok(*pattern)));
    }
}
