#!/usr/bin/env bash
# Trains on a slice of Cloud TPUs, which it makes if need be; README.md beside this explains.
#
#     ZONE=us-west4-a launch/tpu_pod.sh [--dry_run] --config=configs/large.py --workdir=/mnt/large
#
# Flags are those of gac_jax.train, and paths in them those of the hosts. Ctrl-C and SIGTERM are
# passed on: training saves and stops. The same command goes on, on a new slice where the old one
# was taken away.
set -euo pipefail
cd "$(dirname "$0")/.."

: "${NAME:=gac-jax}"                        # of the queued resource and of the TPU
: "${ZONE:=}"                               # of Google Cloud; must be set
: "${ACCELERATOR_TYPE:=v5litepod-16}"       # kind and number of chips
: "${RUNTIME_VERSION:=v2-alpha-tpuv5-lite}" # software of the hosts, by kind of chip
: "${SPOT:=}"                               # if not empty: cheaper, and may be taken away
: "${SETUP:=true}"                          # command for each host before training: mounts a disk
: "${EXTRAS:=tpu,text}"                     # of the package

dry_run=""
if [[ ${1:-} == --dry_run ]]; then
  dry_run=yes
  shift
fi
if [[ ! $ZONE ]]; then
  echo "error: set ZONE to a zone of Google Cloud that has $ACCELERATOR_TYPE" >&2
  exit 2
fi

run() {
  if [[ ! $dry_run ]]; then
    "$@"
    return $? # by itself, it would return in a trap what was there before
  fi
  local word quote="'"
  for word in "$@"; do
    if [[ $word == *[!a-zA-Z0-9_./:=,-]* ]]; then
      word="$quote${word//$quote/$quote\\$quote$quote}$quote"
    fi
    printf '%s ' "$word"
  done
  echo
}

state() {
  gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" \
    --format="value(state.state)" 2>/dev/null || true
}

on_all_hosts() {
  run gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

found=""
[[ $dry_run ]] || found=$(state)
if [[ $found == SUSPENDED || $found == FAILED ]]; then # taken away
  run gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force --quiet
  found=""
fi
if [[ ! $found ]]; then
  run gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" --zone="$ZONE" \
    --accelerator-type="$ACCELERATOR_TYPE" --runtime-version="$RUNTIME_VERSION" ${SPOT:+--spot}
fi
while [[ ! $dry_run && $found != ACTIVE ]]; do
  sleep 30
  found=$(state)
  echo "$NAME: ${found:-gone}"
  if [[ ! $found || $found == SUSPENDED || $found == FAILED ]]; then exit 1; fi
done

# What is committed here is what runs there. The hosts' own Python is too old; uv brings another.
archive="${TMPDIR:-/tmp}/$NAME.tar"
run git archive --output="$archive" HEAD
run gcloud compute tpus tpu-vm scp "$archive" "$NAME:gac_jax.tar" --zone="$ZONE" --worker=all
on_all_hosts "mkdir -p gac_jax && tar -xf gac_jax.tar -C gac_jax && cd gac_jax && \
python3 -m pip install --quiet --user uv && \
~/.local/bin/uv venv --quiet --allow-existing --python=3.12 && \
~/.local/bin/uv pip install --quiet -e '.[$EXTRAS]'"
on_all_hosts "$SETUP"

# The brackets keep the pattern from finding the shell that looks for it.
trap 'on_all_hosts "pkill -TERM -f [g]ac_jax.train"; wait' TERM INT
on_all_hosts "cd gac_jax && exec .venv/bin/python -m gac_jax.train $(printf '%q ' "$@")" &
wait $!
