"""Losses for training with JAX, named and shaped as in torch.nn.functional."""

# Several names to a line, for the whole surface to be seen at once.
# isort: skip_file
# fmt: off
from . import class_weights, multitask, spmd
from ._binary import binary_cross_entropy, binary_cross_entropy_with_logits
from ._boxes import box_iou_loss, complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss
from ._categorical import cross_entropy, kl_div, nll_loss, smooth_labels
from ._chunked import chunked
from ._checked import checked
from ._classes import binary_sparsemax_loss, generalized_cross_entropy, poly_cross_entropy, sparsemax_loss
from ._contrastive import circle_loss, clip_loss, info_nce_loss, nt_xent_loss, siglip_loss, supervised_contrastive_loss
from ._ctc import ctc_loss, ctc_loss_with_logits
from ._ctc_alignment import ctc_alignment, ctc_posteriors
from ._diagnose import diagnose
from ._divergence import distillation_loss, generalized_kl_div, js_div
from ._embedding import cosine_embedding_loss, cosine_similarity, pairwise_distance
from ._embedding import triplet_margin_loss, triplet_margin_with_distance_loss
from ._errors import expectile_loss, l2_loss, log_cosh_loss, quantile_loss
from ._errors import mean_absolute_percentage_error, mean_squared_logarithmic_error
from ._focal import sigmoid_focal_loss, softmax_focal_loss
from ._hinge import hinge_loss, multiclass_hinge_loss, multiclass_perceptron_loss, perceptron_loss, squared_hinge_loss
from ._linear_cross_entropy import linear_cross_entropy
from ._margin import hinge_embedding_loss, margin_ranking_loss, multi_margin_loss, multilabel_margin_loss
from ._margin import multilabel_soft_margin_loss, soft_margin_loss
from ._regression import gaussian_nll_loss, huber_loss, l1_loss, mse_loss, poisson_nll_loss, smooth_l1_loss
from ._segmentation import dice_loss, focal_tversky_loss, generalized_dice_loss, iou_loss, tversky_loss
from ._softmax import log_softmax, logsumexp

__all__ = [
    "binary_cross_entropy", "binary_cross_entropy_with_logits", "binary_sparsemax_loss", "box_iou_loss", "checked",
    "chunked", "circle_loss", "class_weights", "clip_loss", "complete_box_iou_loss", "cosine_embedding_loss",
    "cosine_similarity", "cross_entropy", "ctc_alignment", "ctc_loss", "ctc_loss_with_logits", "ctc_posteriors",
    "diagnose", "dice_loss", "distance_box_iou_loss", "distillation_loss", "expectile_loss", "focal_tversky_loss",
    "gaussian_nll_loss", "generalized_box_iou_loss", "generalized_cross_entropy", "generalized_dice_loss",
    "generalized_kl_div", "hinge_embedding_loss", "hinge_loss", "huber_loss", "info_nce_loss", "iou_loss", "js_div",
    "kl_div", "l1_loss", "l2_loss", "linear_cross_entropy", "log_cosh_loss", "log_softmax", "logsumexp",
    "margin_ranking_loss", "mean_absolute_percentage_error", "mean_squared_logarithmic_error", "mse_loss",
    "multi_margin_loss", "multiclass_hinge_loss", "multiclass_perceptron_loss", "multilabel_margin_loss",
    "multilabel_soft_margin_loss", "multitask", "nll_loss", "nt_xent_loss", "pairwise_distance", "perceptron_loss",
    "poisson_nll_loss", "poly_cross_entropy", "quantile_loss", "siglip_loss", "sigmoid_focal_loss", "smooth_l1_loss",
    "smooth_labels", "soft_margin_loss", "softmax_focal_loss", "sparsemax_loss", "spmd", "squared_hinge_loss",
    "supervised_contrastive_loss", "triplet_margin_loss", "triplet_margin_with_distance_loss", "tversky_loss",
]
