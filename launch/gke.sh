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
#   stop                     SIGTERM: the run saves its state and ends, and does not come back. A run that has ended stays
#                            in the cluster, and `run` of the same NAME starts nothing, until `stop` has removed it
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
#   SECRET         a Kubernetes Secret whose keys become variables of the run. Empty: where HF_TOKEN, WANDB_* or PBRL_*
#                  are set here, or variables that PASS names, `run` writes them as the Secret NAME-environment
#   RUN_AS         user id of the run; 0 on nodes where only root may open the chips     (default: 10001, the image's)
#   PASS           variables to hand to the run beside these, separated by spaces
#   BASE_IMAGE     what `build` starts from, for example an image by its digest   (default: launch/Dockerfile's)
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
SECRET="${SECRET:-}"
RUN_AS="${RUN_AS:-10001}"
BASE_IMAGE="${BASE_IMAGE:-}"
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

# count NAME LEAST: a named error where the variable is no number of at least 0 or 1.
count() { [[ "${!1}" =~ ^(0|[1-9][0-9]*)$ && "${!1}" -ge "$2" ]] || fail "$1=${!1} is not a number of at least $2"; }

# A word as a YAML string in double quotes: what would end it, break its line, or may not stand in YAML is escaped.
quoted() {
  local word="$1" code escape character
  word="${word//\\/\\\\}"
  word="${word//\"/\\\"}"
  for code in {1..31} {127..159}; do
    printf -v escape '\\x%02x' "$code"
    if [ "$code" -lt 128 ]; then
      printf -v character '%b' "$escape"
    else
      printf -v character '\xc2%b' "$escape" # UTF-8
    fi
    word="${word//"$character"/"$escape"}"
  done
  word="${word//$'\xe2\x80\xa8'/\\u2028}"
  word="${word//$'\xe2\x80\xa9'/\\u2029}"
  word="${word//$'\xef\xbb\xbf'/\\ufeff}"
  printf '"%s"' "$word"
}

# The name of the Secret that the pods read; nothing where there is none.
secret_name() {
  local names
  names="$(passed_names)" || exit 1
  if [ -n "$SECRET" ]; then
    printf '%s' "$SECRET"
  elif [ -n "$names" ]; then
    printf '%s-environment' "$NAME"
  fi
}

# The Secret itself; it goes to kubectl through a pipe, and `hidden` in place of its values to a terminal.
secret_manifest() {
  local name value
  printf 'apiVersion: v1\nkind: Secret\nmetadata:\n  name: %s\ntype: Opaque\nstringData:\n' "$(quoted "$(secret_name)")"
  while IFS= read -r name; do
    value="${!name}"
    [ "$DRY_RUN" != 1 ] || value=hidden
    printf '  %s: %s\n' "$name" "$(quoted "$value")"
  done < <(passed_names)
}

manifest() {
  local word arguments="" spot="" number secret environment=""
  named
  variable IMAGE "$EXAMPLE"
  [ "${1:-}" != pbrl ] || shift
  [ "$#" -gt 0 ] || fail "$command needs a verb; for example:" \
    "$EXAMPLE train configs/llama31_8b_pbrlsvr.py --workdir gs://bucket/run"
  case " $* " in
    *" --workdir gs://"* | *" --workdir=gs://"*) ;;
    *) fail "$command needs --workdir gs://BUCKET/...: the disk of a pod is gone with it" ;;
  esac
  count CHIPS_PER_HOST 1
  count SLICES 1
  count RESTARTS 0
  [[ "$RUN_AS" =~ ^[0-9]+$ ]] || fail "RUN_AS=$RUN_AS is not a number"
  secret="$(secret_name)" || exit 1
  [ -z "$secret" ] || environment="
                  envFrom:
                    - secretRef:
                        name: $(quoted "$secret")"
  number="$(hosts)" || exit 1 # `set -e` is off in a command substitution
  for word in "$@"; do arguments+="${arguments:+, }$(quoted "$word")"; done
  [ "$SPOT" != 1 ] || spot='
                cloud.google.com/gke-spot: "true"'
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $(quoted "$NAME")
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
              serviceAccountName: $(quoted "$SERVICE_ACCOUNT")
              terminationGracePeriodSeconds: 300
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $(quoted "$ACCELERATOR")
                cloud.google.com/gke-tpu-topology: $(quoted "$TOPOLOGY")$spot
              containers:
                - name: pbrl
                  image: $(quoted "$IMAGE")
                  args: [$arguments]$environment
                  securityContext:
                    runAsUser: $RUN_AS
                    runAsGroup: $RUN_AS
                    allowPrivilegeEscalation: false
                  ports:
                    - containerPort: 8471
                    - containerPort: 8482
                  resources:
                    limits:
                      google.com/tpu: $CHIPS_PER_HOST
YAML
}

# apply MANIFEST: hands it to kubectl, or prints it.
apply() {
  if [ "$DRY_RUN" = 1 ]; then
    run kubectl apply --filename=-
    printf '%s\n' "$1"
  else
    printf '%s\n' "$1" | run kubectl apply --filename=-
  fi
}

start() {
  local file secret
  file="$(manifest "$@")"
  secret="$(secret_name)"
  needs kubectl
  if [ -n "$secret" ] && [ -z "$SECRET" ]; then apply "$(secret_manifest)"; fi
  apply "$file"
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
    run docker build --file "$REPOSITORY/launch/Dockerfile" --build-arg EXTRA=tpu \
      ${BASE_IMAGE:+--build-arg "BASE=$BASE_IMAGE"} --tag "$IMAGE" "$REPOSITORY"
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
    [ -n "$SECRET" ] || run kubectl delete secret "$NAME-environment" --ignore-not-found
    ;;
  *) fail "unknown command '$command'; known: credentials, build, run, manifest, logs, stop" ;;
esac
