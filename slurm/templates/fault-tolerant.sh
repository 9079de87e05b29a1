#!/usr/bin/env bash
# A job that goes on if workers or their nodes die: its processes are no MPI ranks, which would all end with the first
# of them, but talk over InfiniBand (verbs), TCP and shared memory. What a dead worker had is computed again.
#
# Adapt the lines that end with `<--`, then:   sbatch fault-tolerant.sh

#SBATCH --job-name=anomaly
# How many nodes, how many processes on each, and how many CPUs each has for its tasks' threads.    <--
# The first process of the first node runs scheduler and program: it is the only one that must live.
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
# How long it may run: HH:MM:SS or D-HH:MM:SS.                                                      <--
#SBATCH --time=00:10:00
# Five minutes before that (or up to six) each process may get the signal USR1, by which a program ends in order:
# remove one # for it.                                                                              <--
##SBATCH --signal=USR1@300
# Its output: %x is the job's name, %j its number.
#SBATCH --output=%x-%j.out
# The job keeps its other nodes if one fails.
#SBATCH --no-kill

set -euo pipefail

# Over which network its processes talk, where there are several: `ip -brief address` on a node lists them.   <--
# export RANKINE_INTERFACE=ib0

# Workers may die on the way, which srun would report as a failure; so the program's own status comes through a file,
# on the node that the first task shares with this script.
place=$(mktemp --directory 2>/dev/null || TMPDIR=/tmp mktemp --directory)
trap 'rm -rf "$place"' EXIT
export RANKINE_STATUS=$place/status

# Each task runs the program. Those beside the first find it through a file in ~/.rankine, which all nodes must see;
# RANKINE_HOME names another directory.
#   --mpi=none              no MPI, which would end all with one
#   --no-kill               the step goes on without a node
#   --kill-on-bad-exit=0    ... and without a process
#   --wait=0                ... for as long as it takes
# Slurm since 22.05 does not hand the CPUs of a task on to srun by itself.
status=0
srun --mpi=none --no-kill --kill-on-bad-exit=0 --wait=0 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    ./anomaly input.npy -o output.npy || status=$?
if [ -s "$RANKINE_STATUS" ]; then status=$(<"$RANKINE_STATUS"); fi
exit "$status"
