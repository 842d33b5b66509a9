"""Compare a run's wall time with decoding alone and the model alone: `python -m bench.overlap`.

A run decodes slides ahead of the model. Every measurement is a process of its own (`--one KIND`), timed after its
imports; the kinds take turns, round by round. There are four scenes, because on a CPU the slides' processes and the
network compete for the same cores:

waiting      Slides and network only wait, which shows the run's own order whatever else the machine does. A run cannot
             be faster than the slower of the two alone (`max alone`).
a device     Real slides, as many at a time as there are cores, and a network that only waits, as the parent does for a
             GPU: the same bound.
a core each  One slide at a time, a convolutional network and one TensorFlow thread: the same bound.
all cores    As many slides at a time as there are cores, and TensorFlow's default number of threads. Each alone takes
             every core, so a run cannot be faster than the CPU seconds of both over the cores (`CPU bound`).

The network's wait or width is set so that it costs about as much as decoding. The exit code is 1 if a target is missed.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.comparing import LIMIT_S, ROOT
from bench.measuring import cpu_s
from bench.results import header
from clotkit.competitions import load_competition
from clotkit.splits import read_slides
from clotkit.tiling.tilers import Batch
from clotkit.workers import Ended, Limits, Task, TileBatch, Work, stream, tile_task

SEED = 309
MAX_RATIO = 1.15  # of a run's wall time to the bound of its scene
BATCH_TILES = 8
WAIT_S = 0.2  # time per batch of a slide that waits
WIDTHS = (8, 12, 16, 24, 32, 40, 48, 56, 64, 80, 96, 128, 160, 192, 256)  # of the network's first layer
CLASSES = load_competition().classes.names
CORES = len(os.sched_getaffinity(0))
ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}


class Scene(NamedTuple):
    """One setting of the benchmark."""

    jobs: int  # slides at a time
    environment: dict[str, str]
    slides: str  # real or waiting
    network: str  # cnn or waiting
    asked_for: str  # the ratio that has a target


SCENES = {
    "waiting": Scene(2, {}, "waiting", "waiting", "ratio_to_max_alone"),
    "a device": Scene(CORES, {}, "real", "waiting", "ratio_to_max_alone"),
    "a core each": Scene(1, ONE_THREAD, "real", "cnn", "ratio_to_max_alone"),
    "all cores": Scene(CORES, {}, "real", "cnn", "ratio_to_cpu_bound"),
}
KINDS = ("decode", "model", "run")

RECIPE = """\
name = "{network}-{size}"

[tiling]
name = "patches"
tile_px = 128
downsample = 4
max_tiles = 48
batch_tiles = {batch_tiles}

[model]
name = "{network}"
filters = [{size}, {double}, {double}]
dropout = 0.0

[training]
seed = 1
epochs = 1
batch_tiles = 8
learning_rate = 1e-3
folds = 2
"""

CAPTION = """\
decode: the slides' processes without predictions. model: the same tiles in the same batches, from memory. run:
clotkit run. Seconds start after the imports, medians of {rounds}. others: cores that other programs used meanwhile; a
figure is unreliable if this is not near 0."""

Row = dict[str, Any]


def main() -> int:
    """Run the benchmark, or one measurement of it, and return the exit code."""
    options = _options()
    if options.one:
        print(json.dumps(measure(options.one, options.folder, options.member, options.jobs, options.waiting)))
        return 0
    split = draw(options.folder / f"overlap-{options.slides}-{options.size}", options.slides, options.size)
    rows = [scene(name, split, options.rounds) for name in options.scenes]
    lines = [target(row) for row in rows]
    print(header(), "", *table(rows), "", CAPTION.format(rounds=options.rounds), "", sep="\n")
    print("Targets:", *(text for _, text in lines), sep="\n")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0 if all(met for met, _ in lines) else 1


def _options() -> argparse.Namespace:
    line = argparse.ArgumentParser(prog="python -m bench.overlap", description=str(__doc__).splitlines()[0])
    line.add_argument("--slides", type=int, default=24, help="number of slides of the phantom split (default: 24)")
    line.add_argument("--size", default="6000x9000", help="their size, WxH in px (default: 6000x9000)")
    line.add_argument("--rounds", type=int, default=3, help="measurements of each kind (default: 3)")
    line.add_argument("--scenes", nargs="+", choices=SCENES, default=list(SCENES), metavar="SCENE")
    line.add_argument(
        "--folder", type=Path, default=ROOT / "build" / "bench", help="folder of the slides, kept for the next run"
    )
    line.add_argument("--out", type=Path, default=ROOT / "build" / "overlap.json", help="the JSON file to write")
    line.add_argument(
        "--one", choices=(*KINDS, "widths"), help="run one measurement on the split --folder and print JSON"
    )
    line.add_argument("--member", type=Path, help="member for that measurement")
    line.add_argument("--jobs", type=int, default=1, help="slides at a time in that measurement")
    line.add_argument("--waiting", action="store_true", help="slides of that measurement wait and are not read")
    return line.parse_args()


def draw(folder: Path, slides: int, size: str) -> Path:
    """Return the phantom split, drawn if it is missing."""
    from clotkit.synthetic.phantom import write_split

    if not (folder / "test.csv").exists():  # the table is written last
        write_split(folder, "test", slides, SEED, load_competition(), size=size, log=_say)
    return folder


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def scene(name: str, split: Path, rounds: int) -> Row:
    """Return the medians of one scene: seconds per kind, the network, the bounds and the ratios to them."""
    with tempfile.TemporaryDirectory() as folder:
        size = fitting_size(SCENES[name], split, Path(folder))
        member = write_member(Path(folder) / "member", SCENES[name].network, size)
        measured: dict[str, list[Row]] = {kind: [] for kind in KINDS}
        for _ in range(rounds):
            for kind in KINDS:
                measured[kind].append(_in_a_process(kind, split, member, SCENES[name]))
                _say(f"{name}, {kind}: {measured[kind][-1]}")
    kinds = {kind: _medians(rows) for kind, rows in measured.items()}
    return {"scene": name, **SCENES[name]._asdict(), "cores": CORES, "size": size, **kinds, **bounds(kinds)}


def fitting_size(scene: Scene, split: Path, folder: Path) -> int:
    """Return the network size that costs as much as decoding.

    It is the wait per batch in microseconds, or the width of the first layer.
    """
    member = write_member(folder / "first", scene.network, WIDTHS[0])
    decode = _in_a_process("decode", split, member, scene)
    if scene.network == "waiting":
        return round(1e6 * decode["wall_s"] / decode["batches"])
    costs = _in_a_process("widths", split, member, scene)
    return nearest_width(decode["wall_s"] / decode["batches"], costs["batch_s"])


def write_member(folder: Path, network: str, size: int) -> Path:
    """Write an untrained member in a process of its own, so that this one does not import TensorFlow."""
    code = "import sys; from bench.overlap import save_member; save_member(*sys.argv[1:3], int(sys.argv[3]))"
    subprocess.run([sys.executable, "-c", code, str(folder), network, str(size)], cwd=ROOT, check=True)
    return folder


def save_member(where: str, network: str, size: int) -> None:
    """Write a member whose network is a CNN of width `size`, or waits `size` microseconds per batch."""
    from clotkit.members import folder as names
    from clotkit.members.calibration import Calibration

    folder = Path(where)
    folder.mkdir(parents=True)
    (folder / names.RECIPE).write_text(recipe_text(network, size))
    (folder / names.METRICS).write_text(json.dumps({"classes": CLASSES}))
    identity = Calibration(slope=1.0, offsets=(0.0,) * len(CLASSES), floor=0.01)
    (folder / names.CALIBRATION).write_text(json.dumps(identity.to_json()))
    untrained(folder).save_weights(folder / names.WEIGHTS)


def recipe_text(network: str, size: int) -> str:
    """Return the recipe of such a member."""
    return RECIPE.format(network=network, size=size, double=2 * size, batch_tiles=BATCH_TILES)


def untrained(member: Path) -> Any:
    """Return the network of a member's recipe."""
    from clotkit.config import load_recipe
    from clotkit.members import loading, networks
    from clotkit.members.folder import RECIPE as NAME

    recipe = load_recipe(member / NAME)
    micros = recipe.model[0].filters[0]
    networks.MODEL_REGISTRY["waiting"] = networks.ModelSpec(lambda: [], lambda side_px: _waiting(side_px, micros))
    return loading.build_member(recipe, len(CLASSES))[1]


def _waiting(side_px: int, micros: int) -> Any:
    """Return a model that maps pixels to their mean colour after a wait without a core, as for a GPU.

    [n, side, side, 3] -> [n, 1, 1, 3].
    """
    import tensorflow as tf
    from keras import Sequential, layers

    def wait(values: np.ndarray) -> np.ndarray:
        time.sleep(micros / 1e6)
        return values

    class Wait(layers.Layer):  # type: ignore[misc]
        def call(self, values: Any) -> Any:
            return tf.ensure_shape(tf.numpy_function(wait, [values], values.dtype), values.shape)

    pixels = layers.Input((side_px, side_px, 3))
    return Sequential([pixels, layers.Rescaling(1 / 255), layers.AveragePooling2D(side_px), Wait()])


def nearest_width(wanted_s: float, batch_s: Mapping[str, float]) -> int:
    """Return the width whose seconds per batch have the ratio closest to 1 to those wanted."""
    return int(min(batch_s, key=lambda width: abs(math.log(batch_s[width] / wanted_s))))


def _in_a_process(kind: str, split: Path, member: Path, scene: Scene) -> Row:
    command = [sys.executable, "-m", "bench.overlap", "--one", kind, "--folder", str(split)]
    command += ["--member", str(member), "--jobs", str(scene.jobs)]
    command += ["--waiting"] if scene.slides == "waiting" else []
    environment = os.environ | scene.environment
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, timeout=LIMIT_S, check=True
    )
    return dict(json.loads(ended.stdout.splitlines()[-1]))


def measure(kind: str, split: Path, member: Path, jobs: int, waiting: bool = False) -> Row:
    """Measure one kind in this process: wall and CPU seconds, tiles, and cores that other programs used.

    CPU seconds include children. The kind `widths` returns seconds per batch for each of WIDTHS instead.
    """
    if kind == "widths":
        return {"batch_s": batch_costs(member)}
    from bench.overlap import waiting_tiles  # under its own name: this module may be __main__, which a child lacks

    slides = waiting_tiles if waiting else tile_task
    work = {"decode": decode_alone, "model": model_alone, "run": whole_run}[kind](split, member, jobs, slides)
    began_cpu_s, busy_s, wall_s = cpu_s(), _busy_s(), time.perf_counter()
    done = work()
    own_s, busy_s, wall_s = cpu_s() - began_cpu_s, _busy_s() - busy_s, time.perf_counter() - wall_s
    others = max(0.0, busy_s - own_s) / wall_s
    return {"wall_s": round(wall_s, 3), "cpu_s": round(own_s, 3), **done, "others": round(others, 2)}


def _busy_s() -> float:
    """Return the CPU seconds of the whole machine since it started, without idle and waiting time."""
    user, nice, system, _idle, _wait, *interrupts = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + sum(interrupts[:2])) / os.sysconf("SC_CLK_TCK")


def decode_alone(split: Path, member: Path, jobs: int, slides: Work) -> Callable[[], Row]:
    """Return work that does everything but the network and returns its numbers of tiles and batches."""
    return lambda: _counts(batches(split, member, jobs, slides))


def _counts(parts: Sequence[np.ndarray]) -> Row:
    return {"tiles": sum(map(len, parts)), "batches": len(parts)}


def batches(split: Path, member: Path, jobs: int, work: Work) -> list[np.ndarray]:
    """Return the tiles of every slide, uint8[n, H, W, 3] per batch, in the order in which they arrive."""
    from clotkit.config import load_recipe

    competition, tiling = load_competition(), load_recipe(member / "recipe.toml").tiling
    rows = sorted(read_slides(split, "test", competition), key=lambda row: row.size_bytes)
    tasks = [Task(row.image_id, row.path, (tiling,)) for row in rows]
    limits = Limits(competition.limits.slide_s, competition.limits.slide_memory_mb)
    tiles = []
    for event in stream(tasks, limits, jobs, work):
        if isinstance(event, TileBatch):
            tiles.append(event.batch.tiles)
        elif isinstance(event, Ended) and event.code is not None:
            raise RuntimeError(f"{event.image_id}: {event.reason}")
    return tiles


def waiting_tiles(task: Task) -> Iterator[tuple[int, Batch]]:
    """Yield four grey batches, each after WAIT_S without a core; no file is read."""
    shape = (BATCH_TILES, task.tilings[0].tile_px, task.tilings[0].tile_px, 3)
    for grey in (100, 130, 160, 190):
        time.sleep(WAIT_S)
        yield 0, Batch(np.full(shape, grey, np.uint8), np.zeros((BATCH_TILES, 2), np.int32))


def model_alone(split: Path, member: Path, jobs: int, slides: Work) -> Callable[[], Row]:
    """Return work that loads the member and predicts what a run predicts, from memory."""
    from clotkit.members.loading import load_member

    tiles = batches(split, member, jobs, slides)
    untrained(member)

    def work() -> Row:
        predict = load_member(member, CLASSES).predict
        return _counts([predict(batch) for batch in tiles])

    return work


def whole_run(split: Path, member: Path, jobs: int, slides: Work) -> Callable[[], Row]:
    """Return work that does what `clotkit run` does after the import of Keras."""
    from clotkit.report.records import read_report
    from clotkit.scoring.pipeline import run
    from clotkit.scoring.settings import RunSettings

    competition = load_competition()
    untrained(member)

    def work() -> Row:
        with tempfile.TemporaryDirectory() as folder:
            settings = RunSettings(split, member, Path(folder), float(LIMIT_S), 4096, jobs)
            counts = run(settings, competition, log=lambda _: None, work=slides)
            if counts["partial"] or counts["fallback"]:
                raise RuntimeError(f"not every slide was scored: {counts}")
            return {"tiles": sum(line.tiles for line in read_report(Path(folder) / "report.jsonl"))}

    return work


def batch_costs(member: Path) -> dict[str, float]:
    """Return the seconds per batch of each width: the minimum of three, after the first call."""
    from clotkit.members.folder import RECIPE as NAME
    from clotkit.members.predict import predictor

    tiles = np.random.default_rng(SEED).integers(0, 256, (BATCH_TILES, 128, 128, 3)).astype(np.uint8)
    costs = {}
    for width in WIDTHS:
        (member / NAME).write_text(recipe_text("cnn", width))
        predict = predictor(untrained(member), len(tiles))
        predict(tiles)
        costs[str(width)] = min(_seconds(lambda: predict(tiles)) for _ in range(3))  # noqa: B023 - used at once
    return costs


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _medians(rows: list[Row]) -> Row:
    return {key: round(statistics.median(row[key] for row in rows), 3) for key in rows[0]}


def bounds(kinds: Mapping[str, Row]) -> Row:
    """Return the minimum wall seconds, by both bounds, and the run's ratio to each."""
    decode, model, run = (kinds[kind] for kind in KINDS)
    max_alone_s = max(decode["wall_s"], model["wall_s"])
    cpu_bound_s = max(max_alone_s, (decode["cpu_s"] + model["cpu_s"]) / CORES)
    return {
        "max_alone_s": round(max_alone_s, 3),
        "cpu_bound_s": round(cpu_bound_s, 3),
        "ratio_to_max_alone": round(run["wall_s"] / max_alone_s, 3),
        "ratio_to_cpu_bound": round(run["wall_s"] / cpu_bound_s, 3),
    }


def table(rows: list[Row]) -> list[str]:
    """Return the rows as lines of text."""
    columns = ("scene", "kind", "slides at a time", "tiles", "wall s", "CPU s", "others")
    lines = ["{:12} {:7} {:>16} {:>6} {:>8} {:>8} {:>7}".format(*columns)]
    for row in rows:
        for kind in KINDS:
            one = row[kind]
            lines.append(
                f"{row['scene']:12} {kind:7} {row['jobs']:16} {one['tiles']:6.0f} {one['wall_s']:8.2f} "
                f"{one['cpu_s']:8.2f} {one['others']:7.2f}"
            )
        lines.append(
            f"{row['scene']:12} run over max alone ({row['max_alone_s']:.2f} s): {row['ratio_to_max_alone']:.2f}; "
            f"over CPU bound ({row['cpu_bound_s']:.2f} s): {row['ratio_to_cpu_bound']:.2f}"
        )
    return lines


def target(row: Row) -> tuple[bool, str]:
    """Return whether a scene's target is met, and a line with both figures."""
    reached = row[row["asked_for"]]
    met = reached <= MAX_RATIO
    what = row["asked_for"].replace("ratio_to_", "run over ").replace("_", " ")
    return met, f"{'met   ' if met else 'MISSED'} {row['scene']}: {what}: {reached:.2f}, wanted at most {MAX_RATIO}"


if __name__ == "__main__":
    sys.exit(main())
