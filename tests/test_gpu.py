"""Pieces that are resumed, and the clock that times on a GPU."""

import json
import sys
import types

import gpu
import pytest
import torch
from benchmarks import speed


def piece(code):
    return [sys.executable, "-S", "-c", code]


def test_pieces_that_passed_are_shown_and_not_run_again(tmp_path, capfd):
    count, folder = tmp_path / "count", tmp_path / "build" / "gpu"
    counting = piece(f"open({str(count)!r}, 'a').write('x'); print('counted')")
    pieces = {"passes": counting, "fails": piece("print('a table'); raise SystemExit(3)")}
    for _ in range(2):
        assert gpu.run(pieces, folder, cuda=True) == 1
        output = capfd.readouterr().out
        assert "counted" in output and "a table" in output and "fails did not pass: exit status 3" in output
        assert output.endswith("left: fails\n") and count.read_text() == "x"
    assert gpu.run(pieces | {"fails": piece("")}, folder, cuda=True) == 0
    assert capfd.readouterr().out.endswith("every piece has passed\n") and count.read_text() == "x"


def test_a_piece_beyond_its_time_is_stopped_and_the_next_one_run(tmp_path, capfd):
    pieces = {"long": piece("import time; time.sleep(60)"), "short": piece("print('short')")}
    assert gpu.run(pieces, tmp_path, limit=2, cuda=True) == 1
    output = capfd.readouterr().out
    assert "long did not pass: stopped after 2 s" in output and output.endswith("left: long\n")
    assert (tmp_path / "short.txt").read_text() == "short\n"


def test_without_cuda_what_is_left_is_listed(tmp_path, capfd):
    (tmp_path / "tests.txt").write_text("done")
    assert gpu.run(gpu.pieces(tmp_path), tmp_path, cuda=False) == 0
    output = capfd.readouterr().out
    assert "-m gpu" not in output and all(f"speed.py {name} --compile" in output for name in speed.SECTIONS)


def test_what_was_measured_is_put_into_one_table(tmp_path):
    place = {"device": "a card", "network": "resnet20"}
    rows = [{"title": "product", "name": "ours", "seconds": 0.0123, "ratio": 1.5} | place]
    rows += [{"title": "surface", "name": "fp32", "value": 61.0, "unit": "s", "reach": 60} | place]
    for name, row in zip(("product", "plane"), rows, strict=True):
        (tmp_path / f"{name}.json").write_text(json.dumps([row]))
    gpu.tabulate(tmp_path)
    assert json.loads((tmp_path / "table.json").read_text()) == rows
    assert (tmp_path / "table.md").read_text().splitlines()[-2:] == [
        "| product | ours | 12.3 ms, 1.50 × |  |",
        "| surface | fp32 | 61.00 s | ≤ 60, **falls short** |",
    ]


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_times_are_taken_between_two_events_with_the_device_idle_before(kind, monkeypatch):
    told = []

    class Event(speed.HostEvent):
        def __init__(self, **settings):
            told.append(f"event {settings}")

        def record(self):
            told.append("record")
            super().record()

        def synchronize(self):
            told.append("wait for it")

    fake = types.SimpleNamespace(Event=Event, synchronize=lambda device: told.append(f"wait for {device}"))
    monkeypatch.setattr(torch, "cuda", fake)
    seconds, result = speed.timed(lambda: told.append("call") or 7, torch.device(kind))
    event = "event {'enable_timing': True}"
    expected = ["wait for cuda", event, event, "record", "call", "record", "wait for it"]
    assert result == 7 and 0 <= seconds < 1 and told == (expected if kind == "cuda" else ["call"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_times_hold_what_the_gpu_still_does_when_the_call_returns():
    seconds, _ = speed.timed(lambda: torch.cuda._sleep(10**8), torch.device("cuda"))  # cycles
    assert seconds > 0.02
