"""Losses for training with JAX, named and shaped as in torch.nn.functional."""

from ._binary import binary_cross_entropy as binary_cross_entropy
from ._binary import binary_cross_entropy_with_logits as binary_cross_entropy_with_logits
from ._categorical import cross_entropy as cross_entropy
from ._categorical import kl_div as kl_div
from ._categorical import nll_loss as nll_loss
from ._regression import gaussian_nll_loss as gaussian_nll_loss
from ._regression import huber_loss as huber_loss
from ._regression import l1_loss as l1_loss
from ._regression import mse_loss as mse_loss
from ._regression import poisson_nll_loss as poisson_nll_loss
from ._regression import smooth_l1_loss as smooth_l1_loss
from ._softmax import log_softmax as log_softmax
from ._softmax import logsumexp as logsumexp
