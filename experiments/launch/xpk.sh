#!/bin/bash
# Training on TPUs of Google Kubernetes Engine, through XPK (pip install xpk, beside gcloud). Copy this file, edit the
# training command and the options of xpk, then
#   unimp check --tpu v5p-64 --num-slices 2 -- train openflamingo-3b --folder gs://BUCKET/3b --data.folder gs://BUCKET/data --loop.hang-seconds 1800 --mesh.slice 2
#   bash xpk.sh
#
# Interruptions: Kubernetes sends SIGTERM before it removes a host, and waits for --termination-grace-period-seconds.
# Training then saves and exits with 0, which XPK takes for success. So the host's script checks the last checkpoint,
# and exits with 42 if it is missing: XPK restarts the workload on 42 and on 127 to 255, up to --max-restarts times,
# and the same command continues from the latest checkpoint. Any other error ends the workload.
# The run folder and the data are in a bucket that the hosts' service account can write; the image contains
# 'unimp_jax[tpu,gcs]'. A --storage of the cluster, with absolute paths, can replace the bucket. Hosts find one another
# automatically. Several slices need --mesh.slice.

# The script of each host's container. XPK writes it into YAML as one line: every command ends with a semicolon.
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
  --workload=unimp-3b    # at most 40 of a-z, 0-9 and -, starting with a letter
  --cluster=NAME         # made by `xpk cluster create`
  --tpu-type=v5p-64
  --num-slices=2
  --docker-image=IMAGE   # contains `unimp`, jax[tpu] and gcsfs
  --priority=medium
  --max-restarts=50
  --termination-grace-period-seconds=300
  # --project=NAME --zone=NAME --spot
)
COMMAND=${LINES_OF_HOST//$'\n'/ }
xpk workload create "${OPTIONS[@]}" --command="$COMMAND"
