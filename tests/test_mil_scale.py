"""Test heads over features at scale: memory by number of slides, and trainings that are killed."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .mil_data import write_recipe, write_slides

pytestmark = pytest.mark.soak
TILES, WIDTH = 1000, 512  # a slide has 750 tiles on average, 768 KB
MAX_GROWTH_MB = 150  # 47 and 88 were measured, whatever the tiles; the features of 450 slides are 345 MB
PEAK = (
    "import sys; from clotkit.cli import main; code = main(sys.argv[1:]); "
    "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')), end=''); sys.exit(code)"
)


def train(recipe: Path, data: Path, out: Path) -> list[str]:
    return ["train", str(recipe), "--data", str(data), "--out", str(out)]


def test_memory_does_not_grow_with_the_slides(tmp_path: Path) -> None:
    recipe, peaks_mb = write_recipe(tmp_path / "r.toml", "clam", epochs=1), dict[int, float]()
    for slides in (50, 500):
        data = write_slides(tmp_path / str(slides), slides, TILES, width=WIDTH)
        command = [sys.executable, "-c", PEAK, *train(recipe, data, tmp_path / f"m{slides}")]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks_mb[slides] = int(done.stdout.splitlines()[-1].split()[1]) / 1024
    print(f"peak memory: {peaks_mb[50]:.0f} MB of 50 slides, {peaks_mb[500]:.0f} MB of 500")
    assert peaks_mb[500] - peaks_mb[50] < MAX_GROWTH_MB


def test_a_training_killed_at_random_instants_writes_the_same_files(tmp_path: Path) -> None:
    data, recipe = write_slides(tmp_path / "data"), write_recipe(tmp_path / "r.toml", "abmil", epochs=15)
    command = [sys.executable, "-m", "clotkit.cli"]
    started = time.monotonic()
    subprocess.run([*command, *train(recipe, data, tmp_path / "whole")], check=True)
    whole_s = time.monotonic() - started
    rng, killed = random.Random(5), 0
    for _ in range(2):
        process = subprocess.Popen([*command, *train(recipe, data, tmp_path / "killed")])
        try:
            process.wait(rng.uniform(0.3, 0.9) * whole_s)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            killed += process.wait() < 0
    subprocess.run([*command, *train(recipe, data, tmp_path / "killed")], check=True)
    assert killed
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "killed").iterdir())
    for name in files:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name
