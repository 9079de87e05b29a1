//! The command line of a program, as far as it is Rankine's.

use std::path::PathBuf;

use super::{Builder, LocalCluster, SchedulerFile, roles};
use crate::{
    Error, Result,
    settings::{self, Settings},
    worker::server::Listen,
};

/// The flags of a command line, taken out one after the other.
pub(super) struct Flags {
    pub(super) words: Vec<String>,
}

impl Flags {
    pub(super) fn new(words: Vec<String>) -> Self {
        Self { words }
    }

    /// How many of the words may be Rankine's: what follows `--` is the program's.
    fn own(&self) -> usize {
        self.words.iter().position(|word| word == "--").unwrap_or(self.words.len())
    }

    pub(super) fn switch(&mut self, name: &str) -> bool {
        let place = self.words[..self.own()].iter().position(|word| word == name);
        place.map(|place| self.words.remove(place)).is_some()
    }

    pub(super) fn value(&mut self, name: &str) -> Result<Option<String>> {
        let with = format!("{name}=");
        let Some(place) = self.words[..self.own()].iter().position(|w| w == name || w.starts_with(&with))
        else {
            return Ok(None);
        };
        let word = self.words.remove(place);
        if let Some(value) = word.strip_prefix(&with) {
            return Ok(Some(value.to_owned()));
        }
        if place < self.words.len() {
            return Ok(Some(self.words.remove(place)));
        }
        Err(Error::Usage(format!("{name} needs a value")))
    }

    pub(super) fn number(&mut self, name: &str) -> Result<Option<u32>> {
        let Some(text) = self.value(name)? else { return Ok(None) };
        match text.parse() {
            Ok(number) if number > 0 => Ok(Some(number)),
            _ => Err(Error::Usage(format!("{name} takes a whole number from 1 up, not `{text}`"))),
        }
    }

    /// The value of a flag that stays where it is.
    pub(super) fn peek(&self, name: &str) -> Option<String> {
        Self::new(self.words.clone()).value(name).ok().flatten()
    }

    /// A number that may be 0.
    pub(super) fn whole(&mut self, name: &str) -> Result<Option<u32>> {
        let Some(text) = self.value(name)? else { return Ok(None) };
        let number = text.parse();
        number.map(Some).map_err(|_| Error::Usage(format!("{name} takes a whole number, not `{text}`")))
    }

    /// The settings, with what the command line says of them, and `defaults` where nobody says anything.
    pub(super) fn settings(&mut self, defaults: Settings) -> Result<Settings> {
        let mut given = Vec::new();
        for (name, ..) in settings::NAMES {
            if let Some(value) = self.value(&format!("--{name}"))? {
                given.push(((*name).to_owned(), value));
            }
        }
        Settings::load_over(defaults, &given)
    }

    /// Where to listen: at what the command line says, or on everything, over TCP at `tcp`.
    pub(super) fn listen(&mut self, tcp: &str) -> Result<Listen> {
        let mut addresses = Vec::new();
        while let Some(address) = self.value("--listen")? {
            addresses.push(address);
        }
        Ok(if addresses.is_empty() { Listen::Everywhere { tcp: tcp.into() } } else { Listen::At(addresses) })
    }

    pub(super) fn builder(&mut self, defaults: Settings) -> Result<Builder> {
        let mut builder = LocalCluster::builder().settings(self.settings(defaults)?);
        builder.workers = self.number("--workers")?.map(|n| n as usize);
        if let Some(processes) = self.number("--processes")? {
            builder.processes = true;
            builder.workers = Some(processes as usize);
        }
        builder.bind_cores = self.switch("--bind-cores");
        builder.threads = self.number("--threads")?;
        while let Some(resource) = self.value("--resource")? {
            let parsed =
                resource.split_once('=').and_then(|(name, amount)| Some((name, amount.parse().ok()?)));
            let (name, amount) = parsed
                .ok_or_else(|| Error::Usage(format!("--resource takes NAME=AMOUNT, not `{resource}`")))?;
            builder = builder.resource(name, amount);
        }
        Ok(builder)
    }

    /// The scheduler file named by `--scheduler-file`, or that of the address that comes first.
    pub(super) fn scheduler_file(&mut self) -> Result<SchedulerFile> {
        let address = self.words.first().filter(|word| word.contains("://")).cloned();
        if address.is_some() {
            self.words.remove(0);
        }
        let path = match (self.value("--scheduler-file")?, &address) {
            (Some(path), _) => PathBuf::from(path),
            (None, Some(address)) => SchedulerFile::default_path(address)?,
            (None, None) => {
                return Err(Error::Usage(format!(
                    "name the scheduler: its address, or its file with --scheduler-file\n\n{}",
                    roles::help()
                )));
            }
        };
        let mut file = SchedulerFile::read(&path)?;
        if let Some(address) = address {
            file.address = address;
        }
        Ok(file)
    }

    pub(super) fn nothing_left(&self, role: &str) -> Result<()> {
        match self.words.first() {
            None => Ok(()),
            Some(word) => Err(Error::Usage(format!("{role} does not know `{word}`\n\n{}", roles::help()))),
        }
    }
}
