"""The site: Sphinx with MyST and myst-nb. Nothing is fetched, neither to build it nor to read it."""

import re
import sys
from importlib.metadata import version as installed
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import pictures  # noqa: E402
import plots  # noqa: E402
import reference  # noqa: E402
import rendered  # noqa: E402

project = "jaxloss"
author = "The jaxloss authors"
copyright = "the authors, Apache License 2.0"
version = release = installed("jaxloss")

extensions = ["myst_nb", "sphinx.ext.extlinks", "formulas"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_build", "measured", "plots"]  # the last two are parts of pages
myst_enable_extensions = ["dollarmath", "fieldlist", "colon_fence", "deflist", "attrs_block"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks are shown with the outputs that are committed
nb_merge_streams = True

html_theme = "furo"
html_title = f"jaxloss {release}"
html_math_renderer = "drawn"
html_static_path = ["_static"]
pygments_dark_style = "github-dark"
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
# Both read well on white and on black; furo's own lighter blue has too little contrast in text.
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b6e8a", "color-brand-content": "#0b6e8a"},
    "dark_css_variables": {"color-brand-primary": "#5cc4de", "color-brand-content": "#5cc4de"},
}
python_maximum_signature_line_length = 80
add_module_names = False
toc_object_entries = False
nitpicky = True
nitpick_ignore_regex = [("py:exc", ".*")]  # Python's own and JAX's: their pages are elsewhere

# Papers that the pages name by number: {arxiv}`2010.07468`.
extlinks = {"arxiv": ("https://arxiv.org/abs/%s", "arXiv:%s")}
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def _write_pages(app) -> None:
    """What is made from the package and from the notebooks, before Sphinx looks for pages."""
    pictures.write(HERE / "api" / "pictures")
    reference.write(HERE / "api")
    plots.write(HERE / "performance", HERE / "plots")
    rendered.copy(HERE.parent / "notebooks", HERE / "notebooks")


def _link_names(app, name: str, source: list[str]) -> None:
    """`cross_entropy` in a page written by hand leads to its entry, as it does in the docstrings."""
    if not name.startswith(("api/", "notebooks/")):
        # On a code host the same links lead to the notebooks where they are.
        text = source[0].replace("](../notebooks/README.md)", "](notebooks/index.md)")
        parts = FENCE.split(text.replace("](../notebooks/", "](notebooks/"))
        source[0] = "".join(part if FENCE.fullmatch(part) else reference.links(part) for part in parts)


def setup(app) -> None:
    """Sphinx calls this."""
    app.connect("builder-inited", _write_pages)
    app.connect("source-read", _link_names)
