"""report.html: what a run came to, on one page that stands alone. Made of RUN_DIR alone, slide by slide.

Every text that comes from a file is escaped, and the page's policy lets no script run but its own.
"""

import base64
import csv
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from clotkit import metric
from clotkit.aliases import PICTURE_FIELDS, renamed
from clotkit.errors import ClotkitError, UsageError
from clotkit.files import atomic_write, sha256
from clotkit.members.ensemble import Calibration
from clotkit.report import records
from clotkit.report.drawing import Bar, box_rects, histogram_svg, outline_path, timeline_svg, unpacked
from clotkit.report.records import SlideReport
from clotkit.report.shift import Histogram, by_chance, distance, histogram
from clotkit.report.sidecar import sidecar_places
from clotkit.report.style import COLOURS, SCRIPT, STYLE

CARE = "Not for clinical use."
PICTURES_BYTES, OUTLINES_BYTES, BOXES = 6_500_000, 1_200_000, 12_000  # of a page, at most: it stays below 10 MB
OUTLINE_BYTES, SLIDE_BOXES = 6_000, 400  # of one slide, at most
SHOWN = 200  # characters of a reason
NONE = "\u2013"  # a dash
SECTIONS = {
    "verdict": "Verdict",
    "slides": "Slides",
    "patients": "Patients",
    "shift": "Beside the out-of-fold predictions",
    "timeline": "Timeline",
    "versions": "Versions and hashes",
}


@dataclass(frozen=True)
class Run:
    """What is in a run's folder; `rows` is its submission, or empty where it cannot be read."""

    folder: Path
    facts: Mapping[str, Any]
    lines: Sequence[SlideReport]
    places: Mapping[str, int]  # of slides in the sidecar, bytes
    submission: Path | None
    classes: Sequence[str]
    rows: Mapping[str, Sequence[float]]

    @property
    def last(self) -> str:
        """The name of the last class, whose probability is shown."""
        return str(self.classes[-1]) if self.classes else "the last class"

    @property
    def scoring(self) -> Mapping[str, Any]:
        """What run.json says of the competition; empty in a run of an older kit."""
        return _dict(self.facts.get("scoring"))

    @property
    def members(self) -> dict[str, Mapping[str, Any]]:
        """What run.json says of each member, and those that only the slides' lines know."""
        known = {name: _dict(value) for name, value in _dict(self.facts.get("members")).items()}
        return known | {name: {} for line in self.lines for name in line.p if name not in known}


def write_page(run_dir: Path) -> Path:
    """Make report.html of what is in `run_dir`, and return its path. Raises UsageError where no run is."""
    run = read_run(run_dir)
    path = run_dir / records.PAGE
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        for part in page(run):
            file.write(part)
    return path


def read_run(run_dir: Path) -> Run:
    """A run's folder. Raises UsageError where no run has been, or its report or run.json cannot be read."""
    if not (run_dir / records.REPORT).is_file():
        raise UsageError(f"{run_dir}: no run here: {records.REPORT} is missing; name the --out of a clotkit run")
    try:
        lines = records.read_report(run_dir / records.REPORT)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{run_dir / records.REPORT}: no report of a run: {error}; run again") from error
    facts = _read_facts(run_dir / records.RUN)
    submission = _submission(run_dir, _dict(facts.get("scoring")).get("submission"))
    header, rows = _read_rows(submission)
    classes = _dict(facts.get("scoring")).get("classes") or header[1:]
    lines.sort(key=lambda line: line.image_id)
    return Run(run_dir, facts, lines, sidecar_places(run_dir / records.SLIDES), submission, classes, rows)


def _read_facts(path: Path) -> Mapping[str, Any]:
    """What run.json says; nothing where there is none, or it was cut short."""
    try:
        return _dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read: {error}; run again") from error


def _submission(run_dir: Path, name: Any) -> Path | None:
    """The run's submission: of that name, or in an older run the one table that is there."""
    if name:
        path = run_dir / Path(str(name)).name
        return path if path.is_file() else None
    return next(iter(sorted(run_dir.glob("*.csv"))), None)


def _read_rows(path: Path | None) -> tuple[list[str], dict[str, list[float]]]:
    """The header and the rows of a submission; nothing of one that cannot be read."""
    if path is None:
        return [], {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            table = [row for row in csv.reader(file) if row]
        rows = {row[0]: [float(value) for value in row[1:]] for row in table[1:]}
    except (OSError, ValueError, csv.Error):
        return [], {}
    sound = table and all(len(row) == len(table[0]) - 1 and sum(row) > 0 for row in rows.values())
    return (table[0], rows) if sound else ([], {})


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def page(run: Run) -> Iterator[str]:
    """The page, part by part."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    title = f"Run report: {run.scoring.get('title') or run.facts.get('competition') or run.folder.resolve().name}"
    links = "".join(f'<li><a href="#{name}">{text}</a></li>' for name, text in SECTIONS.items())
    yield (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#slides">Skip to the slides</a>\n'
        f"<header>\n<h1>{escape(title)}</h1>\n<p><strong>{CARE}</strong> {_what(run)}</p>\n"
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n</header>\n<main>\n'
    )
    yield from _section("verdict", _verdict(run))
    yield from _section("slides", _slides(run))
    yield from _section("patients", _patients(run))
    yield from _section("shift", _shift(run))
    yield from _section("timeline", _timeline(run))
    yield from _section("versions", _versions(run))
    yield (
        '</main>\n<p id="said" class="skip" role="status" aria-live="polite"></p>\n'
        f"<footer><p><strong>{CARE}</strong></p></footer>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _section(name: str, parts: Iterator[str]) -> Iterator[str]:
    yield f'<section aria-labelledby="{name}">\n<h2 id="{name}">{SECTIONS[name]}</h2>\n'
    yield from parts
    yield "</section>\n"


def _what(run: Run) -> str:
    drawn = "The slides are synthetic: nothing here says anything of a real one." if run.facts.get("synthetic") else ""
    return f"{_many(len(run.lines), 'slide')}, {_many(len(run.rows), 'patient')}. {drawn}".strip()


def _many(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


# the verdict


def _verdict(run: Run) -> Iterator[str]:
    kind, said = _said(run)
    yield f'<p class="verdict {kind}">{escape(said)}</p>\n'
    counts = records.counts(run.lines)
    asked, scored = _asked(run)
    peaks = [line.peak_mb for line in run.lines]
    whole_mb, seconds = run.facts.get("peak_mb"), run.facts.get("seconds")
    figures = [
        ("Patients scored", f"{scored:,} of {asked:,}", "the others have the fallback" if scored < asked else ""),
        *((f"Slides {state}", f"{count:,}", "") for state, count in counts.items()),
        ("Minutes", _number(None if seconds is None else seconds / 60, 1), _seconds(seconds)),
        (
            "Peak memory of a slide",
            f"{max(peaks):,.0f} MB" if any(peaks) else NONE,
            "" if whole_mb is None else f"of the run itself, with the model: {whole_mb:,.0f} MB",
        ),
        ("Expected score", *_expected(run)),
    ]
    cells = (
        f'<div><dt>{escape(name)}</dt><dd class="value">{escape(value)}</dd>'
        + (f'<dd class="more">{escape(more)}</dd>' if more else "")
        + "</div>\n"
        for name, value, more in figures
    )
    yield f'<dl class="figures">\n{"".join(cells)}</dl>\n'
    reasons = Counter(_kind(line) for line in run.lines if line.state != "done")
    if reasons:
        first = {_kind(line): line.reason for line in reversed(run.lines)}
        items = "".join(
            f"<li>{_many(count, 'slide')} <code>{_short(kind)}</code>, for example: {_short(first[kind])}</li>"
            if first[kind] != kind
            else f"<li>{_many(count, 'slide')}: {_short(kind)}</li>"
            for kind, count in reasons.most_common(8)
        )
        more = len(reasons) - 8
        rest = f"<li>and {_many(more, 'other reason')}, in the table</li>" if more > 0 else ""
        yield f"<h3>Why slides are not done</h3>\n<ul>{items}{rest}</ul>\n"


def _kind(line: SlideReport) -> str:
    """Return the codes of a line, which slides are counted by; its sentence in a report without codes."""
    return ", ".join(line.codes) or line.reason or "no reason given"


def _said(run: Run) -> tuple[str, str]:
    """The verdict in a sentence, and how good it is: good, partly, bad."""
    asked, scored = _asked(run)
    wrong = [
        (run.facts.get("unwritten"), f"The submission is not the latest: {run.facts.get('unwritten')}."),
        (not run.rows, "There is no submission that can be read."),
        (run.facts.get("state", "ended") != "ended", "The run has not ended: these are the slides so far."),
        (not scored, "Every patient is at the fallback: the file is valid and says nothing."),
    ]
    for is_so, said in wrong:
        if is_so:
            return "bad", said
    lost = [line for line in run.lines if line.state != "done"]
    if scored < asked:
        return "partly", f"The submission is valid; {_many(asked - scored, 'patient')} of {asked:,} have the fallback."
    if lost:
        return "partly", f"Every patient is scored; {_many(len(lost), 'slide')} did not end done."
    return "good", "Every slide is done and every patient is scored."


def _asked(run: Run) -> tuple[int, int]:
    """Patients asked for, and scored: as run.json counts them, or in an older run as the lines do."""
    known = _dict(run.facts.get("patients"))
    if known:
        return int(known.get("asked", 0)), int(known.get("scored", 0))
    return len(run.rows), len(_scored(run) & set(run.rows))


def _scored(run: Run) -> set[str]:
    return {line.patient_id for line in run.lines if line.p}


def _expected(run: Run) -> tuple[str, str]:
    """What the submission is expected to score if its probabilities are true, and what that is to be held against."""
    weights, clip, fallback = (run.scoring.get(key) for key in ("weights", "clip", "fallback"))
    rows = list(run.rows.values())
    if not (rows and weights and clip and fallback) or len(weights) != len(rows[0]):
        return NONE, "not known"
    true, noise = metric.expected_if_true(rows, weights, clip), metric.expected_if_noise(rows, weights, clip)
    constant = metric.expected_if_noise([metric.normalised(fallback, clip)], weights, clip)
    return f"{true:.4f}", f"if its probabilities are true; {noise:.4f} if they say nothing; the constant {constant:.4f}"


def _number(value: Any, digits: int) -> str:
    return NONE if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def _seconds(value: Any) -> str:
    return "the run has not ended" if value is None else f"{value:,.1f} seconds"


def _short(text: str) -> str:
    return escape(text if len(text) <= SHOWN else text[: SHOWN - 1] + "…")


# the slides


def _slides(run: Run) -> Iterator[str]:
    if not run.lines:
        yield "<p>No slide has ended.</p>\n"
        return
    yield (
        "<p>Each picture is put together from what the run decoded; where it read nothing it is filled in from what "
        "lies near. The line is the edge of the tissue, the boxes are the tiles, coloured by the probability of "
        f"{escape(run.last)} that the members gave each, on average.</p>\n{_legend()}"
    )
    if any(line.image_id not in run.places for line in run.lines):
        yield f'<p class="soft">Slides without a picture have no line in {records.SLIDES}.</p>\n'
    last = escape(run.last)
    heads = (
        ("Slide", "t"), ("Picture", ""), ("Patient", "t"), ("State", "t"), (f"p({last})", "n"),
        ("Members apart by", "n"), ("Tiles", "n"), ("Seconds", "n"), ("Peak MB", "n"), ("Reason", "t"),
    )  # fmt: skip
    yield _table_head("Slides", heads)
    calibrations = dict(_calibrations(run))
    pictures = _Pictures(run)
    for line in run.lines:
        yield _slide_row(line, run.last, calibrations, pictures)
    yield "</tbody>\n</table>\n"
    if pictures.left_out:
        yield f'<p class="soft">{_many(pictures.left_out, "picture")} left out: the page stays below 10 MB.</p>\n'


def _legend() -> str:
    swatches = "".join(
        f'<li><span class="swatch p{i}"></span>{i / 10:.1f} to {(i + 1) / 10:.1f}</li>' for i in range(len(COLOURS))
    )
    switches = "".join(
        f'<li><label hidden><input type="checkbox" checked data-switch="no-{name}"> show the {text}</label></li>'
        for name, text in (("tiles", "tiles"), ("outline", "tissue's edge"))
    )
    edge = '<li><span class="line-swatch"></span>tissue</li>'
    return f'<ul class="legend" aria-label="Colours">{swatches}{edge}</ul>\n<ul class="switches">{switches}</ul>\n'


def _table_head(caption: str, heads: Sequence[tuple[str, str]]) -> str:
    """The beginning of a table that the script can sort; each head with t (by text), n (by number) or nothing."""
    cells = "".join(
        f'<th scope="col" data-sort="{kind}">{name}</th>' if kind else f'<th scope="col">{name}</th>'
        for name, kind in heads
    )
    return (
        f'<table class="cards" data-sortable>\n<caption>{caption}</caption>\n<thead><tr>{cells}</tr></thead>\n<tbody>\n'
    )


def _slide_row(
    line: SlideReport, last: str, calibrations: Mapping[str, Calibration | None], pictures: "_Pictures"
) -> str:
    said = _members_say(line, calibrations)
    mean = math.fsum(said.values()) / len(said) if said else None
    apart = max(said.values()) - min(said.values()) if len(said) > 1 else None
    each = ", ".join(f"{escape(name)} {p:.3f}" for name, p in said.items())
    kind = {"done": "good", "partial": "partly"}.get(line.state, "bad")
    cells = [
        f'<th scope="row" data-v="{escape(line.image_id)}">{escape(line.image_id)}</th>',
        f'<td data-v="">{pictures.of(line)}</td>',
        _cell("Patient", line.patient_id),
        f'<td data-label="State" data-v="{escape(line.state)}" class="{kind}">{escape(line.state)}</td>',
        _number_cell(f"p({last})", mean, 3, each if len(said) > 1 else ""),
        _number_cell("Members apart by", apart, 3),
        _number_cell("Tiles", line.tiles, 0),
        _number_cell("Seconds", line.seconds, 1),
        _number_cell("Peak MB", line.peak_mb, 0),
        f'<td class="why" data-label="Reason" data-v="{escape(line.reason[:40])}">{_short(line.reason)}</td>',
    ]
    return f"<tr>{''.join(cells)}</tr>\n"


def _cell(label: str, text: str) -> str:
    return f'<td data-label="{escape(label)}" data-v="{escape(text)}">{escape(text)}</td>'


def _number_cell(label: str, value: float | None, digits: int, more: str = "") -> str:
    """A cell of a number; `more` is markup below it."""
    sorted_by = "" if value is None else f"{value:.6g}"
    below = f'<br><small class="soft">{more}</small>' if more else ""
    label = escape(label)
    return f'<td class="number" data-label="{label}" data-v="{sorted_by}">{_number(value, digits)}{below}</td>'


def _calibrations(run: Run) -> Iterator[tuple[str, Calibration | None]]:
    """Each member's calibration; None where run.json has none."""
    for name, facts in run.members.items():
        try:
            yield name, Calibration.from_json(facts["calibration"], name)
        except (KeyError, ClotkitError):
            yield name, None


def _members_say(line: SlideReport, calibrations: Mapping[str, Calibration | None]) -> dict[str, float]:
    """The last class's probability of a slide, calibrated, by member; as it is where there is no calibration."""
    said = {}
    for name, p in sorted(line.p.items()):
        calibration = calibrations.get(name)
        said[name] = float(calibration.apply(p)[-1]) if calibration and len(calibration.offsets) == len(p) else p[-1]
    return said


class _Pictures:
    """The slides' pictures, read from the sidecar one by one, within what a page may have of them."""

    def __init__(self, run: Run) -> None:
        self._path, self._places, self._last = run.folder / records.SLIDES, run.places, run.last
        self._slides = max(len(run.lines), 1)
        self._bytes_left, self._slides_left, self.left_out = PICTURES_BYTES, self._slides, 0

    def of(self, line: SlideReport) -> str:
        """The figure of a slide; nothing where the sidecar has none, or one that cannot be drawn."""
        self._slides_left -= 1
        if line.image_id not in self._places:
            return ""
        try:
            value = read_sidecar_line(self._path, self._places[line.image_id])
            return self._figure(line, value) if value.get("picture") else ""
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return ""

    def _figure(self, line: SlideReport, value: Mapping[str, Any]) -> str:
        picture = value["picture"]
        (width, height), downsample = (int(px) for px in picture["size"]), int(picture["downsample"])
        code = base64.b64encode(base64.b64decode(picture["jpeg"], validate=True)).decode()
        if len(code) > self._bytes_left // (self._slides_left + 1):
            self.left_out += 1
            return ""
        self._bytes_left -= len(code)
        tissue = unpacked(picture["tissue"], width, height)
        outline = outline_path(tissue, downsample, min(OUTLINE_BYTES, OUTLINES_BYTES // self._slides))
        rects, drawn, of = box_rects(value.get("tiles", ()), min(SLIDE_BOXES, max(8, BOXES // self._slides)))
        alt = f"Slide {line.image_id} from afar, {tissue.mean():.0%} tissue, {_tiles_in_words(value, self._last)}"
        note = f'<p class="soft">{drawn} of {of:,} tiles are drawn</p>' if drawn < of else ""
        return (
            f'<div class="picture" style="--wide:{width / height:.3f}">'
            f'<img src="data:image/jpeg;base64,{code}" width="{width}" height="{height}" '
            f'alt="{escape(alt)}" loading="lazy" decoding="async">'
            f'<svg viewBox="0 0 {width * downsample} {height * downsample}" preserveAspectRatio="none" '
            'aria-hidden="true">'
            f'<path class="outline" d="{outline}"/><g class="tiles">{rects}</g></svg></div>{note}'
        )


def read_sidecar_line(path: Path, place: int) -> Mapping[str, Any]:
    """The line that begins at byte `place` of a slides.jsonl. Raises OSError or ValueError where there is none."""
    with path.open("rb") as file:
        file.seek(place)
        line = _dict(json.loads(file.readline()))
    return dict(line) | {"picture": renamed(_dict(line.get("picture")), PICTURE_FIELDS)}


def _tiles_in_words(value: Mapping[str, Any], last: str) -> str:
    shares = [float(p) for group in value.get("tiles", ()) for p in group["p"]]
    if not shares:
        return "no tiles"
    return f"{_many(len(shares), 'tile')} with p({last}) from {min(shares):.2f} to {max(shares):.2f}"


# the patients


def _patients(run: Run) -> Iterator[str]:
    if not run.rows:
        yield "<p>There is no submission that can be read.</p>\n"
        return
    slides = Counter(line.patient_id for line in run.lines)
    scored = Counter(line.patient_id for line in run.lines if line.p)
    name = "" if run.submission is None else f" as {run.submission.name} has them"
    yield f"<p>The probabilities{escape(name)}: calibrated, of all members.</p>\n"
    classes = [escape(str(name)) for name in run.classes]
    heads = [("Patient", "t"), *((f"p({name})", "n") for name in classes), ("Slides scored", "n"), ("From", "t")]
    yield _table_head("Patients", heads)
    for patient, row in run.rows.items():
        whence = "its slides" if scored[patient] else "the fallback"
        cells = [f'<th scope="row" data-v="{escape(patient)}">{escape(patient)}</th>']
        cells += [_number_cell(f"p({name})", p, 4) for name, p in zip(run.classes, row, strict=False)]
        cells.append(
            f'<td class="number" data-label="Slides scored" data-v="{scored[patient]}">{scored[patient]} of '
            f"{slides[patient]}</td>"
        )
        cells.append(_cell("From", whence))
        yield f"<tr>{''.join(cells)}</tr>\n"
    yield "</tbody>\n</table>\n"


# the shift


def _shift(run: Run) -> Iterator[str]:
    yield (
        f"<p>Each member's probabilities of {escape(run.last)}, one a slide, uncalibrated: in this run (bars), and "
        "of the training's slides when it had not seen them (line). Where they lie apart, these slides are of another "
        "kind than those that it was made for.</p>\n"
    )
    figures = [figure for name, facts in run.members.items() if (figure := _member_figure(run, name, facts))]
    if figures:
        yield f'<div class="plots">\n{"".join(figures)}</div>\n'
    else:
        yield "<p>No member has scored a slide.</p>\n"


def _member_figure(run: Run, name: str, facts: Mapping[str, Any]) -> str:
    """A member's histogram with a caption that says what it shows; nothing where it has scored no slide."""
    here = histogram([line.p[name][-1] for line in run.lines if line.p.get(name)])
    if here is None:
        return ""
    known = Histogram.from_json(facts.get("out_of_fold"))
    said = f"this run: {_many(here.n, 'slide')}, mean {here.mean:.3f}"
    kind, judged = "soft", "no out-of-fold predictions were with the weights"
    if known is not None:
        said += f"; out of fold: {_many(known.n, 'slide')}, mean {known.mean:.3f}"
        apart, chance = distance(here, known), by_chance(here, known)
        kind = "bad" if apart > chance else "good"
        judged = (
            f"apart by {apart:.2f} (Kolmogorov and Smirnov's distance, in twentieths); by chance it stays below "
            f"{chance:.2f} in 19 of 20 cases: {'shifted' if apart > chance else 'no shift can be seen'}"
        )
    pool = facts.get("tile_pool")
    pooled = f" Tiles are pooled by {pool} here, by their mean out of fold." if pool and pool != "mean" else ""
    return (
        f"<figure><h3>{escape(name)}</h3>{histogram_svg(here, known, f'{name}: {said}; {judged}')}"
        f'<figcaption>{escape(said)}. <span class="{kind}">{escape(judged)}.</span>{escape(pooled)}</figcaption>'
        "</figure>\n"
    )


# the timeline


def _timeline(run: Run) -> Iterator[str]:
    parts: dict[int, list[Bar]] = {}
    busy: dict[int, list[tuple[float, float]]] = {}
    for line in run.lines:
        for part, bar, spans in _lived(run, line):
            parts.setdefault(part, []).append(bar)
            busy.setdefault(part, []).extend(spans)
    if not parts:
        yield "<p>No times are known.</p>\n"
    for number, part in enumerate(sorted(parts), 1):
        bars, spans = sorted(parts[part], key=lambda bar: (bar.begin, bar.said)), sorted(busy[part])
        said = _timeline_in_words(bars, spans)
        head = f"<h3>Part {number} of {len(parts)}</h3>\n" if len(parts) > 1 else ""
        yield (
            f'{head}<figure><div class="scroll" role="region" aria-label="Timeline" tabindex="0">'
            f"{timeline_svg(bars, spans, said)}</div><figcaption>{escape(said)}</figcaption></figure>\n"
        )


def _lived(run: Run, line: SlideReport) -> Iterator[tuple[int, Bar, list[tuple[float, float]]]]:
    """When a slide's process lived and the model was busy with it, if the sidecar says so; and in which part."""
    if line.image_id not in run.places:
        return
    try:
        value = read_sidecar_line(run.folder / records.SLIDES, run.places[line.image_id])
        begin, end = float(value["from_s"]), float(value["to_s"])
        spans = [(float(a), float(b)) for a, b in value["model_s"]]
        part = int(value["part"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    if math.isfinite(begin) and math.isfinite(end):
        said = f"{line.image_id}, {line.state}: {begin:.1f} to {end:.1f} s"
        yield part, Bar(begin, end, line.state, said), spans


def _timeline_in_words(bars: Sequence[Bar], spans: Sequence[tuple[float, float]]) -> str:
    begin, end = min(bar.begin for bar in bars), max([bar.end for bar in bars] + [b for _, b in spans])
    alive, model = math.fsum(bar.end - bar.begin for bar in bars), math.fsum(b - a for a, b in spans)
    whole = max(end - begin, 1e-3)
    return (
        f"Bars are the slides' processes, the lowest lane is the model. The first slide began at {begin:.1f} s, the "
        f"last thing ended at {end:.1f} s; {alive / whole:.1f} slides at a time on average; the model was busy for "
        f"{model:.1f} s, {model / whole:.0%} of it."
    )


# versions


def _versions(run: Run) -> Iterator[str]:
    yield _pairs("Versions", _version_rows(run))
    yield _pairs("Hashes", _hash_rows(run))
    yield _pairs("Arguments", ((name, str(value)) for name, value in _dict(run.facts.get("arguments")).items()))
    notes = [f"member {name}: {note}" for name, facts in run.members.items() for note in facts.get("notes") or ()]
    notes += [f"member {name} left out: {why}" for name, why in _dict(run.facts.get("left_out")).items()]
    if notes:
        yield f"<h3>Notes</h3>\n<ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>\n"


def _version_rows(run: Run) -> Iterator[tuple[str, str]]:
    facts = run.facts
    yield from ((name, str(facts[name])) for name in ("clotkit", "python", "competition") if facts.get(name))
    yield from ((name, str(version)) for name, version in _dict(facts.get("packages")).items())
    yield from (
        (f"recipe of {name}", str(member["recipe"])) for name, member in run.members.items() if "recipe" in member
    )


def _hash_rows(run: Run) -> Iterator[tuple[str, str]]:
    for name, member in run.members.items():
        if member.get("weights_sha256"):
            yield f"weights of {name}", str(member["weights_sha256"])
    if run.facts.get("ensemble"):
        yield "ensemble", str(run.facts["ensemble"])
    if run.submission is not None:
        found, wanted = sha256(run.submission), run.facts.get("submission_sha256")
        yield run.submission.name, found + ("" if wanted in (None, found) else f" (the run left {wanted})")
    if run.facts.get("key"):
        yield "slides and weights", str(run.facts["key"])


def _pairs(caption: str, rows: Iterator[tuple[str, str]]) -> str:
    """A table of names and values; nothing where there is none."""
    text = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="hash">{escape(value)}</td></tr>\n' for name, value in rows
    )
    if not text:
        return ""
    head = '<thead><tr><th scope="col">What</th><th scope="col">Value</th></tr></thead>'
    return f"<table>\n<caption>{caption}</caption>\n{head}\n<tbody>\n{text}</tbody>\n</table>\n"
