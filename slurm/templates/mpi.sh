#!/usr/bin/env bash
# An MPI job: one rank runs scheduler and program, all others are workers, and they talk over MPI.
#
# Adapt the lines that end with `<--`, then:   sbatch mpi.sh
# Watch it:                                    rankine slurm status
#
# If a rank or a node dies, MPI ends the whole job. See fault-tolerant.sh for jobs that go on.

#SBATCH --job-name=anomaly
# How many nodes, how many ranks on each, and how many CPUs each rank has for its tasks' threads.   <--
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=2
# How long it may run: HH:MM:SS or D-HH:MM:SS. The shorter, the sooner it starts.                   <--
#SBATCH --time=00:10:00
# Its output: %x is the job's name, %j its number.
#SBATCH --output=%x-%j.out
# Many sites want an account to charge, some a partition: remove one # and fill it in.              <--
##SBATCH --account=PROJECT
##SBATCH --partition=PARTITION

# The modules that the program was built with, the MPI library at least. `module avail` lists them. <--
# module load openmpi

# From here on mistakes end the job.
set -euo pipefail

# The threads of a rank use all of its CPUs; Open MPI, 4 and 5, would bind them to one.
export OMPI_MCA_hwloc_base_binding_policy=none PRTE_MCA_hwloc_default_binding_policy=none

# One rank for each task of the job: mpirun learns from Slurm where. Some sites want srun instead of mpirun, which
# needs to know how the MPI library finds its ranks: --mpi=pmix for Open MPI, --mpi=pmi2 for MPICH.
#   exec srun --mpi=pmix --cpus-per-task="$SLURM_CPUS_PER_TASK" ./anomaly ...
exec mpirun ./anomaly input.npy -o output.npy
