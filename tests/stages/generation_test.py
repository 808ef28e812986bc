import dataclasses
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gac_jax import flow
from gac_jax.signal.log_spectrum import log_spectrum
from gac_jax.stages.generation import band_statistics, bucket_losses, lost_frames
from tests.tiny import DECODER, batch, drawn, frozen_parts, generation, jit, predict

KEY = jax.random.key(5)
SHALLOW = dataclasses.replace(DECODER, depth=1)


@pytest.fixture(scope="module")
def params() -> Any:
    return drawn(generation().init)


@pytest.fixture(scope="module")
def frozen() -> Any:
    return frozen_parts()


@cache
def program(**changes: Any) -> Any:
    """Loss, metrics, memory, and gradients of all parameters, trained and frozen."""
    task = generation(**changes)

    def run(params: Any, frozen: Any, memory: Any, batch: Any) -> Any:
        def loss(params: Any, frozen: Any) -> Any:
            return task.loss(params, frozen, memory, batch, KEY)

        (value, (metrics, after)), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(
            params, frozen
        )
        return value, metrics, after, *gradients

    return jit(run)


@pytest.fixture(scope="module")
def full(params: Any, frozen: Any) -> Any:
    return program(drop_codes=0.0)(params, frozen, generation().init_memory(params), batch())


def spectrum_of(clips: dict[str, jax.Array]) -> tuple[np.ndarray, np.ndarray]:
    """Log-magnitude spectrum and the frames that count."""
    frames = -(-np.asarray(clips["num_samples"]) // 2560) * 4
    spectrum = np.asarray(log_spectrum(clips["wave"]))
    return spectrum, np.arange(spectrum.shape[1]) < frames[:, None]


def test_the_loss_is_that_of_equation_10(params: Any, frozen: Any, full: Any) -> None:
    """Recomputed the long way: v_theta against X_1 - X_0, with the task's own draws."""
    task, clips = generation(drop_codes=0.0), batch()
    spectrum, valid = spectrum_of(clips)
    mean, deviation = spectrum[valid].mean(axis=0), spectrum[valid].std(axis=0)
    y = jnp.asarray((spectrum - mean) / (deviation + 1e-3))
    frames, rows = jnp.asarray(valid.sum(axis=1) // 4), len(valid)
    rate_key, time_key, noise_key, _, _ = jax.random.split(KEY, 5)
    rate = jnp.asarray([0, 1, 2, 4, 8])[
        jax.random.categorical(rate_key, jnp.zeros(5) + jnp.log(0.2), shape=(rows,))
    ]
    t = jax.nn.sigmoid(-0.4 + jax.random.normal(time_key, (rows,)))
    assert float(t.max()) < 1 - flow.LOSS_FLOOR  # the bound on 1 - t does not act
    x0 = jax.random.normal(noise_key, y.shape)

    @jit
    def predicted() -> tuple[jax.Array, ...]:
        features = task.features.apply({"params": frozen["encoder"]}, clips["wave"], frames)
        quantizer = {"params": frozen["quantizer"]}
        embedding = task.quantizer.apply(quantizer, *features, frames, rate).embedding
        keep, lost = jnp.ones((rows,), bool), jnp.zeros(embedding.shape[:2], bool)
        given = (embedding, rate, keep, lost, frames)
        variables = {"params": params["decoder"]}
        implied = task.decoder.apply(variables, *given, method="condition")
        s = jnp.exp(implied.log_deviation)
        x1 = (y - implied.mean) / s
        x_t = flow.interpolate(x0, x1, t)
        x1_hat = predict(task.decoder, params["decoder"], x_t, t, *given)
        return s, x1, x1 - x0, flow.velocity(x1_hat, x_t, t)

    s, x1, target, v_hat = map(np.asarray, predicted())
    error = np.square(v_hat - target).mean(axis=-1)[valid].mean()
    surprise = (np.square(x1) / 2 + np.log(s)).mean(axis=-1)[valid].mean()
    assert float(full[0]) == pytest.approx(error + surprise, rel=1e-3)
    assert float(np.std(s)) > 0.1


def test_codes_from_disk_take_the_place_of_the_encoder(params: Any, frozen: Any, full: Any) -> None:
    task, clips = generation(), batch()
    frames = jnp.asarray(-(-np.asarray(clips["num_samples"]) // 2560))
    codes = jit(lambda: task._codes(frozen, clips, frames))()
    spoilt = {**frozen, "encoder": jax.tree.map(jnp.zeros_like, frozen["encoder"])}
    memory = generation().init_memory(params)
    found = program(drop_codes=0.0)(params, spoilt, memory, {**clips, "codes": codes})
    assert float(found[0]) == pytest.approx(float(full[0]), rel=1e-5)


def test_only_the_decoder_learns(full: Any) -> None:
    decoder, frozen = full[3], full[4]
    still = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(decoder)
        if not leaf.any()
    ]
    unused = ("lost", "null")  # as no codes are lost or dropped here
    assert still == [f"['decoder']['condition_net']['{name}']" for name in unused]
    assert not any(leaf.any() for leaf in jax.tree.leaves(frozen))


@pytest.mark.parametrize(
    ("changes", "vector"), [({"drop_codes": 1.0}, "null"), ({"lose_frames": 1.0}, "lost")]
)
def test_dropped_and_lost_codes_train_what_stands_for_them(
    frozen: Any, changes: dict[str, float], vector: str
) -> None:
    run = program(decoder=SHALLOW, **{"drop_codes": 0.0, **changes})
    shallow = drawn(generation(SHALLOW).init)
    memory = generation().init_memory(shallow)
    net = run(shallow, frozen, memory, batch(frames=16))[3]["decoder"]["condition_net"]
    for name in ("null", "lost"):
        assert bool(net[name].any()) == (name == vector)


def test_frames_are_lost_in_spans() -> None:
    lost = np.asarray(lost_frames(KEY, (4000, 64), 0.25))
    some = lost.any(axis=1)
    assert some.mean() == pytest.approx(0.25, abs=0.03)
    assert lost[some].mean() == pytest.approx(0.2, abs=0.02)
    after, before = lost[some][:, 1:], lost[some][:, :-1]
    assert after[before].mean() > 0.6  # 0.2 if frames were lost one by one
    assert not lost_frames(KEY, (40, 64), 0.0).any()


def test_clips_of_no_length_do_not_count(params: Any, frozen: Any) -> None:
    clips = batch()
    clips["num_samples"] = clips["num_samples"].at[2].set(0)
    spoilt = {**clips, "wave": clips["wave"].at[2].multiply(7.0)}
    run, memory = program(drop_codes=0.0), generation().init_memory(params)
    first, second = (run(params, frozen, memory, x) for x in (clips, spoilt))
    assert float(first[0]) == pytest.approx(float(second[0]), rel=1e-5)
    np.testing.assert_allclose(first[2]["power"], second[2]["power"], rtol=1e-5)


def test_an_empty_batch_is_finite(params: Any, frozen: Any) -> None:
    empty = {k: jnp.zeros_like(v) for k, v in batch().items()}
    value, _, *rest = program(drop_codes=0.0)(
        params, frozen, generation().init_memory(params), empty
    )
    assert float(value) == 0.0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(rest))


def test_the_statistics_of_each_band_are_measured_then_kept() -> None:
    task, memory = generation(scale_steps=3), generation().init_memory(None)
    expected = []
    for i in range(5):
        clips = batch()
        clips["wave"] = clips["wave"] * (1.0 + i)
        spectrum, valid = spectrum_of(clips)
        expected.append(spectrum[valid])
        memory = task._measure_scale(memory, jnp.asarray(spectrum), jnp.asarray(valid))
        measured = np.concatenate(expected[:3])
        mean, deviation = band_statistics(memory)
        np.testing.assert_allclose(mean, measured.mean(axis=0), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(deviation, measured.std(axis=0) + 1e-3, rtol=1e-2)
    assert int(memory["batches"]) == 3
    assert deviation.std() > 0.05 * deviation.mean()  # bands do differ


def test_the_deviation_of_an_empty_band_has_a_floor() -> None:
    memory = {"mean": jnp.asarray([-6.9]), "power": jnp.asarray([6.9**2 - 1e-6])}
    mean, deviation = band_statistics(memory)
    assert float(mean[0]) == pytest.approx(-6.9) and float(deviation[0]) == pytest.approx(1e-3)


def test_losses_are_reported_by_quarters_of_time() -> None:
    per_frame = jnp.asarray([[1.0, 2.0], [3.0, 9.0], [5.0, 6.0]])
    valid = jnp.asarray([[True, True], [True, False], [True, True]])
    found = bucket_losses(per_frame, valid, jnp.asarray([0.1, 0.2, 1.0]), "t")
    assert [float(found[f"loss_t{i}"]) for i in (0, 3)] == pytest.approx([2.0, 5.5])
    assert np.isnan([float(found[f"loss_t{i}"]) for i in (1, 2)]).all()


def test_the_time_metrics_add_up_to_the_loss(full: Any) -> None:
    t = jax.nn.sigmoid(-0.4 + jax.random.normal(jax.random.split(KEY, 5)[1], (8,)))
    frames = np.where(np.arange(8) % 2, 3, 4)
    share = [frames[np.asarray(t * 4).astype(int) == i].sum() / frames.sum() for i in range(4)]
    parts = np.asarray([float(full[1][f"loss_t{i}"]) for i in range(4)])
    assert float(full[1]["flow"]) == pytest.approx(np.nansum(parts * share), rel=1e-4)


def test_the_loss_is_the_sum_of_its_parts(full: Any) -> None:
    parts = [float(full[1][name]) for name in ("flow", "likelihood")]
    assert float(full[0]) == pytest.approx(sum(parts), rel=1e-5)
