"""The verbs of the command line and their flags; `hvp_jax/cli.py` reads them."""

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Verb:
    """`target` is "module:function"; its parameters are the verb's flags, by name.

    A verb whose `config` is optional reads the workdir's config.json instead. Of the flags
    in `one_of` it takes exactly one.
    """

    target: str
    help: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Flag:
    metavar: str
    help: str
    kind: type = str
    choices: tuple[str, ...] | None = None
    default: str | None = None


ACROSS = ("coordinator", "processes", "process")  # how the processes of a run find each other

VERBS = {
    "train": Verb(
        "hvp_jax.train:run",
        "trains, evaluates, checkpoints; with the same workdir again, goes on where it was",
        ("config", "workdir"),
        ACROSS,
    ),
    "eval": Verb(
        "hvp_jax.evaluate:run",
        "scores a split with a run's checkpoint; without --config, with that run's own",
        ("workdir",),
        ("config", *ACROSS),
    ),
    "doctor": Verb(
        "hvp_jax.doctor:run",
        "what is missing, broken or odd in a data set; writes the bad ids to a workdir",
        ("config",),
        ("workdir",),
    ),
    "prepare": Verb("hvp_jax.prepare:run", "video files to ArrayRecord shards", ("config",)),
    "port": Verb(
        "hvp_jax.port:run",
        "weights of CLIP or HVP-Net from PyTorch to a checkpoint here, and back",
        ("source", "destination"),
        ("format", "export"),
    ),
    "parity": Verb(
        "hvp_jax.parity:run",
        "every array of a golden file, or a checkpoint in PyTorch layer by layer, against ours",
        (),
        ("golden", "source", "format", "precision"),
        one_of=("golden", "source"),
    ),
    "bench": Verb(
        "hvp_jax.bench:run", "how fast a step or the scoring is", ("config",), ("workdir",)
    ),
}

FLAGS = {
    "config": Flag("FILE.py[:ARG]", "a config of configs/"),
    "workdir": Flag("DIR", "the run's folder", Path),
    "coordinator": Flag("HOST:PORT", "of process 0; not needed on a TPU VM or under srun"),
    "processes": Flag("N", "how many processes run this command together"),
    "process": Flag("I", "which of them this is, from 0"),
    "source": Flag("PATH", "a checkpoint's file or directory, or a workdir", Path),
    "destination": Flag("DIR", "a new directory for what is written", Path),
    "format": Flag(
        "FORMAT",
        "of the source",
        str,
        ("auto", "openai", "open_clip", "huggingface", "hvpnet"),
        "auto",
    ),
    "export": Flag("FORMAT", "write safetensors with these names", str, ("hvpnet", "huggingface")),
    "golden": Flag("FILE.npz", "arrays recorded from the PyTorch implementation", Path),
    "precision": Flag("TYPE", "of our arithmetic", str, ("float64", "float32")),
}
