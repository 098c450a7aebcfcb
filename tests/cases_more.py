"""Rows of the table for the losses that torch lacks. `cases` joins them to its own."""

import numpy as np
import oracles_more as oracles
from cases import (
    IMAGES,
    ROWS,
    Case,
    class_weights,
    labelled,
    log_probability_pair,
    logit_pair,
    real_pair,
    signed,
    soft,
    weighted,
)

import jaxloss

BATCHES = ((5, 3), (1, 4), (4, 6))
GROUPS = ((5, 3), (6, 4))
BOXES = ((5, 4), (4,), (1, 4), (2, 3, 4))


def positive_pair(rng, shape):
    return {name: rng.uniform(0.2, 4.0, size=shape) for name in ("input", "target")}


def measures(rng, shape):
    return {"input": rng.normal(size=shape), "target": rng.uniform(0.1, 3.0, size=shape)}


def taught(rng, shape):
    return {**labelled()(rng, shape), "teacher": rng.normal(size=shape) * 2}


def two_logits(rng, shape):
    return {"input": rng.normal(size=shape) * 2, "teacher": rng.normal(size=shape) * 2}


def vectors(*names):
    def draw(rng, shape):
        return {name: rng.normal(size=shape) for name in names}

    return draw


def grouped(rng, shape):
    """Two labels that occur more than once, then one that does not, if there is room."""
    labels = np.array([7, 3, 7, 3, 5, 7])[: shape[0]]
    return {"input": rng.normal(size=shape), "target": labels}


def boxes(rng, shape):
    """Corners in order, of boxes that overlap as often as not."""
    out = {}
    for name in ("boxes1", "boxes2"):
        corner, size = rng.uniform(0, 2, size=(*shape[:-1], 2)), rng.uniform(0.5, 2.5, size=(*shape[:-1], 2))
        out[name] = np.concatenate([corner, corner + size], -1)
    return out


def _elementwise(name, draw, numbers=None):
    return Case(name.removesuffix("_loss"), getattr(jaxloss, name), getattr(oracles, name), draw, numbers or {})


def _classes(name, label, draw, numbers=None, static=None, **options):
    loss, oracle = getattr(jaxloss, name), getattr(oracles, name)
    return Case(label, loss, oracle, draw, numbers or {}, static or {}, ROWS, inner="class", **options)


def _batch(name, label, draw, numbers, rows, shapes=BATCHES, **options):
    """A loss in which a masked row is missing from all others: the mask has tests of its own."""
    loss, oracle = getattr(jaxloss, name), getattr(oracles, name)
    return Case(label, loss, oracle, draw, numbers, {}, shapes, rows, -1, regions=True, **options)


def _boxes(name, numbers, **options):
    loss, oracle, label = getattr(jaxloss, name), getattr(oracles, name), name.removesuffix("_loss")
    return Case(label, loss, oracle, boxes, numbers, {}, BOXES, ("boxes1", "boxes2"), -1, **options)


MORE = [
    _elementwise("mean_absolute_percentage_error", real_pair, {"eps": 0.3}),
    _elementwise("mean_squared_logarithmic_error", positive_pair),
    _elementwise("l2_loss", real_pair),
    _elementwise("log_cosh_loss", real_pair),
    _elementwise("quantile_loss", real_pair, {"quantile": 0.3}),
    _elementwise("expectile_loss", real_pair, {"expectile": 0.8}),
    _elementwise("hinge_loss", signed, {"margin": 1.3}),
    _elementwise("squared_hinge_loss", signed, {"margin": 0.7}),
    _elementwise("perceptron_loss", signed),
    _elementwise("binary_sparsemax_loss", logit_pair),
    _classes("multiclass_hinge_loss", "multiclass_hinge", labelled(ignored=0), {"margin": 1.3}),
    _classes("multiclass_hinge_loss", "multiclass_hinge p=2", labelled(ignored=0), {"margin": 2.3}, {"p": 2}),
    _classes("multiclass_perceptron_loss", "multiclass_perceptron", labelled(ignored=0)),
    _classes("poly_cross_entropy", "poly", labelled(), {"epsilon": 1.5}),
    _classes("poly_cross_entropy", "poly soft", soft, {"epsilon": 0.5}),
    _classes("generalized_cross_entropy", "generalized_ce", labelled(), {"q": 0.6}),
    _classes("sparsemax_loss", "sparsemax", labelled()),
    _classes("sparsemax_loss", "sparsemax soft", soft),
    _classes("generalized_kl_div", "generalized_kl", measures),
    _classes("js_div", "js", log_probability_pair, {"beta": 0.3}),
    _classes(
        "distillation_loss",
        "distillation",
        taught,
        {"temperature": 1.7, "alpha": 0.4},
        rows=("input", "teacher", "target"),
    ),
    _classes(
        "distillation_loss",
        "distillation reverse",
        two_logits,
        {"temperature": 0.7},
        {"divergence": "reverse_kl"},
        rows=("input", "teacher"),
    ),
    _classes(
        "distillation_loss",
        "distillation js",
        two_logits,
        {"temperature": 2.0, "beta": 0.3},
        {"divergence": "jensen_shannon"},
        rows=("input", "teacher"),
    ),
    Case(
        "focal_tversky",
        jaxloss.focal_tversky_loss,
        oracles.focal_tversky_loss,
        weighted(labelled(), of=class_weights),
        {"alpha": 0.3, "beta": 0.7, "gamma": 1.4, "smooth": 0.5},
        {"mode": "multiclass", "per_sample": True},
        shapes=IMAGES,
        regions=True,
    ),
    Case(
        "generalized_dice",
        jaxloss.generalized_dice_loss,
        oracles.generalized_dice_loss,
        labelled(ignored=0),
        {"smooth": 0.5},
        {"per_sample": True},
        shapes=IMAGES,
        regions=True,
    ),
    _batch("info_nce_loss", "info_nce", vectors("query", "positive"), {"temperature": 0.5}, ("query", "positive")),
    _batch(
        "clip_loss",
        "clip",
        vectors("image_features", "text_features"),
        {"logit_scale": 3.0},
        ("image_features", "text_features"),
    ),
    _batch(
        "siglip_loss",
        "siglip",
        vectors("image_features", "text_features"),
        {"logit_scale": 3.0, "logit_bias": -1.0},
        ("image_features", "text_features"),
    ),
    _batch("nt_xent_loss", "nt_xent", grouped, {"temperature": 0.4}, ("input", "target"), shapes=GROUPS),
    _batch("nt_xent_loss", "nt_xent views", vectors("input", "target"), {"temperature": 0.4}, ("input", "target")),
    _batch(
        "supervised_contrastive_loss",
        "supervised_contrastive",
        grouped,
        {"temperature": 0.4},
        ("input", "target"),
        shapes=GROUPS,
    ),
    _batch(
        "circle_loss", "circle", grouped, {"margin": 0.3, "gamma": 4.0}, ("input", "target"), shapes=GROUPS, held=True
    ),
    _boxes("box_iou_loss", {"eps": 1e-3}),
    _boxes("generalized_box_iou_loss", {"eps": 1e-3}),
    _boxes("distance_box_iou_loss", {"eps": 1e-3}),
    _boxes("complete_box_iou_loss", {}, held=True),
]
