"""How far one set of clips is from another: Fréchet distance, KL divergence, Inception Score.

Pure functions of what a classifier says of each clip: its embedding, and its logits before the
softmax. Which classifier that is decides what the numbers mean; see `gac_jax.metrics.embeddings`.
Definitions are those of the toolkit av-benchmark (Cheng et al., MMAudio, 2024).
"""

from __future__ import annotations

import numpy as np
from scipy.special import log_softmax

SPLITS = 10  # of the Inception Score, and the seed of the order of clips: torch-fidelity's
SHUFFLE_SEED = 2020
SIZES = 15  # subsets through which the line of `frechet_infinity` is laid


def frechet(reference: np.ndarray, decoded: np.ndarray) -> float:
    """Fréchet distance of two Gaussians (Heusel et al., 2017), not normalised.

    |mu1 - mu2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)), with covariances over n - 1. The trace of the
    root is the sum of the singular values of A B^T, where A^T A = C1 and B^T B = C2: no root of a
    matrix is taken, so fewer clips than dimensions are no harm to precision. They do make the
    distance too large; `frechet_infinity` corrects for that.

    Args:
      reference: (n, D) embeddings.
      decoded: (m, D) embeddings.

    Returns:
      The distance, 0 within rounding for equal sets; NaN for fewer than two clips.
    """
    if min(len(reference), len(decoded)) < 2:
        return float("nan")
    (mean_a, root_a), (mean_b, root_b) = _moments(reference), _moments(decoded)
    overlap = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    spread = np.sum(np.square(root_a)) + np.sum(np.square(root_b)) - 2 * overlap
    return float(max(np.sum(np.square(mean_a - mean_b)) + spread, 0.0))


def frechet_infinity(reference: np.ndarray, decoded: np.ndarray, seed: int = 0) -> float:
    """Fréchet distance that endless clips would give (Chong and Forsyth, 2020).

    The distance falls about linearly with 1 / n. A line through distances of random subsets of
    n/2 ... n pairs is read at 1 / n = 0. On Gaussians whose variances fall as 1 / k, with 1.27
    times as many clips as dimensions (975 clips and 768 dimensions have that ratio), it was within
    12 % of the truth, where `frechet` was 1.7 to 4.4 times too large; with half as many clips as
    dimensions it was still 1.9 to 4.6 times too large, so it is not computed there.

    Args:
      reference: (n, D) embeddings.
      decoded: (n, D) embeddings of the same clips in the same order.
      seed: of the subsets.

    Returns:
      The distance, which noise may take below 0; NaN unless there are more clips than dimensions.
    """
    count, dimensions = reference.shape
    if count <= dimensions:
        return float("nan")
    rng = np.random.default_rng(seed)
    sizes = np.linspace(count // 2, count, SIZES).astype(int)
    subsets = (rng.choice(count, size, replace=False) for size in sizes)
    distances = [frechet(reference[subset], decoded[subset]) for subset in subsets]
    return float(np.polynomial.polynomial.polyfit(1 / sizes, distances, 1)[0])


def kl_divergence(reference: np.ndarray, decoded: np.ndarray) -> float:
    """KL(reference || decoded) of the class probabilities, in nats, mean over clips.

    av-benchmark adds a small constant below the logarithm, which softmax probabilities of finite
    logits do not need; here equal logits give 0 exactly.

    Args:
      reference: (n, C) logits.
      decoded: (n, C) logits of the same clips in the same order.

    Returns:
      The divergence; NaN for no clips.
    """
    if not len(reference):
        return float("nan")
    log_p, log_q = _log_probabilities(reference), _log_probabilities(decoded)
    return float(np.mean(np.sum(np.exp(log_p) * (log_p - log_q), axis=1)))


def inception_score(logits: np.ndarray) -> float:
    """Inception Score (Salimans et al., 2016): clips clear each by itself, and varied together.

    exp of the mean KL(p(class | clip) || p(class)), mean over ten splits of the clips in a fixed
    random order, as torch-fidelity computes it. It cannot exceed the clips in a split.

    Args:
      logits: (n, C).

    Returns:
      1 .. C; NaN for fewer than two clips a split, whose score is 1 whatever they are.
    """
    if len(logits) < 2 * SPLITS:
        return float("nan")
    # RandomState, not default_rng: the order is part of the published definition.
    order = np.random.RandomState(SHUFFLE_SEED).permutation(len(logits))
    log_p = _log_probabilities(logits)[order]
    edges = np.arange(SPLITS + 1) * len(logits) // SPLITS
    return float(np.mean([_score(log_p[a:b]) for a, b in zip(edges[:-1], edges[1:], strict=True)]))


def _moments(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,), and R (min(n, D), D) such that R^T R is the covariance."""
    x = np.asarray(embeddings, np.float64)
    mean = x.mean(axis=0)
    return mean, np.linalg.qr((x - mean) / np.sqrt(len(x) - 1)).R


def _log_probabilities(logits: np.ndarray) -> np.ndarray:
    return log_softmax(np.asarray(logits, np.float64), axis=1)


def _score(log_p: np.ndarray) -> float:
    p = np.exp(log_p)
    log_marginal = np.log(p.mean(axis=0))
    return float(np.exp(np.mean(np.sum(p * (log_p - log_marginal), axis=1))))
