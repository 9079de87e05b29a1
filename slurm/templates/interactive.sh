#!/usr/bin/env bash
# A cluster that stays, for programs that you run from the login node, again and again.
#
# Adapt the lines that end with `<--`, then:   sbatch interactive.sh
# As soon as it runs, there:                   ./anomaly client --scheduler-file cluster-123.json input.npy
# (123 is the job's number, and it must be the very same executable.)
# When you are done:                           rankine slurm cancel 123

#SBATCH --job-name=cluster
# How many nodes, how many workers on each, and how many CPUs each has for its tasks' threads.      <--
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
# For how long you want it.                                                                         <--
#SBATCH --time=01:00:00
#SBATCH --output=%x-%j.out
#SBATCH --no-kill

set -euo pipefail

# Your program: it plays the other roles as well.                                                   <--
program=./anomaly
# How workers and the login node find the scheduler: where all of them see it, readable by you alone.
file=$PWD/cluster-$SLURM_JOB_ID.json
trap 'rm -f "$file"' EXIT

# The scheduler, on the first node, beside the workers.
srun --mpi=none --nodes=1 --ntasks=1 --cpus-per-task=1 --overlap \
    "$program" scheduler --scheduler-file "$file" &
scheduler=$!

# It writes the file when it is ready.
until [ -e "$file" ]; do
    kill -0 "$scheduler" 2>/dev/null || { echo "the scheduler did not start" >&2; exit 1; }
    sleep 0.2
done

# The workers, on all nodes; others go on if one dies. They end with the scheduler.
srun --mpi=none --no-kill --kill-on-bad-exit=0 --wait=0 --overlap --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    "$program" worker --scheduler-file "$file" &

wait "$scheduler"
