"""Try this program on the device of this machine: is it right, and how fast is it?

    python benchmarks/device.py             # ten minutes at most
    python benchmarks/device.py --quick     # two minutes: small networks only

It needs what `requirements.txt` lists, no torch, no files and no network: it makes all networks in
memory, with random weights. It compares what a GPU computes with the CPU, and each way that is
chosen by the device with the plain way, and measures steps and decodes of the real models. It
writes `device.md`, to paste into an issue, and `device.json`. A second call continues with
the parts that were left out. `docs/gpu.md` explains the report.

`device_kit/parts.py` lists the parts.
"""

import argparse
import json
import sys
from pathlib import Path

from device_kit.findings import Options
from device_kit.machine import make_key
from device_kit.parts import PARTS, PLANNING, Part
from device_kit.report import summarize, write_report
from device_kit.results import Results
from device_kit.run_parts import run_parts

MINUTES, QUICK_MINUTES = 10.0, 2.0


def main(arguments: list[str] | None = None) -> int:
    """Run the parts, write the report, and return the exit status: 1 if anything failed.

    Args:
        arguments: those of the command line; None for this process's own.
    """
    parser = make_parser()
    args = parser.parse_args(arguments)
    if args.part is not None:
        write_findings(args.part, Options(args.quick), args.findings)
        return 0
    parts = choose_parts(args.quick, args.only)
    default = QUICK_MINUTES if args.quick else MINUTES
    minutes = default if args.minutes is None else args.minutes
    args.out.mkdir(parents=True, exist_ok=True)
    results = Results(args.out / "device.json", make_key(args.quick), args.fresh)
    options = ["--quick"] if args.quick else []
    status = 0
    try:
        run_parts(parts, results, minutes, options)
    except KeyboardInterrupt:
        print("Interrupted: call it again to continue.")
        status = 130
    report = args.out / "device.md"
    report.write_text(write_report(parts, results))
    print("", *summarize(parts, results), f"Wrote {report} and {results.file}", sep="\n")
    has_failed = any(result.failures for result in results.parts.values())
    return status or int(has_failed)


def choose_parts(is_quick: bool, only: list[str] | None) -> list[Part]:
    """Return the parts to run: all of them, or some by their names; the others need the first."""
    if only is not None:
        return [part for part in PARTS if part.name in (*PLANNING, *only)]
    return [part for part in PARTS if (part.is_quick if is_quick else part.is_full)]


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small networks only: two minutes")
    parser.add_argument("--minutes", type=float, help=f"at most ({MINUTES:.0f})")
    names = [part.name for part in PARTS]
    parser.add_argument("--only", nargs="+", metavar="PART", choices=names, help=", ".join(names))
    parser.add_argument("--fresh", action="store_true", help="begin again, without old results")
    parser.add_argument("--out", type=Path, default=Path("."), help="for device.md, device.json")
    # For the processes that run one part each.
    parser.add_argument("--part", choices=names, help=argparse.SUPPRESS)
    parser.add_argument("--findings", type=Path, help=argparse.SUPPRESS)
    return parser


def write_findings(name: str, options: Options, file: Path) -> None:
    """Run a part in this process, and write its findings."""
    part = next(part for part in PARTS if part.name == name)
    file.write_text(json.dumps(part.run(options).as_json()))


if __name__ == "__main__":
    sys.exit(main())
