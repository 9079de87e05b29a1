#!/usr/bin/env bash
# The same program on many inputs: an array of jobs, each of which is an MPI job by itself.
#
# Adapt the lines that end with `<--`, then:   sbatch array.sh
# One element's output:                        rankine slurm logs 123_4

#SBATCH --job-name=anomalies
# The elements' numbers, and after % how many may run at a time. List single ones as 1,3,8.         <--
#SBATCH --array=0-15%4
# What each element needs.                                                                          <--
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --time=00:10:00
# Their outputs: %A is the number of the array, %a that of the element.
#SBATCH --output=%x-%A_%a.out

# module load openmpi

set -euo pipefail

# An element finds its own input by its number: here it is the line of that number in a list of files, counted from
# 0, as `ls data/*.npy >inputs.txt` writes one.                                                     <--
mapfile -t inputs <inputs.txt
input=${inputs[SLURM_ARRAY_TASK_ID]:?inputs.txt has no line for element $SLURM_ARRAY_TASK_ID}

exec mpirun ./anomaly "$input" -o "${input%.npy}-anomaly.npy"
