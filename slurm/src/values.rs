//! The values that a job is described with. Each is read from text once, and right from then on.

use std::{fmt, str::FromStr, time::Duration};

use crate::Invalid;

/// Reads by the given function, shows by the given format.
macro_rules! text_value {
    ($name:ident) => {
        impl $name {
            /// Its text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

/// The name of a job: letters, digits and `. _ - + @ : =`, since it becomes a part of file names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name(String);
text_value!(Name);

impl Name {
    /// The name that a text would have with everything else in it made a `-`.
    #[must_use]
    pub fn like(text: &str) -> Self {
        let kept: String = text.chars().map(|c| if in_name(c) { c } else { '-' }).take(NAME_LENGTH).collect();
        Self(if kept.trim_start_matches('-').is_empty() { "job".into() } else { kept })
    }
}

const NAME_LENGTH: usize = 200;

fn in_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || "._-+@:=".contains(c)
}

impl FromStr for Name {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.is_empty() || text.len() > NAME_LENGTH || !text.chars().all(in_name) {
            let instead =
                format!("write up to {NAME_LENGTH} letters, digits and . _ - + @ : =, without spaces");
            return Err(Invalid::new(text, "a name of a job", instead));
        }
        Ok(Self(text.into()))
    }
}

/// A word as Slurm takes it for partitions, accounts, qualities of service, constraints, resources: without
/// white space, quotes, backslashes and `#`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Word(String);
text_value!(Word);

impl FromStr for Word {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let fits = |c: char| !c.is_whitespace() && !c.is_control() && !"\"'\\#".contains(c);
        if text.is_empty() || !text.chars().all(fits) {
            let instead = "write it without spaces, quotes, backslashes and #";
            return Err(Invalid::new(text, "a word that Slurm takes", instead));
        }
        Ok(Self(text.into()))
    }
}

/// A directive for sbatch that this crate has no name for, such as `--reservation=maintenance`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Directive(String);
text_value!(Directive);

impl FromStr for Directive {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let option = text.strip_prefix("--").or_else(|| text.strip_prefix('-')).unwrap_or("");
        if !option.starts_with(|c: char| c.is_ascii_alphabetic()) || text.chars().any(char::is_control) {
            let instead = "write it as after #SBATCH, on one line, such as --reservation=NAME";
            return Err(Invalid::new(text, "a directive for sbatch", instead));
        }
        Ok(Self(text.into()))
    }
}

/// The file that a job's output goes to: a path, in which Slurm replaces `%j` by the job's number, `%x` by its
/// name, `%A` and `%a` by the numbers of array and element.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Output(String);
text_value!(Output);

impl FromStr for Output {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.trim().is_empty() || text.chars().any(|c| c.is_control() || "\"\\".contains(c)) {
            let instead = "write a path without quotes, backslashes and line ends, such as logs/%x-%j.out";
            return Err(Invalid::new(text, "a file for a job's output", instead));
        }
        Ok(Self(text.into()))
    }
}

/// A variable for the job's environment, written `NAME=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Variable {
    name: String,
    value: String,
}

impl Variable {
    /// A variable.
    ///
    /// # Errors
    /// If no shell would take that name, or the value has a zero byte in it.
    pub fn new(name: &str, value: &str) -> Result<Self, Invalid> {
        let first = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !first || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            let instead = "write NAME=VALUE, the name of letters, digits and _";
            return Err(Invalid::new(name, "a name of a variable", instead));
        }
        if value.contains('\0') {
            return Err(Invalid::new(value, "a value of a variable", "leave out the zero byte"));
        }
        Ok(Self { name: name.into(), value: value.into() })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its value.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.value
    }
}

impl FromStr for Variable {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let Some((name, value)) = text.split_once('=') else {
            return Err(Invalid::new(text, "a variable", "write NAME=VALUE"));
        };
        Self::new(name, value)
    }
}

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

    fn reads<T: FromStr<Err = Invalid> + fmt::Display>(text: &str) -> String {
        text.parse::<T>().unwrap_or_else(|error| panic!("{error}")).to_string()
    }

    fn refuses<T: FromStr<Err = Invalid> + fmt::Debug>(texts: &[&str]) {
        for text in texts {
            let error = text.parse::<T>().expect_err(text);
            assert_eq!(&error.given, text);
            assert!(error.instead.len() > 10 && error.to_string().contains(&format!("{text:?}")), "{error}");
        }
    }

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
    fn words_keep_out_what_would_end_or_split_a_directive() {
        assert_eq!(reads::<Name>("cfd_2.1-run@3"), "cfd_2.1-run@3");
        refuses::<Name>(&["", "two words", "a\nb", "a/b", "a%j", "$HOME", "naïve", "a#b", &"n".repeat(201)]);
        assert_eq!(Name::like("my prog/ü").as_str(), "my-prog--");
        assert_eq!(Name::like("/").as_str(), "job");
        assert_eq!(reads::<Word>("[rack1|rack2]&ib*2"), "[rack1|rack2]&ib*2");
        refuses::<Word>(&["", "two words", "a\nb", "\"a\"", "a'b", "a\\b", "a#b", "a\tb"]);
        assert_eq!(reads::<Directive>("--comment=\"two words\""), "--comment=\"two words\"");
        refuses::<Directive>(&["", "nodes=2", "--", "- -", "--a\n#SBATCH --b", "-1"]);
        assert_eq!(reads::<Output>("/my logs/%x-%j.out"), "/my logs/%x-%j.out");
        refuses::<Output>(&["", "  ", "a\nb", "a\"b", "a\\b"]);
        let variable: Variable = "_A1=b=c\n'd'".parse().unwrap();
        assert_eq!((variable.name(), variable.value()), ("_A1", "b=c\n'd'"));
        assert_eq!("A".parse::<Variable>().unwrap_err().what, "a variable");
        for wrong in ["=1", "1A=1", "A B=1", "A-B=1", "Ä=1"] {
            assert_eq!(wrong.parse::<Variable>().unwrap_err().what, "a name of a variable");
        }
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
