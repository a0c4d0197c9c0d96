"""Golden files that `parity` refuses with one line, and one of a model of other sizes."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from data.errors import DataError
from hvp_jax.cli import main
from hvp_jax.cli.verbs import parity
from hvp_jax.models.clip_config import ClipConfig
from hvp_jax.models.hvpnet import HVPNet
from hvp_jax.parity import golden as golden_module
from hvp_jax.weights import torch_params
from tests.helpers.parity_files import SMALL, changed, write
from tests.helpers.small import SIZES, captions, normal, random_params

pytestmark = pytest.mark.usefixtures("quick_compile")


def parity_error(capsys, path: Path) -> tuple[int, str]:
    """Exit status and the one-line error of `run.py parity --golden=PATH`."""
    status = main.main(["parity", f"--golden={path}"])
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and "Traceback" not in captured.err
    return status, captured.err


def test_invalid_files(golden, tmp_path, capsys):
    missing = tmp_path / "missing.npz"
    status, error = parity_error(capsys, missing)
    assert status == 2 and f"{missing}: no such golden file" in error

    no_json = tmp_path / "no_json.npz"
    np.savez(no_json, **{"state/clip.logit_scale": np.ones(())})
    status, error = parity_error(capsys, no_json)
    assert status == 2 and "no_json.json: no such file" in error

    no_json.with_suffix(".json").write_text("{")
    status, error = parity_error(capsys, no_json)
    assert status == 1 and "no_json.json: not readable as JSON" in error

    valid = SMALL.read_bytes()
    for content in (b"", b"text", valid[:5000], valid[:-30], valid[:90000] + b"x" + valid[90001:]):
        broken = tmp_path / "broken.npz"
        broken.write_bytes(content)
        status, error = parity_error(capsys, broken)
        assert status == 1 and f"{broken}: not a readable .npz file" in error


def test_an_object_array_is_not_unpickled(tmp_path, capsys):
    path = tmp_path / "object.npz"
    np.savez(path, a=np.array([{"a": 1}], object))
    status, error = parity_error(capsys, path)
    assert status == 1 and "not a readable .npz file" in error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input/text_ids": None}, "holds no array input/text_ids"),
        ({"input/video": None}, "holds no array input/video"),
        ({"input/text_mask": lambda x: x * 2}, "input/text_mask holds values other than 0 and 1"),
        ({"input/text_mask": changed}, "input/text_mask holds values other than 0 and 1"),
        ({"input/text_ids": lambda x: x + 1}, "not ids of a vocabulary of 128"),
        ({"input/text_ids": changed}, "not ids of a vocabulary of 128"),
        ({"input/text_ids": lambda x: x * 0.5}, "not ids of a vocabulary of 128"),
        ({"eval/video_mask": lambda x: x[:, 1:]}, "eval/video and eval/video_mask differ in shape"),
        ({"input/video": lambda x: x[..., 1:]}, "input/video is not of size 48"),
        ({"state/clip.visual.proj": None}, "clip.visual.proj: not among"),
        ({"state/clip.visual.extra": np.ones_like}, "clip.visual.extra: a tensor that"),
    ],
)
def test_a_file_that_does_not_fit_the_model_is_refused(golden, monkeypatch, changes, message):
    arrays, metadata = dict(golden[0]), golden[1]
    for name, change in changes.items():
        if change is None:
            del arrays[name]
        else:
            arrays[name] = change(arrays.get(name, np.zeros(2, np.float32)))
    monkeypatch.setattr(golden_module, "load_golden", lambda _: (arrays, metadata))
    with pytest.raises(DataError) as error:
        parity.run(SMALL)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_file_of_other_sizes(tmp_path, monkeypatch):
    """Heads, layers, stages and widths all follow from the shapes in the file."""
    config = ClipConfig(
        image_size=32,
        patch_size=8,
        vision_width=128,
        vision_layers=2,
        text_width=64,
        text_layers=1,
        embed_dim=16,
        context_length=9,
        vocab_size=60,
    )
    model = HVPNet(config, (1, 2), stages=2)
    ids, text_mask = captions(0, 3, 7)
    ids = np.minimum(ids, 59)
    video = np.float32(normal(0, 3, 2, 3, 32, 32))
    inputs = {"text_ids": ids, "text_mask": text_mask.astype(np.int32), "video": video}
    inputs["video_mask"] = np.array([[1, 1], [1, 0], [1, 1]], np.int32)
    params = random_params(model, ids, text_mask, np.moveaxis(video, 2, -1), inputs["video_mask"])
    arrays = {f"state/{name}": x for name, x in torch_params.to_torch(params).items()}
    arrays |= {f"input/{name}": x for name, x in inputs.items()}
    shapes = {
        "features/patch/layer1": (3, 34, 16),
        "mpp/layer1/stage1/merged": (3, 9, 16),
        "mpp/layer0/stage0/cluster": (3, 34),
        "sim/sentence_frame/layer1": (3, 3),
        "loss/total": (),
    }
    computed, compute = {}, golden_module.compute_arrays

    def compute_once(*arguments, **options):
        if not computed:
            computed.update(compute(*arguments, **options))
        return computed

    monkeypatch.setattr(golden_module, "compute_arrays", compute_once)
    blank = {name: np.full(shape, 1e9) for name, shape in shapes.items()}
    path = write(tmp_path / "other.npz", arrays | blank, {"layers_zero_based": [0, 1]})
    report = parity.run(path)
    assert report.failed == list(shapes)
    assert {row.reason for row in report.arrays if not row.ok} == {"over tolerance"}
    filled = {name: np.asarray(computed[name]) for name in shapes}
    assert parity.run(write(path, arrays | filled, {"layers_zero_based": [0, 1]})).ok
    assert jnp.isfinite(computed["loss"]) and SIZES != config
