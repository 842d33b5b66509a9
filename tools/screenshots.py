"""Take the picture of a run's report that the README and the site show: docs/images/run-report.png.

The run is real: 12 synthetic slides, one of them broken, scored by the member in weights/demo. Chromium draws the
page without a window.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image

from clotkit.cli import main as clotkit

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "screenshots" / "run"
PICTURE = ROOT / "docs" / "images" / "run-report.png"
WIDTH_PX, HEIGHT_PX = 1280, 1100
MOST_BYTES = 300_000
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> int:
    """Make the split, score it, and photograph the report."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        print("screenshots: no chromium here; install it (Debian: apt-get install chromium)", file=sys.stderr)
        return 2
    shutil.rmtree(WORK, ignore_errors=True)
    split, run = WORK / "split", WORK / "run"
    clotkit(["phantom", str(split), "--split", "test", "--slides", "12", "--seed", "2022"])
    broken = sorted((split / "test").glob("*.tif"))[4]
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    clotkit(["run", str(split), "--weights", str(ROOT / "weights" / "demo"), "--out", str(run)])
    shot = WORK / "report.png"
    flags = ["--headless=new", "--no-sandbox", "--hide-scrollbars", "--virtual-time-budget=5000"]
    flags += [f"--window-size={WIDTH_PX},{HEIGHT_PX}", f"--screenshot={shot}"]
    subprocess.run([browser, *flags, (run / "report.html").as_uri()], check=True, capture_output=True, timeout=120)
    save_small(shot)
    return 0


def save_small(shot: Path) -> None:
    """Save a screenshot as a PNG of at most MOST_BYTES: with a palette, of fewer colours if needed."""
    picture = Image.open(shot).convert("RGB")
    for colours in (256, 128, 64, 32):
        picture.quantize(colours).save(PICTURE, optimize=True)
        if PICTURE.stat().st_size <= MOST_BYTES:
            break
    print(f"{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size:,} bytes")


if __name__ == "__main__":
    sys.exit(main())
