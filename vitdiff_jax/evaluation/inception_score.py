"""Inception Score (arXiv:1606.03498): exp of the mean KL(p(class | image) || p(class)).

From Inception's logits without bias, over ten splits in a random order (seed 2020, as in
torch-fidelity) and over splits of 5000 in sampling order (as in ADM). Sums are accumulated in
float64 without storing the logits: the split of an image follows from its position.
"""

import numpy as np

from vitdiff_jax.evaluation import networks
from vitdiff_jax.evaluation.metric import Part, Setting

SPLITS, ADM_SPLIT, SEED = 10, 5000, 2020


class Scores:
    """The sums of p and of p log p over the images of each split."""

    def __init__(self, count: int):
        position = np.empty(count, np.int64)  # of each image in the random order
        position[np.random.RandomState(SEED).permutation(count)] = np.arange(count)
        ends = np.arange(1, SPLITS + 1) * count // SPLITS
        of_ten = np.searchsorted(ends, position, side="right")
        of_adm = SPLITS + np.arange(count) // ADM_SPLIT
        self.which = np.stack([of_ten, of_adm])  # [2, count]
        self.counts = np.bincount(self.which.ravel(), minlength=SPLITS)
        self.seen = 0
        self.p, self.p_log_p = np.zeros((0, 0)), np.zeros(len(self.counts))

    def update(self, rows: np.ndarray) -> None:
        """Add logits [N, K]."""
        if not self.seen:
            self.p = np.zeros((len(self.counts), rows.shape[1]))
        logits = rows.astype(np.float64)
        logits -= logits.max(1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        p = np.exp(log_p)
        for which in self.which[:, self.seen : self.seen + len(rows)]:
            np.add.at(self.p, which, p)
            np.add.at(self.p_log_p, which, (p * log_p).sum(1))
        self.seen += len(rows)

    def arrays(self):
        return {"p": self.p, "p_log_p": self.p_log_p, "seen": np.array(self.seen)}

    def load(self, arrays):
        self.p, self.p_log_p, self.seen = arrays["p"], arrays["p_log_p"], int(arrays["seen"])

    def scores(self) -> np.ndarray:
        """The score of each split: the ten, then ADM's. NaN for an empty split."""
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = self.p / self.counts[:, None]
            plogp = np.where(mean > 0, mean * np.log(mean), 0).sum(1)
            return np.exp(self.p_log_p / self.counts - plogp)


class Metric:
    """Both Inception Scores of the samples; no reference is needed."""

    name = "is/inception-2015-10x"
    compares, higher_is_better = False, True

    def __init__(self, setting: Setting):
        self.parts = (Part(setting.shared(networks.inception), "logits", Scores),)

    def result(self, samples, reference) -> dict[str, float]:
        scores = samples[0].scores()
        ten = scores[:SPLITS]
        return {
            "value": float(ten.mean()),
            "std": float(ten.std()),
            "adm_splits_of_5000": float(scores[SPLITS:].mean()),
        }
