"""Compare a member's out-of-fold predictions on a phantom with the best that its generator allows.

python -m bench.separation MEMBER --data PHANTOM

A phantom's classes differ only by the share of red cells. Whoever knows every slide's share and how it is drawn has the
exact probability of each class, so no member can be expected to score better. The difference is the price of seeing the
share in pixels.
"""

import argparse
import json
import sys
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd

from clotkit.metric import balanced_log_loss
from clotkit.splits import SYNTHETIC
from clotkit.synthetic.phantom import CLASS_SHIFT, PATIENT_SD, SLIDE_SD

MAX_EXCESS = 0.02  # of the weighted log loss over the best


def best_probabilities(data: Path, images: Collection[str] | None = None) -> pd.DataFrame:
    """Return one row per patient of a phantom's train split: label (0 or 1) and p, the exact P(class 1).

    It knows the slides `images`, or all for None; patients without one of them are left out.

    A patient's mean share is Gaussian in each class. The means lie 2 * separation * CLASS_SHIFT apart; the variance is
    that of patients plus that of slides over their number. Both classes have equal weight, as in the metric.
    """
    truth = json.loads((data / SYNTHETIC).read_text(encoding="utf-8"))["splits"]["train"]
    names = sorted(set(truth["labels"].values()))
    slides = pd.DataFrame(
        [
            (patient_of(image, truth["labels"]), entry["red_share"])
            for image, entry in truth["slides"].items()
            if images is None or image in images
        ],
        columns=["patient", "share"],
    )
    people = slides.groupby("patient")["share"].agg(["mean", "size"])
    variance = PATIENT_SD**2 + SLIDE_SD**2 / people["size"]
    log_odds = (
        -2 * truth["separation"] * CLASS_SHIFT * (people["mean"] - 0.5) / variance
    )  # the last class has fewer red cells
    labels = [names.index(truth["labels"][patient]) for patient in people.index]
    return pd.DataFrame({"label": labels, "p": 1 / (1 + np.exp(-log_odds))}, index=people.index)


def patient_of(image: str, labels: dict[str, str]) -> str:
    """Return the patient whose id is the prefix of an image's id."""
    return next(patient for patient in labels if image.startswith(patient))


def main() -> int:
    """Print both losses and their difference; return 1 if it exceeds MAX_EXCESS."""
    line = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    line.add_argument("member", type=Path)
    line.add_argument("--data", type=Path, required=True)
    options = line.parse_args()
    best = best_probabilities(options.data)
    metrics = json.loads((options.member / "metrics.json").read_text(encoding="utf-8"))
    rows = [[1 - p, p] for p in best["p"]]
    allowed = balanced_log_loss(rows, best["label"].tolist(), metrics["class_weights"], metrics["clip"])
    loss = metrics["weighted_log_loss"]
    print(f"{len(best)} patients: the generator allows {allowed:.4f}, the member has {loss:.4f} "
          f"({metrics['weighted_log_loss_low']:.3f} to {metrics['weighted_log_loss_high']:.3f}), "
          f"{loss - allowed:+.4f} (target: at most {MAX_EXCESS:+})")  # fmt: skip
    return int(loss - allowed > MAX_EXCESS)


if __name__ == "__main__":
    sys.exit(main())
