"""Rows on disk and in TensorBoard, and progress on the terminal."""

import io
import json
import os
import struct
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from data.errors import DataError, UsageError
from hvp_jax.monitoring import metrics_logger


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def rows(workdir) -> list[dict]:
    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    text = (workdir / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def tensorboard_rows(workdir) -> list[tuple[int, dict[str, float]]]:
    """(step, {tag: scalar}) of a workdir's event files, as TensorBoard shows them."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    rows = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:  # a record: length and its checksum, event and its checksum
            (length,) = struct.unpack("<Q", data[:8])
            event, data = Event.FromString(data[12 : 12 + length]), data[16 + length :]
            if event.session_log.status == SessionLog.START:
                rows = [(step, row) for step, row in rows if step < event.step]
            elif event.HasField("summary"):
                row = {value.tag: value.simple_value for value in event.summary.value}
                rows.append((event.step, row))
    return rows


def test_rows_are_flushed_at_once_with_full_precision(tmp_path):
    with metrics_logger.MetricsLogger(tmp_path, total=3) as run:
        run.write(1, {"loss": 0.1 + 0.2, "part": np.float32(0.1), "skipped": np.int32(2)})
        run.write(2, {"loss": float("nan"), "text_to_video": {"R@1": np.inf, "MdR": 3.5}})
        assert rows(tmp_path) == [
            {"step": 1, "loss": 0.1 + 0.2, "part": float(np.float32(0.1)), "skipped": 2},
            {"step": 2, "loss": None, "text_to_video": {"R@1": None, "MdR": 3.5}},
        ]


@pytest.mark.parametrize("partial", ["", '{"step": 7, "lo', '{"step": 2}'])
def test_a_resumed_run_writes_no_row_twice(tmp_path, partial):
    with metrics_logger.MetricsLogger(tmp_path, total=9) as run:
        for step in range(1, 7):
            run.write(step, {"loss": step / 3})
    expected = (tmp_path / "metrics.jsonl").read_text()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(partial)
    with metrics_logger.MetricsLogger(tmp_path, total=9, step=4) as run:
        for step in (5, 6):
            run.write(step, {"loss": step / 3})
    assert (tmp_path / "metrics.jsonl").read_text() == expected
    assert sorted(os.listdir(tmp_path)) == ["metrics.jsonl", "tensorboard"]


def test_a_run_from_step_0_drops_all_earlier_rows(tmp_path):
    for _ in range(2):
        with metrics_logger.MetricsLogger(tmp_path, total=2) as run:
            run.write(0, {"loss": 1.0})
    assert rows(tmp_path) == [{"step": 0, "loss": 1.0}]


def test_a_resumed_run_without_its_metrics_file(tmp_path):
    with metrics_logger.MetricsLogger(tmp_path, total=9, step=4) as run:
        run.write(5, {"loss": 1.0})
    assert rows(tmp_path) == [{"step": 5, "loss": 1.0}]


@pytest.mark.parametrize("line", ["{nonsense", '{"loss": 1.0}', "[]", '{"step": null}', "\udcff"])
def test_an_invalid_line_is_named_and_the_file_is_unchanged(tmp_path, line):
    text = f'{{"step": 1}}\n{line}\n{{"step": 3}}\n'
    # "\udcff" becomes a byte that is not UTF-8.
    (tmp_path / "metrics.jsonl").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"metrics.jsonl line 2 is not"):
        metrics_logger.MetricsLogger(tmp_path, total=9, step=3)
    assert (tmp_path / "metrics.jsonl").read_text("utf-8", "surrogateescape") == text


def test_a_missing_workdir(tmp_path):
    with pytest.raises(UsageError, match="cannot write .*metrics.jsonl: No such file"):
        metrics_logger.MetricsLogger(tmp_path / "none", total=1)


def test_numbers_are_in_tensorboard_at_once(tmp_path):
    with metrics_logger.MetricsLogger(tmp_path, total=3) as run:
        run.write(1, {"loss": np.float32(0.1), "skipped": jax.numpy.int32(2), "ok": True})
        recall = {"R@1": 12.5, "MdR": np.inf, "deep": {"er": 1}}
        measured = {"steps/s": 4.0}
        run.write(2, {"split": "val", "text_to_video": recall, "measured": measured, "none": None})
        assert tensorboard_rows(tmp_path) == [
            (1, {"loss": float(np.float32(0.1)), "skipped": 2.0}),
            (
                2,
                {
                    **{"text_to_video/R@1": 12.5, "text_to_video/MdR": np.inf},
                    **{"text_to_video/deep/er": 1.0, "measured/steps/s": 4.0},
                },
            ),
        ]


def test_tensorboard_has_no_step_twice(tmp_path):
    # Three runs within about a second: none may overwrite the file of another.
    for begin, end in ((0, 6), (4, 8), (0, 3)):
        with metrics_logger.MetricsLogger(tmp_path, total=9, step=begin) as run:
            for step in range(begin + 1 if begin else 0, end + 1):
                run.write(step, {"loss": 100.0 * begin + step})
        if begin:
            expected = [(step, {"loss": float(step)}) for step in range(5)]
            expected += [(step, {"loss": 400.0 + step}) for step in range(5, 9)]
        else:
            expected = [(step, {"loss": float(step)}) for step in range(end + 1)]
        assert tensorboard_rows(tmp_path) == expected
    assert len(os.listdir(tmp_path / "tensorboard")) == 3


def test_neither_pytorch_nor_tensorflow_is_imported(tmp_path):
    code = """if True:
        import importlib.util, sys
        from hvp_jax.monitoring import metrics_logger
        with metrics_logger.MetricsLogger(sys.argv[1], total=1) as run:
            run.write(1, {"loss": 1.0})
        assert "tensorboardX" in sys.modules
        assert not {"torch", "tensorflow", "tensorboard"} & set(sys.modules)
        assert importlib.util.find_spec("torch")  # it can still be imported
    """
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_with_writes_false_nothing_is_written_or_printed(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("nonsense\n")
    for stream in (io.StringIO(), Terminal()):
        with metrics_logger.MetricsLogger(
            tmp_path, 4, 2, stream=stream, seconds=0, writes=False
        ) as run:
            run.write(3, {"loss": 1.0})
            run.progress(3, 1.0)
            with run.paused():
                run.progress(4, 1.0)
            run.print("text")
        assert stream.getvalue() == ""
    assert os.listdir(tmp_path) == ["metrics.jsonl"]
    assert (tmp_path / "metrics.jsonl").read_text() == "nonsense\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("which", ["metrics", "events"])
def test_a_full_disk_is_an_error_of_one_line(tmp_path, which):
    with pytest.raises(UsageError, match="cannot write to .*No space left on device.*same command"):
        with metrics_logger.MetricsLogger(tmp_path, total=9) as run:
            run.write(1, {"loss": 1.0})
            if which == "metrics":
                run._rows._file = open("/dev/full", "a")
            else:
                run._events._writer._py_recordio_writer._writer = open("/dev/full", "wb")
            run.write(2, {"loss": 1.0})
    assert rows(tmp_path)[0] == {"step": 1, "loss": 1.0}


def test_progress_in_lines(tmp_path):
    stream = io.StringIO()
    with metrics_logger.MetricsLogger(tmp_path, total=4, stream=stream, seconds=0) as run:
        for step in (1, 2, 3, 4):
            run.progress(step, 1 / step)
        run.print("done")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "step 1/4  loss 1.0000"
    assert lines[1].startswith("step 2/4  loss 0.5000  ") and lines[1].endswith(" left")
    assert "steps/s" in lines[1] and lines[3].endswith("  0:00 left") and lines[4:] == ["done"]


def test_progress_prints_the_first_and_last_step_whatever_the_interval(tmp_path):
    stream = io.StringIO()
    with metrics_logger.MetricsLogger(tmp_path, total=100, stream=stream, seconds=3600) as run:
        for step in range(1, 101):
            run.progress(step, 1.0)
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["1/100", "100/100"]


def test_progress_does_not_count_pauses(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(metrics_logger, "time", clock)
    stream = io.StringIO()
    with metrics_logger.MetricsLogger(tmp_path, total=40, stream=stream, seconds=10) as run:
        with run.paused():  # before the first line of progress
            clock.now += 100
        run.progress(1, 1.0)
        with run.paused():
            clock.now += 100
        clock.now += 5
        run.progress(11, 1.0)  # 5 s of steps: too early for a line
        clock.now += 5
        run.progress(21, 1.0)
    assert stream.getvalue().splitlines()[1:] == [
        "step 21/40  loss 1.0000  2.00 steps/s  0:10 left"
    ]


def test_progress_on_a_terminal(tmp_path):
    stream = Terminal()
    with metrics_logger.MetricsLogger(tmp_path, total=10, step=6, stream=stream) as run:
        run.progress(8, 2.5)
        run.print("a line of its own")
        run.progress(10, float("nan"))
    assert "6/10" in stream.getvalue() and "10/10" in stream.getvalue()
    assert "a line of its own\n" in stream.getvalue() and "loss nan" in stream.getvalue()


def test_the_bar_does_not_count_pauses(tmp_path):
    with metrics_logger.MetricsLogger(tmp_path, total=10, stream=Terminal()) as run:
        later = run._bar.start_t + 100
        run._bar._time = lambda: later
        with run.paused():
            pass  # 100 s on the bar's clock
        assert run._bar.format_dict["elapsed"] < 50


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (3600 * 30 + 61, "30:01:01")]
)
def test_clock(seconds, text):
    assert metrics_logger._clock(seconds) == text
