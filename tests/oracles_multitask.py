"""What the methods of `jaxloss.multitask` must give, in float64 NumPy, from the papers. Gradients are rows."""

import itertools

import numpy as np
from scipy.optimize import minimize


def uncertainty(losses, log_variances, kinds):
    """Kendall et al., equations 7 and 10, with σ² = exp(s)."""
    total = 0.0
    for task, loss in losses.items():
        sigma = np.exp(log_variances[task] / 2)
        total += loss / ((2 if kinds[task] == "regression" else 1) * sigma**2) + np.log(sigma)
    return total


def dynamic_weights(history, period, temperature):
    """Liu et al., equation 7, for the step after `history` (steps, K)."""
    epochs = [np.mean(history[i : i + period], 0) for i in range(0, len(history) - period + 1, period)]
    tasks = np.shape(history)[1]
    if len(epochs) < 2:
        return np.ones(tasks)
    ratio = epochs[-1] / epochs[-2]
    return tasks * np.exp(ratio / temperature) / np.sum(np.exp(ratio / temperature))


def gradnorm(weights, losses, initial, norms, alpha, rate):
    """Chen et al., algorithm 1, with the derivative of the sum of distances by differences."""
    lengths = weights * norms
    left = losses / initial
    target = np.mean(lengths) * (left / np.mean(left)) ** alpha

    def distance(w):
        return np.sum(np.abs(w * norms - target))

    slope = [(distance(weights + 1e-6 * e) - distance(weights - 1e-6 * e)) / 2e-6 for e in np.eye(len(weights))]
    moved = weights - rate * np.array(slope)
    return len(weights) * moved / np.sum(moved)


def pcgrad(gradients, orders):
    """Yu et al., algorithm 1."""
    total = np.zeros(gradients.shape[1])
    for i, order in enumerate(orders):
        g = gradients[i].copy()
        for j in order:
            inner = g @ gradients[j]
            if j != i and inner < 0:
                g -= inner / (gradients[j] @ gradients[j]) * gradients[j]
        total += g
    return total


def mgda(gradients):
    """The point of the convex hull nearest to 0, as the nearest of those of every face whose weights are positive."""
    best = None
    for size in range(1, len(gradients) + 1):
        for face in itertools.combinations(range(len(gradients)), size):
            rows = gradients[list(face)]
            system = np.block([[rows @ rows.T, np.ones((size, 1))], [np.ones((1, size)), np.zeros((1, 1))]])
            w = np.linalg.lstsq(system, np.append(np.zeros(size), 1), rcond=None)[0][:size]
            point = w @ rows
            if w.min() > -1e-9 and abs(w.sum() - 1) < 1e-6 and (best is None or point @ point < best @ best - 1e-15):
                best = point
    return best


def cagrad(gradients, c):
    """Liu et al., equation 1 solved as it stands: the best of the worst, in a ball around the mean."""
    mean = gradients.mean(0)
    radius = c * np.linalg.norm(mean)
    result = minimize(
        lambda z: -z[-1],
        np.append(mean, (gradients @ mean).min()),
        jac=lambda z: np.append(np.zeros(len(mean)), -1.0),
        constraints=[
            {"type": "ineq", "fun": lambda z: gradients @ z[:-1] - z[-1]},
            {"type": "ineq", "fun": lambda z: radius**2 - np.sum((z[:-1] - mean) ** 2)},
        ],
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    return result.x[:-1]


def upgrad(gradients):
    """Quinton and Rey: each gradient projected on the cone without conflict, by trying every set of active walls."""
    total = np.zeros(gradients.shape[1])
    for g in gradients:
        best = None
        for size in range(len(gradients) + 1):
            for walls in itertools.combinations(range(len(gradients)), size):
                rows = gradients[list(walls)]
                y = g - np.linalg.pinv(rows) @ (rows @ g) if size else g
                inside = (gradients @ y).min() > -1e-9
                if inside and (best is None or np.sum((y - g) ** 2) < np.sum((best - g) ** 2)):
                    best = y
        total += best
    return total / len(gradients)
