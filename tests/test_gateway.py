"""Test the gateway of a rehearsal: what it sends and checks, and the rehearsals that must not pass."""

import json
import math
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clotkit.competitions import Competition
from clotkit.errors import RehearsalError
from clotkit.kaggle.kernels import read_kernel
from clotkit.reasons import Reason, RehearsalKind
from clotkit.rehearsal import server as server_module
from clotkit.rehearsal.gateway import Failure, Gateway
from clotkit.rehearsal.gateway_faults import GatewayFault
from clotkit.rehearsal.sandbox import Rehearsal
from clotkit.rehearsal.server import Server
from clotkit.rehearsal.serving import rehearse_serving
from clotkit.rehearsal.standin import relay
from clotkit.rehearsal.standin.templates import InferenceServer
from clotkit.report.records import SlideReport, read_report
from clotkit.serving.frames import text_of
from clotkit.splits import read_slides
from clotkit.submission.checking import check_submission
from clotkit.supervise import State, read_status

from .conftest import ROOT

KERNEL, WHEELS = ROOT / "kernels" / "serve", ROOT / "build" / "wheels"
BATCH_S = 1.0


class Here:
    """A server in this process, with the methods of a sandboxed one."""

    def __init__(self, predict: Callable[..., Any], folder: Path) -> None:
        def named(*values: Any) -> Any:
            return predict(*values)

        named.__name__ = "predict"
        self.inference = InferenceServer(named)
        self.inference.serve()
        self.client = relay.Client(self.inference.path)
        self.shared, self.resets, self.seen = folder / "shared", 0, list[list[str]]()

    def send(self, *values: Any) -> Any:
        self.seen.append(sorted(path.name for path in self.shared.rglob("*.tif") if path.stat().st_size))
        return self.client.send("predict", *values, limit_s=BATCH_S)

    def held(self, _paths: list[Path]) -> list[str]:
        return []

    def reset(self) -> None:
        self.resets += 1

    def close(self) -> None:
        self.client.close()
        self.inference.server.stop(0)


@pytest.fixture
def playing(test_split: Path, strip_ai: Competition, tmp_path: Path) -> Iterator[Callable[..., tuple[Gateway, Here]]]:
    """Return a function that makes a gateway to a function."""
    made: list[Here] = []

    def make(predict: Callable[..., Any]) -> tuple[Gateway, Here]:
        made.append(Here(predict, tmp_path))
        slides = read_slides(test_split, "test", strip_ai, lambda _: None)
        return Gateway(cast("Server", made[-1]), slides, test_split, strip_ai), made[-1]

    yield make
    for server in made:
        server.close()


def even(frame: Any, *_more: Any) -> Any:
    return type(frame)({"CE": [0.5] * len(frame), "LAA": [0.5] * len(frame)})


def test_every_slide_is_sent_once_with_its_file(
    playing: Callable[..., tuple[Gateway, Here]], test_split: Path, strip_ai: Competition, tmp_path: Path
) -> None:
    gateway, server = playing(even)
    batches = gateway.batches(seed=1, batch_rows=1)
    gateway.play(batches, resets=[1])
    images = [list(batch["image_id"]) for batch in batches]
    assert sorted(image for batch in images for image in batch) == sorted(gateway.slides)
    assert server.seen == [sorted(f"{image}.tif" for image in batch) for batch in images]
    assert (server.resets, gateway.results.failures, gateway.results.rows) == (1, [], 4)
    assert not any(path.stat().st_size for path in server.shared.rglob("*.tif"))
    gateway.write_submission(tmp_path / "submission.csv")
    sample = strip_ai.sample_path(test_split)
    assert check_submission(tmp_path / "submission.csv", sample, strip_ai).valid


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (lambda frame, *_: even(frame.iloc[1:]), Failure.INVALID),
        (lambda frame, *_: even(pd.concat([frame, frame])), Failure.INVALID),
        (lambda frame, *_: pd.DataFrame({"CE": [None] * len(frame)}), Failure.INVALID),
        (lambda frame, *_: pd.DataFrame({"CE": [math.inf] * len(frame)}), Failure.INVALID),
        (lambda _frame, *_: None, Failure.INVALID),
        (lambda _frame, *_: 1 / 0, Failure.RAISED),
        (lambda _frame, *_: {1, 2}, Failure.RAISED),
    ],
)
def test_wrong_answers_are_noticed(
    answer: Callable[..., Any], failure: Failure, playing: Callable[..., tuple[Gateway, Here]]
) -> None:
    gateway, _ = playing(answer)
    gateway.play(gateway.batches(seed=1, batch_rows=4))
    assert [kind for kind, _ in gateway.results.failures] == [failure]
    assert (gateway.results.facts[failure], gateway.results.answers) == (1, {})


def test_late_answers_and_servers_that_are_gone_are_noticed(playing: Callable[..., tuple[Gateway, Here]]) -> None:
    over = threading.Event()

    def late(frame: Any) -> Any:
        over.wait(60)
        return even(frame)

    gateway, server = playing(late)
    batch = gateway.batches(seed=1)[0]
    assert gateway.send(batch) is None
    over.set()
    server.inference.server.stop(0).wait()
    assert gateway.send(batch) is None
    assert [kind for kind, _ in gateway.results.failures] == [Failure.MISSED, Failure.GONE]


@pytest.mark.parametrize("fault", GatewayFault)
def test_faults_are_played(fault: GatewayFault, playing: Callable[..., tuple[Gateway, Here]], tmp_path: Path) -> None:
    rows: list[tuple[int, int]] = []

    def predict(*frames: Any) -> Any:
        rows.append((len(frames), len(frames[0])))
        return even(frames[0])

    gateway, server = playing(predict)
    object.__setattr__(server, "stop_members", lambda: None)
    batch = gateway.batches(seed=1)[0]
    gateway.play_fault(fault, batch, tmp_path)
    more = {GatewayFault.NULL_ROW: 1, GatewayFault.REPEATED_ROW: 1, GatewayFault.NO_ROW: -len(batch)}.get(fault, 0)
    assert rows == [(1 + (fault is GatewayFault.SECOND_FRAME), len(batch) + more)]
    assert server.resets == (fault is GatewayFault.RESET)
    files = 0 if fault in {GatewayFault.NO_ROW, GatewayFault.NO_SLIDE} else batch["image_id"].nunique()
    assert len(server.seen[0]) == files - (fault is GatewayFault.NULL_IMAGE)


FALLEN: dict[GatewayFault, list[bool | None]] = {  # of a batch of three slides, the last of which falls back anyway
    GatewayFault.BROKEN_SLIDE: [True, False, True],
    GatewayFault.STUCK_MEMBERS: [True, True, True],
    GatewayFault.NO_SLIDE: [True, True, True],
    GatewayFault.NULL_IMAGE: [None, False, True],
    GatewayFault.NO_ROW: [None, None, None],
}


@pytest.mark.parametrize("fault", GatewayFault)
def test_the_slides_of_a_batch_with_a_fault_are_checked(
    fault: GatewayFault, playing: Callable[..., tuple[Gateway, Here]]
) -> None:
    """Each other state of a slide is noticed, and a slide that is not in the report."""
    gateway, _ = playing(even)
    batch = pd.DataFrame({"image_id": ["a", "b", "c"]})
    fallen = FALLEN.get(fault, [False, False, True])
    states = {one: "fallback" if falls else "done" for one, falls in zip("abc", fallen, strict=True)}

    def failures(states: dict[str, str]) -> list[Failure]:
        gateway.results.failures.clear()
        lines = [SlideReport(one, one, cast("Any", state), "", 1, 1.0, 1.0) for one, state in states.items()]
        gateway.check_states(fault, batch, {"a": False, "b": False, "c": True}, lines)
        return [kind for kind, _ in gateway.results.failures]

    assert failures(states) == []
    for one, falls in zip("abc", fallen, strict=True):
        wrong = [Failure.STATES] * (falls is not None)
        assert failures(states | {one: "done" if falls else "fallback"}) == wrong
        assert failures({other: state for other, state in states.items() if other != one}) == wrong


def test_a_kernel_that_ends_or_is_given_up_before_its_server_is_up_leaves_nothing(
    strip_ai: Competition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = list[subprocess.Popen[str]]()
    codes = iter(["raise SystemExit(3)", "import time; time.sleep(600)"])

    def launch(*_: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", next(codes)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True))
        return started[-1]

    def interrupted(*_: Any) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(server_module, "launch", launch)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stage = cast("Any", SimpleNamespace(root=tmp_path, working=tmp_path))
    with pytest.raises(RehearsalError) as caught, Server(stage, cast("Any", None), strip_ai.serving, lambda _: None):
        pass
    assert caught.value.kind is RehearsalKind.SERVER
    monkeypatch.setattr(relay.Client, "is_up", interrupted)
    with pytest.raises(KeyboardInterrupt), Server(stage, cast("Any", None), strip_ai.serving, lambda _: None):
        pass
    assert [process.poll() is not None for process in started] == [True, True]
    assert not list(tmp_path.glob("clotkit-*"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(VALUES)
def test_values_come_as_they_were_sent(value: Any) -> None:
    assert relay.decoded(json.loads(json.dumps(relay.encoded(value)))) == value


@pytest.mark.parametrize("library", [pd, pl])
def test_frames_and_series_come_as_they_were_sent(library: Any) -> None:
    frame = library.DataFrame({"a": ["x", None], "b": [1.5, 2.5]})
    for value in (frame, library.Series(name="s", **{"values" if library is pl else "data": [1, 2]}), (1, [frame])):
        sent = relay.decoded(json.loads(json.dumps(relay.encoded(value))))
        assert type(sent) is type(value)
    sent = relay.decoded(json.loads(json.dumps(relay.encoded(frame))))
    assert [text_of(cell) for cell in sent["a"].to_list()] == ["x", ""]
    assert sent["b"].to_list() == [1.5, 2.5]
    with pytest.raises(TypeError):
        relay.encoded(object())
    with pytest.raises(TypeError):
        relay.decoded(["frame", "os", {}])


@pytest.mark.slow
def test_the_kernel_serves_every_slide(test_split: Path, member: Path, tmp_path: Path, strip_ai: Competition) -> None:
    out, lines = tmp_path / "out", list[str]()
    assert rehearse_serving(str(test_split), member, Rehearsal(KERNEL, "strip_ai", WHEELS, "old", out, lines.append))
    facts = json.loads((out / "rehearsal.json").read_text())
    assert (facts["state"], facts["codes"], facts["slides"]["done"]) == ("done", [], 4)
    assert "gateway" in facts["not_rehearsed"]
    played = facts["gateway"]["old"]
    assert [played[failure] for failure in Failure] == [0] * len(Failure)
    assert len(played["up_s"]) == 2
    assert read_kernel(KERNEL, "strip_ai", out).source == (out / "script.py").read_text()  # it may be pushed
    working = out / "old-rerun" / "kaggle" / "working"
    codes = {code for line in read_report(working / "report.jsonl") for code in line.codes}
    assert {Reason.BAD_ROW, Reason.DAMAGED, Reason.DEADLINE} <= codes
    status = read_status(out / "old" / "kaggle" / "working")  # of the commit
    assert status is not None
    assert (status.state, status.slides["done"]) == (State.DONE, 4)


# A kernel whose commit is sound, and whose server answers as BAD says in the re-run.
MAIN = """
import json, os, sys
from pathlib import Path
from typing import Any
FILES: dict[str, str] = {}
SETTINGS: dict[str, Any] = {}
ROOT = Path(os.environ["CLOTKIT_KAGGLE_ROOT"])
data = next(ROOT.glob("input/*/*/kaggle_evaluation")).parent
sys.path.insert(0, str(data))
from kaggle_evaluation.competition_inference_server import CompetitionInferenceServer
import pandas as pd
status = {"job": "serve", "state": "done", "wheels": "used"}
(ROOT / "working" / "status.json").write_text(json.dumps(status))
(ROOT / "working" / "report.jsonl").touch()
kept = []
def good(frame, *more):
    return pd.DataFrame({"CE": [0.5] * len(frame), "LAA": [0.5] * len(frame)})
def bad(frame, *more):
    BAD
def predict(*values):
    return (bad if rerun else good)(*values)
rerun = "KAGGLE_IS_COMPETITION_RERUN" in os.environ
server = CompetitionInferenceServer(predict)
server.serve() if rerun else server.run_local_gateway()
"""
OPENS = "kept.extend(open(path) for path in (ROOT / 'shared').rglob('*.tif')); return good(frame)"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bad", "failure"),
    [
        ("return good(frame.iloc[1:])", "invalid"),
        ("raise ValueError", "raised"),
        (OPENS, "held"),
        ("os._exit(1)", "gone"),
    ],
)
def test_a_server_that_answers_wrongly_does_not_pass(
    bad: str, failure: str, test_split: Path, member: Path, tmp_path: Path
) -> None:
    kernel = tmp_path / "serve"
    shutil.copytree(KERNEL, kernel)
    (kernel / "main.py").write_text(MAIN.replace("BAD", bad))
    out = tmp_path / "out"
    with pytest.raises(RehearsalError, match=failure) as caught:
        rehearse_serving(str(test_split), member, Rehearsal(kernel, "strip_ai", WHEELS, "new", out, lambda _: None))
    assert caught.value.kind is RehearsalKind.SERVER
