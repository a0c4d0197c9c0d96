"""Records a whole training run of the PyTorch model as a golden file, or replays such a file.

    python benchmarks/record_run.py --output=NEW.npz [--steps=60] [--width=64] [--root=CLIPS] ...
    python benchmarks/record_run.py --replay=FILE.npz [--output=NEW.npz]

A new run trains a small random model on built-in clips, decoded from their video files. The
file and the .json beside it have all that `python run.py parity --golden=NEW.npz` needs to
train the JAX model on the same batches and to compare it step by step.

`--replay` trains the PyTorch model in float64 on the weights and batches of a file and compares
it with the file; the exit status is 1 if they differ. With `--output` too, what it computed is
written as a recording of the same run.

`hvp_jax/parity/runs/golden_run.py` describes the file. The model and its optimizer are in
`benchmarks/torch_hvpnet.py` and `benchmarks/torch_run.py`, in the form of the original. Needs
requirements-torch.txt; it runs on the CPU.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

os.environ["JAX_PLATFORMS"] = "cpu"  # before JAX is imported
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.errors import UsageError, UserError

INTERRUPTED = 130  # exit status after Ctrl-C
LEAST_STEPS = 4  # so that a quarter of a run has a step
SIZES = {  # flag: default, help
    "steps": (60, "updates, and length of the schedule"),
    "batch_size": (8, "pairs of a step"),
    "train_clips": (96, "with two captions each"),
    "test_clips": (32, "with one caption each"),
    "frames": (4, "of a clip; one clip in four has one less, and a padded one"),
    "words": (12, "of a caption, start and end included"),
    "image_size": (48, "side of a frame in pixels"),
    "patch_size": (16, "side of a patch in pixels"),
    "width": (64, "of both towers, a multiple of 64"),
    "layers": (4, "of the vision tower; the text tower has half as many"),
    "embed_dim": (32, "of the features, a multiple of 8"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def _positive(number: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = number(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    parse.__name__ = number.__name__  # argparse prints it
    return parse


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [--replay=FILE.npz] [--output=NEW.npz] [flags of a new run]",
        allow_abbrev=False,
    )
    parser.add_argument("--replay", type=Path, help="golden file of a whole run, to compare with")
    parser.add_argument("--output", type=Path, help="file to write; it must not exist")
    new = parser.add_argument_group("a new run")
    for name, (default, text) in SIZES.items():
        new.add_argument(
            f"--{name}", type=_positive(int), default=default, help=f"{text} ({default})"
        )
    new.add_argument("--seed", type=int, default=0, help="of weights, clips and batches (0)")
    new.add_argument(
        "--learning_rate",
        type=_positive(float),
        default=1e-3,
        help="outside CLIP; that of CLIP is a tenth (0.001)",
    )
    new.add_argument("--root", type=Path, help="built-in clips; without it they are rendered")
    return parser


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Raises UsageError for flags that do not fit together."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if not (args.replay or args.output):
        raise UsageError("give --output=NEW.npz for a new run, --replay=FILE.npz, or both")
    for name in (*SIZES, "seed", "learning_rate", "root"):
        if args.replay and getattr(args, name) != parser.get_default(name):
            raise UsageError(f"--{name} is for a new run; --replay takes it from the file")
    if args.seed < 0:
        raise UsageError(f"--seed is {args.seed}; it must be 0 or more")
    if args.steps < LEAST_STEPS:
        raise UsageError(f"--steps is {args.steps}; a recording needs {LEAST_STEPS} or more")
    return args


def run(args: argparse.Namespace) -> int:
    # Imported here so that mistakes in the flags are reported at once.
    try:
        import torch
    except ImportError:
        raise UsageError("needs PyTorch; install it (requirements-torch.txt)") from None

    from benchmarks import new_run, recording, torch_run

    if args.output:
        recording.check_output(args.output)
    status = 0
    if args.replay:
        golden = recording.open_run(args.replay)
        if args.output and golden.steps < LEAST_STEPS:
            raise UsageError(f"{args.replay} has {golden.steps} steps, too few for a recording")
        report, computed = recording.compare(golden)
        print(report.text, flush=True)
        status = 0 if report.ok else 1
    else:
        golden = new_run.make_run(args)
        snapshots = recording.default_snapshots(golden.steps)
        computed = torch_run.record(golden, torch.float64, snapshots, label="float64")
    if args.output:
        print(recording.record(args.output, golden, computed), flush=True)
    return status


def main(arguments: list[str] | None = None) -> int:
    try:
        return run(parse(arguments))
    except UserError as error:
        message = re.sub(r"\s*\n\s*", " ", str(error)).strip()
        print(f"error: {message}", file=sys.stderr, flush=True)
        return error.status
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr, flush=True)
        return INTERRUPTED


if __name__ == "__main__":  # the processes that render clips import this file too
    exit_status = main()
    if exit_status == INTERRUPTED:
        sys.stdout.flush()
        os._exit(exit_status)  # an ordinary exit crashes if JAX is compiling in a thread
    sys.exit(exit_status)
