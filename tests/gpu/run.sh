#!/usr/bin/env bash
# Check and measure everything on a CUDA device in at most 8 minutes and write one report (build/gpu/report.md).
#   tests/gpu/run.sh          on a machine with a CUDA device
#   tests/gpu/run.sh --dry    on a CPU: every step in a tiny form, to find mistakes before a GPU is at hand
# --minutes N changes the bound, --only STEP… runs some steps, --output DIR names another folder.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON="${PYTHON:-${VENV:-.venv}/bin/python}"
exec "$PYTHON" -m tests.gpu "$@"
