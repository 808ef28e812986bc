#!/usr/bin/env bash
# Trains on a Kubernetes cluster with JobSet, on TPUs or GPUs; README.md beside this explains.
#
#     IMAGE=MY_IMAGE launch/jobset.sh [--dry_run] --config=configs/large.py --workdir=/data/large
#
# Flags are those of gac_jax.train, and paths in them those of the image, whose folder is the clone.
# A host that is taken away gets SIGTERM first; then all are started again, and go on where they
# were. --dry_run prints the manifest, for `kubectl create -f -`.
set -euo pipefail

: "${NAME:=gac-jax}"             # of the JobSet
: "${IMAGE:=}"                   # container image with this package; must be set
: "${TPU:=tpu-v5-lite-podslice}" # kind of TPU as GKE labels its nodes; "none" for NVIDIA GPUs
: "${TOPOLOGY:=4x4}"             # of a slice of TPUs
: "${SLICES:=1}"                 # of TPUs
: "${HOSTS:=4}"                  # in a slice; with GPUs, in all
: "${CHIPS:=4}"                  # TPU chips or GPUs of a host
: "${CLAIM:=gac-jax}"            # persistent volume claim, seen as /data by all hosts
: "${MAX_RESTARTS:=100}"         # of the JobSet; every preemption is one

dry_run=""
if [[ ${1:-} == --dry_run ]]; then
  dry_run=yes
  shift
fi
if [[ ! $IMAGE ]]; then
  echo "error: set IMAGE to an image with this package; launch/README.md says how to make one" >&2
  exit 2
fi

if [[ $TPU == none ]]; then
  resource=nvidia.com/gpu SLICES=1 placement="{}" nodes="{}"
  # Kubernetes tells each pod its index; who the others are, it does not.
  environment="[{name: JAX_COORDINATOR_ADDRESS, value: '$NAME-host-0-0.$NAME:8476'},
            {name: JAX_NUM_PROCESSES, value: '$HOSTS'}]"
else
  resource=google.com/tpu
  placement="{alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool}"
  nodes="{cloud.google.com/gke-tpu-accelerator: '$TPU',
              cloud.google.com/gke-tpu-topology: '$TOPOLOGY'}"
  environment="[]" # GKE tells each pod about its slice and the others, where JAX looks for it
fi

quote="'"
words=(python -m gac_jax.train "$@")
command=$(printf ", '%s'" "${words[@]//$quote/$quote$quote}")

manifest="apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME
  annotations: $placement
spec:
  failurePolicy: {maxRestarts: $MAX_RESTARTS}
  replicatedJobs:
  - name: host
    replicas: $SLICES
    template:
      spec:
        completionMode: Indexed
        parallelism: $HOSTS
        completions: $HOSTS
        backoffLimit: 0 # one host alone cannot go on
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: 180 # for a checkpoint
            nodeSelector: $nodes
            containers:
            - name: train
              image: '$IMAGE'
              command: [${command:2}]
              env: $environment
              resources: {limits: {$resource: $CHIPS}}
              volumeMounts:
              - {name: data, mountPath: /data}
              - {name: shared-memory, mountPath: /dev/shm}
            volumes:
            - {name: data, persistentVolumeClaim: {claimName: '$CLAIM'}}
            - {name: shared-memory, emptyDir: {medium: Memory}} # processes of NCCL talk through it"

if [[ $dry_run ]]; then
  echo "# kubectl delete jobset $NAME --ignore-not-found"
  echo "# kubectl create -f -"
  echo "$manifest"
  exit
fi
kubectl delete jobset "$NAME" --ignore-not-found
kubectl create -f - <<<"$manifest"
