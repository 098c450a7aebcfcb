"""CTC by writing out every path, in float64 NumPy."""

import itertools
import math

import numpy as np


def collapsed(path, blank):
    """What a path spells: repeated classes merged, then blanks removed."""
    return tuple(c for c, _ in itertools.groupby(path) if c != blank)


def paths(p, target, blank):
    """Every path of probabilities p (T, C) that spells `target`, with its probability."""
    length, classes = p.shape
    for path in itertools.product(range(classes), repeat=length):
        if collapsed(path, blank) == tuple(target):
            yield path, math.prod(p[t, c] for t, c in enumerate(path))


def loss(log_probs, target, blank=0):
    """-log of the probability of all paths, one sample."""
    total = math.fsum(probability for _, probability in paths(np.exp(log_probs), target, blank))
    return -math.log(total) if total > 0 else math.inf


def gradient(log_probs, target, blank=0):
    """Its derivative for log_probs: minus the share of the paths that are at class c in frame t."""
    shares = np.zeros(log_probs.shape)
    total = 0.0
    for path, probability in paths(np.exp(log_probs), target, blank):
        total += probability
        for t, c in enumerate(path):
            shares[t, c] += probability
    return -shares / total if total > 0 else shares


def best(log_probs, target, blank=0):
    """The probability of the best path, and all paths that have it."""
    found = list(paths(np.exp(log_probs), target, blank))
    top = max((probability for _, probability in found), default=0.0)
    return top, [path for path, probability in found if probability >= top * (1 - 1e-12)]


def label_posteriors(log_probs, target, blank=0):
    """The share of the paths that are at position s of `target` in frame t, (T, S)."""
    shares = np.zeros((len(log_probs), len(target)))
    total = 0.0
    for path, probability in paths(np.exp(log_probs), target, blank):
        total += probability
        position, last = -1, blank
        for t, c in enumerate(path):
            position += c not in (blank, last)
            last = c
            if c != blank:
                shares[t, position] += probability
    return shares / total if total > 0 else shares


def recursion(log_probs, target, blank=0):
    """-log probability by the forward recursion of Graves et al., eq. 6 and 7, for what is too long to enumerate."""
    states = [blank, *itertools.chain.from_iterable((label, blank) for label in target)]
    alpha = np.full(len(states), -np.inf)
    alpha[0] = 0.0
    before_first = True
    for frame in log_probs:
        new = np.full(len(states), -np.inf)
        for s, label in enumerate(states):
            terms = [alpha[s]] if not before_first or s == 0 else []
            if s > 0:
                terms.append(alpha[s - 1])
            if s > 1 and label not in (blank, states[s - 2]):
                terms.append(alpha[s - 2])
            new[s] = np.logaddexp.reduce(terms) + frame[label]
        alpha, before_first = new, False
    return -np.logaddexp.reduce(alpha[-2:] if len(states) > 1 else alpha)


def log_softmax(x):
    z = x - x.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def batch(log_probs, targets, input_lengths, target_lengths, blank=0, zero_infinity=False):
    """Loss of each sample of a batch-first array, (N,)."""
    samples = zip(log_probs, targets, input_lengths, target_lengths, strict=True)
    losses = np.array([recursion(x[:frames], list(y[:size]), blank) for x, y, frames, size in samples])
    return np.where(np.isinf(losses) & zero_infinity, 0.0, losses)


def ctc_loss(log_probs, targets, input_lengths, target_lengths, batch_first):
    """For the table of cases: a batch, or a single sample, of targets whose mean divides by their number."""
    single = log_probs.ndim == 2
    arrays = [np.asarray(a)[None] if single else a for a in (log_probs, targets, input_lengths, target_lengths)]
    losses = batch(*arrays)
    return (losses[0], np.ones(())) if single else (losses, np.ones(losses.shape))


def ctc_loss_with_logits(logits, **rest):
    return ctc_loss(log_softmax(logits), **rest)
