"""The verb `train`: from a config to a workdir with checkpoints and figures."""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import optax
from ml_collections import ConfigDict

from data import inputs
from data.batches import frame_sources, pipeline
from data.records import Clip
from data.splits import clips_of_split
from hvp_jax.checkpoints import checkpointer
from hvp_jax.config.resolve import resolve, resolve_steps
from hvp_jax.evaluation import report, results
from hvp_jax.evaluation.scorer import Scorer, evaluate_split
from hvp_jax.models.clip_config import ModelSpec
from hvp_jax.models.hvpnet import HVPNet, from_config
from hvp_jax.parallel.partitioner import Partitioner
from hvp_jax.parallel.processes import barrier, is_primary, primary_first, process_index_and_count
from hvp_jax.training import loop, resume, train_state
from hvp_jax.training.step_spec import schedule_steps, schedule_warning, step_spec_from_config
from hvp_jax.weights import initial

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TrainResult(results.EvalResult):
    """The evaluation of a finished run, its number of steps and of skipped updates."""

    step: int
    skipped: int


@dataclasses.dataclass(frozen=True)
class StoppedRun:
    """The result of a run that a signal stopped at `step`."""

    ok: bool = dataclasses.field(default=False, init=False)
    step: int
    text: str = dataclasses.field(metadata={"json": None})


def run(config: ConfigDict, workdir: Path) -> TrainResult | StoppedRun:
    """Trains, or goes on where the workdir's run was; then scores `eval.split`."""
    initial_weights = initial.find_initial_weights(config, workdir)
    config = resolve(config, initial_weights.spec)
    partitioner = Partitioner(config.parallel, config.fsdp)
    partitioner.check_batch_size(config.train.batch_size, "train.batch_size")
    model = from_config(config, initial_weights.spec.clip_config)
    train_clips, val_clips, eval_clips, excluded = _read_splits(config)
    examples = sum(len(clip.captions) for clip in train_clips)
    pipeline.require_batch(examples, config.train.batch_size)
    config = resolve_steps(config, examples, initial_weights.spec.pretrained)

    source = inputs.open_frame_source(
        config, model.clip_config.image_size, [*train_clips, *val_clips, *eval_clips]
    )
    num_frames = inputs.padded_num_frames(config, source)
    data = resume.fingerprint([*train_clips, *val_clips])
    resume.check_resumable(config, data, workdir)
    barrier("every process has looked at the workdir")
    index, count = process_index_and_count()
    batches = inputs.batches(
        config, train_clips, source, num_frames, process_index=index, process_count=count
    )
    spec = step_spec_from_config(config, model, examples)
    params = initial.init_or_load_params(initial_weights, model, config.seed)
    state = partitioner.shard_state(train_state.create_train_state(params, spec.optimizer))
    del params
    told = ModelSpec(model.clip_config, model.taps, model.stages, initial_weights.spec.pretrained)
    if is_primary():
        resume.write_run_record(config, told, data | {"num_frames": num_frames}, workdir)
    train = config.train
    kept = checkpointer.Checkpointer(workdir, train.max_to_keep, train.keep_period, train.select_by)
    with contextlib.closing(batches), kept as checkpoints:
        state, at = _restored(checkpoints, partitioner, state, batches)
        with loop.TrainLoop(
            config, workdir, at,
            partitioner=partitioner, spec=spec, schedule_steps=schedule_steps(config, examples),
            batches=batches, checkpointer=checkpoints, num_frames=num_frames,
        ) as steps:  # fmt: skip
            for warning in _warnings(config, examples, val_clips):
                steps.metrics.print(warning)
            scorer = Scorer(
                model, config, partitioner,
                num_frames=num_frames, heartbeat=steps.watchdog.keep_alive,
            )  # fmt: skip
            validate = functools.partial(_validate, scorer, val_clips, source)
            state, at, stopped = steps.run(state, validate if val_clips else None)
        if stopped:
            return _stopped(steps.signals.name, at, train.steps)
        chosen = checkpoints.select_step()
        assert chosen is not None  # the loop has saved a checkpoint
        skipped = int(state.skipped)
        params = _chosen_params(chosen["step"], at, state, checkpoints, model, partitioner)
        del state
        result = results.write_results(
            config, workdir, scorer, params,
            clips=eval_clips, source=source, checkpoint=chosen, excluded=excluded,
        )  # fmt: skip
    if is_primary():
        report.loss_curve(workdir / "metrics.jsonl", workdir / "loss_curve.png")
    barrier("the run has ended")
    return TrainResult(**vars(result), step=at, skipped=skipped)


def _read_splits(config: ConfigDict) -> tuple[list[Clip], list[Clip], list[Clip], list[Clip]]:
    """The clips to train on, to choose by and to score, and those that are left out."""
    splits = ("train", config.train.select_on, config.eval.split)
    with primary_first("process 0 has read the data set"):
        clips, excluded = inputs.read_data(config, () if config.data.shards else splits)
    val_clips = [clip for clip in clips if clip.split == config.train.select_on]
    eval_clips = clips_of_split(clips, config.eval.split)
    return clips_of_split(clips, "train"), val_clips, eval_clips, excluded


def _warnings(config: ConfigDict, examples: int, val_clips: Sequence[Clip]) -> list[str]:
    """What to know of a run before it begins."""
    found = [schedule_warning(config, examples)]
    if not val_clips:
        found.append(f"no clip is of split {config.train.select_on}: the last checkpoint is taken")
    return [warning for warning in found if warning]


def _restored(
    checkpoints: checkpointer.Checkpointer,
    partitioner: Partitioner,
    state: train_state.TrainState,
    batches: Iterator,
) -> tuple[train_state.TrainState, int]:
    """The state to go on with and the step it is at; moves `batches` to their place then."""
    with pipeline.interrupts_held():
        found = checkpoints.restore_latest(
            partitioner.to_global(state).items(), batches, log.warning
        )
    if not found:
        return state, 0
    items, at = found
    return partitioner.from_global(train_state.TrainState.from_items(items)), at


def _chosen_params(
    chosen: int,
    at: int,
    state: train_state.TrainState,
    checkpoints: checkpointer.Checkpointer,
    model: HVPNet,
    partitioner: Partitioner,
) -> optax.Params:
    """The parameters of the chosen step, for scoring; those of the last are there already."""
    if chosen == at:
        return partitioner.replicate_params(state.params)
    return partitioner.replicate_params(
        partitioner.shard_state(checkpoints.params(chosen, initial.param_shapes(model)))
    )


def _stopped(signal_name: str | None, at: int, steps: int) -> StoppedRun:
    return StoppedRun(
        step=at,
        text=f"stopped by {signal_name or 'a signal to another process'} at step {at} of "
        f"{steps}, saved: the same command goes on from there",
    )


def _validate(
    scorer: Scorer, clips: Sequence[Clip], source: frame_sources.FrameSource, params
) -> dict:
    """Figures of the clips that the checkpoint is chosen by, which are of one split."""
    return {"split": clips[0].split} | evaluate_split(scorer, params, clips, source)[0]
