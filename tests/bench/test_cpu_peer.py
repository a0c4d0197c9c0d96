"""`benchmarks/cpu_peer.py` on a tiny model: both sides really run, and compute the same numbers."""

import json

import pytest

from benchmarks import cpu_peer

pytest.importorskip("torch", reason="the other side is PyTorch")


ROWS = ["encode_texts", "distillation", "similarity"]  # the others take a minute to compile


def test_rows_are_the_same_work_on_both_sides(capsys):
    flags = ["--size=tiny", "--repeats=1", "--json", f"--only={','.join(ROWS)}"]
    assert cpu_peer.main(flags) == 0
    results = json.loads(capsys.readouterr().out)
    assert list(results) == ROWS
    for row, result in results.items():
        assert result["ratio"] == result["original"]["s"] / result["ours"]["s"], row
        for side in cpu_peer.SIDES:
            assert result[side]["product_gflop_per_s"] > 0
            assert 0.05 < result[side]["peak_gib"] < 16


def test_results_that_differ_end_it():
    class Side:
        def __init__(self, name, value):
            self.name, self.value = name, value

        def ask(self, command):
            assert command == "build step"
            return {"value": self.value}

    sides = [Side("original", 1.0), Side("ours", 1.01)]
    with pytest.raises(SystemExit, match="step: .*not the same work"):
        cpu_peer.measure_row(sides, "step", 1, cpu_peer.SIZES["tiny"])


@pytest.mark.parametrize("flag", ["--only=steps", "--repeats=0"])
def test_a_wrong_flag_is_named(flag, capsys):
    with pytest.raises(SystemExit) as ended:
        cpu_peer.main([flag])
    assert ended.value.code == 2
    assert flag.partition("=")[0] in capsys.readouterr().err
