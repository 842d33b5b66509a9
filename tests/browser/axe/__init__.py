"""Run axe-core, which lies here with its licence, on a page in Chromium."""

from pathlib import Path

AXE = (Path(__file__).parent / "axe.min.js").read_text(encoding="utf-8")
SERIOUS = """async () => (await axe.run(document, {iframes: false, resultTypes: ['violations']})).violations
    .filter(one => ['serious', 'critical'].includes(one.impact))
    .map(one => one.id + ': ' + one.nodes.map(node => node.target.join(' ')).join('; '))"""
