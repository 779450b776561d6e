#!/usr/bin/env bash
# Evaluate an edited model and hold it against the unedited one.
#
#     examples/ci/gate.sh MODEL_ARGS FOLDER
#     examples/ci/gate.sh editor=rome,n_edits=1 out/one        # passes: exit status 0
#     examples/ci/gate.sh editor=rome,n_edits=50 out/fifty     # is blocked: exit status 1
#
# Without `pretrained=` in MODEL_ARGS this is the demo model, on a CPU, in about a minute. BASELINE (default: baseline.json
# beside FOLDER) is the frozen result of the unedited model; it is made where there is none. Review it and commit it, and
# every later run is held against that very file. GATE names the limits (default: gate.yaml beside this script).
set -euo pipefail

model_args=$1
folder=$2
here=$(cd "$(dirname "$0")" && pwd)
baseline=${BASELINE:-$(dirname "$folder")/baseline.json}
python=${PYTHON:-python}

evaluate() { # MODEL_ARGS FOLDER
    "$python" -m lm_eval_edit run --model edited_hf --model_args "$1" --tasks edithurt_suite --batch_size 32 \
        --output_path "$2" --log_samples
}

if [ ! -f "$baseline" ]; then
    # The model's own arguments (pretrained=, data_dir=, ...) without those that edit it.
    own=$(tr ',' '\n' <<<"$model_args" | grep -vE '^(editor|n_edits|edit_[a-z_]+)=' | paste -sd, - || true)
    evaluate "editor=none${own:+,$own}" "$folder-unedited"
    "$python" -m lm_eval_edit check --baseline "$folder-unedited" --freeze "$baseline"
fi

evaluate "$model_args" "$folder"
"$python" -m lm_eval_edit check --baseline "$baseline" --current "$folder" --config "${GATE:-$here/gate.yaml}" \
    --summary "$folder/summary.md" --junit "$folder/junit.xml" --json "$folder/check.json"
