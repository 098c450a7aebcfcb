"""Breaks the package on purpose, one line at a time, and checks that a test notices: `python tests/breakages.py`.

Each breakage is applied to a copy. A breakage that no test notices, or whose line is gone, is an error.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
# file, line as it is, line as it must not be, tests that should notice
BREAKAGES = [
    ("_numerics.py", "bound = jnp.minimum(jnp.abs(a) * most, most) * most", "bound = most", "times or inf or bce"),
    ("_numerics.py", "isinstance(tangent, SymbolicZero)", "False", "bce or inf"),
    ("_hinge.py", "1 / own - own * np.finfo(x.dtype).max", "1 / own", "multiclass_hinge or perceptron"),
    ("_focal.py", "gamma * times(divide((1 - 2 * t) * yes * no, wrong), cost)", "0 * x", "focal"),
    ("_focal.py", "np.finfo(dtype).tiny ** 0.5", "np.finfo(dtype).tiny", "focal"),
    ("_errors.py", "jnp.where(d > 0, q, jnp.where(d < 0, q - 1, 0))", "jnp.where(d > 0, q, q - 1)", "quantile"),
    ("_errors.py", "jnp.sign(d) * jnp.square(d), dtau", "jnp.square(d), dtau", "expectile"),
    (
        "_numerics.py",
        "jnp.where(index < x.shape[axis], upcast(own) - top, 0)",
        "upcast(own) - top",
        "on_devices and classes_and_rows",
    ),
    ("spmd.py", "g = lax.pmean(g, copies)", "g = lax.psum(g, copies)", "on_devices and every_style"),
    ("spmd.py", "return g / math.prod(", "return g * math.prod(", "on_devices and spread_themselves"),
    (
        "spmd.py",
        "total, weight = lax.psum(sum_and_weight, axis_name)",
        "total, weight = sum_and_weight",
        "on_devices and every_style",
    ),
    (
        "_devices.py",
        "        (of_part,) = jax",
        "        return g\n        (of_part,) = jax",
        "on_devices and classes_and_rows",
    ),
    ("_devices.py", "else jnp.where(self.rank() == 0, a, 0)", "else a", "on_devices and classes_and_rows"),
    ("_devices.py", "first = self.rank() * here", "first = 0 * here", "on_devices and classes_and_rows"),
    ("_devices.py", "whole: Array = lax.pmax(part, self.axis_name)", "whole = part", "on_devices and certain_one"),
    ("_devices.py", "else here * lax.axis_size(self.axis_name)", "else here", "on_devices and classes_and_rows"),
    (
        "_devices.py",
        "first = 0 if axis_name is None else count",
        "first = 0 if True else count",
        "on_devices and contrastive",
    ),
    ("_rows.py", "first = lax.pmin(", "first = lax.pmax(", "on_devices and classes_and_rows"),
    ("_contrastive.py", "length=size - 1", "length=size - 2", "on_devices and siglip"),
    ("_chunks.py", "size = _even(", "size = 1 + 0 * _even(", "on_devices and linear_ce"),
    ("_regression.py", "jnp.square(x - t), weight", "0.5 * jnp.square(x - t), weight", "l1 or mse"),
    ("_regression.py", "(size - near) + near * (near", "size + near * (near", "smooth"),
    ("_regression.py", "near * (size - near / 2)", "size * (size - near / 2)", "huber"),
    ("_regression.py", "(positive_part(absolute(d) - delta), ddelta)", "(absolute(d) - delta, ddelta)", "huber"),
    (
        "_regression.py",
        "reduce(name, times(w, loss), reduction, keep, share=w)",
        "reduce(name, times(w, loss), reduction, keep)",
        "mse",
    ),
    ("_regression.py", "(jnp.where(v < 0, jnp.nan, 1), dv)", "(jnp.where(v < eps, 0, 1), dv)", "gaussian"),
    (
        "_regression.py",
        "jnp.maximum(v, eps) + 0 * jnp.sqrt(jnp.minimum(v, 1))",
        "jnp.maximum(v, eps)",
        "gaussian or variance",
    ),
    ("_regression.py", "jnp.where(t > 1, stirling, 0)", "stirling", "poisson"),
    ("_numerics.py", "times(up, positive_part(x))", "up * positive_part(x)", "bce"),
    ("_numerics.py", "of_up = jnp.where((up == 0) & jnp.isinf(x), 0, of_up)", "", "sure_of_infinity"),
    ("_binary.py", "jnp.maximum(p * (1 - p), TORCH_EPSILON)", "(p * (1 - p))", "bce"),
    ("_binary.py", "positive = t * _check", "positive = _check", "bce"),
    ("_binary.py", "jnp.where(held, -100, log_p)", "jnp.where(held, -jnp.inf, log_p)", "bce"),
    ("_rows.py", "(1 - smoothing) * share", "share", "value_for and ce"),
    ("_labels.py", "return jnp.where(index < 0, jnp.nan, scale)", "return scale", "range"),
    ("_labels.py", "jnp.where(index == classes, -1, index), classes)", "index, classes)", "range"),
    (
        "_labels.py",
        "jnp.asarray(t != ignore_index)",
        "jnp.asarray(t.astype(np.int32) != np.int32(ignore_index))",
        "int64",
    ),
    (
        "_rows.py",
        "return _check.masked(x, terms.keep).astype",
        "return x.astype",
        "masked_entries and ce",
    ),
    (
        "_rows.py",
        "smoothing / classes.count(here) * spread",
        "smoothing / (classes.count(here) - 1) * spread",
        "value_for and ce",
    ),
    (
        "_categorical.py",
        "times(_labels.spoiled(share, index), -log_p)",
        "(_labels.spoiled(share, index) * -log_p)",
        "nll or weight_zero",
    ),
    ("_categorical.py", "xlogy(t, t) - times(t, x)", "xlogy(t, t) - t * x", "kl"),
    ("_categorical.py", "_batch_size(x, keep))", "_batch_size(x, None))", "kl"),
    (
        "_numerics.py",
        "jnp.sign(primals[0]) * tangents[0]",
        "jnp.where(primals[0] < 0, -1, 1) * tangents[0]",
        "l1 or absolute",
    ),
    ("_numerics.py", "z - jnp.where(log_total == -jnp.inf, 0, log_total)", "z - log_total", "minus_inf or infinities"),
    ("_numerics.py", "g - p * jnp.sum(g, axis, keepdims=True)", "g - p * jnp.mean(g, axis, keepdims=True)", "softmax"),
    ("_numerics.py", "hit = one_hot(index, x, axis) | (index < 0)", "hit = one_hot(index, x, axis)", "range"),
    ("_numerics.py", "top = at_most(jnp.maximum(top, -most), most)", "top = top + 0", "inf"),
    ("_numerics.py", "down = jnp.where(positive, e, 1) / (1 + e)", "down = 1 - up", "bce or confident"),
    (
        "_check.py",
        "return x if keep is None else jnp.where(keep, x, jnp",
        "return x if keep is None else jnp.where(True, x, jnp",
        "masked",
    ),
    ("_check.py", "        if x.shape == y.shape:", "        if x.ndim == y.ndim:", "broadcast"),
    ("_check.py", "return x.astype(dtype)\n\n\ndef flag", "return float(x)\n\n\ndef flag", "retrace"),
    ("_labels.py", "known = (t >= 0) & (t < num_classes)", "known = t < num_classes", "range"),
    (
        "_embedding.py",
        "positive_part(to_positive - to_negative + margin)",
        "jnp.maximum(to_positive - to_negative + margin, 0)",
        "clamp",
    ),
    (
        "_embedding.py",
        "jnp.minimum(to_negative, distance(p, n))",
        "jnp.minimum(to_negative, distance(a, n))",
        "triplet",
    ),
    ("_embedding.py", "jnp.where(y == -1, positive_part", "jnp.where(y != 1, positive_part", "none or cosine_emb"),
    ("_embedding.py", "((p, 1), (n, 2))", "((p, 0), (n, 0))", "triplet"),
    ("_margin.py", "jnp.where(y == -1, apart, apart + x)", "jnp.where(y == -1, apart, 0)", "none"),
    ("_margin.py", "excess if p == 1 else excess * excess, 0)", "excess, 0)", "multi_margin"),
    ("_margin.py", "other = ~named & (index != -1)", "other = index != -1", "multilabel"),
    ("_margin.py", "slope + pairs - hit *", "slope + pairs - 0 * hit *", "multilabel"),
    ("_margin.py", "listed = jnp.cumprod(labels != -1, axis=-1).astype(bool)", "listed = labels != -1", "multilabel"),
    ("_margin.py", "softplus(-y * x)", "jnp.log(1 + jnp.exp(-y * x))", "soft_margin"),
    ("_focal.py", "jnp.maximum(miss, -1e30))", "miss)", "one_class_alone"),
    (
        "_focal.py",
        "miss = jnp.where(top, _log_of_others(top, z, log_total, axis), rest)",
        "miss = jnp.log1p(-jnp.exp(z - log_total))",
        "focal",
    ),
    ("_focal.py", "(t * a + (1 - t) * (1 - a)) * loss", "a * loss", "focal"),
    (
        "_segmentation.py",
        "return _check.masked(p, keep), t, keep, axis",
        "return p, t, keep, axis",
        "masked or ignored",
    ),
    ("_segmentation.py", "low=0) / 2", "low=0)", "dice"),
    ("_segmentation.py", "counts = counts & present", "counts = counts", "class or dice"),
    ("_segmentation.py", "jnp.where(largest == 0, 1, largest), w)", "w, w)", "generalized_dice_with"),
    ("_segmentation.py", "jnp.where(zero, 1, x)) / gamma))", "jnp.where(zero, 1, x)) * gamma))", "focal_tversky_is"),
    ("_errors.py", "jnp.square(x - t) / 2", "jnp.square(x - t)", "l2"),
    ("_errors.py", "jnp.where(d < 0, q - 1, 0)", "(q - 1)", "no_slope"),
    ("_errors.py", "jnp.where(d < 0, 1 - tau, tau)", "jnp.where(d < 0, tau, 1 - tau)", "value_for and expectile"),
    ("_errors.py", "near = jnp.minimum(size, 20)", "near = size", "near_and_far"),
    ("_errors.py", "jnp.maximum(absolute(t), eps)", "absolute(t)", "percentage_of"),
    (
        "_hinge.py",
        "return jnp.max(jnp.where(one_hot(right, x, axis), -jnp.inf, x), axis)",
        "return jnp.max(jnp.where(one_hot(right, x, axis), 0, x), axis)",
        "multiclass_hinge",
    ),
    (
        "_hinge.py",
        "_power(positive_part(margin - y * x), p)",
        "_power(jnp.maximum(margin - y * x, 0), p)",
        "margin_is_met",
    ),
    ("_classes.py", "nll - epsilon * jnp", "nll + epsilon * jnp", "value_for and poly"),
    ("_classes.py", "near = jnp.abs(x) < 0.05", "near = jnp.abs(x) < 0", "learned_q"),
    ("_classes.py", "held = jnp.where(never, 0, nll)", "held = nll", "learned_q"),
    ("_divergence.py", "jnp.where(jnp.isinf(z), 0, quotient)", "quotient", "no_share"),
    ("_contrastive.py", "if n.ndim == 3 else n", "if False else n", "own_negatives"),
    ("_contrastive.py", "jnp.where(pairs == 1, alone", "jnp.where(False, alone", "confident_pair"),
    (
        "_weighting.py",
        "scores = jnp.where(active, jnp",
        "scores = jnp.where(True, jnp",
        "test_multitask and skipped_task_has",
    ),
    ("_lattice.py", "p.exponent[:1, ..., :1, :].sum(0)", "p.exponent[0, ..., :1, :]", "no_frames_and"),
    ("_classes.py", "return z >= least", "return z > least", "value_for and sparsemax"),
    ("_classes.py", "_sparse_plus(x)) - t * (1 - t)", "_sparse_plus(x))", "value_for and binary_sparsemax"),
    ("_divergence.py", "temperature * temperature * jnp", "temperature * jnp", "value_for and distillation"),
    (
        "_divergence.py",
        "jnp.maximum(log_p, np.finfo(log_p.dtype).min) - log_q",
        "log_p - log_q",
        "nobody_has or shut_off",
    ),
    ("_divergence.py", "xlogy(t, t) - times(t, x)", "xlogy(t, t) - t * x", "nobody_has"),
    (
        "_divergence.py",
        "x, z = (_check.masked(a, jnp.expand_dims(keep, axis)) for a in (x, z))",
        "pass",
        "ignored_rows_may",
    ),
    ("_contrastive.py", "own, keys, there & (number != i)", "own, keys, number != i", "not_in_the_batch"),
    ("_contrastive.py", "_log_total(s, ~same & batch.there)", "_log_total(s, ~same)", "not_in_the_batch"),
    ("_contrastive.py", "jnp.where(there, cost_of_no, 0)", "cost_of_no", "not_in_the_batch"),
    ("_contrastive.py", "held = lax.stop_gradient(s)", "held = s", "circle_are_constant"),
    ("_contrastive.py", "reduction, keep & paired, axis_name)", "reduction, keep, axis_name)", "anchors_without"),
    ("_contrastive.py", "reduction, keep, axis_name, share=pairs)", "reduction, keep, axis_name)", "anchors_without"),
    (
        "_contrastive.py",
        "jax.checkpoint(lambda anchor: row(*anchor), prevent_cse=False)",
        "lambda a: row(*a)",
        "matrix",
    ),
    (
        "_contrastive.py",
        "softplus_pair(_similarity(own, q, scale) - _log_total(_similarity(others, q, scale), allowed))[0]",
        "jnp.log(1 + jnp.exp(_log_total(_similarity(others, q, scale), allowed) - _similarity(own, q, scale)))",
        "confident_pair",
    ),
    (
        "_boxes.py",
        "lax.stop_gradient(_ratio(v, 1 - pair.iou + v + pair.eps))",
        "_ratio(v, 1 - pair.iou + v)",
        "trade_off",
    ),
    ("_boxes.py", "return Box(p, q, p + r, q + s)", "return Box(p, q, r, s)", "formats"),
    ("_boxes.py", "jnp.where(point, 1, h / size)", "h / size", "degenerate"),
    ("_boxes.py", "empty = b == 0", "empty = b < 0", "degenerate"),
    ("_boxes.py", "(width > 0) & (height > 0)", "width * height > 0", "far_apart"),
    (
        "_numerics.py",
        "return x / jnp.maximum(norm(x, 2, axis, keepdims=True), eps)",
        "return x / norm(x, 2, axis, keepdims=True)",
        "zeros",
    ),
    ("_numerics.py", "jnp.abs(place - index.astype(z.dtype))", "1 + jnp.abs(place)", "ce or confident"),
    (
        "_numerics.py",
        "others = jnp.where(one_hot(index, z, axis), 0, jnp.exp(z))",
        "others = jnp.exp(z)",
        "ce or confident or right_one",
    ),
    ("_numerics.py", "divide(da - quotient * db, b)", "divide(da + quotient * db, b)", "gaussian"),
    (
        "_numerics.py",
        "jnp.where(primals[0] < 0, 0, tangents[0])",
        "jnp.where(primals[0] <= 0, 0, tangents[0])",
        "clamp",
    ),
    ("_numerics.py", "return jnp.where(zero, 0, power)", "return power", "equal"),
    (
        "_numerics.py",
        "return at_most(jnp.maximum(top, 16 * limits.tiny), limits.max / 16)",
        "return jnp.ones_like(top)",
        "overflow",
    ),
    ("_reduce.py", "loss = _check.masked(loss, keep)", "loss = loss", "mask"),
    ("_reduce.py", "total / jnp.where(nothing, 1, weight)", "total / weight", "nothing or weights"),
    ("_reduce.py", "loss.size, keep, share)\n    return", "loss.size, None, share)\n    return", "mask"),
    ("_reduce.py", "return lax.stop_gradient(jnp.sum(", "return (jnp.sum(", "mean_has"),
    ("_wide.py", "VANISHED = ZERO // 2", "VANISHED = ZERO", "impossible or written_out"),
    ("_wide.py", "nothing = x < LEAST", "nothing = x < -80", "long_and_sharp"),
    ("_wide.py", "+ k * LOG2_LOW) + k * LOG2_HIGH", "+ k * LOG2_HIGH)", "written_out"),
    ("_wide.py", "jnp.maximum(x.exponent + y.exponent, ZERO)", "x.exponent + y.exponent", "vanished_stays"),
    (
        "_wide.py",
        "scaled = [x.fraction * raised_power",
        "scaled = [lax.stop_gradient(x.fraction) * raised_power",
        "ctc",
    ),
    ("_lattice.py", "_wide.only_where(skip, but", "_wide.only_where(skip | True, but", "written_out"),
    ("_lattice.py", "jnp.roll(jnp.flip(skip, 0), 1, 0)", "jnp.flip(skip, 0)", "written_out"),
    ("_lattice.py", "start((skip.shape[0] - sizes)", "start((skip.shape[0] - 1 - sizes)", "written_out"),
    ("_lattice.py", "x.fraction / total.fraction", "x.fraction", "written_out"),
    ("_lattice.py", "a, sizes[None], 0)[0]))", "a, jnp.maximum(sizes, 1)[None], 0)[0]))", "empty_target"),
    ("_lattice.py", "jnp.where(skip, before[:-1], -jnp.inf)])", "before[:-1]])", "best_of_all"),
    ("_lattice.py", "jnp.where(sizes > 0, end_label, -jnp.inf)", "end_label", "empty_target"),
    ("_sequences.py", "return jnp.where(there, log_blank, 0)", "return (log_blank)", "ctc_loss_with_logits"),
    ("_sequences.py", "jnp.all(known | behind, 1)", "jnp.all(known | True, 1)", "out_of_range"),
    ("_sequences.py", "usable = counts & fits", "usable = fits", "masked_sample"),
    ("_sequences.py", "x = _check.masked(scores, ", "x = (lambda x, _: x)(scores, ", "behind"),
    ("_ctc.py", "(loss > -slack), loss, 0))", "(loss > -slack), 0, 0))", "never_negative"),
    ("_ctc.py", "frames) & (loss != jnp.inf)", "frames)", "impossible or written_out"),
    ("_ctc.py", "loss = loss / jnp.maximum(batch.sizes, 1)", "loss = loss / batch.sizes", "divide_by_the_targets"),
    ("_ctc.py", "1 - shares.labels.sum(1)", "1 - shares.labels.max(1)", "written_out"),
    (
        "_ctc.py",
        "frames, layout)) for a in (logits, moved))",
        "frames + 99, layout)) for a in (logits, moved))",
        "behind_the_ends",
    ),
    ("_ctc.py", "lax.scatter_sub(gradient", "lax.scatter(gradient", "many_classes"),
    ("_ctc.py", "constant_values=blank)", "constant_values=1)", "many_classes"),
    ("_lattice.py", "jnp.flip(a, (0, 1))), mass(", "jnp.flip(a, 0)), mass(", "at_once"),
    ("_ctc.py", "g = _sequences.placed(g[None, :, None], setting.layout)", "g = g.sum()", "ctc"),
    (
        "_ctc_alignment.py",
        "jnp.where(batch.bad, jnp.nan, jnp.where",
        "jnp.where(False, jnp.nan, jnp.where",
        "out_of_range",
    ),
    ("_rows.py", "by_row(axis, jnp.expm1)(log_p) + shared", "by_row(axis, jnp.expm1)(log_p)", "every_way"),
    ("_rows.py", "2 * terms.square * (sums.top", "terms.square * (sums.top", "every_way"),
    (
        "_rows.py",
        "loss if terms.square is None else loss + classes.only_first(_z_loss(sums, terms))",
        "loss",
        "statistics",
    ),
    ("_rows.py", "astype(jnp.int32)) > 0", "astype(jnp.int32)) < 1", "statistics"),
    ("_rows.py", "z, sums, terms = lax.stop_gradient((z, sums, terms))", "pass", "no_gradient"),
    ("_rows.py", "RowStatistics(*(_check.masked(a, terms.keep) for a in found))", "found", "statistics"),
    ("_rows.py", "dterms = dterms._replace(cap=dcap)", "dterms = dterms", "every_way"),
    ("_rows.py", "jnp.sum(softmax(z, log_total) * _check", "jnp.sum(jnp.exp(z) * _check", "second_derivatives_of_many"),
    ("_numerics.py", "jnp.where(index < 0, -jnp.inf, jnp.where(", "jnp.where(index < 0, 0, jnp.where(", "ce or range"),
    ("_numerics.py", "clamp(x, 100 * cap) / cap", "x / cap", "soft_cap"),
    ("_linear_cross_entropy.py", "d = dlogits.astype(plan.matmul)", "d = dlogits", "a_matmul"),
    (
        "_linear_cross_entropy.py",
        "full_like(loss, g), each.keep)",
        "full_like(loss, g), None)",
        "every_way",
    ),
    ("_linear_cross_entropy.py", "late = plan.matmul == jnp.float16", "late = plan.matmul == jnp.int8", "float16"),
    ("_linear_cross_entropy.py", "where(nothing, 0, 1 / jnp", "where(False, 0, 1 / jnp", "sum_to_0_has"),
    (
        "_linear_cross_entropy.py",
        "jnp.zeros_like(wanted.w, plan.accumulator)",
        "jnp.zeros_like(wanted.w)",
        "accumulator",
    ),
    (
        "_linear_cross_entropy.py",
        "_check.masked(lax.dynamic_slice_in_dim(d, first, size, 1), due)",
        "lax.dynamic_slice_in_dim(d, first, size, 1)",
        "blocks",
    ),
    ("_linear_cross_entropy.py", "dtotal + _product(plan, dx, d, dtotal) + ", "dtotal + ", "blocks"),
    ("_linear_cross_entropy.py", "wanted.x is None else _dot(", "False else _dot(", "not_differentiated"),
    (
        "_linear_cross_entropy.py",
        "_check.masked(x, jnp.any(keep,",
        "_check.masked(x, True | jnp.any(keep,",
        "rows_that_do_not_count",
    ),
    ("_chunks.py", "jax.checkpoint(function, prevent_cse=False)", "function", "language_model or chunk_of_logits"),
    ("_chunks.py", "jnp.concatenate(a), each, last)", "jnp.concatenate(a), each, each)", "chunks_of_any_size"),
    (
        "_chunked.py",
        "return mean(*total) if reduction",
        "return total[0] / len(args[1]) if reduction",
        "chunks_of_any_size",
    ),
    ("_check.py", "jnp.asarray(host.clip(limits.min, limits.max))", "jnp.asarray(host)", "test_chunked and wrap"),
    ("_chunked.py", "len(numbers) != 1 or () in numbers", "len(numbers) > 1", "refusals"),
    ("_kernels/logsumexp.py", "total *= _decay(carry[0], highest)", "total *= 1", "kernel"),
    ("_kernels/logsumexp.py", "mask=column < classes, other=-jnp.inf", "mask=column < classes, other=0", "kernel"),
    ("_kernels/logsumexp.py", "jnp.where(hit, -jnp.inf, value)", "value", "kernel"),
    ("_kernels/ctc.py", "slots - s, s), 0, slots - 1)", "slots - 1 - s, s), 0, slots - 1)", "kernel"),
    ("_kernels/ctc.py", "only_where(~is_first, neighbour)", "only_where(is_first | True, neighbour)", "kernel"),
    ("_kernels/ctc.py", "length - 1 - i, i), 0, length - 1)", "length - 1 - i, i + 1), 0, length - 1)", "kernel"),
    (
        "_tasks.py",
        "        return value if weight else jnp.zeros_like(value)",
        "        return value",
        "test_multitask",
    ),
    ("_tasks.py", "jnp.where(weight == 0, 0, value)", "value", "test_multitask"),
    ("_tasks.py", "lax.cond(weight != 0, computed, ", "lax.cond(weight == weight, computed, ", "test_multitask"),
    ("_tasks.py", "factors = lax.stop_gradient(factors)", "factors = factors[::-1]", "test_multitask"),
    ("_weighting.py", '* (0.5 if likelihoods[task] == "regression" else 1)', "* 1", "test_multitask"),
    (
        "_weighting.py",
        "s += lax.stop_gradient(jnp.clip(s, -bound, bound) - s)",
        "s = jnp.clip(s, -bound, bound)",
        "test_multitask and bounded",
    ),
    ("_weighting.py", "_tasks.counted(base[task], loss)", "loss", "test_multitask"),
    ("_weighting.py", "renewed = ended & (counts > 0)", "renewed = ended", "test_multitask"),
    ("_weighting.py", "active & jnp.isfinite(loss)", "active", "test_multitask"),
    ("_weighting.py", "jnp.where(renewed, last, before), ", "jnp.where(renewed, mean, before), ", "test_multitask"),
    ("_weighting.py", "now, later = jax.random.split(state.key)", "now = later = state.key", "test_multitask"),
    ("_gradnorm.py", "jnp.maximum(moved, LEAST_WEIGHT)", "moved", "test_multitask"),
    ("_gradnorm.py", "usable & (initial == 0)", "usable", "test_multitask"),
    ("_gradnorm.py", "jnp.power(pace, alpha)", "pace", "test_multitask"),
    ("_gradnorm.py", "& jnp.isfinite(loss) & jnp.isfinite(norms)", "& jnp.isfinite(norms)", "test_multitask"),
    ("_aggregation.py", "jnp.where(j == own, 0, -excess)", "-excess", "test_multitask"),
    ("_aggregation.py", "jnp.minimum(a @ g[:, j], 0)", "(a @ g[:, j])", "test_multitask"),
    ("_aggregation.py", "axis=1, independent=True", "axis=1", "test_multitask"),
    ("_aggregation.py", "longer = length(weights(middle)) > middle * radius", "longer = middle < 1", "test_multitask"),
    ("_aggregation.py", "+ mu * mu * jnp.mean(along_mean)", "", "test_multitask"),
    ("_aggregation.py", "* per_length / count", "/ count", "test_multitask"),
    (
        "_gram.py",
        "return lax.stop_gradient(sum(products[1:], products[0]))",
        "return sum(products[1:], products[0])",
        "test_multitask and flows",
    ),
    ("_gram.py", "jnp.where(inside, -jnp.inf, c - a @ v)", "jnp.where(inside, -jnp.inf, c)", "test_multitask"),
    ("_gram.py", "jnp.where(inside, eps, 1)", "jnp.where(inside, 0.1, 1)", "test_multitask"),
    ("_gram.py", "precision=highest, out_sharding=layout", "precision=highest", "test_multitask and devices"),
    (
        "_numerics.py",
        "return jnp.where(x > 0, 1 / jnp.where(x > 0, x, 1), 0)",
        "return 1 / x",
        "test_multitask and zero",
    ),
    ("_calls.py", "if argument in self.rules.options:", "if False:", "test_checked"),
    (
        "_calls.py",
        "return rows[:, None, None] if len(shape) == 3 else None",
        "return rows[..., None]",
        "test_checked and anything",
    ),
    ("_calls.py", "return counts if keep is None else counts & keep", "return keep", "test_checked and anything"),
    (
        "_calls.py",
        "return (there & samples[:, None]).reshape(shape)",
        "return samples[:, None]",
        "test_checked and anything",
    ),
    ("_calls.py", "frames = jnp.where(samples, ", "frames = jnp.where(samples | True, ", "test_checked and anything"),
    (
        "_rules.py",
        "_is_bounded_above(x, call) & ~(wanted & (x == -jnp.inf))",
        "_is_bounded_above(x, call)",
        "test_checked",
    ),
    ("_rules.py", "return call.indices[0] != -1", "return call.indices[0] != -2", "test_checked"),
    ("_check.py", "jnp.asarray(host.clip(limits.min, limits.max))", "jnp.asarray(host)", "test_checked and too_large"),
    ("_rules.py", "jnp.unravel_index(jnp.argmax(self.bad)", "jnp.unravel_index(jnp.argmin(self.bad)", "test_checked"),
    ("_checked.py", "checkify.check(~finding.bad.any(), ", "checkify.check(~finding.bad.all(), ", "test_checked"),
    ("_diagnose.py", "with jax.debug_nans(False), jax.debug_infs(False):", "if True:", "test_diagnose and fields"),
    (
        "_diagnose.py",
        "{argument: results[gradients][argument] for argument in moving}",
        "results[gradients]",
        "test_diagnose and recognises",
    ),
    (
        "_hints.py",
        "if keep.sum() >= ENOUGH and x[keep].min() < x[keep].max():",
        "if True:",
        "test_diagnose and unusual",
    ),
    (
        "_hints.py",
        "if call.classes > 1 and rows.any() and np.abs(",
        "if np.abs(1 + 0 * ",
        "test_diagnose and (unusual or right)",
    ),
    ("_hints.py", "    if others and not sums_to_one(call.axis):", "    if others:", "test_diagnose"),
    ("_hints.py", "and np.isfinite(value).all() and value.any()", "", "test_diagnose and unusual"),
    ("_hints.py", "if in_float32.any() and not g.any():", "if not g.any():", "test_diagnose"),
    ("_hints.py", "counted.size < ENOUGH or ", "", "test_diagnose"),
]


def noticed(package: Path, words: str) -> bool:
    """Whether a test that matches `words` fails on the package. If they begin with a file, only its tests are run."""
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    # properties, edges, numerics, bad input, boxes, cross entropies, ctc, contrastive, segmentation
    tests = [*ROOT.glob("tests/test_[penbcsl]*.py")]
    if words.startswith(("test_", "on_devices")):
        tests = [ROOT / "tests" / f"{words.split()[0]}.py"]
    if words.startswith("on_devices"):
        environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-k", words, "-p", "no:cacheprovider", *tests]
    run = subprocess.run(command, cwd=ROOT / "tests", env=environment, capture_output=True, text=True, check=False)
    if run.returncode not in (0, 1):
        raise RuntimeError(run.stdout + run.stderr)
    return run.returncode == 1


def main() -> None:
    """Try every breakage, or those whose file is named on the command line."""
    survivors = []
    for file, line, broken, words in BREAKAGES:
        if sys.argv[1:] and file not in sys.argv[1:]:
            continue
        with tempfile.TemporaryDirectory() as folder:
            package = Path(folder) / "jaxloss"
            shutil.copytree(ROOT / "jaxloss", package)
            source = (package / file).read_text()
            if source.count(line) != 1:
                raise ValueError(f"{file}: {line!r} stands there {source.count(line)} times")
            (package / file).write_text(source.replace(line, broken))
            caught = noticed(package, words)
            print(f"{'caught' if caught else 'SURVIVED':8}  {file}: {broken.strip()}", flush=True)
            survivors += [] if caught else [line]
    sys.exit(f"{len(survivors)} not noticed" if survivors else 0)


if __name__ == "__main__":
    main()
