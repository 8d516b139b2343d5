"""Sphinx: the pages of docs/, tutorials that run when they are built, and the API from docstrings.

`make docs` builds docs/_build/html. Pages are MyST Markdown; a page that begins with a kernelspec
is a notebook, which is run on every build, so what it shows is what the code gave.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from nit_snn import __version__

ROOT = Path(__file__).parents[1]
#: Pages that are files of the repository's root: there they are read on GitHub, here as pages.
FROM_ROOT = {"readme": "README.md", "changelog": "CHANGELOG.md"}

sys.path.insert(0, str(ROOT / "docs"))

project = "nit_snn"
author = "The nit_snn authors"
copyright = author
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "mathml",
]
exclude_patterns = [
    "_build",
    "results",
    "benchmarks/*.md",
    "**/.ipynb_checkpoints",
    "jupyter_execute",
]
suppress_warnings = ["config.cache"]

html_theme = "furo"
html_math_renderer = "mathml"
html_title = "nit_snn"
html_static_path = ["_static"]
html_css_files = ["wide.css"]

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

nb_execution_mode = "force"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Shape", "params_style"), ("Advanced", "params_style")]

nitpicky = True
#: What other projects define: nothing is fetched when this is built.
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|numpy|np|npt|nn|snn|snntorch|spikingjelly|matplotlib|collections|os)\b.*"),
    (
        r"py:.*",
        r"nit_snn\.(estimators\.schedule\.Ruled|neurons\.registry\.Noisy|dynamics\.kernels\..*)",
    ),
    # Internals that documented classes are made of.
    (r"py:.*", r"nit_snn\.(recording|noise|dynamics|training\.distributed)\..*"),
    (r"py:.*", r"(Any|Tensor|Figure|Axes|Path|Iterator|Callable|Mapping|nn\..*|pathlib\..*)"),
    (
        r"py:.*",
        r"(Seen|NodeState|Input|Block|optional|scalar|Rows|(dict|tuple)\[.*|NDArray|uint8|_.*|typing\..*)",
    ),
]


def page_from_root(app: Any, docname: str, source: list[str]) -> None:
    """Reads a page from the root, with its links as they must be from docs/."""
    if docname in FROM_ROOT:
        text = (ROOT / FROM_ROOT[docname]).read_text()
        text = re.sub(r"\]\((?!https?:|#|docs/)", "](../", text)
        source[0] = text.replace("](docs/", "](")
        if docname == "readme":  # its own title is that of the whole site
            source[0] = source[0].replace("# nit_snn\n", "# README\n", 1)
        for page, file in FROM_ROOT.items():
            source[0] = source[0].replace(f"](../{file})", f"]({page}.md)")


def shapes_are_no_emphasis(*args: Any) -> None:
    """The star of a shape, as in (N, *), begins no emphasis."""
    lines: list[str] = args[-1]
    lines[:] = [re.sub(r"(?<!\\)\*\)", r"\*)", line) for line in lines]


def setup(app: Any) -> None:
    app.connect("source-read", page_from_root)
    app.connect("autodoc-process-docstring", shapes_are_no_emphasis, priority=400)
