"""The verb `train`: from a config to a workdir with checkpoints and figures.

The order of the loop is law: step, then evaluate, then save; and whatever stops a
run does so after a whole step and a checkpoint.
"""

import contextlib
import functools
import hashlib
import json
import signal
from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from data import annotations, pictures, pipeline
from data.augment import open_augment
from data.records import Clip
from hvp_jax import checkpoint, evaluate, monitor, optim, report, step, weights
from hvp_jax.config import Told, difference, from_json, resolve, resolve_steps
from hvp_jax.errors import BadData, BadUse
from hvp_jax.model import HVPNet, from_config
from hvp_jax.parallel import Layout

# Keys that may differ when a run goes on: they change what is kept, shown or scored,
# or where things lie, but no update.
FREE = ("eval.", "data.root", "data.videos", "data.shards", "data.annotations", "data.exclude")
FREE += ("parallel", "bench", "data.beam_options")
FREE += ("train.checkpoint_every", "train.eval_every", "train.log_every", "train.keep")


class Stop:
    """Remembers the first SIGTERM or SIGINT; the second one has its usual effect."""

    def __enter__(self) -> "Stop":
        self.name = None
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _note(self, number, frame) -> None:
        del frame
        self.name = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, *error: object) -> None:
        self._restore()


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
    layout = Layout(config.parallel)
    layout.check_batch(config.train.batch_size, "train.batch_size")
    model = from_config(config, begin.told.sizes)
    layout.check_batch(config.eval.batch_size, "eval.batch_size")
    clips, excluded = evaluate.read_data(config)
    train_clips = annotations.select(clips, "train")
    val_clips = [clip for clip in clips if clip.split == config.train.choose_on]
    eval_clips = annotations.select(clips, config.eval.split)
    examples = sum(len(clip.captions) for clip in train_clips)
    config = resolve_steps(config, examples, begin.told.pretrained)

    used = {clip.clip_id: clip for clip in [*train_clips, *val_clips, *eval_clips]}
    source = evaluate.open_source(config, model, list(used.values()))
    if config.similarity.mask_padding:
        # No wider than the longest clip, from here on and in config.json: padding is masked,
        # so this changes no score but to rounding, and `eval` is to repeat it to the last digit.
        config.data.frames = min(config.data.frames, source.longest)
    scorer = evaluate.Scorer(model, config, layout)
    fingerprint = _fingerprint([*train_clips, *val_clips])
    _require_same(config, fingerprint, workdir)
    batches = _batches(config, train_clips, source)
    recipe = recipe_of(config, model, examples)
    params = weights.initial(begin, model, config.seed, layout)
    state = layout.place(step.new_state(params, recipe.optimizer))
    del params

    told = Told(model.sizes, model.taps, model.stages, begin.told.pretrained)
    _describe(config, told, fingerprint, workdir)
    kept = checkpoint.Checkpoints(workdir, config.train.keep)
    with contextlib.closing(batches), kept as checkpoints:
        at = checkpoints.latest()
        if at is None:
            at = 0
        else:
            with pipeline.interrupts_held():
                state = checkpoints.restore(at, state, batches)
        with monitor.Monitor(workdir, config.train.steps, at) as show, Stop() as stop:
            if warning := warning_of_schedule(config, examples):
                show.say(warning)
            state, at = _loop(
                config, layout, recipe, state, at, batches, checkpoints, show, stop,
                functools.partial(_validate, scorer, val_clips, source) if val_clips else None,
            )  # fmt: skip
        if stop.name:
            return _stopped(stop.name, at, config.train.steps)
        chosen = checkpoints.chosen()
        params = state.params
        if chosen["step"] != at:
            params = layout.place(checkpoints.params(chosen["step"], weights.shapes(model)))
        result = evaluate.conclude(
            config, workdir, scorer, params, eval_clips, source, chosen, excluded
        )
    report.loss_curve(workdir / "metrics.jsonl", workdir / "loss_curve.png")
    return result | {"step": at, "skipped": int(state.skipped)}


def _batches(config: ConfigDict, clips: Sequence[Clip], source: pictures.Source):
    """The endless batches of training that a resolved config asks for."""
    numbered = pipeline.numbered_batches(
        clips,
        source,
        config.data.frames,
        config.data.words,
        config.train.batch_size,
        config.seed,
        augment=open_augment(config.seed, **config.augment),
    )
    return pipeline.train_batches(numbered, config.data.workers)


def _stopped(signal_name: str, at: int, steps: int) -> dict:
    """The answer of a run that a signal has ended early."""
    return {
        "ok": False,
        "step": at,
        "text": f"stopped by {signal_name} at step {at} of {steps}, saved: "
        "the same command goes on from there",
    }


def _loop(config, layout, recipe, state, at, batches, checkpoints, show, stop, validate):
    """Steps until the run's end or a signal; returns the state and the step it is at."""
    train_step = layout.train(functools.partial(step.train_step, recipe=recipe))
    total, pending, saved = config.train.steps, None, at
    steady = pipeline.uninterrupted(batches)
    while at < total and not stop.name:
        state, figures = train_step(state, next(steady))
        at += 1
        # Written one step late, when they are surely there: reading them stalls nothing.
        pending = _write(show, pending)
        if at % config.train.log_every == 0 or at == total:
            pending = (at, figures)
        scored = None
        if validate and (at % config.train.eval_every == 0 or at == total):
            pending = _write(show, pending)
            scored = validate(state.params)
            show.write(at, scored)
            show.say(f"step {at}  {scored['split']}  {report.line(scored)}")
        if scored or at % config.train.checkpoint_every == 0 or at == total:
            pending = _write(show, pending)  # a saved step has its row
            checkpoints.save(at, state, batches, scored)
            saved = at
    _write(show, pending)
    if at != saved:
        checkpoints.save(at, state, batches)
    return state, at


def _write(show: monitor.Monitor, pending: tuple[int, dict] | None) -> None:
    if pending:
        at, figures = pending[0], {name: float(x) for name, x in pending[1].items()}
        show.write(at, figures)
        show.progress(at, figures["loss"])


def _validate(
    scorer: evaluate.Scorer, clips: Sequence[Clip], source: pictures.Source, params
) -> dict:
    """Figures of the clips that the checkpoint is chosen by, which are of one split."""
    return {"split": clips[0].split} | evaluate.figures(scorer, params, clips, source)[0]


def _fingerprint(clips: Sequence[Clip]) -> dict:
    """What a run learns from and is chosen by, but for the pixels and where they lie."""
    digest = hashlib.sha256()
    for clip in clips:
        digest.update(
            repr((clip.clip_id, clip.split, clip.captions, clip.start, clip.end)).encode()
        )
    return {"clips": len(clips), "sha256": digest.hexdigest()}


def _require_same(config: ConfigDict, fingerprint: dict, workdir: Path) -> None:
    """Refuses to go on with a run that another config, or other captions, began."""
    with checkpoint.Checkpoints(workdir, config.train.keep) as checkpoints:
        if checkpoints.latest() is None:
            return
    path = workdir / "config.json"
    if not path.exists() and weights.read_card(workdir).get("ported"):
        return  # the first to go on from what `port` wrote
    try:
        before = from_json(path.read_text())
        data = json.loads((workdir / "data.json").read_text())
    except (BadData, OSError, ValueError) as error:
        raise BadData(f"{path}: its checkpoints cannot be gone on with: {error}") from None
    if data != fingerprint:
        raise BadUse(
            f"{workdir} holds a run on other training or validation captions ({data['clips']} "
            f"clips, now {fingerprint['clips']}); use another workdir"
        )
    changed = [row for row in difference(before, config) if not row[0].startswith(FREE)]
    if changed:
        told = ", ".join(f"{key} was {a!r}, is {b!r}" for key, a, b in changed)
        raise BadUse(f"{workdir} holds a run of another config: {told}; use another workdir")


def _describe(config: ConfigDict, told: Told, fingerprint: dict, workdir: Path) -> None:
    monitor.make_workdir(workdir)
    card = weights.card(told, weights=config.model.weights)
    monitor.write_json(workdir / weights.CARD, card)
    monitor.write_json(workdir / "config.json", config.to_dict())
    monitor.write_json(workdir / "data.json", fingerprint)
    monitor.write_json(workdir / "environment.json", monitor.environment(jax.devices()))
