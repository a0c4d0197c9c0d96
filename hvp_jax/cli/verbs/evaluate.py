"""The verb `eval`: scores a split of a data set with a checkpoint."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from data import inputs, splits
from data.errors import UsageError
from data.storage.path import Path
from hvp_jax.checkpoints import checkpointer
from hvp_jax.evaluation.rerank import caption_bank, needs_bank
from hvp_jax.evaluation.results import EvalResult, write_results
from hvp_jax.evaluation.scorer import Scorer
from hvp_jax.models.model_spec import head_of
from hvp_jax.monitoring import json_files
from hvp_jax.parallel.compile_cache import use_compile_cache
from hvp_jax.parallel.partitioner import Partitioner
from hvp_jax.parallel.processes import is_primary, primary_first
from hvp_jax.training import resume
from hvp_jax.weights import initial

UNTRAINED = "the weights are CLIP's alone: distillation and token weights are initialised randomly"


def run(config: ConfigDict, workdir: Path, rerank: Sequence[str] = ()) -> EvalResult:
    """Scores `eval.split` with the selected checkpoint of a run, or with `model.weights`.

    `rerank`: names of `rerank.METHODS`.
    """
    if needs_bank(rerank) and config.eval.split == "train":
        raise UsageError(
            f"--rerank={','.join(rerank)} takes its bank from split train, which is evaluated: use "
            "another --config.eval.split, or --rerank=dsl"
        )
    built = initial.build_model(config, workdir)
    config, model = built.config, built.model
    partitioner = Partitioner(config.parallel)
    decoded_splits = () if config.data.shards else (config.eval.split,)
    with primary_first("process 0 has read the data set"):
        clips, excluded = inputs.read_data(config, decoded_splits)
    bank = []
    if needs_bank(rerank):
        bank = caption_bank(splits.clips_of_split(clips, "train"), config.seed)
    clips = splits.clips_of_split(clips, config.eval.split)
    with checkpointer.Checkpointer(workdir, config.train.max_to_keep) as checkpoints:
        selected = checkpoints.select_step()
    if selected is None:
        if not config.model.weights:
            raise UsageError(
                f"{workdir} holds no checkpoint: run `train` with this workdir first, "
                "or give --config.model.weights"
            )
        selected = {"step": 0, "chosen_on": None, "weights": config.model.weights}
        if is_primary():
            json_files.make_workdir(workdir)
    if built.weights.spec.head is None and head_of(model).modules():
        selected["warning"] = UNTRAINED
    use_compile_cache(config.compile_cache, workdir)
    params = built.load_params(partitioner)
    source = inputs.open_frame_source(config, model.clip_config.image_size, clips)
    # Padded to the same number of frames as in training, so that metrics match exactly.
    scorer = Scorer(
        model,
        config,
        partitioner,
        num_frames=inputs.padded_num_frames(config, source, resume.recorded_num_frames(workdir)),
    )
    return write_results(
        config, workdir, scorer, params,
        clips=clips, source=source, checkpoint=selected, excluded=excluded,
        reranking=rerank, bank=bank,
    )  # fmt: skip
