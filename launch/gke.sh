#!/usr/bin/env bash
# TPU slices of a Google Kubernetes Engine cluster: an image of this checkout, run as a JobSet.
#
#   IMAGE=us-docker.pkg.dev/me/repo/pbrl NAME=my-run bash launch/gke.sh [--dry-run] COMMAND
#
#   credentials              point kubectl at the cluster CLUSTER
#   build                    build and push IMAGE (launch/Dockerfile)
#   run VERB [ARGUMENT...]   start `pbrl VERB ...` on every host; pods that fail or are preempted come back and the
#                            same work directory resumes, so that it must be on gs://
#   manifest VERB [...]      print what `run` would hand to kubectl
#   logs                     follow the first host
#   stop                     SIGTERM: the run saves its state and ends, and does not come back
#
#   NAME           name of the run, a-z 0-9 and -             (needed, but for credentials and build)
#   IMAGE          where the image lives                      (needed for build, run and manifest)
#   ACCELERATOR    the node pool's cloud.google.com/gke-tpu-accelerator      (default: tpu-v5-lite-podslice)
#   TOPOLOGY       its cloud.google.com/gke-tpu-topology      (default: 4x4)
#   CHIPS_PER_HOST chips of one node                          (default: 4)
#   SLICES         slices in one run                          (default: 1)
#   SPOT           1: the node pool is of spot machines       (default: 0)
#   RESTARTS       how often a run that was lost comes back   (default: 1000)
#   SERVICE_ACCOUNT  the Kubernetes account that may use the bucket            (default: default)
#   CLUSTER, LOCATION, PROJECT     for credentials
#
# The cluster needs the JobSet controller (jobset.sigs.k8s.io) once. XPK writes manifests of the same kind.
# Written after Google's pages on TPUs in GKE; it has never run on a real cluster.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
source "$(dirname "${BASH_SOURCE[0]}")/arguments.sh"

command="${1:-}"
[ "$#" -eq 0 ] || shift

NAME="${NAME:-}"
IMAGE="${IMAGE:-}"
ACCELERATOR="${ACCELERATOR:-tpu-v5-lite-podslice}"
TOPOLOGY="${TOPOLOGY:-4x4}"
CHIPS_PER_HOST="${CHIPS_PER_HOST:-4}"
SLICES="${SLICES:-1}"
SPOT="${SPOT:-0}"
RESTARTS="${RESTARTS:-1000}"
SERVICE_ACCOUNT="${SERVICE_ACCOUNT:-default}"
EXAMPLE="IMAGE=us-docker.pkg.dev/me/repo/pbrl NAME=my-run bash launch/gke.sh $command"

# variable NAME EXAMPLE: a named error where it is empty.
variable() {
  [ -n "${!1:-}" ] || fail "$1 is not set; for example: $2"
}

named() {
  variable NAME "$EXAMPLE"
  [[ "$NAME" =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] || fail "NAME=$NAME is no Kubernetes name: a-z, 0-9 and - only"
}

# Hosts of one slice.
hosts() {
  local chips=1 size
  [[ "$TOPOLOGY" =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] || fail "TOPOLOGY=$TOPOLOGY is no topology; for example: 4x4 or 2x2x4"
  for size in ${TOPOLOGY//x/ }; do chips=$((chips * size)); done
  [ "$((chips % CHIPS_PER_HOST))" = 0 ] ||
    fail "TOPOLOGY=$TOPOLOGY has $chips chips, which hosts of CHIPS_PER_HOST=$CHIPS_PER_HOST do not divide"
  echo $((chips / CHIPS_PER_HOST))
}

# A word as a YAML string: JSON's quoting, which YAML reads too.
quoted() {
  local word="$1"
  word="${word//\\/\\\\}"
  word="${word//\"/\\\"}"
  printf '"%s"' "$word"
}

manifest() {
  local word arguments="" spot="" number
  named
  variable IMAGE "$EXAMPLE"
  [ "${1:-}" != pbrl ] || shift
  [ "$#" -gt 0 ] || fail "$command needs a verb; for example:" \
    "$EXAMPLE train configs/llama31_8b_pbrlsvr.py --workdir gs://bucket/run"
  case " $* " in
    *" --workdir gs://"* | *" --workdir=gs://"*) ;;
    *) fail "$command needs --workdir gs://BUCKET/...: the disk of a pod is gone with it" ;;
  esac
  number="$(hosts)" || exit 1 # `set -e` is off in a command substitution
  for word in "$@"; do arguments+="${arguments:+, }$(quoted "$word")"; done
  [ "$SPOT" != 1 ] || spot='
                cloud.google.com/gke-spot: "true"'
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $RESTARTS
  replicatedJobs:
    - name: slice
      replicas: $SLICES
      template:
        spec:
          parallelism: $number
          completions: $number
          backoffLimit: 0
          template:
            spec:
              restartPolicy: Never
              serviceAccountName: $SERVICE_ACCOUNT
              terminationGracePeriodSeconds: 300
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $ACCELERATOR
                cloud.google.com/gke-tpu-topology: $TOPOLOGY$spot
              containers:
                - name: pbrl
                  image: $(quoted "$IMAGE")
                  args: [$arguments]
                  ports:
                    - containerPort: 8471
                    - containerPort: 8482
                  resources:
                    limits:
                      google.com/tpu: $CHIPS_PER_HOST
YAML
}

start() {
  local file
  file="$(manifest "$@")"
  needs kubectl
  if [ "$DRY_RUN" = 1 ]; then
    run kubectl apply --filename=-
    printf '%s\n' "$file"
  else
    printf '%s\n' "$file" | run kubectl apply --filename=-
  fi
}

case "$command" in
  credentials)
    variable CLUSTER "CLUSTER=my-cluster LOCATION=us-west4 bash launch/gke.sh credentials"
    variable LOCATION "CLUSTER=my-cluster LOCATION=us-west4 bash launch/gke.sh credentials"
    needs gcloud
    run gcloud container clusters get-credentials "$CLUSTER" --location="$LOCATION" ${PROJECT:+--project="$PROJECT"}
    ;;
  build)
    variable IMAGE "IMAGE=us-docker.pkg.dev/me/repo/pbrl bash launch/gke.sh build"
    needs docker
    run docker build --file "$REPOSITORY/launch/Dockerfile" --build-arg EXTRA=tpu --tag "$IMAGE" "$REPOSITORY"
    run docker push "$IMAGE"
    ;;
  run) start "$@" ;;
  manifest) manifest "$@" ;;
  logs)
    named
    needs kubectl
    run kubectl logs --follow --tail=200 \
      --selector="jobset.sigs.k8s.io/jobset-name=$NAME,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
    ;;
  stop)
    named
    needs kubectl
    run kubectl delete jobset "$NAME" --ignore-not-found
    ;;
  *) fail "unknown command '$command'; known: credentials, build, run, manifest, logs, stop" ;;
esac
