"""Run the SLURM script of docs/guides/scale.md as it stands, over a stand-in for sbatch."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from clotkit.competitions import Competition
from clotkit.shards.table import read_shard_rows
from clotkit.stores import Folder

from .conftest import RECIPE, ROOT

# dask-jobqueue deletes the script as soon as sbatch returns, so it is copied first, as SLURM's own does.
SBATCH = """#!/usr/bin/env bash
cp "${@: -1}" "$JOBS.$$.sh"
setsid bash "$JOBS.$$.sh" >"$JOBS.$$.log" 2>&1 &
echo $! >> "$JOBS"
echo "Submitted batch job $!"
"""
SCANCEL = "#!/usr/bin/env bash\nexit 0\n"


@pytest.mark.slow_faults
def test_the_script_for_slurm_tiles_a_split(
    make_split: Callable[..., Path], strip_ai: Competition, tmp_path: Path
) -> None:
    split = make_split(tmp_path / "train", strip_ai, split="train", slides=4)
    (tmp_path / "tiny.toml").write_text(RECIPE)
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    text = (ROOT / "docs" / "guides" / "scale.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    changed = {"/data/train": str(split), "/data/tiles": str(tmp_path / "out"), "/local/scratch": str(tmp_path)}
    changed |= {'"strip_ai"': f'"{tmp_path / "tiny.toml"}"', "jobs=20": "jobs=2"}
    for was, now in changed.items():
        assert was in script
        script = script.replace(was, now)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "JOBS": str(tmp_path / "jobs")}
    (tmp_path / "slurm.py").write_text(script)
    try:
        command = [sys.executable, "slurm.py"]
        ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert ended.returncode == 0, ended.stderr
    finally:
        for pid in map(int, (tmp_path / "jobs").read_text().split()):
            if psutil.pid_exists(pid):
                os.killpg(pid, 9)
    assert [row.state for row in read_shard_rows(Folder(tmp_path / "out"), strip_ai)] == ["done"] * 4
