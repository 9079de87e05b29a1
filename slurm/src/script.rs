//! The batch script of a job: what a careful person would write, with everything quoted that has to be.

use std::fmt::{self, Write};

use crate::{Job, Launcher, Result};

/// A batch script, as text for sbatch ([`Display`](fmt::Display)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    text: String,
}

impl Script {
    /// The script of a job.
    ///
    /// # Errors
    /// If values of the job do not go together.
    pub fn new(job: &Job) -> Result<Self> {
        job.check()?;
        let sections = [directives(job), setup(job), launch(job)];
        let text = sections.into_iter().filter(|section| !section.is_empty()).collect::<Vec<_>>().join("\n");
        Ok(Self { text })
    }

    /// Whether a directive says what the variable `SBATCH_NAME` would say otherwise, which sbatch would prefer.
    pub(crate) fn says(&self, name: &str) -> bool {
        let option = match name {
            "TIMELIMIT" => "time".to_owned(),
            "ARRAY_INX" => "array".to_owned(),
            "MEM_PER_NODE" | "MEM_PER_CPU" => "mem".to_owned(),
            _ => name.to_lowercase().replace('_', "-"),
        };
        let directives = self.text.lines().filter_map(|line| line.strip_prefix("#SBATCH --"));
        directives.map(|rest| rest.split('=').next().unwrap_or_default()).any(|given| given == option)
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What sbatch reads, which ends with the first command.
fn directives(job: &Job) -> String {
    let mut text = String::from("#!/usr/bin/env bash\n");
    let mut directive = |option: &str, value: &dyn fmt::Display| {
        let _ = writeln!(text, "#SBATCH --{option}={value}");
    };
    directive("job-name", &job.name);
    directive("nodes", &job.nodes);
    directive("ntasks-per-node", &job.tasks_per_node);
    let default = format!("{}-%{}.out", job.name, if job.array.is_some() { "A_%a" } else { "j" });
    let output = job.output.as_ref().map_or(&*default, |output| output.as_str());
    let output = if output.contains([' ', '#', '\'']) { format!("\"{output}\"") } else { output.to_owned() };
    let signal = job.signal.map(|seconds| match job.launcher {
        // `B:` is for this script alone, which hands it on.
        Launcher::Mpirun => format!("B:USR1@{seconds}"),
        Launcher::Srun(_) | Launcher::FaultTolerant | Launcher::Workers => format!("USR1@{seconds}"),
    });
    let given: [(&str, Option<&dyn fmt::Display>); 12] = [
        ("cpus-per-task", job.cpus_per_task.as_ref().map(|value| value as _)),
        ("mem", job.memory.as_ref().map(|value| value as _)),
        ("time", job.time.as_ref().map(|value| value as _)),
        ("partition", job.partition.as_ref().map(|value| value as _)),
        ("account", job.account.as_ref().map(|value| value as _)),
        ("qos", job.qos.as_ref().map(|value| value as _)),
        ("constraint", job.constraint.as_ref().map(|value| value as _)),
        ("gres", job.gres.as_ref().map(|value| value as _)),
        ("array", job.array.as_ref().map(|value| value as _)),
        ("dependency", job.dependency.as_ref().map(|value| value as _)),
        ("signal", signal.as_ref().map(|value| value as _)),
        ("output", Some(&output)),
    ];
    for (option, value) in given {
        if let Some(value) = value {
            directive(option, value);
        }
    }
    if matches!(job.launcher, Launcher::FaultTolerant | Launcher::Workers) {
        text += "# The job goes on if a node of it fails.\n#SBATCH --no-kill\n";
    }
    for directive in &job.directives {
        let _ = writeln!(text, "#SBATCH {directive}");
    }
    text
}

/// Modules and variables.
fn setup(job: &Job) -> String {
    let mut text = String::new();
    if !job.modules.is_empty() {
        text += "\
# Shells of batch jobs do not know `module` everywhere.
# shellcheck source=/dev/null
type module >/dev/null 2>&1 || . /etc/profile
";
        for module in &job.modules {
            let module = quoted(module.as_str());
            let _ = writeln!(text, "module load {module} || exit");
        }
        text.push('\n');
    }
    // Only now, since few module systems bear it.
    text += "set -euo pipefail\n";
    for variable in &job.environment {
        let _ = writeln!(text, "export {}={}", variable.name(), quoted(variable.value()));
    }
    text
}

/// Starts the program, and ends as it ends.
fn launch(job: &Job) -> String {
    let words = [&job.program].into_iter().chain(&job.arguments);
    let program = words.map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
    // Since 22.05 srun does not take it from the job.
    let cpus = job.cpus_per_task.map_or(String::new(), |cpus| format!(" --cpus-per-task={cpus}"));
    match job.launcher {
        Launcher::Mpirun => {
            let mut text = String::new();
            if job.cpus_per_task.is_some_and(|cpus| cpus.get() > 1) {
                text += "\
# The threads of a rank use all of its CPUs; Open MPI, 4 and 5, would bind them to one.
export OMPI_MCA_hwloc_base_binding_policy=none PRTE_MCA_hwloc_default_binding_policy=none
";
            }
            match job.signal {
                None => text + &format!("# A rank for each task of the job.\nexec mpirun {program}\n"),
                Some(seconds) => text + &forwarding(seconds.get(), &program),
            }
        }
        Launcher::Srun(pmi) => {
            let mut text = String::from("# A rank for each task of the job.\n");
            text += &signalled(job);
            text + &format!("exec srun --mpi={} --kill-on-bad-exit=1{cpus} {program}\n", pmi.as_str())
        }
        Launcher::FaultTolerant => {
            let mut text = String::from(
                "\
# Each task runs the program: the first becomes its scheduler, the others its workers. Workers may die on the way,
# which srun would report as a failure; so the program's own status comes through a file, on the node that the first
# task shares with this script.
place=$(mktemp --directory 2>/dev/null || TMPDIR=/tmp mktemp --directory)
trap 'rm -rf \"$place\"' EXIT
export RANKINE_STATUS=$place/status
",
            );
            text += &signalled(job);
            let _ = writeln!(
                text,
                "\
status=0
srun {SURVIVING}{cpus} {program} || status=$?
if [ -s \"$RANKINE_STATUS\" ]; then status=$(<\"$RANKINE_STATUS\"); fi
exit \"$status\""
            );
            text
        }
        Launcher::Workers => {
            format!(
                "{END}# Each task is a worker.\n{}exec srun {SURVIVING}{cpus} {program}\n",
                signalled(job)
            )
        }
    }
}

/// By which the tasks of a step live on when one of them, or its node, dies.
const SURVIVING: &str = "--mpi=none --no-kill --kill-on-bad-exit=0 --wait=0";

/// Tells the tasks when the job ends, so that workers leave in order before.
const END: &str = "\
# Slurm tells of the job's end from 23.02 on; workers hand their results over before it.
if [ -z \"${SLURM_JOB_END_TIME:-}\" ] && end=$(timeout 10 squeue --noheader --jobs=\"$SLURM_JOB_ID\" --format=%e); then
    SLURM_JOB_END_TIME=$(date --date=\"$end\" +%s 2>/dev/null) && export SLURM_JOB_END_TIME
fi
";

/// Tells of the signal that Slurm sends to the tasks itself.
fn signalled(job: &Job) -> String {
    job.signal.map_or(String::new(), |seconds| {
        format!(
            "# {seconds} s (or up to a minute more) before the time limit Slurm sends USR1 to each task.\n"
        )
    })
}

/// Starts ranks by mpirun, which hands USR1 on to them.
fn forwarding(seconds: u32, program: &str) -> String {
    format!(
        "\
# {seconds} s (or up to a minute more) before the time limit Slurm sends USR1 to this script. mpirun hands it on to the
# ranks, one for each task of the job.
launched=
trap '[ -z \"$launched\" ] || kill -USR1 \"$launched\"' USR1
mpirun {program} &
launched=$!
status=0
wait \"$launched\" || status=$?
# A signal ends the waiting, not the program.
while kill -0 \"$launched\" 2>/dev/null; do
    status=0
    wait \"$launched\" || status=$?
done
exit \"$status\"
"
    )
}

/// A word that the shell takes as it is.
fn quoted(word: &str) -> String {
    // It refuses only zero bytes, which no value of a job has.
    shlex::try_quote(word).map_or_else(|_| String::new(), |quoted| quoted.into_owned())
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        num::NonZeroU32,
        process::{Command, Output, Stdio},
    };

    use proptest::prelude::*;

    use super::*;
    use crate::{Pmi, Variable};

    fn count(number: u32) -> NonZeroU32 {
        NonZeroU32::new(number).unwrap()
    }

    fn text(job: &Job) -> String {
        Script::new(job).unwrap().to_string()
    }

    fn bash(arguments: &[&str], script: &str) -> Output {
        let mut bash = Command::new("bash");
        let mut bash =
            bash.args(arguments).args(["-s"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        bash.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        bash.wait_with_output().unwrap()
    }

    /// A job with everything in it.
    fn full(launcher: Launcher) -> Job {
        let mut job = Job::new("./my programs/anomaly");
        job.arguments = ["--from", "it's \"here\".npy", "$HOME", "", "*"].map(String::from).to_vec();
        (job.nodes, job.tasks_per_node, job.cpus_per_task) = (count(4), count(2), Some(count(8)));
        job.memory = Some("16G".parse().unwrap());
        job.time = Some("90".parse().unwrap());
        job.partition = Some("short,debug".parse().unwrap());
        job.account = Some("physics".parse().unwrap());
        job.qos = Some("normal".parse().unwrap());
        job.constraint = Some("[a|b]&ib".parse().unwrap());
        job.gres = Some("gpu:2".parse().unwrap());
        job.array = Some("0-15%4".parse().unwrap());
        job.dependency = Some("afterok:12".parse().unwrap());
        job.modules = vec!["openmpi/4.1".parse().unwrap()];
        job.environment = vec![Variable::new("GREETING", "two\nlines, it's $HOME").unwrap()];
        job.directives = vec!["--comment=\"two words\"".parse().unwrap()];
        job.output = Some("my logs/%x-%A_%a.out".parse().unwrap());
        job.signal = Some(count(300));
        job.launcher = launcher;
        job
    }

    const LAUNCHERS: [Launcher; 4] =
        [Launcher::Mpirun, Launcher::Srun(Pmi::Pmix), Launcher::Srun(Pmi::Pmi2), Launcher::FaultTolerant];

    #[test]
    fn a_plain_job_is_a_few_lines() {
        let mut job = Job::new("./anomaly");
        job.time = Some("10".parse().unwrap());
        let expected = "\
#!/usr/bin/env bash
#SBATCH --job-name=anomaly
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=00:10:00
#SBATCH --output=anomaly-%j.out

set -euo pipefail

# A rank for each task of the job.
exec mpirun ./anomaly
";
        assert_eq!(text(&job), expected);
    }

    #[test]
    fn every_value_becomes_a_directive() {
        let text = text(&full(Launcher::FaultTolerant));
        for directive in [
            "job-name=anomaly",
            "nodes=4",
            "ntasks-per-node=2",
            "cpus-per-task=8",
            "mem=16G",
            "time=01:30:00",
            "partition=short,debug",
            "account=physics",
            "qos=normal",
            "constraint=[a|b]&ib",
            "gres=gpu:2",
            "array=0-15%4",
            "dependency=afterok:12",
            "signal=USR1@300",
            "output=\"my logs/%x-%A_%a.out\"",
            "no-kill",
            "comment=\"two words\"",
        ] {
            assert!(text.lines().any(|line| line == format!("#SBATCH --{directive}")), "{directive}: {text}");
        }
        // sbatch reads none after the first command.
        let lines: Vec<&str> = text.lines().collect();
        let first = lines.iter().position(|line| !line.starts_with('#')).unwrap();
        let last = lines.iter().rposition(|line| line.starts_with("#SBATCH")).unwrap();
        assert!(last < first);
    }

    #[test]
    fn each_launcher_has_its_line() {
        let of = |launcher| text(&full(launcher));
        let mpirun = of(Launcher::Mpirun);
        assert!(
            mpirun.contains("\nmpirun './my programs/anomaly' --from ") && mpirun.contains("=B:USR1@300\n")
        );
        let srun = of(Launcher::Srun(Pmi::Pmi2));
        assert!(srun.contains(
            "\nexec srun --mpi=pmi2 --kill-on-bad-exit=1 --cpus-per-task=8 './my programs/anomaly' --from "
        ));
        assert!(of(Launcher::Srun(Pmi::Pmix)).contains("--mpi=pmix "));
        let tolerant = of(Launcher::FaultTolerant);
        let line = "\nsrun --mpi=none --no-kill --kill-on-bad-exit=0 --wait=0 --cpus-per-task=8 './my programs/anomaly' ";
        assert!(tolerant.contains(line), "{tolerant}");
    }

    #[test]
    fn bash_and_shellcheck_have_nothing_to_say() {
        for launcher in LAUNCHERS {
            for job in [full(launcher), Job { launcher, ..Job::new("program") }] {
                let text = text(&job);
                assert!(bash(&["-n"], &text).status.success(), "{text}");
                let shellcheck = Command::new("shellcheck")
                    .args(["--exclude=SC2016", "-"])
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .spawn();
                let Ok(mut shellcheck) = shellcheck else {
                    assert!(std::env::var_os("CI").is_none(), "CI has shellcheck");
                    continue;
                };
                shellcheck.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
                let output = shellcheck.wait_with_output().unwrap();
                assert!(output.status.success(), "{}\n{text}", String::from_utf8_lossy(&output.stdout));
            }
        }
    }

    #[test]
    fn values_that_do_not_go_together_are_refused() {
        let refused = |change: fn(&mut Job)| {
            let mut job = Job::new("./anomaly");
            change(&mut job);
            Script::new(&job).unwrap_err().to_string()
        };
        assert!(refused(|job| job.program.clear()).starts_with("--program cannot be \"\""));
        assert!(refused(|job| job.program = "-n".into()).contains("./"));
        assert!(refused(|job| job.arguments.push("a\0b".into())).contains("zero byte"));
        let late = refused(|job| (job.time, job.signal) = (Some("5".parse().unwrap()), NonZeroU32::new(300)));
        assert!(late.starts_with("--signal cannot be 300: the time limit"), "{late}");
        assert!(refused(|job| job.signal = NonZeroU32::new(70_000)).contains("at most 65535"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// What bash makes of the script is what was put into it, whatever that is.
        #[test]
        fn words_and_values_reach_the_program_unharmed(
            words in prop::collection::vec("[^\0]{0,12}", 0..4),
            value in "[^\0]{0,20}",
        ) {
            let mut job = Job::new("printf");
            job.arguments = vec!["%s\\0".into(), "".into()];
            job.arguments.extend(words.iter().cloned());
            job.environment = vec![Variable::new("VALUE", &value).unwrap()];
            // In place of mpirun: it shows the variable, and runs the rest.
            let mpirun = "mpirun() { printf '%s\\0' \"$VALUE\"; \"$@\"; }\n";
            let script = text(&job).replace("exec mpirun", "mpirun");
            let output = bash(&[], &format!("{mpirun}{script}"));
            let expected: Vec<&str> = [&*value, ""].into_iter().chain(words.iter().map(|word| &**word)).collect();
            let output = String::from_utf8(output.stdout).unwrap();
            let got: Vec<&str> = output.strip_suffix('\0').unwrap_or("").split('\0').collect();
            prop_assert_eq!(got, expected);
        }
    }
}
