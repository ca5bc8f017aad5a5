#!/bin/bash
# A training on TPUs of Google Kubernetes Engine, through XPK (pip install xpk, beside gcloud). Copy this file, edit the
# training command and the options of xpk, then
#   unimp check --tpu v5p-64 --num-slices 2 -- train openflamingo-3b --folder gs://BUCKET/3b --data.folder gs://BUCKET/data --loop.hang-seconds 1800 --mesh.slice 2
#   bash xpk.sh
#
# Ending: Kubernetes sends SIGTERM before it takes a host away, and waits for --termination-grace-period-seconds.
# Training then saves and exits with 0, which XPK takes for done. So the host's script looks for the last checkpoint,
# and ends with 42 where it is missing: XPK starts the workload again on 42 and on 127 to 255, --max-restarts times, and
# the same command goes on from the latest checkpoint. Any other fault ends the workload.
# The folder of the run and the data lie in a bucket, which the hosts' service account may write; the image has
# 'unimp_jax[tpu,gcs]'. In place of it a --storage of the cluster is right, by whole paths. Hosts find one another by
# themselves. Several slices need --mesh.slice.

# What each host runs in the container. XPK writes it into YAML as one line: every command ends with a semicolon.
read -r -d '' LINES_OF_HOST <<'END' || true
set -e;
FOLDER=gs://BUCKET/3b; STEPS=20000;
trap 'kill -TERM $! || exit 143' TERM;
unimp train openflamingo-3b --folder "$FOLDER" --data.folder gs://BUCKET/data --loop.steps "$STEPS" --loop.hang-seconds 1800 --mesh.slice 2 & training=$!;
status=0; wait "$training" || status=$?;
while kill -0 "$training" 2>/dev/null; do status=0; wait "$training" || status=$?; done;
if [ "$status" -eq 0 ] && ! python -m experiments.saved "$FOLDER" "$STEPS"; then status=42; fi;
exit "$status"
END

OPTIONS=(
  --workload=unimp-3b    # at most 40 of a-z, 0-9 and -, from a letter on
  --cluster=NAME         # made by `xpk cluster create`
  --tpu-type=v5p-64
  --num-slices=2
  --docker-image=IMAGE   # has `unimp` in it, with jax[tpu] and gcsfs
  --priority=medium
  --max-restarts=50
  --termination-grace-period-seconds=300
  # --project=NAME --zone=NAME --spot
)
COMMAND=${LINES_OF_HOST//$'\n'/ }
xpk workload create "${OPTIONS[@]}" --command="$COMMAND"
