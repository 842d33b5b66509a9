"""What a member's out-of-fold predictions on a phantom are worth, against the best that its generator allows.

python -m bench.separation MEMBER --data PHANTOM

A phantom's classes differ by the share of red cells alone, so whoever knows every slide's share, and how it is drawn,
has the exact probability of each class: no member can be expected to score better. What remains is the price of having
to see it in pixels.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from clotkit.metric import balanced_log_loss
from clotkit.splits import SYNTHETIC
from clotkit.synthetic.phantom import CLASS_SHIFT, PATIENT_SD, SLIDE_SD

WANTED = 0.02  # of weighted log loss above the best


def best_probabilities(data: Path) -> pd.DataFrame:
    """A row a patient of a phantom's train split: label (0 or 1) and p, the exact probability of class 1.

    A patient's mean share is Gaussian in each class: the means lie 2 * separation * CLASS_SHIFT apart, the variance is
    that of patients plus that of slides over their number. Both classes count alike, as in the metric.
    """
    truth = json.loads((data / SYNTHETIC).read_text(encoding="utf-8"))["splits"]["train"]
    names = sorted(set(truth["labels"].values()))
    slides = pd.DataFrame(
        [(patient_of(image, truth["labels"]), entry["red_share"]) for image, entry in truth["slides"].items()],
        columns=["patient", "share"],
    )
    people = slides.groupby("patient")["share"].agg(["mean", "size"])
    variance = PATIENT_SD**2 + SLIDE_SD**2 / people["size"]
    log_odds = -2 * truth["separation"] * CLASS_SHIFT * (people["mean"] - 0.5) / variance  # the last class has less
    labels = [names.index(truth["labels"][patient]) for patient in people.index]
    return pd.DataFrame({"label": labels, "p": 1 / (1 + np.exp(-log_odds))}, index=people.index)


def patient_of(image: str, labels: dict[str, str]) -> str:
    """The patient whose id an image's begins with."""
    return next(patient for patient in labels if image.startswith(patient))


def main() -> int:
    """Print both losses and their difference; 1 when it is above WANTED."""
    line = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    line.add_argument("member", type=Path)
    line.add_argument("--data", type=Path, required=True)
    options = line.parse_args()
    best = best_probabilities(options.data)
    metrics = json.loads((options.member / "metrics.json").read_text(encoding="utf-8"))
    rows = [[1 - p, p] for p in best["p"]]
    allowed = balanced_log_loss(rows, best["label"].tolist(), metrics["class_weights"], metrics["clip"])
    seen = metrics["weighted_log_loss"]
    print(f"{len(best)} patients: the generator allows {allowed:.4f}, the member has {seen:.4f} "
          f"({metrics['weighted_log_loss_low']:.3f} to {metrics['weighted_log_loss_high']:.3f}), "
          f"{seen - allowed:+.4f} (wanted: at most {WANTED:+})")  # fmt: skip
    return int(seen - allowed > WANTED)


if __name__ == "__main__":
    sys.exit(main())
