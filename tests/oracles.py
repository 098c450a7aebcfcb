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


def cross_entropy(input, target, *, weight=None, ignore_index=-100, label_smoothing=0.0, axis=None):
    x, target = np.asarray(input, np.float64), np.asarray(target)
    axis = _class_axis(x, axis)
    z = np.moveaxis(x, axis, -1)
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
    return loss, share


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
