//! Amounts, times and numbers of jobs, as Slurm writes them. Each is read from text once, and right from then on.

use std::{fmt, str::FromStr, time::Duration};

use crate::{Invalid, words::text_value};

/// Memory of a node, in Slurm's form: a whole number and `K`, `M`, `G` or `T`; megabytes without one. 0 stands for
/// all memory of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Memory {
    kibibytes: u64,
}

/// Slurm's units, each 1024 of the one before.
const UNITS: [char; 4] = ['K', 'M', 'G', 'T'];

impl Memory {
    /// In mebibytes (Slurm's `M`), rounded up.
    #[must_use]
    pub const fn mebibytes(self) -> u64 {
        self.kibibytes.div_ceil(1024)
    }
}

impl FromStr for Memory {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match &text[digits.len()..] {
            "" => Some(1),
            unit => UNITS.iter().position(|known| unit.eq_ignore_ascii_case(&known.to_string())),
        };
        let parsed = || {
            let number: u64 = digits.parse().ok().filter(|_| digits.bytes().all(|b| b.is_ascii_digit()))?;
            number.checked_mul(1024u64.checked_pow(u32::try_from(unit?).ok()?)?)
        };
        // Slurm counts megabytes, and keeps the upper half of 64 bits for itself.
        let kibibytes = parsed().filter(|&kibibytes| kibibytes < 1 << 62);
        kibibytes.map(|kibibytes| Self { kibibytes }).ok_or_else(|| {
            let instead = "write a whole number and K, M, G or T, such as 16G (0 for all of each node)";
            Invalid::new(text, "an amount of memory", instead)
        })
    }
}

/// In the biggest unit that gives a whole number.
impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut amount, mut unit) = (self.kibibytes, 0);
        while amount > 0 && amount.is_multiple_of(1024) && unit + 1 < UNITS.len() {
            (amount, unit) = (amount / 1024, unit + 1);
        }
        write!(f, "{amount}{}", UNITS[unit])
    }
}

/// How long a job may run, in Slurm's forms: minutes, `MM:SS`, `HH:MM:SS`, `D-HH`, `D-HH:MM`, `D-HH:MM:SS`.
///
/// Slurm itself takes `25:99:99` for a day and some hours; here it is an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimeLimit {
    seconds: u64,
}

impl TimeLimit {
    /// As a duration.
    #[must_use]
    pub const fn duration(self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    /// A duration in Slurm's form.
    pub fn shown(duration: Duration) -> impl fmt::Display {
        Self { seconds: duration.as_secs() }
    }
}

impl FromStr for TimeLimit {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match seconds(text) {
            Some(seconds) if seconds > 0 => Ok(Self { seconds }),
            _ => {
                let instead = "write minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS, with minutes and \
                               seconds below 60 after a colon, hours below 24 after days, and more than none";
                Err(Invalid::new(text, "a time limit", instead))
            }
        }
    }
}

/// As `D-HH:MM:SS`, or `HH:MM:SS` below a day.
impl fmt::Display for TimeLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (minutes, seconds) = (self.seconds / 60, self.seconds % 60);
        let (hours, minutes) = (minutes / 60, minutes % 60);
        let (days, hours) = (hours / 24, hours % 24);
        if days > 0 {
            write!(f, "{days}-")?;
        }
        write!(f, "{hours:02}:{minutes:02}:{seconds:02}")
    }
}

/// Reads a time in one of Slurm's forms.
pub(crate) fn seconds(text: &str) -> Option<u64> {
    let number = |text: &str| -> Option<u64> {
        let digits = !text.is_empty() && text.len() < 10 && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse().ok())?
    };
    let (days, clock) = match text.split_once('-') {
        Some((days, clock)) => (Some(number(days)?), clock),
        None => (None, text),
    };
    let fields: Vec<u64> = clock.split(':').map(number).collect::<Option<_>>()?;
    // Only the first field may be as big as it likes, and not even that after days.
    let bounds: &[u64] = if days.is_some() { &[24, 60, 60] } else { &[u64::MAX, 60, 60] };
    if fields.len() > 3 || fields.iter().zip(bounds).any(|(field, bound)| field >= bound) {
        return None;
    }
    let [hours, minutes, seconds] = match (days, &*fields) {
        (Some(_), &[hours]) => [hours, 0, 0],
        (Some(_), &[hours, minutes]) => [hours, minutes, 0],
        (None, &[minutes]) => [0, minutes, 0],
        (None, &[minutes, seconds]) => [0, minutes, seconds],
        (_, &[hours, minutes, seconds]) => [hours, minutes, seconds],
        _ => return None,
    };
    Some(((days.unwrap_or(0) * 24 + hours) * 60 + minutes) * 60 + seconds)
}

/// Which elements an array of jobs has, in Slurm's form: `0-15`, `1,3,5-7:2`, with `%4` at the end for at most four
/// at a time.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Array(String);
text_value!(Array);

/// The number of the last element that Slurm could be set up for.
const LAST_ELEMENT: u32 = 4_000_000;

impl FromStr for Array {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let element = |text: &str| number(text).filter(|&number| number <= LAST_ELEMENT);
        let range = |text: &str| match text.split_once('-') {
            None => element(text).is_some(),
            Some((first, rest)) => {
                let (last, step) = rest.split_once(':').unwrap_or((rest, "1"));
                let bounds = element(first).zip(element(last));
                bounds.is_some_and(|(first, last)| first <= last) && number(step).is_some_and(|step| step > 0)
            }
        };
        let (elements, at_a_time) = text.split_once('%').unwrap_or((text, "1"));
        if elements.split(',').all(range) && number(at_a_time).is_some_and(|most| most > 0) {
            return Ok(Self(text.into()));
        }
        let instead = "write such as 0-15, 1,3,8, 0-30:2, or 0-15%4 for at most 4 at a time";
        Err(Invalid::new(text, "a range of an array", instead))
    }
}

/// A number in digits alone.
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()))
}

/// What a job waits for, in Slurm's form: `afterok:123`, `afterany:123:124,afternotok:125`, `singleton`; with `?`
/// instead of `,` where any of them is enough.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Dependency(String);
text_value!(Dependency);

impl FromStr for Dependency {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        const KINDS: &[&str] =
            &["after", "afterany", "afterburstbuffer", "aftercorr", "afternotok", "afterok"];
        let job = |text: &str, kind: &str| {
            // `after` may wait some minutes longer.
            let (job, minutes) = text.split_once('+').unwrap_or((text, "0"));
            let (job, element) = job.split_once('_').unwrap_or((job, "0"));
            (kind == "after" || !text.contains('+'))
                && number(job).is_some_and(|job| job > 0)
                && (element == "*" || number(element).is_some())
                && number(minutes).is_some()
        };
        let one = |text: &str| match text.split_once(':') {
            None => text == "singleton",
            Some((kind, jobs)) => KINDS.contains(&kind) && jobs.split(':').all(|text| job(text, kind)),
        };
        let separator = if text.contains('?') { '?' } else { ',' };
        if text.split(separator).all(one) {
            return Ok(Self(text.into()));
        }
        let instead =
            format!("write such as afterok:123 or afterany:123:124 (or {}), or singleton", KINDS.join(", "));
        Err(Invalid::new(text, "a dependency", instead))
    }
}

/// A job of Slurm's: its number, with `_4` after it for one element of an array.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId {
    number: u32,
    /// Which part of an array (`_4`, `_[5-9]`) or of a heterogeneous job (`+1`).
    part: String,
}

impl JobId {
    /// Its number, the same for all elements of an array.
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.number
    }

    /// Which element of an array it is, if it is one.
    #[must_use]
    pub fn element(&self) -> Option<u32> {
        self.part.strip_prefix('_')?.parse().ok()
    }
}

impl From<u32> for JobId {
    fn from(number: u32) -> Self {
        Self { number, part: String::new() }
    }
}

impl FromStr for JobId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, part) = text.split_at(digits);
        let fits = match part.strip_prefix('_') {
            _ if part.is_empty() => true,
            Some(elements) => match elements.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                Some(elements) => elements.parse::<Array>().is_ok(),
                None => number(elements).is_some(),
            },
            None => part.strip_prefix('+').and_then(number).is_some(),
        };
        match digits.parse() {
            Ok(number) if fits && number > 0 => Ok(Self { number, part: part.into() }),
            _ => Err(Invalid::new(
                text,
                "a job of Slurm's",
                "write its number, such as 123, or 123_4 in an array",
            )),
        }
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.number, self.part)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::words::tests::{reads, refuses};

    #[test]
    fn times_are_read_in_all_of_slurms_forms() {
        for (text, seconds) in [
            ("90", 5400),
            ("90:30", 5430),
            ("36:00:00", 129_600),
            ("2-12", 216_000),
            ("2-12:30", 217_800),
            ("2-12:30:15", 217_815),
            ("0-00:00:01", 1),
        ] {
            assert_eq!(text.parse::<TimeLimit>().unwrap().duration().as_secs(), seconds, "{text}");
        }
        assert_eq!(reads::<TimeLimit>("90:30"), "01:30:30");
        assert_eq!(reads::<TimeLimit>("36:00:00"), "1-12:00:00");
        refuses::<TimeLimit>(&[
            "",
            "0",
            "0:00",
            "25:99:99",
            "10:60",
            "1:60:00",
            "1-24",
            "1-",
            "-1",
            "1-2-3",
            "1:2:3:4",
            "1h",
            "1.5",
            " 5",
            "+5",
            "5\n",
            "UNLIMITED",
            "99999999999999999999",
            "1-1:1:1:1",
        ]);
    }

    #[test]
    fn memory_is_read_in_slurms_units() {
        for (text, shown, mebibytes) in [
            ("4000", "4000M", 4000),
            ("4G", "4G", 4096),
            ("4g", "4G", 4096),
            ("2048M", "2G", 2048),
            ("1T", "1T", 1 << 20),
            ("1500K", "1500K", 2),
            ("0", "0K", 0),
        ] {
            let memory: Memory = text.parse().unwrap();
            assert_eq!((&*memory.to_string(), memory.mebibytes()), (shown, mebibytes));
        }
        refuses::<Memory>(&[
            "",
            "G",
            "4Q",
            "4GB",
            "-4G",
            "+4G",
            "4 G",
            "4.5G",
            "99999999999T",
            "4K\n",
            "４G",
        ]);
    }

    #[test]
    fn arrays_and_dependencies_are_those_that_slurm_takes() {
        for text in ["0", "0-15", "0-15%4", "1,3,5-7:2", "0-30:2%1"] {
            assert_eq!(reads::<Array>(text), text);
        }
        refuses::<Array>(&[
            "",
            "a",
            "5-1",
            "1-",
            "1,,2",
            "0-5:0",
            "0-5%0",
            "0-5%",
            "0-4000001",
            "-1",
            "0-+5",
            "1 ,2",
        ]);
        for text in [
            "afterok:123",
            "afterany:1:2,afternotok:3_4",
            "after:5+10",
            "aftercorr:1_*",
            "singleton",
            "afterok:1?afterok:2",
        ] {
            assert_eq!(reads::<Dependency>(text), text);
        }
        refuses::<Dependency>(&[
            "",
            "afterok",
            "afterok:",
            "afterok:x",
            "123",
            "afterok:0",
            "before:1",
            "afterok:1+5",
            "afterok:1,",
            "afterok:1,singleton?afterok:2",
        ]);
    }

    #[test]
    fn jobs_are_told_by_number_and_part() {
        for text in ["123", "123_4", "123_[0-3%2]", "123+1"] {
            assert_eq!(reads::<JobId>(text), text);
        }
        assert_eq!("123_4".parse::<JobId>().unwrap().number(), 123);
        refuses::<JobId>(&[
            "",
            "0",
            "x",
            "12x",
            "12_",
            "12_x",
            "-1",
            "12 13",
            "12_[",
            "--user=root",
            "12+",
            "99999999999",
        ]);
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_refused_and_what_is_shown_reads_the_same(text in "\\PC*") {
            if let Ok(memory) = text.parse::<Memory>() {
                prop_assert_eq!(memory.to_string().parse::<Memory>(), Ok(memory));
            }
            if let Ok(time) = text.parse::<TimeLimit>() {
                prop_assert_eq!(time.to_string().parse::<TimeLimit>(), Ok(time));
            }
            let _ = (text.parse::<Array>(), text.parse::<Dependency>(), text.parse::<JobId>());
        }

        #[test]
        fn amounts_and_times_that_are_right_are_read(number in 0u64..1 << 30, unit in "[KMGTkmgt]?", seconds in 1u64..1 << 30) {
            let memory: Memory = format!("{number}{unit}").parse().unwrap();
            prop_assert_eq!(memory.to_string().parse::<Memory>(), Ok(memory));
            let time = TimeLimit { seconds };
            prop_assert_eq!(time.to_string().parse::<TimeLimit>(), Ok(time));
        }
    }
}
