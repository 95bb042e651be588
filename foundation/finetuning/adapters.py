"""Choice of the weights that get low-rank adapters in a fine-tuning (foundation/surgery/adapters.py)."""

from collections.abc import Sequence

from foundation.finetuning.freezing import matching
from foundation.potential import Potential
from foundation.surgery.adapters import adapt, adaptable


def add_adapters(potential: Potential, rank: int, alpha: float, patterns: Sequence[str] = ("*",)) -> list[str]:
    """Freeze a potential, add trainable adapters to its weights, and return the names of the adapted weights.

    Predictions stay the same, bit for bit.

    Args:
        potential: Potential to adapt, in place; unchanged after an error.
        rank: Rank of the addition to each matrix.
        alpha: The addition is scaled by alpha / rank.
        patterns: Presets and patterns of freezing.py that choose among the weights of such layers.

    Raises:
        ValueError: rank or alpha is not positive, a pattern matches no such weight, or adapters already exist.
    """
    chosen = matching(potential, patterns, list(adaptable(potential)))
    adapt(potential, chosen, rank, alpha)
    return chosen
