"""The verbs of the command line and their flags; `hvp_jax/cli/main.py` makes a subparser of each.

A new verb is an entry in VERBS and a module with the function that `target` names.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from hvp_jax.weights.param_mapping import FORMATS

Flag = tuple[str, dict[str, Any]]  # what `add_argument` takes


@dataclasses.dataclass(frozen=True)
class Verb:
    """`target` is "module:function"; its parameters are the verb's flags, by name.

    A verb whose --config is not required reads the workdir's config.json instead. Of the
    flags in `one_of` it takes exactly one.
    """

    target: str
    help: str
    flags: tuple[Flag, ...]
    one_of: tuple[Flag, ...] = ()

    def names(self) -> list[str]:
        return [name for name, _ in self.one_of + self.flags]


def text(value: str) -> str:
    if not value:
        raise argparse.ArgumentTypeError("expected a value that is not empty")
    return value


def path(value: str) -> Path:
    return Path(text(value))


def flag(name: str, metavar: str, help: str, kind=text, **options) -> Flag:
    return name, {"metavar": metavar, "help": help, "type": kind, **options}


def required(flag: Flag) -> Flag:
    name, options = flag
    return name, {**options, "required": True}


CONFIG = flag("--config", "FILE.py[:ARG]", "a config; --config.KEY=VALUE sets a key of it")
WORKDIR = flag("--workdir", "DIR", "the run's folder", path)
SOURCE = flag("--source", "PATH", "a checkpoint's file or directory, or a workdir", path)
DESTINATION = flag("--destination", "DIR", "a new directory for what is written", path)
ANY_FORMAT = ("auto", *FORMATS)
FORMAT = flag(
    "--format", "FORMAT", "of the source: %(choices)s", choices=ANY_FORMAT, default="auto"
)
NAMES = "write safetensors with these names: %(choices)s"
EXPORT = flag("--export", "FORMAT", NAMES, choices=("hvpnet", "huggingface"))
GOLDEN = flag("--golden", "FILE.npz", "arrays recorded from the PyTorch implementation", path)
TYPES = ("float64", "float32")
PRECISION = flag("--precision", "TYPE", "of our arithmetic: %(choices)s", choices=TYPES)
# How the processes of a run find each other: `distributed.check` takes these three, not the verb.
ACROSS = (
    flag("--coordinator", "HOST:PORT", "of process 0; not needed on a TPU VM or under srun"),
    flag("--processes", "N", "how many processes run this command together"),
    flag("--process", "I", "which of them this is, from 0"),
)

VERBS = {
    "train": Verb(
        "hvp_jax.cli.train:run",
        "trains, evaluates, checkpoints; with the same workdir again, goes on where it was",
        (required(CONFIG), required(WORKDIR), *ACROSS),
    ),
    "eval": Verb(
        "hvp_jax.cli.evaluate:run",
        "scores a split with a run's checkpoint; without --config, with that run's own",
        (required(WORKDIR), CONFIG, *ACROSS),
    ),
    "doctor": Verb(
        "hvp_jax.cli.doctor:run",
        "what is missing, broken or odd in a data set; writes the bad ids to a workdir",
        (required(CONFIG), WORKDIR),
    ),
    "prepare": Verb(
        "hvp_jax.cli.prepare:run", "video files to ArrayRecord shards", (required(CONFIG),)
    ),
    "port": Verb(
        "hvp_jax.cli.port:run",
        "weights of CLIP or HVP-Net from PyTorch to a checkpoint here, and back",
        (required(SOURCE), required(DESTINATION), FORMAT, EXPORT),
    ),
    "parity": Verb(
        "hvp_jax.cli.parity:run",
        "every array of a golden file, or a checkpoint in PyTorch layer by layer, against ours",
        (FORMAT, PRECISION),
        one_of=(GOLDEN, SOURCE),
    ),
    "bench": Verb(
        "hvp_jax.cli.bench:run",
        "how fast a step or the scoring is",
        (required(CONFIG), WORKDIR),
    ),
}
