"""How the settings of untied.lab.settings.entries.PRESETS were found: many of each rule, on the validation split.

    python benchmarks/tune_digits.py --out runs/tune [RULE ...]

The test split is not looked at. Each rule's settings are listed best first. About half an hour on 2 cores.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from untied.lab.experiments.compare import compare
from untied.lab.keeping.record import RunFolder
from untied.lab.settings.compare import CompareConfig

NOISE = "positions=mean, noise=normal"
SETTINGS = {
    "bp": ["bp"],
    "fa": ["fa"],
    "kp": [f"kp(decay={decay})" for decay in (0.001, 0.003, 0.01, 0.03)],
    "sa": [f"sa @ SGD(lr={lr}, momentum={m})" for lr, m in ((0.01, 0.9), (0.1, 0.9), (0.5, 0))],
    "aa": [f"aa({options}) @ Adam(lr={lr})" for options in ("", NOISE) for lr in (0.01, 0.02, 0.04)],
    "ia": [
        f"ia(null={null}, {options}) @ Adam(lr={lr})"
        for options, null, lr in itertools.product((NOISE, "positions=mean, decay=0.01"), (0.1, 0.3, 1), (0.01, 0.02))
    ],
    "wm": [
        "wm(positions=mean)",
        *(f"wm({options}) @ Adam(lr={lr})" for options in ("positions=mean", NOISE) for lr in (0.003, 0.01, 0.02)),
        *(
            f"wm(decay=balanced, {options}) @ SGD(lr={lr}, momentum=0)"
            for options, lr in itertools.product(("positions=mean", NOISE), (0.01, 0.1))
        ),
    ],
    "dfa": [f"dfa(kernel=position, scale={scale})" for scale in (0.1, 0.3, 1, 3)],
    "sdfa": [f"sdfa(kernel=position, scale={scale})" for scale in (0.0003, 0.001, 0.003, 0.01, 0.1)],
    "drtp": [f"drtp(kernel=position, scale={scale})" for scale in (0.0003, 0.001, 0.003, 0.01, 0.1)],
    "dkp": [
        *(
            f"dkp(decay={decay}, kernel=position, scale={scale})"
            for decay, scale in itertools.product((0.001, 0.01), (0.1, 0.3, 1))
        ),
        *(
            f"dkp(copy={copy}, decay={decay}, kernel=position, scale=0.3)"
            for copy, decay in itertools.product((0.00001, 0.0001, 0.001, 0.01, 0.1), (0, 0.001))
        ),
    ],
    "pfa": [f"pfa(decay={decay})" for decay in (0.001, 0.003, 0.01, 0.03)],
    "ldfa": [f"ldfa(rank=4, decay={decay})" for decay in (0.001, 0.01)],
}


def main() -> int:
    """Compare all settings; print the best of each rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rules", nargs="*", metavar="RULE", help=f"of {', '.join(SETTINGS)}; all by default")
    parser.add_argument("--out", type=Path, default=Path("runs/tune-digits"))
    parser.add_argument("--seeds", type=int, default=2)
    chosen = parser.parse_args()
    for name in chosen.rules:
        if name not in SETTINGS:
            parser.error(f"unknown rule {name!r}: possible are {', '.join(SETTINGS)}")
    entries = tuple(entry for name in chosen.rules or SETTINGS for entry in SETTINGS[name])
    config = CompareConfig(
        rules=entries, seeds=chosen.seeds, evaluate_on="validation", timing_steps=0, out=chosen.out, frozen=False
    )
    code = compare(config)
    rows = {row["text"]: row for row in RunFolder.open(chosen.out).read_json("results.json")}
    for row in sorted(rows.values(), key=lambda row: -(row["accuracy_mean"] or 0)):
        print(f"{100 * (row['accuracy_mean'] or 0):5.1f} %  {row['text']}")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
