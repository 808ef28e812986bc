import pytest

from gac_jax.errors import UserError
from gac_jax.sampling import Sampling, choose

DEFAULT = {"steps": 8, "solver": "euler", "guidance": 1.5, "temperature": 0.6, "contrast": 2.0}


def chosen(interval: bool = False, **asked: object) -> Sampling:
    given = {"seed": 0, "steps": None, "solver": None, "guidance": None, "temperature": None}
    default = {**DEFAULT, "guidance": 1.0} if interval else DEFAULT
    return choose(default, 3, interval, **{**given, **asked})


def test_what_is_not_asked_for_is_the_default() -> None:
    assert chosen() == Sampling(8, "euler", (1.5, 1.5, 1.5), 0.6, 2.0, 0)


def test_what_is_asked_for_is_taken() -> None:
    asked = {"seed": 3, "steps": 2, "solver": "heun", "guidance": 0.0, "temperature": 0.0}
    assert chosen(**asked) == Sampling(2, "heun", (0.0, 0.0, 0.0), 0.0, 2.0, 3)


def test_models_from_before_have_no_contrast() -> None:
    default = {name: value for name, value in DEFAULT.items() if name != "contrast"}
    assert choose(default, 3, False, 0, None, None, None, None).contrast == 1.0


@pytest.mark.parametrize("contrast", [-1.0, 11.0, float("nan")])
def test_contrast_out_of_range_is_refused(contrast: float) -> None:
    default = {**DEFAULT, "contrast": contrast}
    with pytest.raises(UserError, match="contrast must be 0 .. 10"):
        choose(default, 3, False, 0, None, None, None, None)


def test_guidance_may_differ_between_rates() -> None:
    default = {**DEFAULT, "guidance": [1.0, 1.5, 2.0]}
    assert choose(default, 3, False, 0, None, None, None, None).guidance == (1.0, 1.5, 2.0)


def test_meanflow_takes_a_model_that_knows_it() -> None:
    assert chosen(interval=True, solver="meanflow").solver == "meanflow"
    assert chosen(interval=True).solver == "euler"
    with pytest.raises(UserError, match="has not been trained for solver 'meanflow'"):
        chosen(solver="meanflow")


def test_guidance_that_is_learnt_is_not_added() -> None:
    with pytest.raises(UserError, match="guidance is part of what this model has learnt"):
        chosen(interval=True, guidance=2.0)
