"""Configure the documentation site; `make docs` builds it with warnings as errors and without a network."""

from importlib import metadata

project = "clotkit"
author = "the clotkit contributors"
copyright = f"2026, {author}"
release = version = metadata.version("clotkit")

extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nitpicky = True

html_theme = "furo"
html_title = f"clotkit {release}"
html_static_path = ["_static", "../src/clotkit/report/theme.css"]
html_css_files = ["theme.css", "site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True, "footer_icons": []}
