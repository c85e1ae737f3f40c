"""The command `skipsearch compare`."""

import argparse
import json
import sys
from pathlib import Path

from ..policies.errors import UsageError
from .places import model_folders, study_path


def add_compare_options(compare: argparse.ArgumentParser) -> None:
    """The options of `compare`, beside `--json` and `--out`."""
    compare.add_argument("studies", nargs="+", metavar="STUDY",
                         help="folders, or names under --out; two or more, or one with several models")  # fmt: skip
    compare.add_argument("-o", "--html", type=Path, metavar="FILE", help="write a page that needs no other file")
    compare.add_argument("--axes", default="", metavar="METRICS",
                         help="compare these objectives alone, such as accuracy,prefill_flops")  # fmt: skip
    compare.add_argument("--pick", action="append", default=[], metavar="BOUND", dest="picks",
                         help="test the best policies within a budget, such as 'ttft_ms<=0.6*dense'")  # fmt: skip


def compare(options: argparse.Namespace) -> int:
    """`skipsearch compare`."""
    output: Path | None = options.html
    if output is not None and (output.is_dir() or not output.absolute().parent.is_dir()):
        found = "a folder" if output.is_dir() else f"no folder {output.absolute().parent}"
        raise UsageError("--html takes a file in a folder that exists", [f"found {found}"], "give another file")
    from .report.compare.comparison import compare_studies
    from .report.compare.terminal import comparison_data, print_comparison

    axes = [name.strip() for name in options.axes.split(",") if name.strip()]
    given = [study_path(name, options.out) for name in options.studies]
    folders = [folder for path in given for folder in model_folders(path) or [path]]
    comparison = compare_studies(folders, options.picks, axes)
    if output is not None:
        from .report.compare.page import write_comparison

        write_comparison(comparison, output)
    if options.json:
        print(json.dumps(comparison_data(comparison)))
    else:
        print_comparison(comparison)
    if output is not None:
        print(f"wrote {output}", file=sys.stderr)
    return 0
