//! What users set: defaults, then a file, then `RANKINE_*` variables, then flags.
//!
//! A setting has one name everywhere: `tls-cert` in the file is `RANKINE_TLS_CERT` in the environment and
//! `--tls-cert` on a command line. The file is `$RANKINE_CONFIG`, or `~/.config/rankine/config.toml`.

use std::{
    env,
    io::IsTerminal,
    path::{Path, PathBuf},
    time::Duration,
};

use figment::{
    Figment, Metadata, Profile, Provider,
    providers::{Env, Format, Serialized, Toml},
    value::{Dict, Map, Value},
};
use rankine_transport::compression::Compression;
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

mod memory;
mod saturation;
#[cfg(test)]
mod tests;

pub use memory::{MemoryLimit, Threshold};
pub use saturation::Saturation;

use crate::{Error, Result, worker::Thresholds};

/// Every setting, as one process has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Settings {
    /// `auto`, or the transports that may be used, the preferred first, with commas between.
    pub transport: String,
    /// The network interface over which `tcp://` listeners are reached.
    pub interface: Option<String>,
    /// Whether chunks are compressed on their way.
    pub compression: Compression,
    /// This side's certificate (PEM): with it, all TCP is encrypted.
    pub tls_cert: Option<PathBuf>,
    /// The key of the certificate (PEM).
    pub tls_key: Option<PathBuf>,
    /// The authority that signed all certificates of the cluster (PEM).
    pub tls_ca: Option<PathBuf>,
    /// Seconds of silence after which a peer, or its host, counts as gone.
    pub dead_after: f64,
    /// How many workers a task may take down before it errs.
    pub allowed_failures: u32,
    /// Seconds that a worker which is to leave may take to hand its results over to others.
    pub handover: f64,
    /// Tasks without dependencies that a worker is given ahead of time, in multiples of its threads.
    pub worker_saturation: Saturation,
    /// Whether workers with too little to do take over from those with too much.
    pub work_stealing: bool,
    /// How much memory each worker may use.
    pub memory_limit: MemoryLimit,
    /// The share of it beyond which results are written to disk.
    pub memory_target: Threshold,
    /// The share of it beyond which they are written to disk when the process occupies that much, whatever with.
    pub memory_spill: Threshold,
    /// The share of it beyond which a worker starts no more tasks.
    pub memory_pause: Threshold,
    /// The share of it beyond which a worker's process ends.
    pub memory_terminate: Threshold,
    /// Where results are written to; by default `$TMPDIR`, Slurm's `$SLURM_TMPDIR`, or `/tmp`.
    pub local_directory: Option<PathBuf>,
    /// What is logged on standard error, as a filter: `off`, `warn`, `info`, `rankine=debug`.
    pub log: String,
    /// The RDMA device that `verbs://` uses.
    pub verbs_device: Option<String>,
    /// The port of the RDMA device.
    pub verbs_port: Option<u8>,
    /// The index of the GID by which the port is reached.
    pub verbs_gid_index: Option<u8>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            transport: "auto".into(),
            interface: None,
            compression: Compression::Auto,
            tls_cert: None,
            tls_key: None,
            tls_ca: None,
            dead_after: 30.0,
            allowed_failures: 3,
            handover: 30.0,
            worker_saturation: Saturation::default(),
            work_stealing: true,
            memory_limit: MemoryLimit::Auto,
            memory_target: Threshold(Some(0.6)),
            memory_spill: Threshold(Some(0.7)),
            memory_pause: Threshold(Some(0.8)),
            memory_terminate: Threshold(Some(0.95)),
            local_directory: None,
            log: "warn".into(),
            verbs_device: None,
            verbs_port: None,
            verbs_gid_index: None,
        }
    }
}

/// The settings' names, each with what it takes and what it is for.
pub const NAMES: &[(&str, &str, &str)] = &[
    ("transport", "auto|LIST", "transports that may be used, the preferred first: inproc,shm,verbs,mpi,tcp"),
    ("interface", "NAME", "network interface over which tcp:// is reached, such as ib0 (default: any)"),
    (
        "compression",
        "auto|off|always",
        "whether chunks are compressed on their way (auto: where it is faster)",
    ),
    ("tls-cert", "FILE", "this side's certificate (PEM); with it, all TCP is encrypted"),
    ("tls-key", "FILE", "the key of the certificate (PEM)"),
    ("tls-ca", "FILE", "the authority that signed all certificates of the cluster (PEM)"),
    ("dead-after", "SECONDS", "silence after which a peer, or its host, counts as gone (default: 30)"),
    ("allowed-failures", "NUMBER", "workers that a task may take down before it errs (default: 3)"),
    ("handover", "SECONDS", "how long a worker that is to leave may take to hand its results over to others"),
    (
        "worker-saturation",
        "NUMBER|inf",
        "tasks without dependencies that a worker is given ahead, times its threads (default: 1.1; inf: all)",
    ),
    ("work-stealing", "true|false", "whether idle workers take over what waits at others (default: true)"),
    (
        "memory-limit",
        "BYTES|SHARE|auto|none",
        "memory of each worker: 4GiB, a share of the node such as 0.5, or its part of what the process may use",
    ),
    ("memory-target", "SHARE|off", "share of the limit beyond which results are written to disk"),
    ("memory-spill", "SHARE|off", "the same for all that the process occupies, results or not"),
    ("memory-pause", "SHARE|off", "occupied share beyond which a worker starts no more tasks"),
    ("memory-terminate", "SHARE|off", "occupied share beyond which the process of a worker ends"),
    ("local-directory", "DIR", "where workers write results to (default: $TMPDIR, $SLURM_TMPDIR or /tmp)"),
    (
        "log",
        "FILTER",
        "what is logged on standard error: off, error, warn, info, debug, or a filter like rankine=info",
    ),
    ("verbs-device", "NAME", "RDMA device, such as mlx5_0 (default: the first with an active port)"),
    ("verbs-port", "NUMBER", "port of the RDMA device (default: the first active one)"),
    (
        "verbs-gid-index",
        "NUMBER",
        "GID by which the port is reached (default: RoCE v2 with IPv4, if there is one)",
    ),
];

/// A setting, what it is, and who said so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The setting's name.
    pub name: &'static str,
    /// Its value, as one writes it.
    pub value: String,
    /// Where that comes from: `default`, a file, a variable, a flag.
    pub from: String,
}

/// Flags given on a command line.
struct Flags(Vec<(String, String)>);

impl Provider for Flags {
    fn metadata(&self) -> Metadata {
        let given = self.0.iter().map(|(name, _)| format!("--{name}"));
        Metadata::named(given.collect::<Vec<_>>().join(", "))
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let value = |text: &String| text.parse::<Value>().unwrap_or_else(|never| match never {});
        Ok(Profile::Default.collect(self.0.iter().map(|(name, text)| (name.clone(), value(text))).collect()))
    }
}

impl Settings {
    /// What the file and the environment say.
    ///
    /// # Errors
    /// If one of them says something that is no setting, or no value of one.
    pub fn load() -> Result<Self> {
        Self::load_with(&[])
    }

    /// The same with flags, as names and values, on top.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_with(flags: &[(String, String)]) -> Result<Self> {
        Self::load_over(Self::default(), flags)
    }

    /// The same where `defaults` are what is when nobody says anything.
    pub(crate) fn load_over(defaults: Self, flags: &[(String, String)]) -> Result<Self> {
        let settings: Self = layers(defaults, flags)?.extract().map_err(unusable)?;
        settings.check()?;
        Ok(settings)
    }

    /// Each setting with its value and who said so.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn origins(flags: &[(String, String)]) -> Result<Vec<Origin>> {
        let layers = layers(Self::default(), flags)?;
        let settings = Self::load_with(flags)?;
        let values = settings.given();
        Ok(NAMES
            .iter()
            .map(|&(name, ..)| {
                let value = values.iter().find(|(n, _)| *n == name).map(|(_, value)| value.clone());
                let from = match layers.find_metadata(name) {
                    Some(_) if flags.iter().any(|(flag, _)| flag == name) => format!("--{name}"),
                    Some(metadata) if metadata.name.contains("environment") => variable(name),
                    Some(Metadata { source: Some(figment::Source::File(path)), .. }) => {
                        path.display().to_string()
                    }
                    _ => "default".into(),
                };
                Origin { name, value: value.unwrap_or_else(|| "-".into()), from }
            })
            .collect())
    }

    /// As variables of the environment, for processes that are to have the same settings.
    pub(crate) fn variables(&self) -> Vec<(String, String)> {
        self.given().into_iter().map(|(name, value)| (variable(name), value)).collect()
    }

    /// Those that are not the default.
    pub(crate) fn changed(&self) -> Vec<(&'static str, String)> {
        let usual = Self::default().given();
        self.given().into_iter().filter(|given| !usual.contains(given)).collect()
    }

    /// The settings that have a value, as one writes them.
    fn given(&self) -> Vec<(&'static str, String)> {
        let Ok(serde_json::Value::Object(all)) = serde_json::to_value(self) else { return Vec::new() };
        let text = |value: &serde_json::Value| match value {
            serde_json::Value::Null => None,
            serde_json::Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        };
        NAMES.iter().filter_map(|&(name, ..)| Some((name, text(all.get(name)?)?))).collect()
    }

    /// Without `mpi://`, unless it was asked for by its name: for processes that no one launcher started
    /// together.
    pub(crate) fn without_mpi(self) -> Self {
        match &*self.transport {
            "auto" if cfg!(feature = "verbs") => Self { transport: "inproc,shm,verbs,tcp".into(), ..self },
            "auto" if cfg!(feature = "mpi") => Self { transport: "inproc,shm,tcp".into(), ..self },
            _ => self,
        }
    }

    /// The schemes that may be used, the preferred first; `None` for the usual order.
    pub(crate) fn schemes(&self) -> Option<Vec<&str>> {
        (self.transport != "auto").then(|| self.transport.split(',').map(str::trim).collect())
    }

    /// After how long a peer's host counts as gone.
    pub(crate) fn dead_after(&self) -> Duration {
        Duration::from_secs_f64(self.dead_after)
    }

    /// How long a worker that is to leave may take to hand its results over.
    pub(crate) fn handover(&self) -> Duration {
        Duration::from_secs_f64(self.handover)
    }

    /// What workers do as their memory fills up.
    pub(crate) fn thresholds(&self) -> Thresholds {
        Thresholds {
            target: self.memory_target.0,
            spill: self.memory_spill.0,
            pause: self.memory_pause.0,
            terminate: self.memory_terminate.0,
        }
    }

    /// Where workers write results to.
    pub(crate) fn local_directory(&self) -> PathBuf {
        let named = |name| env::var_os(name).filter(|place| !place.is_empty()).map(PathBuf::from);
        let given =
            self.local_directory.clone().or_else(|| named("TMPDIR")).or_else(|| named("SLURM_TMPDIR"));
        given.unwrap_or_else(|| "/tmp".into())
    }

    /// Writes what the setting `log` wants to standard error, from now on, unless the program sees to its logs
    /// itself.
    pub(crate) fn start_log(&self) {
        let filter = EnvFilter::new(&self.log);
        let colours = std::io::stderr().is_terminal();
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        // The error is that somebody else writes the logs.
        let _ = log.with_ansi(colours).try_init();
    }

    /// What the types of the values do not tell.
    fn check(&self) -> Result<()> {
        const SCHEMES: &[&str] = &["inproc", "shm", "verbs", "mpi", "tcp"];
        let wrong = |name, value: &str, reason: String| {
            Err(Error::Usage(format!("the setting {name} cannot be {value}: {reason}")))
        };
        for scheme in self.schemes().unwrap_or_default() {
            if !SCHEMES.contains(&scheme) {
                let reason = format!("say auto, or some of {} with commas between", SCHEMES.join(", "));
                return wrong("transport", &self.transport, reason);
            }
        }
        if !(0.1..=1e6).contains(&self.dead_after) {
            return wrong("dead-after", &self.dead_after.to_string(), "say seconds, from 0.1 up".into());
        }
        if !(0.0..=1e6).contains(&self.handover) {
            return wrong("handover", &self.handover.to_string(), "say seconds, from 0 up".into());
        }
        let shares = [
            ("memory-target", self.memory_target),
            ("memory-spill", self.memory_spill),
            ("memory-pause", self.memory_pause),
            ("memory-terminate", self.memory_terminate),
        ];
        let set: Vec<(&str, f64)> =
            shares.iter().filter_map(|(name, share)| Some((*name, share.0?))).collect();
        for pair in set.windows(2) {
            let [(below, less), (name, share)] = pair else { continue };
            if share < less {
                let reason = format!("{below} is {less}, and this is to come later");
                return wrong(name, &share.to_string(), reason);
            }
        }
        if let Err(error) = EnvFilter::try_new(&self.log) {
            return wrong("log", &self.log, error.to_string());
        }
        let tls = [("tls-cert", &self.tls_cert), ("tls-key", &self.tls_key), ("tls-ca", &self.tls_ca)];
        let missing: Vec<&str> =
            tls.iter().filter(|(_, file)| file.is_none()).map(|(name, _)| *name).collect();
        if !missing.is_empty() && missing.len() < tls.len() {
            let reason = format!("TLS wants three files; say {} too", missing.join(" and "));
            return Err(Error::Usage(reason));
        }
        Ok(())
    }
}

fn variable(name: &str) -> String {
    format!("RANKINE_{}", name.replace('-', "_").to_uppercase())
}

/// The settings file, and whether somebody asked for that very one.
fn file() -> Option<(PathBuf, bool)> {
    if let Some(named) = env::var_os("RANKINE_CONFIG") {
        return Some((named.into(), true));
    }
    let home = || Some(Path::new(&env::var_os("HOME")?).join(".config"));
    let config = env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).or_else(home)?;
    Some((config.join("rankine/config.toml"), false))
}

fn layers(defaults: Settings, flags: &[(String, String)]) -> Result<Figment> {
    let mut layers = Figment::from(Serialized::defaults(defaults));
    if let Some((path, named)) = file() {
        if path.is_file() {
            layers = layers.merge(Toml::file_exact(path));
        } else if named {
            return Err(Error::Usage(format!("RANKINE_CONFIG names {}, which is no file", path.display())));
        }
    }
    // Other variables of that prefix are none of the settings.
    let names = NAMES.iter().map(|(name, ..)| name.replace('-', "_")).collect::<Vec<_>>();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let variables = Env::prefixed("RANKINE_").only(&names).map(|name| name.as_str().replace('_', "-").into());
    Ok(layers.merge(variables).merge(Flags(flags.to_vec())))
}

fn unusable(error: figment::Error) -> Error {
    let told: Vec<String> = error.into_iter().map(|error| error.to_string()).collect();
    Error::Usage(format!("cannot use the settings: {}; `rankine config` lists them all", told.join("; ")))
}
