#!/usr/bin/env bash
# Trains on the GPUs of a SLURM cluster; README.md beside this explains.
#
#     sbatch launch/slurm.sh --config=configs/large.py --workdir=DIR --config.data.root=DATA
#     bash launch/slurm.sh --dry_run --config=...
#
# Submit it from the clone, where paths in the flags of gac_jax.train begin. Options before the
# name of the script override those below.
#SBATCH --job-name=gac_jax
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
# One process for each GPU: JAX gives a process the GPU of its number on the node. For that all must
# see all GPUs of the node, so no --gpus-per-task.
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# SIGTERM to the processes three minutes before the time is up: training saves and stops.
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}" # SLURM runs a copy of this script from elsewhere

: "${PYTHON:=python}"                       # of the environment with the extra cuda12 or cuda13
: "${XLA_PYTHON_CLIENT_MEM_FRACTION:=0.92}" # share of GPU memory that JAX takes at the start
: "${JAX_PLATFORMS:=cuda,cpu}"              # an error where there is no GPU, rather than a CPU

# When one process has ended the others have a minute, and then are ended too.
command=(
  env "XLA_PYTHON_CLIENT_MEM_FRACTION=$XLA_PYTHON_CLIENT_MEM_FRACTION"
  "JAX_PLATFORMS=$JAX_PLATFORMS" srun --wait=60 "$PYTHON" -m gac_jax.train
)
if [[ ${1:-} == --dry_run ]]; then
  shift
  printf '%q ' "${command[@]}" "$@"
  echo
  exit
fi

stopped=""
# To the processes: srun itself would kill them if it got the signal.
trap 'stopped=yes; scancel --signal=TERM "$SLURM_JOB_ID"' TERM INT
status=0
"${command[@]}" "$@" &
wait $! || status=$?
if [[ $stopped ]]; then # the signal ended `wait`, not the training
  status=0
  wait $! || status=$?
elif ((status == 143)); then # SIGTERM from SLURM: the time is up, and the next turn goes on
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
