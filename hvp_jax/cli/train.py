"""The verb `train`: from a config to a workdir with checkpoints and figures."""

import contextlib
import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import optax
from ml_collections import ConfigDict

from data import inputs
from data.batches import frame_sources, pipeline
from data.records import Clip
from data.splits import select
from hvp_jax.checkpoints import checkpointer
from hvp_jax.config.resolve import resolve, resolve_steps
from hvp_jax.evaluation import report, results
from hvp_jax.evaluation.scorer import Scorer, figures
from hvp_jax.models.clip_config import Told
from hvp_jax.models.hvpnet import HVPNet, from_config
from hvp_jax.parallel.partitioner import Layout
from hvp_jax.parallel.processes import is_first, primary_first, process, wait
from hvp_jax.training import loop, resume, train_state
from hvp_jax.training.step_spec import recipe_of, schedule_steps, warning_of_schedule
from hvp_jax.weights import initial

log = logging.getLogger(__name__)


def run(config: ConfigDict, workdir: Path) -> dict:
    """Trains, or goes on where the workdir's run was; then scores `eval.split`."""
    begin = initial.origin(config, workdir)
    config = resolve(config, begin.told)
    layout = Layout(config.parallel, config.fsdp)
    layout.check_batch(config.train.batch_size, "train.batch_size")
    model = from_config(config, begin.told.sizes)
    train_clips, val_clips, eval_clips, excluded = _read_splits(config)
    examples = sum(len(clip.captions) for clip in train_clips)
    pipeline.require_batch(examples, config.train.batch_size)
    config = resolve_steps(config, examples, begin.told.pretrained)

    source = inputs.open_source(
        config, model.sizes.image_size, [*train_clips, *val_clips, *eval_clips]
    )
    width = inputs.width(config, source)
    data = resume.fingerprint([*train_clips, *val_clips])
    resume.require_same(config, data, workdir)
    wait("every process has looked at the workdir")
    index, count = process()
    batches = inputs.batches(
        config, train_clips, source, width, process_index=index, process_count=count
    )
    recipe = recipe_of(config, model, examples)
    params = initial.initial(begin, model, config.seed)
    state = layout.place(train_state.new_state(params, recipe.optimizer))
    del params
    told = Told(model.sizes, model.taps, model.stages, begin.told.pretrained)
    if is_first():
        resume.describe(config, told, data | {"width": width}, workdir)
    train = config.train
    kept = checkpointer.Checkpoints(workdir, train.keep, train.keep_every, train.best_by)
    with contextlib.closing(batches), kept as checkpoints:
        state, at = _restored(checkpoints, layout, state, batches)
        with loop.Loop(
            config, workdir, at,
            layout=layout, recipe=recipe, schedule_steps=schedule_steps(config, examples),
            batches=batches, checkpoints=checkpoints, width=width,
        ) as steps:  # fmt: skip
            for warning in _warnings(config, examples, val_clips):
                steps.show.say(warning)
            scorer = Scorer(model, config, layout, width, steps.watch.again)
            validate = functools.partial(_validate, scorer, val_clips, source)
            state, at, stopped = steps.run(state, validate if val_clips else None)
        if stopped:
            return _stopped(steps.stop.name, at, train.steps)
        chosen = checkpoints.chosen()
        about = {"step": at, "skipped": int(state.skipped)}
        params = _chosen_params(chosen["step"], at, state, checkpoints, model, layout)
        del state
        result = results.conclude(
            config, workdir, scorer, params, eval_clips, source, chosen, excluded
        )
    if is_first():
        report.loss_curve(workdir / "metrics.jsonl", workdir / "loss_curve.png")
    wait("the run has ended")
    return result | about


def _read_splits(config: ConfigDict) -> tuple[list[Clip], list[Clip], list[Clip], list[Clip]]:
    """The clips to train on, to choose by and to score, and those that are left out."""
    splits = ("train", config.train.choose_on, config.eval.split)
    with primary_first("process 0 has read the data set"):
        clips, excluded = inputs.read_data(config, () if config.data.shards else splits)
    val_clips = [clip for clip in clips if clip.split == config.train.choose_on]
    eval_clips = select(clips, config.eval.split)
    return select(clips, "train"), val_clips, eval_clips, excluded


def _warnings(config: ConfigDict, examples: int, val_clips: Sequence[Clip]) -> list[str]:
    """What to know of a run before it begins."""
    found = [warning_of_schedule(config, examples)]
    if not val_clips:
        found.append(f"no clip is of split {config.train.choose_on}: the last checkpoint is taken")
    return [warning for warning in found if warning]


def _restored(
    checkpoints: checkpointer.Checkpoints,
    layout: Layout,
    state: train_state.State,
    batches: Iterator,
) -> tuple[train_state.State, int]:
    """The state to go on with and the step it is at; moves `batches` to their place then."""
    with pipeline.interrupts_held():
        found = checkpoints.restore_latest(layout.to_store(state).items(), batches, log.warning)
    if not found:
        return state, 0
    items, at = found
    return layout.from_store(train_state.State.from_items(items)), at


def _chosen_params(
    chosen: int,
    at: int,
    state: train_state.State,
    checkpoints: checkpointer.Checkpoints,
    model: HVPNet,
    layout: Layout,
) -> optax.Params:
    """The parameters of the chosen step, for scoring; those of the last are there already."""
    if chosen == at:
        return layout.whole(state.params)
    return layout.whole(layout.place(checkpoints.params(chosen, initial.shapes(model))))


def _stopped(signal_name: str | None, at: int, steps: int) -> dict:
    """The answer of a run that a signal has ended early."""
    return {
        "ok": False,
        "step": at,
        "text": f"stopped by {signal_name or 'a signal to another process'} at step {at} of "
        f"{steps}, saved: the same command goes on from there",
    }


def _validate(scorer: Scorer, clips: Sequence[Clip], source: frame_sources.Source, params) -> dict:
    """Figures of the clips that the checkpoint is chosen by, which are of one split."""
    return {"split": clips[0].split} | figures(scorer, params, clips, source)[0]
