"""Fuzz one target with atheris (coverage-guided; not a dependency: `pip install atheris`).

    python tests/fuzz/run.py score -max_total_time=180

New inputs go to `found/<target>` (ignored by git), what breaks a property to `crash-<sha1>`. Copy
what is worth keeping, minimised with `-minimize_crash=1 -runs=10000 FILE`, to `corpus/<target>`.
"""

import sys
from pathlib import Path

import atheris

HERE = Path(__file__).parent
with atheris.instrument_imports(include=["srkit", "json"]):
    import targets

if __name__ == "__main__":
    name, *options = sys.argv[1:]
    found = HERE / "found" / name
    found.mkdir(parents=True, exist_ok=True)
    folders = [str(found), str(HERE / "corpus" / name)]
    atheris.Setup([sys.argv[0], *options, *folders], targets.TARGETS[name])
    atheris.Fuzz()
