"""Pages of the API: one for each family of losses, written from the docstrings, which are Markdown as MyST reads it."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent, indent
from types import ModuleType
from typing import NamedTuple

import pictures

import jaxloss


class Page(NamedTuple):
    """A page of the reference. `modules` are private files whose public functions it has, or public namespaces."""

    title: str
    modules: tuple[str, ...]
    about: str


PAGES = {
    "regression": Page(
        "Regression", ("_regression",), "Numbers against numbers, and the likelihoods of counts and of normal errors."
    ),
    "errors": Page(
        "More errors of regression", ("_errors",), "What torch has not: quantiles, percentages, logarithms."
    ),
    "binary": Page("Two classes", ("_binary",), "Yes or no for each entry: one label, or many independent ones."),
    "categorical": Page(
        "Many classes", ("_categorical",), "One class of many, as an index or as probabilities, and divergences."
    ),
    "classes": Page(
        "More losses over classes",
        ("_classes",),
        "Cross entropies for noisy labels, and losses whose optimum is sparse.",
    ),
    "focal": Page("Focal losses", ("_focal",), "Cross entropies that look away from what is already right."),
    "linear_cross_entropy": Page(
        "Linear layer and cross entropy in one",
        ("_linear_cross_entropy",),
        "The last layer of a language model with its loss, whose logits never exist as a whole.",
    ),
    "divergence": Page("Divergences and distillation", ("_divergence",), "Distributions against distributions."),
    "margin": Page("Margins, as in torch", ("_margin",), "Hinges of scores, rankings and labels."),
    "hinge": Page("Hinge and perceptron", ("_hinge",), "Support vectors and perceptrons, for two classes and many."),
    "embedding": Page("Distances and triplets", ("_embedding",), "Vectors against vectors, pair by pair."),
    "contrastive": Page(
        "Contrastive losses", ("_contrastive",), "Every vector of a batch against every other, on all devices."
    ),
    "segmentation": Page("Overlap of regions", ("_segmentation",), "Dice, IoU and their family, from logits."),
    "boxes": Page("Boxes", ("_boxes",), "IoU and its relatives between pairs of boxes."),
    "ctc": Page(
        "Sequences: CTC", ("_ctc", "_ctc_alignment"), "Labels without their times, and where a model finds them."
    ),
    "softmax": Page("Log-softmax", ("_softmax",), "What the cross entropies are made of."),
    "chunked": Page("Any loss in chunks", ("_chunked",), "Exact means over batches that do not fit in memory."),
    "spmd": Page("jaxloss.spmd", ("spmd",), ""),
    "multitask": Page("jaxloss.multitask", ("multitask",), ""),
    "class_weights": Page("jaxloss.class_weights", ("class_weights",), ""),
    "debugging": Page(
        "Checks and diagnosis", ("_checked", "_diagnose"), "Errors for bad values, and what is probably wrong."
    ),
}
SECTION = re.compile(r"^(Args|Returns|Raises|Example|Note|References):\n", re.MULTILINE)


def public() -> dict[str, object]:
    """Every public function and class by its dotted name behind `jaxloss.`; namespaces are opened."""
    found: dict[str, object] = {}
    for name in jaxloss.__all__:
        value = getattr(jaxloss, name)
        if isinstance(value, ModuleType):
            found |= {f"{name}.{inner}": getattr(value, inner) for inner in _names_in(value)}
        else:
            found[name] = value
    return found


def _names_in(module: ModuleType) -> list[str]:
    own = [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]
    return list(getattr(module, "__all__", [n for n in own if not n.startswith("_")]))


def page_of(name: str) -> str:
    """The page that a public name stands on."""
    space = name.split(".")[0] if "." in name else public()[name].__module__.removeprefix("jaxloss.")
    return next(page for page, about in PAGES.items() if space in about.modules)


def write(folder: Path) -> None:
    """All pages, the gallery among them."""
    for path in folder.glob("*.md"):
        path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    for slug, page in PAGES.items():
        (folder / f"{slug}.md").write_text(_page(slug, page))
    (folder / "index.md").write_text(_index())
    (folder / "gallery.md").write_text(_gallery())


def on(slug: str) -> list[str]:
    """The public names of a page, in the order of the source."""
    names = [name for name in public() if page_of(name) == slug]
    return sorted(names, key=lambda name: _line(public()[name]))


def _line(value: object) -> tuple[str, int]:
    return value.__module__, inspect.getsourcelines(value)[1]


def _page(slug: str, page: Page) -> str:
    about = page.about or inspect.getdoc(getattr(jaxloss, slug)) or ""
    parts = [f"# {page.title}", links(_code_blocks(about))]
    parts += [_entry(name, public()[name]) for name in on(slug)]
    return "\n\n".join(parts) + "\n"


def _code_blocks(text: str) -> str:
    return re.sub(r"\n\n    (.*)\n\n", r"\n\n```python\n\1\n```\n\n", text)


def _entry(name: str, value: object) -> str:
    kind = "class" if inspect.isclass(value) else "function"
    body = _class(value) if inspect.isclass(value) else _function(name, value)
    module = "" if "." not in name else "." + name.split(".")[0]
    head = f"{name.split('.')[-1]}{_signature(value)}"
    return f"## {name}\n\n::::::{{py:{kind}}} {head}\n:module: jaxloss{module}\n\n{body}\n::::::"


def _signature(value: object) -> str:
    """Names and defaults: what types there are stands in words beside each argument."""
    parts, starred = [], False
    for p in inspect.signature(value).parameters.values():
        if p.kind is p.KEYWORD_ONLY and not starred:
            parts, starred = [*parts, "*"], True
        stars = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        starred |= stars == "*"
        parts.append(stars + p.name + ("" if p.default is p.empty else f"={_default(p.default)}"))
    return f"({', '.join(parts)})"


def _default(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) and len(repr(value)) > 8 else repr(value)


def _class(value: type) -> str:
    """A named tuple or a dataclass: what it says of itself, and its fields."""
    fields = ", ".join(f"`{name}`" for name in inspect.signature(value).parameters)
    return f"{links(inspect.getdoc(value) or '')}\n\nFields: {fields}."


def _function(name: str, value: object) -> str:
    head, *rest = SECTION.split(inspect.getdoc(value) or "")
    sections = {title: dedent(text).strip() for title, text in zip(rest[::2], rest[1::2], strict=True)}
    parts = [links(head.strip()), _picture(name)]
    parts += ["\n".join(_fields(sections))]
    parts += [f"```pycon\n{sections['Example']}\n```"]
    parts += [f":::{{note}}\n{links(sections['Note'])}\n:::"] if "Note" in sections else []
    parts += ["References:\n\n" + "\n".join(f"- {_autolinks(line)}" for line in _references(sections["References"]))]
    return "\n\n".join(part for part in parts if part)


def _fields(sections: dict[str, str]) -> Iterator[str]:
    """Google's sections as field lists."""
    for title, field in (("Args", "param "), ("Raises", "raises ")):
        for name, text in _items(sections[title]):
            yield f":{field}{name}: {indent(links(text), '    ').strip()}"
    yield f":returns: {indent(links(sections['Returns']), '    ').strip()}"


def _items(section: str) -> list[tuple[str, str]]:
    found = re.split(r"^([*\w.]+): ", section, flags=re.MULTILINE)[1:]
    return [(name, dedent("    " + text).strip()) for name, text in zip(found[::2], found[1::2], strict=True)]


def _references(section: str) -> Iterator[str]:
    """One for each line, but a line that ends in a comma goes on."""
    yield from re.sub(r",\n\s*", ", ", section).splitlines()


def _autolinks(text: str) -> str:
    return re.sub(r"(https?://\S+)", r"<\1>", text)


def links(text: str) -> str:
    """`name` of a public function as a link to its entry."""
    names = "|".join(sorted(map(re.escape, public()), key=len, reverse=True))
    return re.sub(rf"(?<![`\w{{])`(?:jaxloss\.)?({names})`(?!`)", r"{py:obj}`~jaxloss.\1`", text)


def _picture(name: str) -> str:
    if name not in pictures.SLICES:
        return ""
    return f"{_figure(name)}\n{pictures.SLICES[name].caption}\n```"


def _figure(name: str, **options: str) -> str:
    """The head of a figure."""
    options |= {"class": "slice", "alt": f"{name} and its slope over: {pictures.SLICES[name].over}"}
    lines = [f"```{{figure}} pictures/{name}.svg", *(f":{key}: {value}" for key, value in options.items())]
    return "\n".join(lines) + "\n"


def _gallery() -> str:
    figures = [
        f"{_figure(name, target=f'{page_of(name)}.html#jaxloss.{name}')}\n{{py:obj}}`~jaxloss.{name}`\n```"
        for slug in PAGES
        for name in on(slug)
        if name in pictures.SLICES
    ]
    return GALLERY + ":::::{container} gallery\n" + "\n\n".join(figures) + "\n:::::\n"


def _index() -> str:
    rows = [f"| [{page.title}]({slug}.md) | {_list(slug)} |" for slug, page in PAGES.items()]
    return INDEX.format(rows="\n".join(rows), slugs="\n".join(PAGES))


def _list(slug: str) -> str:
    return ", ".join(f"{{py:obj}}`~jaxloss.{name}`" for name in on(slug))


GALLERY = """# Gallery

Every loss along one line: **the loss in blue, its slope in orange, dashed**. The pictures are drawn from the package
when this site is built. A click leads to the formula; below each picture there it says what is moved along the line.

"""
INDEX = """# API

Everything is a function of `jaxloss` or of one of its three namespaces `spmd`, `multitask` and `class_weights`. The
arrays that a loss compares come first, by position or by name; everything else goes by keyword, and ends in `weight`,
`axis`, `where`, `reduction`, as far as a loss has them: see [Conventions](../conventions.md). The
[gallery](gallery.md) has a picture of each loss.

| page | functions |
| --- | --- |
{rows}

```{{toctree}}
:hidden:

{slugs}
```
"""
