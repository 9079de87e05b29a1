//! Names and other words that go into a job's script. Each is read from text once, and right from then on: none ends
//! or splits the directive that it stands in.

use std::{fmt, str::FromStr};

use crate::Invalid;

/// A value that is its text.
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
pub(crate) use text_value;

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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn reads<T: FromStr<Err = Invalid> + fmt::Display>(text: &str) -> String {
        text.parse::<T>().unwrap_or_else(|error| panic!("{error}")).to_string()
    }

    pub(crate) fn refuses<T: FromStr<Err = Invalid> + fmt::Debug>(texts: &[&str]) {
        for text in texts {
            let error = text.parse::<T>().expect_err(text);
            assert_eq!(&error.given, text);
            assert!(error.instead.len() > 10 && error.to_string().contains(&format!("{text:?}")), "{error}");
        }
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
}
