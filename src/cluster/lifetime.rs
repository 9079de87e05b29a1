//! How long a process has: told by its command line, or by the batch system that will end it.

use std::{
    env,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::{Error, Result};

/// What is left of this process's life, where somebody said: `given` on the command line, in seconds, or
/// Slurm in `SLURM_JOB_END_TIME`, if this is a task of its (`in_slurm`).
///
/// # Errors
/// If `given` is no time.
pub(super) fn told(given: Option<&str>, in_slurm: bool) -> Result<Option<Duration>> {
    let Some(text) = given else {
        if !in_slurm {
            return Ok(None);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        return Ok(of_job(env::var("SLURM_JOB_END_TIME").ok().as_deref(), now));
    };
    match text.parse() {
        Ok(seconds) if (1.0..1e9).contains(&seconds) => Ok(Some(Duration::from_secs_f64(seconds))),
        _ => Err(Error::Usage(format!("--lifetime takes seconds, from 1 up, not `{text}`"))),
    }
}

/// What is left of a job whose end is said in seconds since 1970.
fn of_job(end: Option<&str>, now: Duration) -> Option<Duration> {
    let end = Duration::from_secs(end?.trim().parse().ok()?);
    Some(end.saturating_sub(now)).filter(|left| !left.is_zero())
}

/// When to begin to leave, to have `handover` for it: but not before nine tenths of a short life are over.
pub(super) fn before(lifetime: Duration, handover: Duration) -> Duration {
    lifetime.saturating_sub(handover.min(lifetime / 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_end_of_a_job_is_the_end() {
        assert_eq!(of_job(Some("1000"), seconds(400)), Some(seconds(600)));
        for none in [None, Some("soon"), Some("300")] {
            assert_eq!(of_job(none, seconds(400)), None, "{none:?}");
        }
    }

    #[test]
    fn what_is_given_goes_before() {
        assert_eq!(told(Some("90"), false).unwrap(), Some(seconds(90)));
        for wrong in ["", "0", "-3", "1h", "nan"] {
            assert!(told(Some(wrong), true).unwrap_err().to_string().contains("--lifetime"), "{wrong}");
        }
    }

    #[test]
    fn the_time_for_leaving_is_kept_free() {
        assert_eq!(before(seconds(3600), seconds(30)), seconds(3570));
        assert_eq!(before(seconds(60), seconds(30)), seconds(54));
    }
}
