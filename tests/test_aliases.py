"""Old names in users' files keep working; each such file logs one warning."""

import logging
from pathlib import Path

import pytest

from clotkit.aliases import RECIPE_KEYS
from clotkit.config import RECIPES, load_recipe
from clotkit.errors import ConfigError


def with_old_keys(text: str) -> tuple[str, int]:
    """Return a recipe's text with every renamed key under its old name, and their number."""
    lines, count, table = [], 0, ""
    for line in text.splitlines():
        if line.startswith("["):
            table = line.strip("[] ")
        key = line.partition("=")[0].strip()
        old = {new: old for old, new in RECIPE_KEYS.get(table, {}).items()}.get(key)
        count += old is not None
        lines.append(line if old is None else line.replace(key, old, 1))
    return "\n".join(lines), count


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.toml")))
def test_a_recipe_with_old_keys_is_the_same_recipe(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text, count = with_old_keys((RECIPES / f"{name}.toml").read_text())
    assert count > 0
    (tmp_path / "old.toml").write_text(text)
    with caplog.at_level(logging.WARNING):
        assert load_recipe(tmp_path / "old.toml") == load_recipe(name)
    assert len(caplog.records) == 1


def test_a_key_under_both_names_is_refused(tmp_path: Path) -> None:
    text = (RECIPES / "demo.toml").read_text().replace("[tiling]", "[tiling]\nshrink = 4", 1)
    (tmp_path / "both.toml").write_text(text)
    with pytest.raises(ConfigError):
        load_recipe(tmp_path / "both.toml")
