"""A row of a sweep's table."""

import dataclasses
from typing import Any

FIGURES = ("R@1", "R@5", "R@10", "MdR", "MnR")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SettingResult:
    """A setting: means over the `seeds` that have a result, and the differences to the base.

    `text_to_video`, `video_to_text`: {"R@1": {"mean", "std"}, ...}; `rsum`, the sum of R@1, R@5
    and R@10 of both directions, alike. `std` is None with one seed. `difference`, of text to
    video, and `difference_video_to_text`: {"R@1": {"mean", "low", "high", "p", "significant"},
    ...}, where low and high bound the 95% interval and are None where there is none; `note` says
    why. `cost` is as in cost.json. `failed`: {"seed", "reason"} of the other runs.
    """

    name: str
    overrides: dict[str, Any]
    seeds: list[int]
    text_to_video: dict[str, dict[str, float | None]]
    video_to_text: dict[str, dict[str, float | None]]
    rsum: dict[str, float | None]
    difference: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    difference_video_to_text: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    difference_rsum: dict[str, Any] = dataclasses.field(default_factory=dict)
    note: str = ""
    cost: dict[str, Any]
    failed: list[dict[str, Any]]
