"""Formulas as drawings, made while the site is built: no script, no network and no font is needed to read them."""

import re
from html import escape

import ziamath
from docutils.nodes import SkipNode
from sphinx.util import logging

SIZE = 17  # pixels to an em while drawing; on the page an em is the reader's
LOGGER = logging.getLogger(__name__)


def drawing(latex: str, block: bool) -> str:
    """An SVG in the colour of the text around it, with the formula's source for those who cannot see it."""
    formula = ziamath.Latex(_plain(latex), size=SIZE, inline=not block, color="currentColor")
    image = formula.svgxml()
    width, height = (float(image.get(side)) / SIZE for side in ("width", "height"))
    below = "" if block else f"vertical-align:{formula.getyofst() / SIZE:.3f}em;"
    for name, value in {
        "role": "img",
        "aria-label": latex,
        "style": f"width:{width:.3f}em;height:{height:.3f}em;{below}",
    }.items():
        image.set(name, value)
    for side in ("width", "height"):
        del image.attrib[side]
    return ziamath.zmath.ET.tostring(image, encoding="unicode")


def _plain(latex: str) -> str:
    r"""Names of arguments upright, since the parser does not know \_ in text, and the epsilon that the texts write."""
    latex = latex.replace(r"\epsilon", r"\varepsilon")
    latex = re.sub(r"\\operatorname\{([^}]*\\_[^}]*)\}", r"\\text{\1}", " ".join(latex.split()))
    return re.sub(r"\\text\{[^}]*\}", lambda text: text[0].replace(r"\_", "_"), latex)


def _html(self, node, block: bool) -> None:
    latex = node.astext()
    try:
        shown = drawing(latex, block)
    except Exception as error:  # whatever the parser raises is this formula's fault
        LOGGER.warning("formula cannot be drawn: %s (%s)", latex, error, location=node)
        shown = f"<code>{escape(latex)}</code>"
    around = "div" if block else "span"
    self.body.append(f'<{around} class="math">{shown}</{around}>')
    raise SkipNode


def setup(app) -> dict[str, bool]:
    """Sphinx calls this; `html_math_renderer = "drawn"` chooses it."""
    inline, block = (lambda self, node, block=block: _html(self, node, block) for block in (False, True))
    app.add_html_math_renderer("drawn", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
