"""What each loss should be, in float64 NumPy with loops, from the formulas. Imports nothing of ours.

An oracle returns the unreduced loss with its weights in it, and what each entry adds to the denominator of the mean.
"""

import math

import numpy as np


def _elementwise(formula, x, *others):
    x = np.asarray(x, np.float64)
    others = [np.broadcast_to(np.asarray(o, np.float64), x.shape) for o in others]
    loss = np.empty(x.shape)
    for i in np.ndindex(x.shape):
        loss[i] = formula(float(x[i]), *(float(o[i]) for o in others))
    return loss


def _ones(loss):
    return np.ones(np.shape(loss))


def l1_loss(input, target, *, weight=None):
    loss = _elementwise(lambda x, t: abs(x - t), input, target)
    share = _ones(loss) if weight is None else np.asarray(weight, np.float64)
    return share * loss, share


def mse_loss(input, target, *, weight=None):
    loss = _elementwise(lambda x, t: (x - t) ** 2, input, target)
    share = _ones(loss) if weight is None else np.asarray(weight, np.float64)
    return share * loss, share


def smooth_l1_loss(input, target, *, beta=1.0):
    def formula(x, t):
        d = abs(x - t)
        return 0.5 * d * d / beta if d < beta else d - 0.5 * beta

    loss = _elementwise(formula, input, target)
    return loss, _ones(loss)


def huber_loss(input, target, *, delta=1.0, weight=None):
    def formula(x, t, w):
        d = abs(x - t)
        return w * (0.5 * d * d if d <= delta else delta * (d - 0.5 * delta))

    loss = _elementwise(formula, input, target, 1.0 if weight is None else weight)
    return loss, _ones(loss)


def poisson_nll_loss(input, target, *, log_input=True, full=False, eps=1e-8):
    def formula(x, t):
        loss = math.exp(x) - t * x if log_input else x - t * math.log(x + eps)
        if full and t > 1:
            loss += t * math.log(t) - t + 0.5 * math.log(2 * math.pi * t)
        return loss

    loss = _elementwise(formula, input, target)
    return loss, _ones(loss)


def gaussian_nll_loss(input, target, var, *, full=False, eps=1e-6):
    x, v = np.asarray(input, np.float64), np.asarray(var, np.float64)
    if v.shape != x.shape and v.shape == x.shape[:-1]:
        v = v[..., None]

    def formula(x, t, v):
        v = max(v, eps)
        return 0.5 * (math.log(v) + (x - t) ** 2 / v) + (0.5 * math.log(2 * math.pi) if full else 0.0)

    loss = _elementwise(formula, x, target, v)
    return loss, _ones(loss)


def binary_cross_entropy(input, target, *, weight=None):
    def log(p):
        return max(math.log(p), -100.0) if p > 0 else -100.0

    def formula(p, t, w):
        return -w * (t * log(p) + (1 - t) * log(1 - p))

    loss = _elementwise(formula, input, target, 1.0 if weight is None else weight)
    return loss, _ones(loss)


def binary_cross_entropy_with_logits(input, target, *, pos_weight=None, weight=None):
    def cost(x):  # log(1 + e^x)
        return x + math.log1p(math.exp(-x)) if x > 0 else math.log1p(math.exp(x))

    def formula(x, t, w, positive):
        return w * (positive * t * cost(-x) + (1 - t) * cost(x))

    ones = [1.0 if w is None else w for w in (weight, pos_weight)]
    loss = _elementwise(formula, input, target, *ones)
    return loss, _ones(loss)


def kl_div(input, target, *, log_target=False):
    def formula(x, t):
        p, log_p = (math.exp(t), t) if log_target else (t, math.log(t) if t > 0 else 0.0)
        return p * (log_p - x) if p > 0 else 0.0

    loss = _elementwise(formula, input, target)
    return loss, _ones(loss)


def _class_axis(x, axis):
    return (0 if x.ndim == 1 else 1) if axis is None else axis


def _log_probabilities(z):
    top = max(z)
    return [v - top - math.log(math.fsum(math.exp(u - top) for u in z)) for v in z]


def cross_entropy(
    input,
    target,
    *,
    weight=None,
    ignore_index=-100,
    label_smoothing=0.0,
    z_loss=0.0,
    logit_softcap=None,
    axis=None,
):
    x, target = np.asarray(input, np.float64), np.asarray(target)
    axis = _class_axis(x, axis)
    z = np.moveaxis(x, axis, -1)
    if logit_softcap is not None:
        z = logit_softcap * np.tanh(z / logit_softcap)
    classes = z.shape[-1]
    w = np.ones(classes) if weight is None else np.asarray(weight, np.float64)
    loss, share = np.zeros(z.shape[:-1]), np.ones(z.shape[:-1])
    soft = np.issubdtype(target.dtype, np.floating)
    q = np.moveaxis(np.asarray(target, np.float64), axis, -1) if soft else None
    for i in np.ndindex(loss.shape):
        if soft:
            mixed = [(1 - label_smoothing) * q[i][c] + label_smoothing / classes for c in range(classes)]
        elif int(target[i]) == ignore_index:
            share[i] = 0.0
            continue
        else:
            y = int(target[i])
            mixed = [(1 - label_smoothing) * (c == y) + label_smoothing / classes for c in range(classes)]
            share[i] = w[y]
        log_p = _log_probabilities(z[i])
        loss[i] = math.fsum(-w[c] * mixed[c] * log_p[c] for c in range(classes))
        loss[i] += z_loss * share[i] * (z[i][0] - log_p[0]) ** 2
    return loss, share


def linear_cross_entropy(input, linear_weight, target, *, linear_bias=None, feature_axis=-1, **options):
    x, w = np.asarray(input, np.float64), np.moveaxis(np.asarray(linear_weight, np.float64), feature_axis, -1)
    logits = np.zeros(x.shape[:-1] + w.shape[:-1])
    for row in np.ndindex(x.shape[:-1]):
        for output in np.ndindex(w.shape[:-1]):
            logits[row + output] = math.fsum(x[row] * w[output])
            if linear_bias is not None:
                logits[row + output] += linear_bias[output]
    return cross_entropy(logits, target, axis=x.ndim - 1, **options)


def nll_loss(input, target, *, weight=None, ignore_index=-100, axis=None):
    x, target = np.asarray(input, np.float64), np.asarray(target)
    log_p = np.moveaxis(x, _class_axis(x, axis), -1)
    w = np.ones(log_p.shape[-1]) if weight is None else np.asarray(weight, np.float64)
    loss, share = np.zeros(log_p.shape[:-1]), np.zeros(log_p.shape[:-1])
    for i in np.ndindex(loss.shape):
        y = int(target[i])
        if y != ignore_index:
            loss[i], share[i] = -w[y] * log_p[i][y], w[y]
    return loss, share


def logsumexp(input, axis=-1):
    z = np.moveaxis(np.asarray(input, np.float64), axis, -1)
    out = np.empty(z.shape[:-1])
    for i in np.ndindex(out.shape):
        out[i] = z[i][0] - _log_probabilities(z[i])[0]
    return out


def log_softmax(input, axis=-1):
    z = np.moveaxis(np.asarray(input, np.float64), axis, -1)
    out = np.empty(z.shape)
    for i in np.ndindex(z.shape[:-1]):
        out[i] = _log_probabilities(z[i])
    return np.moveaxis(out, -1, axis)


def pairwise_distance(x1, x2, *, p=2.0, eps=1e-6):
    d = np.abs(np.asarray(x1, np.float64) - np.asarray(x2, np.float64) + eps)
    return np.max(d, -1) if p == math.inf else np.sum(d**p, -1) ** (1 / p)


def cosine_similarity(x1, x2, *, axis=1, eps=1e-8):
    a, b = np.broadcast_arrays(np.asarray(x1, np.float64), np.asarray(x2, np.float64))
    lengths = [np.maximum(np.sqrt(np.sum(v * v, axis)), eps) for v in (a, b)]
    return np.sum(a * b, axis) / lengths[0] / lengths[1]


def cosine_embedding_loss(input1, input2, target, *, margin=0.0):
    a, b = np.asarray(input1, np.float64), np.asarray(input2, np.float64)
    loss = np.zeros(a.shape[:-1])
    for i in np.ndindex(loss.shape):
        cosine = a[i] @ b[i] / math.sqrt((a[i] @ a[i] + 1e-12) * (b[i] @ b[i] + 1e-12))
        if target[i] == 1:
            loss[i] = 1 - cosine
        elif target[i] == -1:
            loss[i] = max(0.0, cosine - margin)
    return loss, _ones(loss)


def triplet_margin_loss(anchor, positive, negative, *, margin=1.0, p=2.0, eps=1e-6, swap=False):
    to_positive = pairwise_distance(anchor, positive, p=p, eps=eps)
    to_negative = pairwise_distance(anchor, negative, p=p, eps=eps)
    if swap:
        to_negative = np.minimum(to_negative, pairwise_distance(positive, negative, p=p, eps=eps))
    loss = np.maximum(0, margin + to_positive - to_negative)
    return loss, _ones(loss)


def triplet_by_cosine(anchor, positive, negative, *, margin=1.0, swap=False):
    def distance(x, y):
        return 1 - cosine_similarity(x, y, axis=-1)

    to_negative = distance(anchor, negative)
    if swap:
        to_negative = np.minimum(to_negative, distance(positive, negative))
    loss = np.maximum(0, margin + distance(anchor, positive) - to_negative)
    return loss, _ones(loss)


def hinge_embedding_loss(input, target, *, margin=1.0):
    def formula(x, y):
        return (x if y != -1 else 0) + (max(0, margin - x) if y != 1 else 0)

    loss = _elementwise(formula, input, target)
    return loss, _ones(loss)


def margin_ranking_loss(input1, input2, target, *, margin=0.0):
    loss = _elementwise(lambda a, b, y: max(0, -y * (a - b) + margin), input1, input2, target)
    return loss, _ones(loss)


def soft_margin_loss(input, target):
    loss = _elementwise(lambda x, y: math.log1p(math.exp(-y * x)), input, target)
    return loss, _ones(loss)


def multilabel_soft_margin_loss(input, target, *, weight=None, axis=-1):
    x = np.asarray(input, np.float64)
    w = np.ones(x.shape[axis]) if weight is None else np.asarray(weight, np.float64)
    shape = [1] * x.ndim
    shape[axis] = -1
    terms, _ = binary_cross_entropy_with_logits(x, target, weight=np.broadcast_to(w.reshape(shape), x.shape))
    loss = terms.mean(axis)
    return loss, _ones(loss)


def multi_margin_loss(input, target, *, p=1, margin=1.0, weight=None, axis=None):
    x, target = np.asarray(input, np.float64), np.asarray(target)
    scores = np.moveaxis(x, _class_axis(x, axis), -1)
    classes = scores.shape[-1]
    w = np.ones(classes) if weight is None else np.asarray(weight, np.float64)
    loss = np.zeros(scores.shape[:-1])
    for i in np.ndindex(loss.shape):
        y = int(target[i])
        loss[i] = (
            sum(w[y] * max(0, margin - scores[i][y] + scores[i][c]) ** p for c in range(classes) if c != y) / classes
        )
    return loss, _ones(loss)


def multilabel_margin_loss(input, target, *, axis=None):
    x = np.asarray(input, np.float64)
    axis = _class_axis(x, axis)
    scores, lists = np.moveaxis(x, axis, -1), np.moveaxis(np.asarray(target), axis, -1)
    loss = np.zeros(scores.shape[:-1])
    for i in np.ndindex(loss.shape):
        labels = []
        for label in lists[i]:
            if label == -1:
                break
            labels.append(int(label))
        others = [c for c in range(scores.shape[-1]) if c not in labels]
        loss[i] = sum(max(0, 1 - scores[i][j] + scores[i][c]) for j in labels for c in others) / scores.shape[-1]
    return loss, _ones(loss)


def softmax_focal_loss(input, target, *, alpha=1.0, gamma=2.0, ignore_index=-100, axis=None):
    x, target = np.asarray(input, np.float64), np.asarray(target)
    axis = _class_axis(x, axis)
    z = np.moveaxis(x, axis, -1)
    classes = z.shape[-1]
    a = np.broadcast_to(np.asarray(alpha, np.float64), classes)
    soft = np.issubdtype(target.dtype, np.floating)
    q = np.moveaxis(target, axis, -1) if soft else None
    loss, share = np.zeros(z.shape[:-1]), np.ones(z.shape[:-1])
    for i in np.ndindex(loss.shape):
        if not soft and target[i] == ignore_index:
            share[i] = 0
            continue
        weights = q[i] if soft else [float(c == target[i]) for c in range(classes)]
        log_p = _log_probabilities(z[i])
        loss[i] = -math.fsum(a[c] * weights[c] * (-math.expm1(log_p[c])) ** gamma * log_p[c] for c in range(classes))
    return loss, share


def sigmoid_focal_loss(input, target, *, alpha=0.25, gamma=2.0):
    x = np.asarray(input, np.float64)
    a = np.broadcast_to(np.nan if alpha is None else np.asarray(alpha, np.float64), x.shape)

    def formula(x, t, a):
        p = 1 / (1 + math.exp(-x))
        cost = -(t * math.log(p) + (1 - t) * math.log1p(-p))
        missed = 1 - (t * p + (1 - t) * (1 - p))
        return (1 if alpha is None else t * a + (1 - t) * (1 - a)) * missed**gamma * cost

    loss = _elementwise(formula, x, target, a)
    return loss, _ones(loss)


def tversky_loss(
    input,
    target,
    *,
    mode="binary",
    alpha=0.5,
    beta=0.5,
    smooth=1.0,
    per_sample=False,
    classes=None,
    empty="smooth",
    ignore_index=-100,
    weight=None,
    axis=None,
    where=True,
):
    """Region by region: lists of pixels, then sums."""
    x, target = np.asarray(input, np.float64), np.asarray(target)
    if mode == "binary":
        x, target = x[..., None], target[..., None]
        where = np.asarray(where)[..., None]
        axis = -1
    axis = _class_axis(x, axis)
    z = np.moveaxis(x, axis, -1)
    number = z.shape[-1]
    if mode == "multiclass" and target.shape != x.shape:
        keep = np.broadcast_to(where, target.shape) & (target != ignore_index)
        t = (target[..., None] == np.arange(number)).astype(float)
        keep = np.broadcast_to(keep[..., None], z.shape)
    else:
        t = np.moveaxis(target, axis, -1)
        keep = np.moveaxis(np.broadcast_to(where, x.shape), axis, -1) & (t != ignore_index)
    if mode == "multiclass":
        p = np.exp([_log_probabilities(row) for row in z.reshape(-1, number)]).reshape(z.shape)
    else:
        p = 1 / (1 + np.exp(-z))
    chosen = range(number) if classes is None else classes
    w = np.ones(number) if weight is None else np.asarray(weight, np.float64)
    samples = len(z) if per_sample else 1
    p, t, keep = (a.reshape(samples, -1, number) for a in (p, t, keep))
    loss, share = np.zeros((samples, len(chosen))), np.zeros((samples, len(chosen)))
    for row in range(samples):
        for column, c in enumerate(chosen):
            kept = keep[row, :, c]
            predicted, truth = p[row, kept, c], t[row, kept, c].astype(float)
            hit = math.fsum(predicted * truth)
            below = (
                hit + alpha * math.fsum(predicted * (1 - truth)) + beta * math.fsum((1 - predicted) * truth) + smooth
            )
            score = (hit + smooth) / below if below else 1.0
            absent = not (truth > 0).any()
            loss[row, column] = 0 if absent and empty != "smooth" else w[c] * (1 - score)
            share[row, column] = 0 if not kept.any() or (absent and empty == "skip") else w[c]
    loss = np.where(share > 0, loss, 0)
    shape = (*([samples] if per_sample else []), *([] if mode == "binary" else [len(chosen)]))
    return loss.reshape(shape), share.reshape(shape)


def dice_loss(input, target, *, smooth=1.0, **options):
    return tversky_loss(input, target, alpha=0.5, beta=0.5, smooth=smooth / 2, **options)


def iou_loss(input, target, *, smooth=1.0, **options):
    return tversky_loss(input, target, alpha=1.0, beta=1.0, smooth=smooth, **options)
