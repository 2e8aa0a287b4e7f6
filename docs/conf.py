"""How Sphinx builds these pages: ./run_app.sh -docs."""

from importlib import metadata

project = "Roundhouse"
author = "the Roundhouse authors"
copyright = "2026, the Roundhouse authors"
release = version = metadata.version("roundhouse-daemon")

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
nitpicky = True

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"Roundhouse {release}"
html_show_copyright = False
html_theme_options = {"light_css_variables": {"code-font-size": "0.77rem"}}  # 92 characters a line
