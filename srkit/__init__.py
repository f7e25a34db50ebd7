"""srkit: a reproducible study kit for Self-Rewarding Language Models (arXiv 2401.10020).

Importing the package imports nothing heavy; each module says at its top what it holds.

    python -c "import srkit; print(srkit.__version__)"
"""

__version__ = "0.1.0"
