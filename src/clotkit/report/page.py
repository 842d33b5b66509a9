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
from clotkit.competitions import Form
from clotkit.errors import ClotkitError, UsageError
from clotkit.files import ESCAPED, atomic_write, sha256
from clotkit.members.calibration import Calibration
from clotkit.report import records
from clotkit.report.drawing import Bar, histogram_plot, outline_path, tile_boxes, timeline_plot, unpacked
from clotkit.report.records import SlideReport
from clotkit.report.run import Run, mapping, read_run
from clotkit.report.shift import Histogram, critical_distance, distance, histogram
from clotkit.report.shown import Shown
from clotkit.units import many

TEMPLATE, STYLE, SCRIPT = "report.html.j2", "report.css", "report.js"
THEME = "theme.css"  # sizes and colours, which the application and the site have too
CARE = "Not for clinical use."
PICTURES_BYTES, OUTLINES_BYTES, BOXES = 6_500_000, 1_200_000, 12_000  # limits of a page, which stays below 10 MB
OUTLINE_BYTES, SLIDE_BOXES = 6_000, 400  # limits of one slide
MAX_REASON_CHARS, MAX_REASONS = 200, 8
NONE = "\u2013"  # a dash
SECTIONS = {
    "verdict": "Verdict",
    "slides": "Slides",
    "patients": "Patients",  # or Answers, where a row is a slide
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
    pieces = page_pieces(run_dir)
    path = run_dir / records.PAGE
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", errors=ESCAPED, newline="") as file:
        file.writelines(pieces)
    return path


def page_pieces(run_dir: Path) -> Iterator[str]:
    """Return the text of the page of a run in pieces; raises as write_page before the first one."""
    run, template = read_run(run_dir), _template()
    pieces: Iterator[str] = template.generate(_context(run))
    return pieces


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
    unit, answers = _unit(run), run.answers
    missing = sum(line.image_id not in run.places for line in run.lines)
    return {
        "policy": f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        "title": f"Run report: {name}",
        "style": _text(THEME) + _text(STYLE),
        "script": script,
        "care": CARE,
        "counted": f"{many(len(run.lines), 'slide')}, {many(len(answers.ids), 'row' if run.by_image else unit)}",
        "synthetic": bool(run.facts.get("synthetic")),
        "sections": SECTIONS | ({"patients": "Answers"} if run.by_image else {}),
        "shown": run.shown,
        "verdict": _verdict(run),
        "has_slides": bool(run.lines),
        "without_picture": many(missing, "slide") if missing else "",
        "slides_file": records.SLIDES,
        "pictures": pictures,
        "slides": _slides(run, pictures),
        "submission": "" if run.submission is None else run.submission.name,
        "patients": list(_patients(run)),
        "patient_heads": list(_patient_heads(run)),
        "unit": unit,
        "with_patients": any(line.patient_id != line.image_id for line in run.lines),
        "answers": list(_label_counts(run)),
        "confidence": _confidence(run),
        "shifts": list(_shifts(run)),
        "timeline": list(_timeline(run)),
        "versions": list(_versions(run)),
        "hashes": list(_hashes(run)),
        "arguments": [(name, str(value)) for name, value in mapping(run.facts.get("arguments")).items()],
        "notes": list(_notes(run)),
    }


def _unit(run: Run) -> str:
    """Return the word for what a row of the submission stands for."""
    return "slide" if run.by_image else "patient"


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
    unit = _unit(run)
    missing = f"{unit}s with the fallback: {asked - scored:,} of {asked:,}"
    cases = [
        (unwritten, Outcome.NOT_LATEST, "bad", f"The submission is not the latest: {unwritten}."),
        (not run.answers.ids, Outcome.NO_SUBMISSION, "bad", "There is no readable submission."),
        (not ended, Outcome.RUNNING, "bad", "The run has not ended: these are the slides so far."),
        (not scored, Outcome.ALL_FALLBACK, "bad", f"Every {unit} has the fallback: the submission has no information."),
        (scored < asked, Outcome.SOME_FALLBACK, "partly", f"The submission is valid; {missing}."),
        (lost, Outcome.SLIDES_NOT_DONE, "partly", f"Every {unit} is scored; {many(lost, 'slide')} did not end done."),
        (run.by_image, Outcome.COMPLETE, "good", "Every slide is done and scored."),
        (True, Outcome.COMPLETE, "good", "Every slide is done and every patient is scored."),
    ]
    return next((code, kind, text) for holds, code, kind, text in cases if holds)


def _figures(run: Run) -> Iterator[dict[str, str]]:
    """Yield the numbers below the verdict."""
    asked, scored = run.patients()
    yield _figure(
        f"{_unit(run).title()}s scored",
        f"{scored:,} of {asked:,}",
        "the others have the fallback" if scored < asked else "",
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
    rows, labels = _scored_rows(run)
    name, priors = str(run.scoring.get("metric", "balanced_log_loss")), run.scoring.get("priors") or weights
    if not (rows and weights and clip and fallback) or len(weights) != len(rows[0]) or name not in metric.METRICS:
        return NONE, "not known"
    settings: tuple[Any, Any, float] = (weights, priors, clip)
    true = metric.score_if_calibrated(name, rows, labels, *settings)
    noise = metric.score_if_uninformative(name, rows, labels, *settings)
    known = list(run.scoring.get("answers") or ())
    label = run.scoring.get("fallback_label")
    constant = metric.score_if_uninformative(
        name, [metric.normalised(fallback, clip)], [known.index(label) if label in known else 0], *settings
    )
    better = "higher" if metric.METRICS[name].higher_is_better else "lower"
    return _number(true, 4), (
        f"{name}, {better} is better, if calibrated; {_number(noise, 4)} if uninformative; the constant scores "
        f"{_number(constant, 4)}"
    )


def _scored_rows(run: Run) -> tuple[list[Sequence[float]], list[int]]:
    """Return the probabilities of each row and the index of its label; labels without them are left out."""
    answers, known = run.answers, list(run.scoring.get("answers") or ())
    if answers.form is not Form.LABEL:
        return list(answers.rows.values()), [0] * len(answers.rows)
    ids = [one for one in answers.rows if answers.labels.get(one) in known]
    return [answers.rows[one] for one in ids], [known.index(answers.labels[one]) for one in ids]


# The slides


def _slides(run: Run, pictures: "_Pictures") -> Iterator[dict[str, Any]]:
    """Yield a row of the table of slides at a time, with its picture."""
    calibrations = dict(_calibrations(run))
    for line in run.lines:
        p = _calibrated(line, calibrations, run.shown)
        several = len(p) > 1
        yield {
            "id": line.image_id,
            "patient": line.patient_id,
            "state": line.state,
            "kind": {"done": "good", "partial": "partly"}.get(line.state, "bad"),
            "figure": pictures.of(line),
            "p": run.shown.top * math.fsum(p.values()) / len(p) if p else None,
            "members": ", ".join(f"{name} {value * run.shown.top:.3f}" for name, value in p.items()) if several else "",
            "disagreement": run.shown.top * (max(p.values()) - min(p.values())) if several else None,
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


def _calibrated(line: SlideReport, calibrations: Mapping[str, Calibration | None], shown: Shown) -> dict[str, float]:
    """Return what is shown of a slide by member, 0 to 1, calibrated if there is a calibration."""
    result = {}
    for name, p in sorted(line.p.items()):
        calibration = calibrations.get(name)
        known = calibration is not None and len(calibration.offsets) == len(p)
        result[name] = shown.level(calibration.apply(p) if calibration and known else p)
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
        summary = _tiles_summary(value, self._run.shown)
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


def _tiles_summary(value: Mapping[str, Any], shown: Shown) -> str:
    p = [float(p) * shown.top for group in value.get("tiles", ()) for p in group["p"]]
    return f"{many(len(p), 'tile')} with {shown.name} from {min(p):.2f} to {max(p):.2f}" if p else "no tiles"


# The answers of patients or slides


def _patients(run: Run) -> Iterator[dict[str, Any]]:
    answers = run.answers
    slides = Counter(map(run.row_of, run.lines))
    scored = Counter(run.row_of(line) for line in run.lines if line.p)
    for one in answers.ids:
        key, row = answers.key(one), answers.rows.get(one)
        names = [str(name) for name in answers.classes]
        if answers.form is Form.PROBABILITY:
            names, row = names[-1:], None if row is None else row[-1:]
        yield {
            "id": one,
            "label": answers.labels.get(one),
            "row": list(zip(names, row if row is not None else [None] * len(names), strict=False)),
            "scored": scored[key],
            "slides": slides[key],
        }


def _patient_heads(run: Run) -> Iterator[tuple[str, str]]:
    """Yield the headings of the table of answers, each with the kind of its cells."""
    answers = run.answers
    yield _unit(run).title(), "t"
    if answers.form is Form.LABEL:
        yield "Answer", "t"
    yield from ((f"p({name})", "n") for name in answers.classes[-1 if answers.form is Form.PROBABILITY else 0 :])
    if not run.by_image:
        yield "Slides scored", "n"
    yield "From", "t"


def _label_counts(run: Run) -> Iterator[dict[str, Any]]:
    """Yield each label with its number of rows, its share, and its share among the patients of train."""
    counts = Counter(run.answers.labels.values())
    priors = dict(zip(run.answers.classes, run.scoring.get("priors") or (), strict=False))
    for label in dict.fromkeys([*(run.scoring.get("answers") or ()), *counts]) if counts else ():
        yield {
            "name": label,
            "count": counts[label],
            "share": counts[label] / counts.total(),
            "prior": priors.get(label, 0.0) if priors else None,
        }


def _confidence(run: Run) -> dict[str, Any] | None:
    """Return a histogram of the likeliest class's probability of each label; None without them."""
    values = [max(row) for row in run.answers.rows.values()] if run.answers.labels else []
    drawn = histogram(values)
    if drawn is None:
        return None
    text = f"{many(drawn.n, 'row')}, mean {drawn.mean:.3f}"
    return {"plot": histogram_plot(drawn, None), "text": text}


# The shift


def _shifts(run: Run) -> Iterator[dict[str, Any]]:
    """Yield a histogram for each member that has scored a slide."""
    for name, facts in run.members.items():
        here = histogram([run.shown.level(line.p[name]) for line in run.lines if line.p.get(name)])
        if here is None:
            continue
        known = Histogram.from_json(facts.get("out_of_fold"))
        top = run.shown.top
        summary = f"this run: {many(here.n, 'slide')}, mean {here.mean * top:.3f}"
        if known is not None:
            summary += f"; out of fold: {many(known.n, 'slide')}, mean {known.mean * top:.3f}"
        kind, judgement = _judged(here, known)
        pool = facts.get("tile_pool")
        yield {
            "name": name,
            "plot": histogram_plot(here, known, top),
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
    for name, member in run.members.items():
        if decision := mapping(member.get("decision")):
            numbers = ", ".join(f"{value:g}" for value in decision.get("numbers") or ())
            yield f"decision of {name}", f"{decision.get('rule')} {numbers}".strip()


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
    yield from (f"member {name} left out: as --without says" for name in run.facts.get("without", ()))
    yield from (f"member {name} left out: {why}" for name, why in mapping(run.facts.get("left_out")).items())
    noted = [(str(note), line.image_id) for line in run.lines for note in line.facts.get("notes") or ()]
    first = dict(reversed(noted))
    for note, slides in Counter(note for note, _ in noted).items():
        yield f"{many(slides, 'slide')} with the note {note}, for example {first[note]}"
    for repair, count in mapping(run.facts.get("repairs")).items():
        yield f"{many(int(count), 'row')} of the table of slides read otherwise than written: {repair}"
