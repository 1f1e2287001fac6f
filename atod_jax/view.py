"""One page that shows runs: curves, and episodes with every token by its advantage.

    python -m atod_jax.view runs/a
    python -m atod_jax.view runs/atod runs/opd grpo=runs/grpo --out=three.html

The page is one file, opens from disk in a browser and asks the network for nothing. `train` writes
it at its end as run.html. Several runs lie on top of each other, and an episode can stand beside
another of the same task.
"""

from collections.abc import Iterable
from pathlib import Path

from atod_jax.results.files import require_place
from atod_jax.results.page import MOST, write_page
from atod_jax.run import cli
from atod_jax.run.workdir import read_record


def main(arguments: Iterable[str] | None = None) -> None:
    """Command line."""
    parser = cli.Parser("view", __doc__)
    add = parser.add_argument
    add("runs", nargs="+", metavar="[NAME=]WORKDIR", help="folder of a run of train")
    add("--out", type=Path, metavar="FILE", help="the page; run.html in the folder of a single run")
    add("--most", type=int, default=MOST, metavar="N", help=f"episodes on the page; {MOST}")
    with cli.short_errors():
        given = parser.read(arguments)
        if given.most < 1:
            raise ValueError(f"--most={given.most}: give at least 1")
        runs = [read_record(argument) for argument in given.runs]
        if given.out is None and len(runs) > 1:
            raise ValueError("--out is missing: say where the page of several runs goes")
        if given.out is not None:
            require_place(given.out, "--out")
        page = write_page(given.out or runs[0].workdir / "run.html", runs, most=given.most)
        left = f", {page.left_out} left out (--most={given.most})" if page.left_out else ""
        print(f"{page.path}: {page.shown} episodes{left}, {page.path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
