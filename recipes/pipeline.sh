#!/bin/sh
# The whole recipe, from records to a merged embedder and reranker and the ablation card:
#
#   recipes/pipeline.sh nano FOLDER_OF_RECORDS FOLDER_OF_TASKS    # the bundled size
#   recipes/pipeline.sh debug                                     # a made-up language, under two minutes
#
# Every stage is skipped when what it leaves is there and goes on where it was cut: repeat the command after a break.
set -eu
here=$(dirname "$0")/pipeline
size=${1:?debug or nano}
exec "${PYTHON:-python}" "$here/run.py" "$here/$size" ${2:+--data "$2"} ${3:+--evaluation "$3"}
