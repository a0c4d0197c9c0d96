"""The activation of a checkpoint: QuickGELU or GELU, which its tensors do not show."""

import re
from typing import Any, NamedTuple

from data.errors import UsageError
from data.storage.path import Path, absolute

NAMES = {"quick_gelu": "QuickGELU", "gelu": "GELU"}
# What the names of public checkpoints say. The tags are those of open_clip; MetaCLIP's files are
# called b32_400m.pt and the like. LAION-400M alone says nothing: its B/32 has QuickGELU, the
# others GELU.
QUICK_GELU = re.compile(
    r"openai|long-?clip|metaclip(?!.*altogether)|fullcc|(?<![a-z0-9])[blhg](14|16|32)_400m"
    r"|(?<![a-z0-9])dfn(?!.*39b)|^vit-(b-32|b-16|l-14|l-14-336px)\.pth?$"
)
GELU = re.compile(
    r"laion(?![-_]?400m)|datacomp|commonpool|altogether|(?<![a-z0-9])dfn.*39b"
    r"|vit_(b_16|b_16_plus_240|l_14)-laion400m"
)


class Evidence(NamedTuple):
    activation: str
    reason: str
    certain: bool  # False: concluded from a name


def from_names(path: Path, run_name: Any = None) -> Evidence | None:
    """What the name of a file, its folder or its repository in the hub's cache says.

    `run_name`: that of open_clip's trainer. It says only that a model is a `-quickgelu` one:
    without that word, a run that started from OpenAI's weights had QuickGELU nevertheless.
    """
    if re.search(r"quick[-_]?gelu", str(run_name or "").lower()):
        return Evidence("quick_gelu", f"its run is named {run_name}", certain=False)
    path = absolute(path)
    cached = [parent.name for parent in path.parents if parent.name.startswith("models--")]
    for name in (path.name, path.parent.name, *cached):
        activation = _of_name(name.lower())
        if activation:
            return Evidence(activation, f"its name is {name}", certain=False)
    return None


def _of_name(name: str) -> str | None:
    if re.search(r"quick[-_]?gelu", name):
        return "quick_gelu"
    quick, plain = QUICK_GELU.search(name), GELU.search(name)
    if bool(quick) == bool(plain):  # neither, or a name with both, such as laion2b-from-openai
        return None
    return "quick_gelu" if quick else "gelu"


def settle(path: Path, found: Evidence | None, asked: str | None) -> tuple[str, str | None]:
    """The activation, and a note if the checkpoint does not state it.

    `asked`: the config's `model.activation`. Raises UsageError if it contradicts what the
    checkpoint states, or if nothing states the activation.
    """
    if found and found.certain:
        require(asked, found.activation, found.reason)
        return found.activation, None
    if asked:
        return asked, f"{NAMES[asked]}, as config.model.activation says"
    if found:
        return found.activation, (
            f"{NAMES[found.activation]} is assumed, because {found.reason}; "
            "config.model.activation replaces that"
        )
    raise UsageError(
        f"{path}: nothing states whether it has QuickGELU or GELU, and with the wrong one its "
        "features are wrong: set config.model.activation to quick_gelu (OpenAI, MetaCLIP, DFN) or "
        "gelu (LAION, DataComp), or put its open_clip_config.json beside it, at least "
        '{"quick_gelu": false}'
    )


def require(asked: str | None, stated: str, source: str) -> None:
    """Raises UsageError if `model.activation` is set to another activation than `stated`."""
    if asked and asked != stated:
        raise UsageError(
            f"config.model.activation is {asked}, {source} says {stated}; leave the key out"
        )
