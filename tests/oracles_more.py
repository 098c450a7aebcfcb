"""What the losses that torch lacks should be; the manner is that of `oracles`."""

import math

import numpy as np
from oracles import _class_axis, _elementwise, _log_probabilities, _ones, tversky_loss


def l2_loss(input, target):
    loss = _elementwise(lambda x, t: (x - t) ** 2 / 2, input, target)
    return loss, _ones(loss)


def mean_absolute_percentage_error(input, target, *, eps=1e-7):
    loss = _elementwise(lambda x, t: 100 * abs(x - t) / max(abs(t), eps), input, target)
    return loss, _ones(loss)


def mean_squared_logarithmic_error(input, target):
    loss = _elementwise(lambda x, t: math.log((1 + x) / (1 + t)) ** 2, input, target)
    return loss, _ones(loss)


def log_cosh_loss(input, target):
    loss = _elementwise(lambda x, t: math.log(math.cosh(x - t)), input, target)
    return loss, _ones(loss)


def quantile_loss(input, target, *, quantile=0.5):
    loss = _elementwise(lambda x, t, q: q * (t - x) if t > x else (1 - q) * (x - t), input, target, quantile)
    return loss, _ones(loss)


def expectile_loss(input, target, *, expectile=0.5):
    loss = _elementwise(lambda x, t, e: (e if t > x else 1 - e) * (t - x) ** 2, input, target, expectile)
    return loss, _ones(loss)


def hinge_loss(input, target, *, margin=1.0):
    loss = _elementwise(lambda x, y: max(0, margin - x * y), input, target)
    return loss, _ones(loss)


def squared_hinge_loss(input, target, *, margin=1.0):
    loss, share = hinge_loss(input, target, margin=margin)
    return loss**2, share


def perceptron_loss(input, target):
    return hinge_loss(input, target, margin=0.0)


def _rows_of(input, axis):
    x = np.asarray(input, np.float64)
    return np.moveaxis(x, _class_axis(x, axis), -1)


def multiclass_hinge_loss(input, target, *, p=1, margin=1.0, axis=None):
    x, target = _rows_of(input, axis), np.asarray(target)
    loss = np.zeros(x.shape[:-1])
    for i in np.ndindex(loss.shape):
        y = int(target[i])
        others = [x[i][c] for c in range(x.shape[-1]) if c != y]
        loss[i] = max(0, margin + max(others, default=-math.inf) - x[i][y]) ** p
    return loss, _ones(loss)


def multiclass_perceptron_loss(input, target, *, axis=None):
    x, target = _rows_of(input, axis), np.asarray(target)
    loss = np.zeros(x.shape[:-1])
    for i in np.ndindex(loss.shape):
        loss[i] = max(x[i]) - x[i][int(target[i])]
    return loss, _ones(loss)


def _over_classes(formula, input, target, ignore_index, axis):
    """`formula(scores, probabilities of the target)` of each row."""
    x, target = _rows_of(input, axis), np.asarray(target)
    soft = np.issubdtype(target.dtype, np.floating)
    q = _rows_of(target, axis) if soft else np.eye(x.shape[-1])[np.where(target == ignore_index, 0, target)]
    loss, share = np.zeros(x.shape[:-1]), np.ones(x.shape[:-1])
    for i in np.ndindex(loss.shape):
        if not soft and target[i] == ignore_index:
            share[i] = 0
        else:
            loss[i] = formula(list(x[i]), list(q[i]))
    return loss, share


def poly_cross_entropy(input, target, *, epsilon=2.0, ignore_index=-100, axis=None):
    def formula(x, q):
        log_p = _log_probabilities(x)
        return math.fsum(w * (-v + epsilon * (1 - math.exp(v))) for w, v in zip(q, log_p, strict=True))

    return _over_classes(formula, input, target, ignore_index, axis)


def generalized_cross_entropy(input, target, *, q=0.7, ignore_index=-100, axis=None):
    def formula(x, t):
        return math.fsum(w * (1 - math.exp(v) ** q) / q for w, v in zip(t, _log_probabilities(x), strict=True))

    return _over_classes(formula, input, target, ignore_index, axis)


def _sparsemax(x):
    """The point of the simplex next to x: the threshold is found by halving, not by sorting."""
    low, high = min(x) - 1, max(x)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(max(0, v - middle) for v in x) > 1 else (low, middle)
    support = [v for v in x if v > low + 1e-12]
    tau = (math.fsum(support) - 1) / len(support)
    return [max(0.0, v - tau) for v in x]


def sparsemax_loss(input, target, *, ignore_index=-100, axis=None):
    def formula(x, q):  # the Fenchel-Young loss of Ω(p) = ½‖p‖²: Ω*(x) - <q, x> + Ω(q), where Σ q = 1
        p = _sparsemax(x)
        conjugate = np.dot(p, x) - np.dot(p, p) / 2
        return sum(q) * conjugate - np.dot(q, x) + np.dot(q, q) / 2

    return _over_classes(formula, input, target, ignore_index, axis)


def binary_sparsemax_loss(input, target):
    def formula(x, t):  # two classes with scores x and 0, apart from the scale of the regulariser
        p = min(1, max(0, (x + 1) / 2))
        return x * p + p * (1 - p) - t * x - t * (1 - t)

    loss = _elementwise(formula, input, target)
    return loss, _ones(loss)


def generalized_kl_div(input, target, *, axis=None):
    x, t = _rows_of(input, axis), _rows_of(target, axis)
    loss = np.zeros(x.shape[:-1])
    for i in np.ndindex(loss.shape):
        pairs = zip(x[i], t[i], strict=True)
        loss[i] = math.fsum((v * (math.log(v) - u) if v > 0 else 0) - v + math.exp(u) for u, v in pairs)
    return loss, _ones(loss)


def _kl(p, q):
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def _js(p, q, beta):
    m = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)]
    return beta * _kl(p, m) + (1 - beta) * _kl(q, m)


def js_div(input, target, *, beta=0.5, log_target=False, axis=None):
    q, t = np.exp(_rows_of(input, axis)), _rows_of(target, axis)
    p = np.exp(t) if log_target else t
    loss = np.zeros(q.shape[:-1])
    for i in np.ndindex(loss.shape):
        loss[i] = _js(p[i], q[i], beta)
    return loss, _ones(loss)


def distillation_loss(
    input,
    teacher,
    target=None,
    *,
    temperature=1.0,
    alpha=0.5,
    divergence="forward_kl",
    beta=0.5,
    ignore_index=-100,
    axis=None,
):
    x, z = _rows_of(input, axis), _rows_of(teacher, axis)
    loss, share = np.zeros(x.shape[:-1]), np.ones(x.shape[:-1])
    for i in np.ndindex(loss.shape):
        if target is not None and target[i] == ignore_index:
            share[i] = 0
            continue
        p, q = ([math.exp(v) for v in _log_probabilities(row[i] / temperature)] for row in (z, x))
        soft = {"forward_kl": _kl(p, q), "reverse_kl": _kl(q, p), "jensen_shannon": _js(p, q, beta)}[divergence]
        loss[i] = temperature**2 * soft
        if target is not None:
            loss[i] = alpha * loss[i] - (1 - alpha) * _log_probabilities(x[i])[int(target[i])]
    return loss, share


def _similarities(a, b, normalize=True):
    a, b = (np.asarray(v, np.float64) for v in (a, b))
    if normalize:
        a, b = (v / np.maximum(np.sqrt((v * v).sum(-1, keepdims=True)), 1e-8) for v in (a, b))
    return np.array([[math.fsum(u * v) for v in b] for u in a]).reshape(len(a), len(b))


def _kept(where, number):
    return [i for i in range(number) if np.broadcast_to(where, number)[i]]


def _nce(right, others):
    return math.log(math.fsum(math.exp(s - right) for s in [right, *others]))


def info_nce_loss(query, positive, negatives=None, *, temperature=0.1, normalize=True, chunk_size=None, where=True):
    rows = _kept(where, len(query))
    loss, share = np.zeros(len(query)), np.zeros(len(query))
    s = _similarities(query, positive, normalize) / temperature
    for i in rows:
        others = [s[i][j] for j in rows if j != i]
        if negatives is not None:
            own = negatives if np.ndim(negatives) == 2 else negatives[i]
            others = list(_similarities(query[i : i + 1], own, normalize)[0] / temperature)
        loss[i], share[i] = _nce(s[i][i], others), 1
    return loss, share


def clip_loss(image_features, text_features, *, logit_scale=1 / 0.07, normalize=True, chunk_size=None, where=True):
    options = {"temperature": 1 / logit_scale, "normalize": normalize, "where": where}
    there, share = info_nce_loss(image_features, text_features, **options)
    back, _ = info_nce_loss(text_features, image_features, **options)
    return (there + back) / 2, share


def siglip_loss(
    image_features, text_features, *, logit_scale=10.0, logit_bias=-10.0, normalize=True, chunk_size=None, where=True
):
    rows = _kept(where, len(image_features))
    loss, share = np.zeros(len(image_features)), np.zeros(len(image_features))
    s = logit_scale * _similarities(image_features, text_features, normalize) + logit_bias
    for i in rows:
        loss[i] = math.fsum(math.log1p(math.exp(-s[i][j] if i == j else s[i][j])) for j in rows)
        share[i] = 1
    return loss, share


def nt_xent_loss(input, target, *, temperature=0.1, normalize=True, chunk_size=None, where=True):
    if np.ndim(target) == 2:
        number = len(input)
        both = np.concatenate([input, target])
        labels, keep = np.tile(np.arange(number), 2), np.tile(np.broadcast_to(where, number), 2)
        loss, share = nt_xent_loss(both, labels, temperature=temperature, normalize=normalize, where=keep)
        return (loss[:number] + loss[number:]) / 2, share[:number]
    rows = _kept(where, len(input))
    loss, share = np.zeros(len(input)), np.zeros(len(input))
    s = _similarities(input, input, normalize) / temperature
    for i in rows:
        others = [s[i][j] for j in rows if target[j] != target[i]]
        costs = [_nce(s[i][j], others) for j in rows if target[j] == target[i] and j != i]
        loss[i], share[i] = math.fsum(costs), len(costs)
    return loss, share


def supervised_contrastive_loss(input, target, *, temperature=0.1, normalize=True, chunk_size=None, where=True):
    rows = _kept(where, len(input))
    loss, share = np.zeros(len(input)), np.zeros(len(input))
    s = _similarities(input, input, normalize) / temperature
    for i in rows:
        positives = [j for j in rows if target[j] == target[i] and j != i]
        if positives:
            total = math.log(math.fsum(math.exp(s[i][j]) for j in rows if j != i))
            loss[i], share[i] = total - math.fsum(s[i][j] for j in positives) / len(positives), 1
    return loss, share


def circle_loss(input, target, *, margin=0.4, gamma=80.0, normalize=True, chunk_size=None, where=True, held=None):
    """`held` are the vectors from which the weights α come: the same, but constant to differentiation."""
    rows = _kept(where, len(input))
    loss, share = np.zeros(len(input)), np.zeros(len(input))
    s = _similarities(input, input, normalize)
    fixed = s if held is None else _similarities(held, held, normalize)
    for i in rows:
        positives = [j for j in rows if target[j] == target[i] and j != i]
        negatives = [j for j in rows if target[j] != target[i]]
        if positives and negatives:
            pull = [-gamma * max(0, 1 + margin - fixed[i][j]) * (s[i][j] - 1 + margin) for j in positives]
            push = [gamma * max(0, fixed[i][j] + margin) * (s[i][j] - margin) for j in negatives]
            loss[i] = math.log1p(math.fsum(map(math.exp, push)) * math.fsum(map(math.exp, pull)))
            share[i] = 1
    return loss, share


def focal_tversky_loss(input, target, *, alpha=0.3, beta=0.7, gamma=4 / 3, weight=None, **options):
    plain, share = tversky_loss(input, target, alpha=alpha, beta=beta, **options)
    w = np.ones(1) if weight is None else np.asarray(weight)
    return w * plain ** (1 / gamma), w * share


def generalized_dice_loss(
    input, target, *, mode="multiclass", weighting="square", smooth=1.0, per_sample=False, where=True
):
    x, target = np.asarray(input, np.float64), np.asarray(target)
    z, number = np.moveaxis(x, 1, -1), x.shape[1]
    soft = target.shape == x.shape
    t = np.moveaxis(target, 1, -1) if soft else (target[..., None] == np.arange(number)).astype(float)
    where = np.asarray(where)
    keep = np.broadcast_to(where, target.shape)
    keep = np.moveaxis(keep, 1, -1) if soft else keep[..., None]
    if mode == "multiclass":
        p = np.exp([_log_probabilities(row) for row in z.reshape(-1, number)]).reshape(z.shape)
    else:
        p = 1 / (1 + np.exp(-z))
    samples = len(z) if per_sample else 1
    p, t = ((keep * a).reshape(samples, -1, number) for a in (p, t))
    loss = np.zeros(samples)
    for i in range(samples):
        sizes = [math.fsum(t[i, :, c]) for c in range(number)]
        power = {"square": 2, "simple": 1, "uniform": 0}[weighting]
        known = [s**-power for s in sizes if s > 0]
        w = [s**-power if s > 0 else max(known, default=1) for s in sizes]
        w = [v / sum(w) for v in w]
        both = sum(w[c] * math.fsum(p[i, :, c] * t[i, :, c]) for c in range(number))
        all_of_them = sum(w[c] * (math.fsum(p[i, :, c]) + sizes[c]) for c in range(number))
        loss[i] = 1 - (2 * both + smooth) / (all_of_them + smooth)
    return (loss, np.ones(samples)) if per_sample else (loss[0], np.ones(()))


def _corners(box, box_format):
    a, b, c, d = (float(v) for v in box)
    return {
        "xyxy": (a, b, c, d),
        "yxyx": (b, a, d, c),
        "xywh": (a, b, a + c, b + d),
        "cxcywh": (a - c / 2, b - d / 2, a + c / 2, b + d / 2),
    }[box_format]


def _box_loss(formula, boxes1, boxes2, box_format, eps):
    boxes1, boxes2 = np.asarray(boxes1, np.float64), np.asarray(boxes2, np.float64)
    loss = np.zeros(boxes1.shape[:-1])
    for i in np.ndindex(loss.shape):
        a, b = _corners(boxes1[i], box_format), _corners(boxes2[i], box_format)
        both = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
        union = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)) - both
        around = (min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3]))
        loss[i] = formula(i, a, b, both / (union + eps), union, around)
    return loss, _ones(loss)


def box_iou_loss(boxes1, boxes2, *, eps=1e-7, box_format="xyxy"):
    return _box_loss(lambda i, a, b, iou, union, around: 1 - iou, boxes1, boxes2, box_format, eps)


def generalized_box_iou_loss(boxes1, boxes2, *, eps=1e-7, box_format="xyxy"):
    def formula(i, a, b, iou, union, around):
        whole = (around[2] - around[0]) * (around[3] - around[1])
        return 1 - iou + (whole - union) / (whole + eps)

    return _box_loss(formula, boxes1, boxes2, box_format, eps)


def _by_distance(a, b, iou, around, eps):
    centres = [((c[0] + c[2]) / 2, (c[1] + c[3]) / 2) for c in (a, b)]
    diagonal = (around[2] - around[0]) ** 2 + (around[3] - around[1]) ** 2
    return 1 - iou + math.dist(*centres) ** 2 / (diagonal + eps)


def distance_box_iou_loss(boxes1, boxes2, *, eps=1e-7, box_format="xyxy"):
    def formula(i, a, b, iou, union, around):
        return _by_distance(a, b, iou, around, eps)

    return _box_loss(formula, boxes1, boxes2, box_format, eps)


def complete_box_iou_loss(boxes1, boxes2, *, eps=1e-7, box_format="xyxy", alphas=None):
    """`alphas` are the trade-offs to use: those of the boxes, but constant to differentiation."""

    def formula(i, a, b, iou, union, around):
        angles = [math.atan((c[2] - c[0]) / (c[3] - c[1])) for c in (a, b)]
        v = 4 / math.pi**2 * (angles[0] - angles[1]) ** 2
        alpha = v / (1 - iou + v + eps) if alphas is None else alphas[i]
        return _by_distance(a, b, iou, around, eps) + alpha * v

    return _box_loss(formula, boxes1, boxes2, box_format, eps)
