#!/usr/bin/env bash
# The demo: see demo.py. usage: ops/demo.sh [BIN_DIR]
set -euo pipefail
cd "$(dirname "$0")/.."
exec python3 ops/demo.py "${1:-build/bin}"
