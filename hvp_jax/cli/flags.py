"""The verbs of the command line and their flags; `hvp_jax/cli/main.py` builds a parser for each.

To add a verb, write a module in `hvp_jax/cli/verbs` with a function `run`, whose parameters are the
verb's flags by name, and add an entry to VERBS with that function as its `target`.
"""

import argparse
import dataclasses

from hvp_jax.cli.flag_kinds import (
    Flag,
    flag,
    names_of,
    path_flag,
    port,
    positive,
    required,
    seconds,
    shard_of,
    text,
)
from hvp_jax.evaluation.rerank import METHODS
from hvp_jax.weights.param_mapping import FORMATS


@dataclasses.dataclass(frozen=True)
class Verb:
    """`target` is "module:function"; the function's parameters are the verb's flags, by name.

    A verb whose --config is optional reads the workdir's config.json if it is not given.
    With `sweeps`, --config is a file of `configs/sweeps/`, and the parameter a `Plan`.
    Exactly one of the flags in `one_of` must be given. `words` is what the arguments without a flag
    are, such as the text of a query; None: there are none.
    """

    target: str
    help: str
    flags: tuple[Flag, ...]
    one_of: tuple[Flag, ...] = ()
    sweeps: bool = False
    words: Flag | None = None

    def names(self) -> list[str]:
        return [name for name, _ in self.one_of + self.flags]

    def valued(self) -> list[str]:
        """The names of the flags that are followed by a value."""
        return [name for name, options in self.one_of + self.flags if "action" not in options]


CONFIG = flag("--config", "FILE.py[:ARG]", "the config file; --config.KEY=VALUE overrides a key")
RUN_DIR = path_flag("--workdir", "DIR", "the folder of the run", "arrays")
WORKDIR = path_flag("--workdir", "DIR", "the folder of the run", "folder")
SOURCE = path_flag("--source", "PATH", "a PyTorch checkpoint (file or directory), or a workdir")
DESTINATION = path_flag("--destination", "DIR", "a new directory for the output")
ANY_FORMAT = ("auto", *FORMATS)
FORMAT = flag(
    "--format", "FORMAT", "format of the source: %(choices)s", choices=ANY_FORMAT, default="auto"
)
EXPORT_HELP = "write safetensors with the parameter names of: %(choices)s"
EXPORT = flag("--export", "FORMAT", EXPORT_HELP, choices=("hvpnet", "huggingface"))
GOLDEN_HELP = "arrays recorded from the PyTorch implementation"
GOLDEN = path_flag("--golden", "FILE.npz", GOLDEN_HELP, "file")
DTYPES = ("float64", "float32")
PARALLEL = flag(
    "--parallel",
    "KIND",
    "replay a run on 8 simulated devices by %(choices)s; without it, on one",
    choices=("pmap", "shard_map", "fsdp"),
)
PLOT_HELP = "the folder for a plot of both curves of a run"
PLOT_DIR = path_flag("--workdir", "DIR", PLOT_HELP, "folder")
PRECISION = flag("--precision", "TYPE", "precision of the JAX side: %(choices)s", choices=DTYPES)
RERANK_HELP = "also give the figures after reranking by any of dsl, qbnorm, dis"
RERANK = flag("--rerank", "NAMES", RERANK_HELP, names_of(*METHODS), default=argparse.SUPPRESS)
SWEEP_HELP = (
    "a file of configs/sweeps; --config.KEY=VALUE changes its base config, which NAME names"
)
SWEEP = flag("--config", "FILE.py[:NAME]", SWEEP_HELP)
# Its runs write their logs there, which cannot be appended to in a bucket.
SWEEP_DIR = path_flag("--workdir", "DIR", "the folder of the sweep", "local")
JOBS = flag("--jobs", "N", "how many runs at a time; by default 1, or all on a cluster", positive)
CLUSTER_HELP = (
    "run as jobs of submitit: slurm or local, with its options, as in slurm:gpus_per_node=1"
)
CLUSTER = flag("--cluster", "EXECUTOR[:KEY=VALUE,...]", CLUSTER_HELP)
INDEX = path_flag("--index", "URI", "the folder of the index, which may be in a bucket", "folder")
VIDEOS_HELP = "the folder of the videos, or a text file with the path of one on each line"
VIDEOS = path_flag("--videos", "DIR", VIDEOS_HELP)
SEGMENT_HELP = "cut longer videos into stretches of so many seconds; by default 60"
SEGMENT_SECONDS = flag("--segment-seconds", "S", SEGMENT_HELP, positive, default=60)
TOKENS_HELP = "keep the tokens of a clip as %(choices)s; by default int16"
TOKENS = flag("--tokens", "TYPE", TOKENS_HELP, choices=("int16", "int8"), default="int16")
SHARD_HELP = "encode every Nth video only, from video I on, which counts from 0"
SHARD = flag("--shard", "I/N", SHARD_HELP, shard_of)
JOIN_HELP = "encode nothing: make what the shards have encoded part of the index"
JOIN = "--join", {"help": JOIN_HELP, "action": "store_true"}
QUERIES = path_flag("--queries", "FILE", "a text file with a query on each line", "file")
EXAMPLE = path_flag("--video", "FILE", "find clips that are like this video", "file")
TOP = flag("--k", "K", "how many clips to find; by default 10", positive, default=10)
CANDIDATES_HELP = "how many clips of stage one are scored in full; by default 200"
CANDIDATES = flag("--candidates", "N", CANDIDATES_HELP, positive, default=200)
WHERE_HELP = "search the clips that this SQL selects only, such as \"path LIKE '%%2024%%'\""
WHERE = flag("--where", "SQL", WHERE_HELP, default=argparse.SUPPRESS)
EXACT = "--exact", {"help": "score all clips in full", "action": "store_true"}
SHEET = path_flag("--sheet", "FILE.png", "draw the best clips of each query there")
WEIGHTS = path_flag(
    "--weights", "RUN", "the workdir of a run, or any weights that config.model.weights takes"
)
VIDEO = path_flag("--video", "FILE", "a video file", "file")
STRETCH = tuple(
    flag(f"--{edge}", "SECONDS", f"where the stretch of the video {edge}s", seconds)
    for edge in ("start", "end")
)
OUTPUT_HELP = "a folder for explanation.png and explanation.json"
OUTPUT = path_flag("--output", "DIR", OUTPUT_HELP, "folder")
TEXT = ("text", {"metavar": "TEXT", "help": "what the video shows, in quotes", "type": text})
PORT = flag("--port", "N", "by default 8000; 0: one that is free", port, default=8000)
# How the processes of a run connect: passed to `distributed.parse_flags`, not to the verb.
DISTRIBUTED = (
    flag(
        "--coordinator", "HOST:PORT", "address of process 0; not needed on a TPU VM or under srun"
    ),
    flag("--processes", "N", "number of processes that run this command together"),
    flag("--process", "I", "index of this process, from 0"),
)

VERBS = {
    "train": Verb(
        "hvp_jax.cli.verbs.train:run",
        "train with evaluation and checkpoints; resume if the workdir holds a run",
        (required(CONFIG), required(RUN_DIR), *DISTRIBUTED),
    ),
    "eval": Verb(
        "hvp_jax.cli.verbs.evaluate:run",
        "score a split with the checkpoint of a run; without --config, use the run's own",
        (required(RUN_DIR), CONFIG, RERANK, *DISTRIBUTED),
    ),
    "doctor": Verb(
        "hvp_jax.cli.verbs.doctor:run",
        "find missing, broken and suspicious clips in a data set; write their ids to a workdir",
        (required(CONFIG), WORKDIR),
    ),
    "prepare": Verb(
        "hvp_jax.cli.verbs.prepare:run",
        "decode video files into ArrayRecord shards",
        (required(CONFIG),),
    ),
    "sweep": Verb(
        "hvp_jax.cli.verbs.sweep:run",
        "train every setting of a sweep with every seed, and compare them; go on if stopped",
        (required(SWEEP), required(SWEEP_DIR), JOBS, CLUSTER),
        sweeps=True,
    ),
    "explain": Verb(
        "hvp_jax.cli.verbs.explain:run",
        "show what the score of a text and a video consists of: words, patches, frames, layers",
        (required(WEIGHTS), required(VIDEO), *STRETCH, OUTPUT),
        words=TEXT,
    ),
    "port": Verb(
        "hvp_jax.cli.verbs.port:run",
        "convert CLIP or HVP-Net weights from PyTorch to a workdir, and back",
        (required(SOURCE), required(DESTINATION), FORMAT, EXPORT),
    ),
    "parity": Verb(
        "hvp_jax.cli.verbs.parity:run",
        "compare with PyTorch: a golden file of arrays or of a run, or a checkpoint layer by layer",
        (FORMAT, PRECISION, PARALLEL, PLOT_DIR),
        one_of=(GOLDEN, SOURCE),
    ),
    "bench": Verb(
        "hvp_jax.cli.verbs.bench:run",
        "measure the speed and memory of training, scoring or input",
        (required(CONFIG), WORKDIR),
    ),
    "index": Verb(
        "hvp_jax.cli.verbs.search.index:run",
        "make a folder of videos searchable, or bring its index up to date",
        (*map(required, (WEIGHTS, VIDEOS, INDEX)), SEGMENT_SECONDS, TOKENS, SHARD, JOIN),
    ),
    "search": Verb(
        "hvp_jax.cli.verbs.search.search:run",
        "find the clips of an index that fit a text best, or that are like a video",
        (*(required(INDEX), QUERIES, EXAMPLE, TOP, CANDIDATES, WHERE, EXACT, SHEET, WEIGHTS),),
        words=("texts", {"metavar": "TEXT", "nargs": "*", "help": "what the clips show"}),
    ),
    "serve": Verb(
        "hvp_jax.cli.verbs.search.serve:run",
        "search an index in the browser, at 127.0.0.1, until Ctrl-C",
        (required(INDEX), PORT, WEIGHTS),
    ),
    "report": Verb(
        "hvp_jax.cli.verbs.report:run",
        "make the table of a sweep from what its runs have written; or say where a run is",
        (required(WORKDIR),),
    ),
}
