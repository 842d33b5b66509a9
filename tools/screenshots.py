"""Take the pictures of the README and the site again: a run's report, and the application.

The run is real: 12 synthetic slides, one of them broken, scored by the member in weights/demo. Chromium draws the
report without a window. The pictures of the application are those that `make test-browser` left in build/screenshots.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image

from clotkit.cli import main as clotkit

ROOT = Path(__file__).resolve().parents[1]
SHOTS, IMAGES = ROOT / "build" / "screenshots", ROOT / "docs" / "images"
WIDTH_PX, HEIGHT_PX = 1280, 1350
MAX_BYTES = 300_000
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
APPLICATION = {
    "classify-sample.png": "app-classify.png",
    "home-desk-light.png": "app-home.png",
    "runs-compared.png": "app-compare.png",
    "viewer-two.png": "app-viewer.png",
}


def main() -> int:
    """Take the picture of a run's report, and the pictures that the browser's tests left."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        print("screenshots: no chromium here; install it (Debian: apt-get install chromium)", file=sys.stderr)
        return 2
    save_small(photographed(report_of_a_run(SHOTS / "run"), browser), IMAGES / "run-report.png")
    for name, picture in APPLICATION.items():
        if (SHOTS / name).is_file():
            save_small(SHOTS / name, IMAGES / picture)
        else:
            print(f"screenshots: {SHOTS / name} is missing; make test-browser takes it")
    return 0


def report_of_a_run(folder: Path) -> Path:
    """Draw a split, cut one of its files short, score it, and return the path of the report."""
    shutil.rmtree(folder, ignore_errors=True)
    split, run = folder / "split", folder / "run"
    clotkit(["phantom", str(split), "--split", "test", "--slides", "12", "--seed", "2022"])
    broken = sorted((split / "test").glob("*.tif"))[4]
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    clotkit(["run", str(split), "--weights", str(ROOT / "weights" / "demo"), "--out", str(run)])
    return run / "report.html"


def photographed(page: Path, browser: str) -> Path:
    """Return the path of a screenshot of the top of a page."""
    shot = page.with_suffix(".png")
    flags = ["--headless=new", "--no-sandbox", "--hide-scrollbars", "--virtual-time-budget=5000"]
    flags += [f"--window-size={WIDTH_PX},{HEIGHT_PX}", f"--screenshot={shot}"]
    subprocess.run([browser, *flags, page.as_uri()], check=True, capture_output=True, timeout=120)
    return shot


def save_small(shot: Path, picture: Path) -> None:
    """Save a screenshot as a PNG of at most MAX_BYTES: with a palette, of fewer colours if needed."""
    image = Image.open(shot).convert("RGB")
    for colours in (256, 128, 64, 32):
        image.quantize(colours).save(picture, optimize=True)
        if picture.stat().st_size <= MAX_BYTES:
            break
    print(f"{picture.relative_to(ROOT)}: {picture.stat().st_size:,} bytes")


if __name__ == "__main__":
    sys.exit(main())
