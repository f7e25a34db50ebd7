"""srkit: a reproducible study kit for Self-Rewarding Language Models (arXiv 2401.10020).

Importing the package imports nothing heavy; each module says at its top what it holds.

    python -c "import srkit; print(srkit.__version__)"
"""

import logging
import os

# Read once, when torch is imported. OpenMP's threads otherwise spin at every barrier, and where a
# core is shared (a laptop at work, a virtual machine) a small matrix product then waits some 20
# times longer than it computes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# bitsandbytes, as soon as anything imports it, advertises a kernel that it would fetch from a hub.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__version__ = "0.1.0"
