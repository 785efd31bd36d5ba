#!/bin/bash
# A study on a Slurm cluster: one worker a GPU, as an array of independent jobs that share the study's folder.
#   sbatch examples/cluster/slurm.sh examples/study.yaml
# The first worker to come writes the study; a job that is preempted gives its trial back and is queued again.
#SBATCH --job-name=lora-train-sweep
#SBATCH --array=0-3
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-task=1
#SBATCH --mem=64G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --output=sweep-%A-%a.out
set -euo pipefail

study=${1:?usage: sbatch examples/cluster/slurm.sh STUDY.yaml}
cd "${SLURM_SUBMIT_DIR:-.}"
# exec: the signal reaches the worker itself, which writes a checkpoint and gives the trial back
exec lora-train sweep "$study" --worker --yes
