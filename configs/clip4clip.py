"""CLIP4Clip with mean pooling (Luo et al., arXiv 2104.08860), the baseline of the field.

On MSR-VTT: --config.data.annotations=DIR --config.data.videos=DIR; `--config.data.dataset` and
its keys select other data. The score is the cosine of the sentence and the mean of the frames'
class tokens at the last tap: nothing of HVP-Net's head is left. `--config.frames.aggregation`
adds CLIP4Clip's sequential heads. Optimizer, data and evaluation are those of `msrvtt.py`, so
that the two differ in the model alone.

`:reference` after the file name selects the original's settings; see `configs/base.py`.
"""

from ml_collections import ConfigDict

from configs.msrvtt import get_config as msrvtt


def get_config(form: str | None = None) -> ConfigDict:
    config = msrvtt(form)
    config.model.taps = (-1,)  # the last layer
    config.similarity.terms = ("sentence_clip",)
    config.similarity.token_weights = "uniform"
    config.distillation.method = "none"
    return config
