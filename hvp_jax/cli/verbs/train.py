"""The verb `train`: from a config to a workdir with checkpoints and metrics."""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Iterator, Sequence

import grain
import jax
import optax
from ml_collections import ConfigDict

from data import inputs
from data.batches import frame_sources, pairs, pipeline
from data.records import Clip
from data.splits import clips_of_split
from data.storage.path import Path
from hvp_jax.checkpoints import checkpointer
from hvp_jax.config.precision import cast_params, enable_float64
from hvp_jax.config.resolve import check_platform, resolve, resolve_steps
from hvp_jax.evaluation import costs, metrics, report, results
from hvp_jax.evaluation.scorer import Scorer, evaluate_split
from hvp_jax.models.hvpnet import HVPNet, from_config, param_shapes
from hvp_jax.models.model_spec import ModelSpec, head_of
from hvp_jax.parallel.compile_cache import use_compile_cache
from hvp_jax.parallel.partitioner import Partitioner
from hvp_jax.parallel.processes import barrier, is_primary, primary_first, process_index_and_count
from hvp_jax.training import loop, resume, train_state
from hvp_jax.training.exclusive import exclusive
from hvp_jax.training.step_spec import (
    StepSpec,
    batch_warning,
    schedule_warning,
    step_spec_from_config,
)
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
    """Starts or resumes the run in the workdir, then evaluates the chosen checkpoint.

    Raises UsageError if another run holds the workdir.
    """
    enable_float64(config)
    with exclusive(workdir):
        return _run(config, workdir)


def _run(config: ConfigDict, workdir: Path) -> TrainResult | StoppedRun:
    initial_weights = initial.find_initial_weights(config, workdir)
    config = resolve(config, initial_weights.spec)
    partitioner = Partitioner(config.parallel, config.fsdp)
    partitioner.check_batch_size(config.train.batch_size, "train.batch_size")
    check_platform(config, jax.default_backend())
    model = from_config(config, initial_weights.spec.clip_config)
    train_clips, val_clips, eval_clips, excluded = _read_splits(config)
    examples = pairs.count_examples(train_clips, config.data.sampling)
    pairs.require_batch(train_clips, config.data.sampling, config.train.batch_size)
    config = resolve_steps(config, examples, initial_weights.spec.pretrained)
    source = inputs.open_frame_source(
        config, model.clip_config.image_size, [*train_clips, *val_clips, *eval_clips]
    )
    num_frames = inputs.padded_num_frames(config, source)
    data = resume.fingerprint([*train_clips, *val_clips])
    resume.check_resumable(config, data, workdir, examples)
    barrier("every process has checked the workdir")
    use_compile_cache(config.compile_cache, workdir)
    batches = _own_batches(config, train_clips, source, num_frames)
    spec = step_spec_from_config(config, model, examples)
    state = _initial_state(initial_weights, model, spec, partitioner)
    if is_primary():
        model_spec = _model_spec(model, initial_weights.spec.pretrained)
        resume.write_run_record(config, model_spec, data | {"num_frames": num_frames}, workdir)
        costs.remove(workdir)
    with contextlib.closing(batches), _checkpointer(config, workdir) as checkpoints:
        state, at = _restore_latest(checkpoints, partitioner, state, batches)
        with loop.TrainLoop(
            config, workdir, at,
            partitioner=partitioner, spec=spec, batches=batches,
            checkpointer=checkpoints, num_frames=num_frames,
        ) as steps:  # fmt: skip
            for warning in _warnings(config, examples, train_clips, val_clips):
                steps.metrics.print(warning)
            scorer = Scorer(
                model, config, partitioner,
                num_frames=num_frames, heartbeat=steps.watchdog.keep_alive,
            )  # fmt: skip
            validate = functools.partial(_validate, scorer, val_clips, source)
            state, at, stopped = steps.run(state, validate if val_clips else None)
        if stopped:
            return _stopped(steps.signals.name, at, config.train.steps)
        costs.write(workdir, model, steps.flops_per_step, partitioner.devices)
        chosen = checkpoints.select_step()
        assert chosen is not None, "the loop has saved the last step"
        skipped, params = int(state.skipped), state.params
        if chosen["step"] != at:
            params = _load_params(checkpoints, chosen["step"], model, partitioner)
        params = partitioner.replicate_params(params)
        del state
        result = results.write_results(
            config, workdir, scorer, params,
            clips=eval_clips, source=source, checkpoint=chosen, excluded=excluded,
        )  # fmt: skip
    if is_primary():
        report.loss_curve(workdir, workdir / "loss_curve.png")
    barrier("the run has ended")
    return TrainResult(**vars(result), step=at, skipped=skipped)


def _read_splits(config: ConfigDict) -> tuple[list[Clip], list[Clip], list[Clip], list[Clip]]:
    """The clips to train on, to validate on and to evaluate, and those that are excluded."""
    splits = ("train", config.train.select_on, config.eval.split)
    with primary_first("process 0 has read the data set"):
        clips, excluded = inputs.read_data(config, () if config.data.shards else splits)
    val_clips = [clip for clip in clips if clip.split == config.train.select_on]
    eval_clips = clips_of_split(clips, config.eval.split)
    return clips_of_split(clips, "train"), val_clips, eval_clips, excluded


def _own_batches(
    config: ConfigDict, clips: list[Clip], source: frame_sources.FrameSource, num_frames: int
) -> grain.DatasetIterator:
    """This process's part of every batch."""
    index, count = process_index_and_count()
    return inputs.batches(
        config, clips, source, num_frames, process_index=index, process_count=count
    )


def _initial_state(
    weights: initial.InitialWeights, model: HVPNet, spec: StepSpec, partitioner: Partitioner
) -> train_state.TrainState:
    params = initial.init_or_load_params(weights, model, spec.seed)
    assert spec.optimizer is not None, "the spec of a run has one"
    return partitioner.shard_state(train_state.create_train_state(params, spec.optimizer))


def _checkpointer(config: ConfigDict, workdir: Path) -> checkpointer.Checkpointer:
    train = config.train
    return checkpointer.Checkpointer(workdir, train.max_to_keep, train.keep_period, train.select_by)


def _model_spec(model: HVPNet, pretrained: bool) -> ModelSpec:
    return ModelSpec(model.clip_config, model.taps, head_of(model), pretrained)


def _warnings(
    config: ConfigDict, examples: int, train_clips: Sequence[Clip], val_clips: Sequence[Clip]
) -> list[str]:
    """What users should know about a run before it starts."""
    warnings = [
        schedule_warning(config, examples),
        batch_warning(config.train.batch_size, len(train_clips), config.loss.same_video),
    ]
    if val_clips:
        warnings.append(metrics.small_gallery_warning(val_clips[0].split, len(val_clips)))
    else:
        warnings.append(
            f"there are no clips in split {config.train.select_on}: the last checkpoint is "
            "evaluated, not the best"
        )
    return [warning for warning in warnings if warning]


def _restore_latest(
    checkpoints: checkpointer.Checkpointer,
    partitioner: Partitioner,
    state: train_state.TrainState,
    batches: Iterator,
) -> tuple[train_state.TrainState, int]:
    """The latest checkpoint's state and step, or `state` and 0; restores `batches` as well."""
    with pipeline.interrupts_held():
        restored = checkpoints.restore_latest(
            partitioner.to_global(state).items(), batches, log.warning
        )
    if not restored:
        return state, 0
    items, at = restored
    return partitioner.from_global(train_state.TrainState.from_items(items)), at


def _load_params(
    checkpoints: checkpointer.Checkpointer, step: int, model: HVPNet, partitioner: Partitioner
) -> optax.Params:
    """The parameters of a checkpoint, sharded like those of a state."""
    params = checkpoints.params(step, param_shapes(model))
    return partitioner.shard_state(cast_params(params, model.dtype))


def _stopped(signal_name: str | None, at: int, steps: int) -> StoppedRun:
    return StoppedRun(
        step=at,
        text=f"stopped by {signal_name or 'a signal to another process'} at step {at} of "
        f"{steps}, saved: run the same command again to resume",
    )


def _validate(
    scorer: Scorer, clips: Sequence[Clip], source: frame_sources.FrameSource, params
) -> dict:
    """Metrics of the validation clips, which are all of one split."""
    return {"split": clips[0].split} | evaluate_split(scorer, params, clips, source)[0]
