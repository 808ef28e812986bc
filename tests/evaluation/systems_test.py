import numpy as np
import pytest

from gac_jax.errors import UserError
from gac_jax.evaluation.systems import Identity, Noise, open_systems
from tests.metrics.excerpts import speech


def test_identity_gives_back_16_bit_samples_exactly() -> None:
    wave = speech(0.1)
    data = Identity().encode(wave)
    assert len(data) == 2 * len(wave)
    assert np.array_equal(Identity().decode(data, len(wave)), wave)
    loud = np.array([1.0, -1.0, 1.5], np.float32)
    assert np.allclose(Identity().decode(Identity().encode(loud), 3), [1, -1, 1], atol=1e-4)


def test_noise_has_the_level_of_the_clip_and_nothing_else_of_it() -> None:
    wave = speech(1.0)
    data = Noise().encode(wave)
    assert len(data) == 4
    decoded = Noise().decode(data, len(wave))
    assert decoded.dtype == np.float32
    assert np.std(decoded) == pytest.approx(np.std(wave), rel=0.01)
    assert abs(np.corrcoef(decoded, wave)[0, 1]) < 0.03
    other = Noise().decode(Noise().encode(0.5 * wave), len(wave))
    assert abs(np.corrcoef(decoded, other)[0, 1]) < 0.03
    assert not Noise().decode(Noise().encode(np.zeros(9, np.float32)), 9).any()


def test_systems_keep_their_order() -> None:
    texts = ["noise", " identity", "cmd:a.b:cat {in} {bits}:cat {bits} {out}"]
    assert [s.name for s in open_systems(texts, "mini", {})] == ["noise", "identity", "a.b"]


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        ([], "none given; a system is one of gac@KBPS"),
        (["vorbis@6"], "'vorbis@6' is not known; a system is one of gac@KBPS"),
        (["gac"], "'gac' is not known"),
        (["gac@much"], "gac@much: 'much' is not a rate in kbit/s"),
        (["gac@0.2"], "0.2 kbps is not a rate of this codec: choose one of 0.175"),
        (["gac:/no/model@0.275"], "/no/model: no such model"),
        (["encodec@6"], "'encodec@6' is not known"),
        (["opus:folder@6"], "'opus:folder@6' is not known"),
        (["noise", "noise"], "two are called noise"),
        (["cmd:reference:cat {in} {bits}:cat {bits} {out}"], "'reference' cannot be a file's name"),
        (["cmd:a/b:cat {in} {bits}:cat {bits} {out}"], "'a/b' cannot be a file's name"),
    ],
)
def test_a_mistake_is_told(texts: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told.replace("(", r"\(")):
        open_systems(texts, "mini", {"seed": 0, "steps": None})
