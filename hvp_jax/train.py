"""The verb `train`: from a config to a workdir with checkpoints and figures."""

import contextlib
import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import optax
from ml_collections import ConfigDict

from data import annotations, pictures, pipeline
from data.augment import open_augment
from data.records import Clip
from hvp_jax import (
    checkpoint,
    evaluate,
    flops,
    inputs,
    loop,
    monitor,
    optim,
    profiling,
    report,
    resume,
    step,
    weights,
)
from hvp_jax.config import Told, resolve, resolve_steps
from hvp_jax.meter import Meter
from hvp_jax.model import HVPNet, from_config
from hvp_jax.parallel import Layout, is_first, process, wait
from hvp_jax.watch import Watch

log = logging.getLogger(__name__)


def schedule_steps(config: ConfigDict, examples: int) -> int:
    """How many steps the rate's schedule is long, of a config whose steps are resolved."""
    epoch = max(1, examples // config.train.batch_size)
    return config.optim.schedule_epochs * epoch or config.train.steps


def warning_of_schedule(config: ConfigDict, examples: int) -> str:
    """What to know of a schedule that is shorter than the run; empty if it is not."""
    steps = schedule_steps(config, examples)
    if steps >= config.train.steps:
        return ""
    return (
        f"the schedule (optim.schedule_epochs={config.optim.schedule_epochs}) ends at step "
        f"{steps} of {config.train.steps}: as in the original, the rate rises again after it"
    )


def recipe_of(config: ConfigDict, model: HVPNet, examples: int) -> step.Recipe:
    """What a step needs beside arrays, from a config whose steps are resolved."""
    o = config.optim
    optimizer = optim.optimizer(
        o.rate,
        o.clip_rate,
        schedule_steps(config, examples),
        o.warmup,
        o.weight_decay,
        o.max_grad_norm,
        freeze_patches=config.model.freeze_patches,
    )
    return step.Recipe(
        model,
        optimizer,
        seed=config.seed,
        noise=config.distill.noise != "never",
        paired=config.similarity.word_weights == "paired",
        chunk=config.similarity.chunk,
    )


def run(config: ConfigDict, workdir: Path) -> dict:
    """Trains, or goes on where the workdir's run was; then scores `eval.split`."""
    begin = weights.origin(config, workdir)
    config = resolve(config, begin.told)
    layout = Layout(config.parallel, config.fsdp)
    layout.check_batch(config.train.batch_size, "train.batch_size")
    model = from_config(config, begin.told.sizes)
    train_clips, val_clips, eval_clips, excluded = _read_splits(config)
    examples = sum(len(clip.captions) for clip in train_clips)
    pipeline.require_batch(examples, config.train.batch_size)
    config = resolve_steps(config, examples, begin.told.pretrained)

    source = inputs.open_source(config, model, [*train_clips, *val_clips, *eval_clips])
    width = inputs.width(config, source)
    data = resume.fingerprint([*train_clips, *val_clips])
    resume.require_same(config, data, workdir)
    wait("every process has looked at the workdir")
    batches = _batches(config, train_clips, source, width)
    recipe = recipe_of(config, model, examples)
    state = layout.place(
        step.new_state(weights.initial(begin, model, config.seed), recipe.optimizer)
    )
    told = Told(model.sizes, model.taps, model.stages, begin.told.pretrained)
    if is_first():
        resume.describe(config, told, data | {"width": width}, workdir)
    train = config.train
    kept = checkpoint.Checkpoints(workdir, train.keep, train.keep_every, train.best_by)
    watch = Watch(workdir / "alive", train.stall_seconds, *process())
    scorer = evaluate.Scorer(model, config, layout, width, watch.again)
    with contextlib.closing(batches), kept as checkpoints:
        state, at = _restored(checkpoints, layout, state, batches)
        flops_a_step = flops.training_step(model, train.batch_size, width, config.data.words)
        meter = Meter(at, train.batch_size, flops_a_step, layout.devices, config.precision)
        steps = profiling.parse(config.profile) if is_first() else None
        with (
            monitor.Monitor(workdir, train.steps, at, writes=is_first()) as show,
            profiling.Trace(workdir / "profile", steps) as trace,
            watch,
            loop.Stop() as stop,
        ):
            for warning in _warnings(config, examples, val_clips):
                show.say(warning)
            validate = functools.partial(_validate, scorer, val_clips, source)
            state, at, stopped = loop.Loop(
                config, layout, recipe, schedule_steps(config, examples), batches, checkpoints,
                show, meter, watch, trace, stop, validate if val_clips else None,
            ).run(state, at)  # fmt: skip
        if stopped:
            return _stopped(stop.name, at, train.steps)
        chosen = checkpoints.chosen()
        about = {"step": at, "skipped": int(state.skipped)}
        params = _chosen_params(chosen["step"], at, state, checkpoints, model, layout)
        del state
        result = evaluate.conclude(
            config, workdir, scorer, params, eval_clips, source, chosen, excluded
        )
    if is_first():
        report.loss_curve(workdir / "metrics.jsonl", workdir / "loss_curve.png")
    wait("the run has ended")
    return result | about


def _read_splits(config: ConfigDict) -> tuple[list[Clip], list[Clip], list[Clip], list[Clip]]:
    """The clips to train on, to choose by and to score, and those that are left out."""
    splits = ("train", config.train.choose_on, config.eval.split)
    clips, excluded = inputs.read_data(config, () if config.data.shards else splits)
    val_clips = [clip for clip in clips if clip.split == config.train.choose_on]
    eval_clips = annotations.select(clips, config.eval.split)
    return annotations.select(clips, "train"), val_clips, eval_clips, excluded


def _warnings(config: ConfigDict, examples: int, val_clips: Sequence[Clip]) -> list[str]:
    """What to know of a run before it begins."""
    found = [warning_of_schedule(config, examples)]
    if not val_clips:
        found.append(f"no clip is of split {config.train.choose_on}: the last checkpoint is taken")
    return [warning for warning in found if warning]


def _restored(
    checkpoints: checkpoint.Checkpoints, layout: Layout, state: step.State, batches: Iterator
) -> tuple[step.State, int]:
    """The state to go on with and the step it is at; moves `batches` to their place then."""
    with pipeline.interrupts_held():
        found = checkpoints.restore_latest(layout.to_store(state), batches, log.warning)
    return (layout.from_store(found[0]), found[1]) if found else (state, 0)


def _chosen_params(
    chosen: int,
    at: int,
    state: step.State,
    checkpoints: checkpoint.Checkpoints,
    model: HVPNet,
    layout: Layout,
) -> optax.Params:
    """The parameters of the chosen step, for scoring; those of the last are there already."""
    if chosen == at:
        return layout.whole(state.params)
    return layout.whole(layout.place(checkpoints.params(chosen, weights.shapes(model))))


def _batches(config: ConfigDict, clips: Sequence[Clip], source: pictures.Source, width: int):
    """The endless batches of training that a resolved config asks for, this process's part:
    of clips of `width` frames."""
    index, count = process()
    numbered = pipeline.numbered_batches(
        clips,
        source,
        width,
        config.data.words,
        config.train.batch_size // count,
        config.seed,
        host_index=index,
        host_count=count,
        augment=open_augment(config.seed, **config.augment),
    )
    return pipeline.train_batches(numbered, config.data.workers)


def _stopped(signal_name: str | None, at: int, steps: int) -> dict:
    """The answer of a run that a signal has ended early."""
    return {
        "ok": False,
        "step": at,
        "text": f"stopped by {signal_name or 'a signal to another process'} at step {at} of "
        f"{steps}, saved: the same command goes on from there",
    }


def _validate(
    scorer: evaluate.Scorer, clips: Sequence[Clip], source: pictures.Source, params
) -> dict:
    """Figures of the clips that the checkpoint is chosen by, which are of one split."""
    return {"split": clips[0].split} | evaluate.figures(scorer, params, clips, source)[0]
