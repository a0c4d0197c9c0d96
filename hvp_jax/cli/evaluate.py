"""The verb `eval`: a split of a data set scored with a checkpoint."""

from pathlib import Path

from ml_collections import ConfigDict

from data import inputs, splits
from data.errors import BadUse
from hvp_jax.checkpoints import checkpointer
from hvp_jax.config.resolve import resolve
from hvp_jax.evaluation.results import conclude
from hvp_jax.evaluation.scorer import Scorer
from hvp_jax.models.hvpnet import from_config
from hvp_jax.monitoring import json_files
from hvp_jax.parallel.partitioner import Layout
from hvp_jax.parallel.processes import is_first, primary_first
from hvp_jax.training import resume
from hvp_jax.weights import initial

UNTRAINED = (
    "the weights are CLIP's alone: distillation and token weights are random, as before training"
)


def run(config: ConfigDict, workdir: Path) -> dict:
    """The verb `eval`: a split of a data set with the weights a run has chosen."""
    begin = initial.origin(config, workdir)
    config = resolve(config, begin.told)
    model = from_config(config, begin.told.sizes)
    layout = Layout(config.parallel)
    needed = () if config.data.shards else (config.eval.split,)
    with primary_first("process 0 has read the data set"):
        clips, excluded = inputs.read_data(config, needed)
    clips = splits.select(clips, config.eval.split)
    with checkpointer.Checkpoints(workdir, config.train.keep) as checkpoints:
        chosen = checkpoints.chosen()
    if chosen is None:
        if not config.model.weights:
            raise BadUse(
                f"{workdir} holds no checkpoint: run `train` with this workdir first, "
                "or give --config.model.weights"
            )
        chosen = {"step": 0, "chosen_on": None, "weights": config.model.weights}
        if is_first():
            json_files.make_workdir(workdir)
    if not begin.told.stages:
        chosen["warning"] = UNTRAINED
    params = layout.whole(layout.place(initial.initial(begin, model, config.seed)))
    source = inputs.open_source(config, model.sizes.image_size, clips)
    # As wide as in training, for figures equal to the last digit.
    scorer = Scorer(model, config, layout, inputs.width(config, source, resume.width(workdir)))
    return conclude(config, workdir, scorer, params, clips, source, chosen, excluded)
