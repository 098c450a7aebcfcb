"""Formulas as MathML, made while the site is built: browsers draw it themselves, with no script and no network."""

from latex2mathml.converter import convert


def _inline(self, node) -> None:
    self.body.append(convert(node.astext()))
    _skip()


def _block(self, node) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math"))
    self.body.append(convert(node.astext(), display="block"))
    self.body.append("</div>\n")
    _skip()


def _skip() -> None:
    from docutils.nodes import SkipNode

    raise SkipNode


def setup(app) -> dict[str, bool]:
    """Sphinx calls this; `html_math_renderer = "mathml"` chooses it."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
