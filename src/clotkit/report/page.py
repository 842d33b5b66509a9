"""Make report.html: the results of a run on one page that needs no other file.

The page is a Jinja2 template (report.html.j2, report.css, report.js) that escapes every text from a file; this module
computes what it shows. Its security policy allows no script but its own. Slides are read and written one by one.
"""

import base64
import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import Any

from clotkit import metric
from clotkit.errors import ClotkitError, UsageError
from clotkit.files import ESCAPED, atomic_write, sha256
from clotkit.members.calibration import Calibration
from clotkit.report import records
from clotkit.report.drawing import Bar, histogram_plot, outline_path, tile_boxes, timeline_plot, unpacked
from clotkit.report.records import SlideReport
from clotkit.report.run import Run, mapping, read_run
from clotkit.report.shift import Histogram, critical_distance, distance, histogram
from clotkit.units import many

TEMPLATE, STYLE, SCRIPT = "report.html.j2", "report.css", "report.js"
CARE = "Not for clinical use."
PICTURES_BYTES, OUTLINES_BYTES, BOXES = 6_500_000, 1_200_000, 12_000  # limits of a page, which stays below 10 MB
OUTLINE_BYTES, SLIDE_BOXES = 6_000, 400  # limits of one slide
MAX_REASON_CHARS, MAX_REASONS = 200, 8
NONE = "\u2013"  # a dash
SECTIONS = {
    "verdict": "Verdict",
    "slides": "Slides",
    "patients": "Patients",
    "shift": "Compared with out-of-fold predictions",
    "timeline": "Timeline",
    "versions": "Versions and hashes",
}


class Outcome(StrEnum):
    """The outcome of a run, which the page has as `data-verdict`."""

    NOT_LATEST = "not_latest"  # the last write of the submission failed
    NO_SUBMISSION = "no_submission"
    RUNNING = "running"
    ALL_FALLBACK = "all_fallback"
    SOME_FALLBACK = "some_fallback"  # patients without a score
    SLIDES_NOT_DONE = "slides_not_done"
    COMPLETE = "complete"


def write_page(run_dir: Path) -> Path:
    """Make report.html from the files in `run_dir`, and return its path.

    Raises UsageError if there is no run, or jinja2 is not installed.
    """
    run, template = read_run(run_dir), _template()
    path = run_dir / records.PAGE
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", errors=ESCAPED, newline="") as file:
        file.writelines(template.generate(_context(run)))
    return path


def _template() -> Any:
    """Return the page's template. Raises UsageError if jinja2 is not installed."""
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise UsageError(f"{records.PAGE} needs the package jinja2: {error}; install it") from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": _number, "fixed": _fixed, "sort_key": _sort_key, "many": many}
    return environment.from_string(_text(TEMPLATE))


def _text(name: str) -> str:
    """Return a file of this package: it may be unpacked from a kernel's bundle."""
    return files("clotkit.report").joinpath(name).read_text(encoding="utf-8")


def _context(run: Run) -> dict[str, Any]:
    """Return the template's variables; `slides` is a generator, to be read once."""
    script, pictures = _text(SCRIPT), _Pictures(run)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    name = run.scoring.get("title") or run.facts.get("competition") or run.folder.resolve().name
    missing = sum(line.image_id not in run.places for line in run.lines)
    return {
        "policy": f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        "title": f"Run report: {name}",
        "style": _text(STYLE),
        "script": script,
        "care": CARE,
        "counted": f"{many(len(run.lines), 'slide')}, {many(len(run.rows), 'patient')}",
        "synthetic": bool(run.facts.get("synthetic")),
        "sections": SECTIONS,
        "last": run.last,
        "verdict": _verdict(run),
        "has_slides": bool(run.lines),
        "without_picture": many(missing, "slide") if missing else "",
        "slides_file": records.SLIDES,
        "pictures": pictures,
        "slides": _slides(run, pictures),
        "submission": "" if run.submission is None else run.submission.name,
        "patients": list(_patients(run)),
        "patient_heads": [("Patient", "t"), *((f"p({name})", "n") for name in run.classes), *PATIENT_HEADS],
        "shifts": list(_shifts(run)),
        "timeline": list(_timeline(run)),
        "versions": list(_versions(run)),
        "hashes": list(_hashes(run)),
        "arguments": [(name, str(value)) for name, value in mapping(run.facts.get("arguments")).items()],
        "notes": list(_notes(run)),
    }


PATIENT_HEADS = [("Slides scored", "n"), ("From", "t")]


# Filters


def _number(value: float | None, digits: int) -> str:
    return NONE if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def _fixed(value: float, digits: int) -> str:
    """Return a number as SVG and CSS read it: without separators."""
    return f"{value:.{digits}f}"


def _sort_key(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _short(text: str) -> str:
    return text if len(text) <= MAX_REASON_CHARS else text[: MAX_REASON_CHARS - 1] + "…"


# The verdict


def _verdict(run: Run) -> dict[str, Any]:
    outcome, kind, text = _outcome(run)
    groups = Counter(_group(line) for line in run.lines if line.state != "done")
    first = {_group(line): line for line in reversed(run.lines)}
    more = len(groups) - MAX_REASONS
    return {
        "code": outcome,
        "kind": kind,
        "text": text,
        "figures": list(_figures(run)),
        "reasons": [
            {
                "slides": many(count, "slide"),
                "codes": ", ".join(first[group].codes),
                "example": _short(first[group].reason or "no reason is recorded"),
            }
            for group, count in groups.most_common(MAX_REASONS)
        ],
        "more_reasons": many(more, "other reason") if more > 0 else "",
    }


def _group(line: SlideReport) -> str:
    """Return the codes of a line, which slides are counted by; its sentence in a report without codes."""
    return ", ".join(line.codes) or line.reason


def _outcome(run: Run) -> tuple[Outcome, str, str]:
    """Return how the run came out: the code, how good it is (good, partly, bad), and a sentence."""
    asked, scored = run.patients()
    unwritten, ended = run.facts.get("unwritten"), run.facts.get("state", "ended") == "ended"
    lost = sum(line.state != "done" for line in run.lines)
    missing = f"patients with the fallback: {asked - scored:,} of {asked:,}"
    cases = [
        (unwritten, Outcome.NOT_LATEST, "bad", f"The submission is not the latest: {unwritten}."),
        (not run.rows, Outcome.NO_SUBMISSION, "bad", "There is no readable submission."),
        (not ended, Outcome.RUNNING, "bad", "The run has not ended: these are the slides so far."),
        (not scored, Outcome.ALL_FALLBACK, "bad", "Every patient has the fallback: the submission has no information."),
        (scored < asked, Outcome.SOME_FALLBACK, "partly", f"The submission is valid; {missing}."),
        (lost, Outcome.SLIDES_NOT_DONE, "partly", f"Every patient is scored; {many(lost, 'slide')} did not end done."),
        (True, Outcome.COMPLETE, "good", "Every slide is done and every patient is scored."),
    ]
    return next((code, kind, text) for holds, code, kind, text in cases if holds)


def _figures(run: Run) -> Iterator[dict[str, str]]:
    """Yield the numbers below the verdict."""
    asked, scored = run.patients()
    yield _figure(
        "Patients scored", f"{scored:,} of {asked:,}", "the others have the fallback" if scored < asked else ""
    )
    for state, count in records.counts(run.lines).items():
        yield _figure(f"Slides {state}", f"{count:,}")
    seconds, whole_mb = run.facts.get("seconds"), run.facts.get("peak_mb")
    exact = "the run has not ended" if seconds is None else f"{seconds:,.1f} seconds"
    yield _figure("Minutes", _number(None if seconds is None else seconds / 60, 1), exact)
    peaks = [line.peak_mb for line in run.lines]
    peak = f"{max(peaks):,.0f} MB" if any(peaks) else NONE
    whole = "" if whole_mb is None else f"of the run itself, with the model: {whole_mb:,.0f} MB"
    yield _figure("Peak memory of a slide", peak, whole)
    yield _figure("Expected score", *_expected(run))


def _figure(name: str, value: str, more: str = "") -> dict[str, str]:
    return {"name": name, "value": value, "more": more}


def _expected(run: Run) -> tuple[str, str]:
    """Return the submission's expected score if it is calibrated, and what to compare it with."""
    weights, clip, fallback = (run.scoring.get(key) for key in ("weights", "clip", "fallback"))
    rows = list(run.rows.values())
    if not (rows and weights and clip and fallback) or len(weights) != len(rows[0]):
        return NONE, "not known"
    true, noise = (
        metric.expected_if_calibrated(rows, weights, clip),
        metric.expected_if_uninformative(rows, weights, clip),
    )
    constant = metric.expected_if_uninformative([metric.normalised(fallback, clip)], weights, clip)
    return f"{true:.4f}", f"if calibrated; {noise:.4f} if uninformative; the constant scores {constant:.4f}"


# The slides


def _slides(run: Run, pictures: "_Pictures") -> Iterator[dict[str, Any]]:
    """Yield a row of the table of slides at a time, with its picture."""
    calibrations = dict(_calibrations(run))
    for line in run.lines:
        p = _calibrated(line, calibrations)
        several = len(p) > 1
        yield {
            "id": line.image_id,
            "patient": line.patient_id,
            "state": line.state,
            "kind": {"done": "good", "partial": "partly"}.get(line.state, "bad"),
            "figure": pictures.of(line),
            "p": math.fsum(p.values()) / len(p) if p else None,
            "members": ", ".join(f"{name} {value:.3f}" for name, value in p.items()) if several else "",
            "disagreement": max(p.values()) - min(p.values()) if several else None,
            "tiles": line.tiles,
            "seconds": line.seconds,
            "peak_mb": line.peak_mb,
            "reason": _short(line.reason),
        }


def _calibrations(run: Run) -> Iterator[tuple[str, Calibration | None]]:
    """Yield each member's calibration; None if run.json has none."""
    for name, facts in run.members.items():
        try:
            yield name, Calibration.from_json(facts["calibration"], name)
        except (KeyError, ClotkitError):
            yield name, None


def _calibrated(line: SlideReport, calibrations: Mapping[str, Calibration | None]) -> dict[str, float]:
    """Return a slide's probability of the last class by member, calibrated if there is a calibration."""
    result = {}
    for name, p in sorted(line.p.items()):
        calibration = calibrations.get(name)
        known = calibration is not None and len(calibration.offsets) == len(p)
        result[name] = float(calibration.apply(p)[-1]) if calibration and known else p[-1]
    return result


class _Pictures:
    """The slides' pictures, read from the sidecar one by one, within the limits of a page."""

    def __init__(self, run: Run) -> None:
        self._run, self._slides = run, max(len(run.lines), 1)
        self._bytes_left, self._slides_left, self.left_out = PICTURES_BYTES, self._slides, 0

    def of(self, line: SlideReport) -> dict[str, Any] | None:
        """Return a slide's picture; None if the sidecar has none that can be drawn, or the page has no room."""
        self._slides_left -= 1
        if line.image_id not in self._run.places:
            return None
        try:
            value = self._run.sidecar_line(line.image_id)
            return self._figure(line, value) if value.get("picture") else None
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return None

    def _figure(self, line: SlideReport, value: Mapping[str, Any]) -> dict[str, Any] | None:
        picture = value["picture"]
        (width, height), downsample = (int(px) for px in picture["size"]), int(picture["downsample"])
        jpeg = base64.b64encode(base64.b64decode(picture["jpeg"], validate=True)).decode()
        if len(jpeg) > self._bytes_left // (self._slides_left + 1):
            self.left_out += 1
            return None
        self._bytes_left -= len(jpeg)
        tissue = unpacked(picture["tissue"], width, height)
        boxes, tiles = tile_boxes(value.get("tiles", ()), min(SLIDE_BOXES, max(8, BOXES // self._slides)))
        summary = _tiles_summary(value, self._run.last)
        return {
            "width": width,
            "height": height,
            "ratio": width / height,
            "jpeg": jpeg,
            "alt": f"Overview of slide {line.image_id}, {tissue.mean():.0%} tissue, {summary}",
            "slide_width": width * downsample,
            "slide_height": height * downsample,
            "outline": outline_path(tissue, downsample, min(OUTLINE_BYTES, OUTLINES_BYTES // self._slides)),
            "boxes": boxes,
            "tiles": tiles,
        }


def _tiles_summary(value: Mapping[str, Any], last: str) -> str:
    p = [float(p) for group in value.get("tiles", ()) for p in group["p"]]
    return f"{many(len(p), 'tile')} with p({last}) from {min(p):.2f} to {max(p):.2f}" if p else "no tiles"


# The patients


def _patients(run: Run) -> Iterator[dict[str, Any]]:
    slides = Counter(line.patient_id for line in run.lines)
    scored = Counter(line.patient_id for line in run.lines if line.p)
    for patient, row in run.rows.items():
        yield {
            "id": patient,
            "row": list(zip(map(str, run.classes), row, strict=False)),
            "scored": scored[patient],
            "slides": slides[patient],
        }


# The shift


def _shifts(run: Run) -> Iterator[dict[str, Any]]:
    """Yield a histogram for each member that has scored a slide."""
    for name, facts in run.members.items():
        here = histogram([line.p[name][-1] for line in run.lines if line.p.get(name)])
        if here is None:
            continue
        known = Histogram.from_json(facts.get("out_of_fold"))
        summary = f"this run: {many(here.n, 'slide')}, mean {here.mean:.3f}"
        if known is not None:
            summary += f"; out of fold: {many(known.n, 'slide')}, mean {known.mean:.3f}"
        kind, judgement = _judged(here, known)
        pool = facts.get("tile_pool")
        yield {
            "name": name,
            "plot": histogram_plot(here, known),
            "summary": summary,
            "kind": kind,
            "judgement": judgement,
            "label": f"{name}: {summary}; {judgement}",
            "pooled": f" Tiles are pooled by {pool} here, by their mean out of fold."
            if pool and pool != "mean"
            else "",
        }


def _judged(here: Histogram, known: Histogram | None) -> tuple[str, str]:
    """Return how good the agreement of two histograms is, and a sentence about it."""
    if known is None:
        return "soft", "the weights have no out-of-fold predictions"
    ks, critical = distance(here, known), critical_distance(here, known)
    shifted = ks > critical
    return "bad" if shifted else "good", (
        f"Kolmogorov-Smirnov distance {ks:.2f} (in steps of 0.05); without a shift it is below {critical:.2f} in 19 of "
        f"20 cases: {'shifted' if shifted else 'no shift detected'}"
    )


# The timeline


def _timeline(run: Run) -> Iterator[dict[str, Any]]:
    """Yield the timeline of each part of the run: a resumed run has several."""
    parts: dict[int, list[Bar]] = {}
    busy: dict[int, list[tuple[float, float]]] = {}
    for line in run.lines:
        for part, bar, spans in _times(run, line):
            parts.setdefault(part, []).append(bar)
            busy.setdefault(part, []).extend(spans)
    for part in sorted(parts):
        bars, spans = sorted(parts[part], key=lambda bar: (bar.begin, bar.title)), sorted(busy[part])
        yield {"plot": timeline_plot(bars, spans), "text": _timeline_summary(bars, spans)}


def _times(run: Run, line: SlideReport) -> Iterator[tuple[int, Bar, list[tuple[float, float]]]]:
    """Yield the part, the process and the model's busy spans of a slide, if the sidecar has them."""
    try:
        value = run.sidecar_line(line.image_id)
        begin, end = float(value["from_s"]), float(value["to_s"])
        spans = [(float(a), float(b)) for a, b in value["model_s"]]
        part = int(value["part"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    if math.isfinite(begin) and math.isfinite(end):
        yield part, Bar(begin, end, line.state, f"{line.image_id}, {line.state}: {begin:.1f} to {end:.1f} s"), spans


def _timeline_summary(bars: Sequence[Bar], spans: Sequence[tuple[float, float]]) -> str:
    begin, end = min(bar.begin for bar in bars), max([bar.end for bar in bars] + [b for _, b in spans])
    alive, model = math.fsum(bar.end - bar.begin for bar in bars), math.fsum(b - a for a, b in spans)
    whole = max(end - begin, 1e-3)
    return (
        f"Each bar is a slide's process; the lowest lane is the model. The first slide began at {begin:.1f} s, the "
        f"last work ended at {end:.1f} s. On average {alive / whole:.1f} slides ran at a time. The model was busy for "
        f"{model:.1f} s, {model / whole:.0%} of the time."
    )


# Versions


def _versions(run: Run) -> Iterator[tuple[str, str]]:
    facts = run.facts
    yield from ((name, str(facts[name])) for name in ("clotkit", "python", "competition") if facts.get(name))
    yield from ((name, str(version)) for name, version in mapping(facts.get("packages")).items())
    yield from (
        (f"recipe of {name}", str(member["recipe"])) for name, member in run.members.items() if "recipe" in member
    )


def _hashes(run: Run) -> Iterator[tuple[str, str]]:
    for name, member in run.members.items():
        if member.get("weights_sha256"):
            yield f"weights of {name}", str(member["weights_sha256"])
    if run.facts.get("ensemble"):
        yield "ensemble", str(run.facts["ensemble"])
    if run.submission is not None:
        now, then = sha256(run.submission), run.facts.get("submission_sha256")
        yield run.submission.name, now + ("" if then in (None, now) else f" (changed since the run, then {then})")
    if run.facts.get("key"):
        yield "slides and weights", str(run.facts["key"])


def _notes(run: Run) -> Iterator[str]:
    for name, facts in run.members.items():
        yield from (f"member {name}: {note}" for note in facts.get("notes") or ())
    yield from (f"member {name} left out: {why}" for name, why in mapping(run.facts.get("left_out")).items())
    noted = [(str(note), line.image_id) for line in run.lines for note in line.facts.get("notes") or ()]
    first = dict(reversed(noted))
    for note, slides in Counter(note for note, _ in noted).items():
        yield f"{many(slides, 'slide')} with the note {note}, for example {first[note]}"
    for repair, count in mapping(run.facts.get("repairs")).items():
        yield f"{many(int(count), 'row')} of the table of slides read otherwise than written: {repair}"
