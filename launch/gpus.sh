#!/usr/bin/env bash
# Trains on the GPUs of this machine; README.md beside this explains.
#
#     launch/gpus.sh [--dry_run] --config=configs/small.py --workdir=DIR --config.data.root=DATA
#
# Flags are those of gac_jax.train, and paths in them begin at the clone. One process drives all
# GPUs, and takes this script's place: a SIGTERM reaches it, it saves and stops, and the same
# command goes on.
set -euo pipefail
cd "$(dirname "$0")/.."

: "${PYTHON:=python}"                       # of the environment with the extra cuda12 or cuda13
: "${XLA_PYTHON_CLIENT_MEM_FRACTION:=0.92}" # share of GPU memory that JAX takes at the start
: "${JAX_PLATFORMS:=cuda,cpu}"              # an error where there is no GPU, rather than a CPU

command=(
  env "XLA_PYTHON_CLIENT_MEM_FRACTION=$XLA_PYTHON_CLIENT_MEM_FRACTION"
  "JAX_PLATFORMS=$JAX_PLATFORMS" "$PYTHON" -m gac_jax.train
)
if [[ ${1:-} == --dry_run ]]; then
  shift
  printf '%q ' "${command[@]}" "$@"
  echo
  exit
fi
exec "${command[@]}" "$@"
