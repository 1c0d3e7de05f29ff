"""Put the table and the picture of an `untied compare` run into the README.

untied compare --out runs/readme && python benchmarks/readme_table.py runs/readme
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from untied.lab.keeping.record import RunFolder

ROOT = Path(__file__).resolve().parents[1]


def main(path: str) -> None:
    """Copy table.md, with the commit and machine that made it, and figures/results.png."""
    run = RunFolder.open(path)
    config, made = run.config(), run.environment()
    about = (
        f"`{config['model']}` on {config['data']['name']}, {config['epochs']} epochs, {config['seeds']} seeds, "
        f"mean ± standard deviation; commit {(made['git'] or {}).get('commit', 'unknown')[:9]}, "
        f"{made['machine']['cpu']}, {made['machine']['cores']} cores, torch {made['packages']['torch']}."
    )
    readme = ROOT / "README.md"
    table = f"\\1\n\n{(run.path / 'table.md').read_text()}\n{about}\n\n\\2"
    readme.write_text(re.sub(r"(<!-- table: .*? -->).*?(<!-- /table -->)", table, readme.read_text(), flags=re.S))
    (ROOT / "docs/images").mkdir(exist_ok=True)
    shutil.copy(run.path / "figures/results.png", ROOT / "docs/images/compare.png")


if __name__ == "__main__":
    main(sys.argv[1])
