import math

import numpy as np
import pytest

from gac_jax.metrics.codebooks import ALL, Usage, count_codes, entropy, usage

# Two codebooks of 4 and 3 codes, in two rows of three frames, of which the second has two.
CODES = np.array([[[0, 0, 3], [1, 1, 1]], [[2, 3, 1], [0, 2, 2]]])
FRAMES = np.array([3, 2])
DOMAIN = np.array([1, 0])


def counts() -> list[np.ndarray]:
    return count_codes(CODES, FRAMES, DOMAIN, [4, 3], 3)


def test_codes_are_counted_by_domain_and_only_where_frames_count() -> None:
    first, second = counts()
    np.testing.assert_array_equal(first, [[0, 0, 1, 1], [2, 0, 0, 1], [0, 0, 0, 0]])
    np.testing.assert_array_equal(second, [[1, 0, 1], [0, 3, 0], [0, 0, 0]])


def test_batches_add_up() -> None:
    halves = [
        count_codes(CODES[i : i + 1], FRAMES[i : i + 1], DOMAIN[i : i + 1], [4, 3], 3)
        for i in range(2)
    ]
    for whole, *parts in zip(counts(), *halves, strict=True):
        np.testing.assert_array_equal(whole, sum(parts))


def test_usage_of_all_domains_and_of_each_that_occurs() -> None:
    table = {(u.domain, u.codebook): u for u in usage(counts(), ("speech", "sound", "music"))}
    assert [key[0] for key in table] == [ALL, ALL, "speech", "speech", "sound", "sound"]
    assert [key[1] for key in table] == 3 * ["semantic", "residual 1"]
    whole = table[ALL, "semantic"]  # 2, 0, 1, 2 times
    bits = 2 * 0.4 * math.log2(5 / 2) + 0.2 * math.log2(5)
    assert (whole.size, whole.frames, whole.used, whole.share) == (4, 5, 3, 0.75)
    assert whole.bits == pytest.approx(bits) and whole.perplexity == pytest.approx(2**bits)
    assert table["sound", "residual 1"] == Usage("sound", "residual 1", 3, 3, 1, 0.0)
    assert table["speech", "residual 1"].perplexity == 2.0


@pytest.mark.parametrize(
    ("row", "bits"), [([7, 0], 0.0), ([5, 5], 1.0), ([1, 1, 2], 1.5), ([3] * 256, 8.0)]
)
def test_entropy_by_hand(row: list[int], bits: float) -> None:
    assert entropy(np.array(row)) == pytest.approx(bits) and str(entropy(np.array(row)))[0] != "-"


def test_perplexity_cannot_exceed_the_frames() -> None:
    codes = np.arange(30).reshape(1, 1, 30)
    (found, _) = usage(count_codes(codes, np.array([30]), np.array([0]), [16_384], 1), ["speech"])
    assert found.perplexity == pytest.approx(30) and found.bits == pytest.approx(math.log2(30))
