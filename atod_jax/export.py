"""The student of a training run as a Hugging Face folder.

    python -m atod_jax.export --checkpoint=runs/a --out=models/a

Config, tokenizer, chat template and safetensors, as transformers (and everything built on it) reads
them.
"""

import argparse
from pathlib import Path

import jax

from atod_jax.config import Run
from atod_jax.models.checkpoint_io import save_hf
from atod_jax.models.written import require_place
from atod_jax.run import cli
from atod_jax.run.checkpoints import add_checkpoint, own_config
from atod_jax.run.layouts import layouts_of
from atod_jax.run.models import load_policy


def export(cfg: Run, checkpoint: str, out: str, *, max_shard_gb: float = 4.0) -> None:
    """Writes the weights of `checkpoint` and all that is needed to use them.

    Args:
      checkpoint: a run of `train` (its latest step), one step of it, or a Hugging Face folder;
        "" exports cfg.student.path as it is.
      out: the folder; it appears complete or not at all.
      max_shard_gb: start another file beyond this size.

    Raises:
      ValueError: no `out`, something in it would be lost, or no room in a shard.
      FileNotFoundError: no such checkpoint.
    """
    if not out:
        raise ValueError("--out is missing: name the folder to write, e.g. --out=models/a")
    if max_shard_gb <= 0:
        raise ValueError(f"--max_shard_gb={max_shard_gb}: give a size above 0, e.g. 4")
    require_place(out, "--out", kept=[p for p in (checkpoint, cfg.student.path) if p])
    layouts = layouts_of(cfg)
    with jax.set_mesh(layouts.student.mesh):
        model = load_policy(cfg, checkpoint, layouts)
        save_hf(
            out,
            model.lm.config,
            model.lm.plain(model.params),
            tokenizer=model.tokenizer,
            source=model.source,
            shard_bytes=int(max_shard_gb * 1e9),
        )
    files = sorted(Path(out).glob("*.safetensors"))
    size = sum(f.stat().st_size for f in files) / 1e9
    print(f"{out}: {size:.3f} GB in {len(files)} weight file(s), with tokenizer and template")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The program's own flags."""
    add_checkpoint(parser)
    parser.add_argument("--out", default="", help="the folder to write")
    parser.add_argument(
        "--max_shard_gb", type=float, default=4.0, help="largest weights file, in 10^9 bytes"
    )


def start(cfg: Run, flags: cli.Flags) -> None:
    """Exports what the flags name."""
    export(cfg, flags.checkpoint, flags.out, max_shard_gb=flags.max_shard_gb)


PROGRAM = cli.Program("export", __doc__, start, add_flags=add_flags, fallback=own_config)

if __name__ == "__main__":
    cli.run(PROGRAM)
