"""The codec: waveform -> tokens -> waveform, compiled once per window shape.

Clips of any length and number go through the same few programs: audio is cut into windows
(`gac_jax.windows`), windows are grouped into batches of a fixed size, and noise is keyed by
absolute frame index. Hence the codes of a clip do not depend on its neighbours in a batch, the
same tokens and seed give the same audio, and memory does not grow with the length of the audio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from gac_jax import compressed, entropy_coder, flow, model_folder, rates
from gac_jax.bitstream import Header, Tokens, read_header
from gac_jax.entropy_coder import EntropyCoder
from gac_jax.errors import UserError
from gac_jax.models.encoder import EncoderConfig, Features
from gac_jax.models.flow_decoder import Condition, DecoderConfig, FlowDecoder
from gac_jax.models.quantizer import Quantizer, QuantizerConfig
from gac_jax.rates import FRAME_SAMPLES, SAMPLE_RATE, SPECTRA_PER_FRAME
from gac_jax.sampling import Sampling, choose
from gac_jax.signal.audio_io import AudioReader, to_mono_32k
from gac_jax.signal.contrast import contrasted
from gac_jax.signal.griffin_lim import griffin_lim
from gac_jax.signal.log_spectrum import magnitudes
from gac_jax.signal.loudness import block_levels, normalise, restored
from gac_jax.signal.pitch import FEATURES, Pitch, from_features
from gac_jax.signal.voicing import voiced
from gac_jax.stages.generation import init_decoder
from gac_jax.windows import Window, cut, join, plan

BUNDLED = Path(__file__).parent / "pretrained"

Blocks = Iterable[np.ndarray]  # mono float32 at 32 kHz, may be iterated over more than once
Job = TypeVar("Job")


def load(model: str | Path = "mini", batch_size: int = 1) -> Codec:
    """Loads a model.

    Args:
      model: name of a model that ships with the package, or a model folder.
      batch_size: windows computed at once; more is faster on accelerators, not on CPUs.

    Raises:
      UserError: no such model, or its files are damaged.
    """
    folder = find(model)
    config, params = model_folder.load(folder)
    try:
        codec = Codec(config, params, batch_size)
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder}: config.json does not describe a model ({error})") from error
    model_folder.check(folder, params, codec.abstract_params())
    return codec


def find(model: str | Path) -> Path:
    """The folder of a model that ships with the package, or the model folder itself.

    Raises:
      UserError: neither.
    """
    bundled = BUNDLED / str(model)
    folder = bundled if (bundled / "config.json").is_file() else Path(model)
    if not folder.is_dir():
        names = ", ".join(sorted(p.parent.name for p in BUNDLED.glob("*/config.json"))) or "none"
        raise UserError(f"{model}: no such model (bundled: {names}; or give a model folder)")
    return folder


class Codec:
    """A model ready to encode and decode; one of the stage understanding alone only encodes.

    Attributes:
      config: contents of the model's config.json.
      batch_size: windows computed at once.
      sample_rate: samples per second of decoded audio, 32,000.
      frame_rate: code frames per second, 12.5.
      frame_samples: samples in a code frame, 2,560.
      codebook_sizes: codes of each codebook, semantic first.
    """

    sample_rate = SAMPLE_RATE
    frame_rate = rates.FRAME_RATE
    frame_samples = FRAME_SAMPLES

    def __init__(self, config: dict[str, Any], params: dict[str, Any], batch_size: int = 1) -> None:
        """Wraps loaded parameters; `load` is the usual way in."""
        self.config, self.batch_size = config, batch_size
        self._features = Features(EncoderConfig(**config["encoder"]))
        self._quantizer = Quantizer(QuantizerConfig(**config["quantizer"]))
        decoder = config.get("decoder")
        self._flow = None if decoder is None else FlowDecoder(DecoderConfig(**decoder))
        self._entropy_shapes = entropy_coder.shapes(config)
        self._params = jax.device_put(params)
        self.fingerprint = bytes.fromhex(config["fingerprint"])
        quantizer = self._quantizer.config
        self.codebook_sizes = (quantizer.semantic_size,) + (
            quantizer.residual_size,
        ) * quantizer.num_residual
        self._encode_windows = jax.jit(self._encode)
        self._decode_windows = jax.jit(self._decode, static_argnames=("solver", "guided"))

    @property
    def num_codebooks(self) -> int:
        """Semantic and residual codebooks together."""
        return len(self.codebook_sizes)

    @property
    def num_parameters(self) -> dict[str, int]:
        """Parameters of each part."""
        return {k: sum(x.size for x in jax.tree.leaves(v)) for k, v in self._params.items()}

    def require_decoder(self) -> FlowDecoder:
        """The decoder; raises UserError if the model has none."""
        if self._flow is None:
            raise UserError(
                f"'{self.config['name']}' only encodes: its decoder has yet to be trained, by the "
                "stage generation"
            )
        return self._flow

    def plan(self, num_frames: int) -> list[Window]:
        """The windows in which a clip of num_frames code frames is computed."""
        return plan(num_frames, self.config["window"])

    def encode(
        self, wave: np.ndarray, sample_rate: int = SAMPLE_RATE, kbps: float = 0.975
    ) -> Tokens:
        """Encodes one clip.

        Args:
          wave: (S,) or (channels, S) floats in [-1, 1]; channels are averaged.
          sample_rate: of wave, in hertz; other rates than 32,000 are resampled.
          kbps: 0.175 .. 0.975 in steps of 0.1.

        Raises:
          UserError: no samples, or samples that are not finite; impossible sample rate or kbps.
        """
        return self.encode_batch([wave], sample_rate, kbps)[0]

    def encode_batch(
        self, waves: Sequence[np.ndarray], sample_rate: int = SAMPLE_RATE, kbps: float = 0.975
    ) -> list[Tokens]:
        """Encodes clips of any lengths; each gets the codes it would get alone. See `encode`."""
        return self.encode_streams([[to_mono_32k(w, sample_rate)] for w in waves], kbps)

    def encode_file(self, path: str | Path, kbps: float = 0.975) -> Tokens:
        """Encodes an audio file of any length and format in constant memory. See `encode`."""
        return self.encode_streams([AudioReader(path)], kbps)[0]

    def encode_streams(self, streams: Sequence[Blocks], kbps: float = 0.975) -> list[Tokens]:
        """Encodes streams of mono 32 kHz blocks, each read twice: for its level, for its codes."""
        num_residuals = rates.residuals_for(kbps)
        measured = [block_levels(stream) for stream in streams]
        plans = [self.plan(rates.num_frames(samples)) for _, samples in measured]
        jobs = (
            (window, index, piece)
            for index, stream in enumerate(streams)
            for window, piece in zip(
                plans[index],
                cut(_normalised(stream, measured[index][0]), plans[index]),
                strict=True,
            )
        )
        parts: list[list[tuple[int, np.ndarray]]] = [[] for _ in streams]
        for (window, index, _), codes in self._batched(jobs, lambda job: job[0], self._run_encode):
            parts[index].append((window.start, codes[: 1 + num_residuals, window.kept]))
        return [
            Tokens(np.concatenate(_in_order(own), axis=1), samples, levels, self.fingerprint)
            for own, (levels, samples) in zip(parts, measured, strict=True)
        ]

    def compress(self, tokens: Tokens) -> bytes:
        """Writes a .gac file that is smaller than `tokens.to_bytes()`, and for this model alone.

        It takes about a millisecond a frame, on the CPU.

        Raises:
          UserError: the model has no entropy model; tokens of another model.
        """
        self._check(tokens)
        return compressed.to_bytes(tokens, self.entropy_coder)

    def read(self, data: bytes | bytearray | memoryview) -> Tokens:
        """Reads a .gac file, compressed or not.

        Raises:
          UserError: it is not a .gac file, or truncated or damaged; it is compressed, and not by
            this model.
        """
        header = read_header(bytes(data))
        if not header.compressed:
            return Tokens.from_bytes(data)
        self._check(header)
        return compressed.from_bytes(bytes(data), self.entropy_coder)

    @cached_property
    def entropy_coder(self) -> EntropyCoder:
        """What compresses; UserError if the model has no entropy model."""
        return entropy_coder.of_model(self.config, self._params)

    def decode(
        self,
        tokens: Tokens,
        seed: int = 0,
        steps: int | None = None,
        solver: str | None = None,
        guidance: float | None = None,
        temperature: float | None = None,
        lost: npt.ArrayLike | None = None,
    ) -> np.ndarray:
        """Decodes tokens.

        Args:
          tokens: made by a model with this codec's fingerprint.
          seed: of the noise; the same seed gives the same audio.
          steps: solver steps; None takes the model's default, here and below.
          solver: 'euler', 'heun', or 'meanflow' of models trained for it.
          guidance: classifier-free guidance weight, 1 for none.
          temperature: deviation of the noise, 0 .. 2; below 1 is plainer and safer.
          lost: (N,) bool, code frames that did not arrive; they are filled in from the others.

        Returns:
          (num_samples,) float32 at 32 kHz.

        Raises:
          UserError: tokens of another model, or settings out of range.
        """
        blocks = self.decode_blocks(tokens, seed, steps, solver, guidance, temperature, lost)
        return np.concatenate(list(blocks))

    def decode_blocks(
        self,
        tokens: Tokens,
        seed: int = 0,
        steps: int | None = None,
        solver: str | None = None,
        guidance: float | None = None,
        temperature: float | None = None,
        lost: npt.ArrayLike | None = None,
    ) -> Iterator[np.ndarray]:
        """Decodes tokens piece by piece in constant memory, 10.24 s behind; see `decode`."""
        self._check(tokens)
        sampling = self._sampling(seed, steps, solver, guidance, temperature)
        codes = tokens.codes if lost is None else np.where(_mask(lost, tokens), -1, tokens.codes)
        jobs = ((window, codes) for window in self.plan(tokens.num_frames))
        results = self._batched(jobs, lambda job: job[0], partial(self._run_decode, sampling))
        waves = join((job[0], wave) for job, wave in results)
        return restored(waves, tokens.levels, tokens.num_samples)

    def decode_batch(
        self,
        batch: Sequence[Tokens],
        seed: int = 0,
        steps: int | None = None,
        solver: str | None = None,
        guidance: float | None = None,
        temperature: float | None = None,
    ) -> list[np.ndarray]:
        """Decodes clips of any lengths and rates; each sounds as it would alone. See `decode`."""
        for tokens in batch:
            self._check(tokens)
        sampling = self._sampling(seed, steps, solver, guidance, temperature)
        jobs = (
            (window, index, tokens.codes)
            for index, tokens in enumerate(batch)
            for window in self.plan(tokens.num_frames)
        )
        run = partial(self._run_decode, sampling)
        pieces: list[list[tuple[int, tuple[Window, np.ndarray]]]] = [[] for _ in batch]
        for (window, index, _), wave in self._batched(jobs, lambda job: job[0], run):
            pieces[index].append((window.start, (window, wave)))
        return [
            np.concatenate(list(restored(join(_in_order(own)), tokens.levels, tokens.num_samples)))
            for own, tokens in zip(pieces, batch, strict=True)
        ]

    def window_decoder(
        self,
        steps: int | None = None,
        solver: str | None = None,
        guidance: float | None = None,
        temperature: float | None = None,
    ) -> Callable[..., jax.Array]:
        """What `decode` compiles for its windows, with the settings of the solver fixed.

        Returns:
          A function of params, codes (B, K, N) int32, rate, frames and start, each (B,) int32, and
          seed () uint32 that returns (B, N * 2560) float32; start counts spectra.

        Raises:
          UserError: settings out of range, see `decode`.
        """
        sampling = self._sampling(0, steps, solver, guidance, temperature)
        return partial(
            self._decode,
            times=flow.time_grid(sampling.steps),
            guidance=jnp.array(sampling.guidance, jnp.float32),
            temperature=jnp.float32(sampling.temperature),
            contrast=jnp.float32(sampling.contrast),
            solver=sampling.solver,
            guided=set(sampling.guidance) != {1.0},
        )

    def abstract_params(self) -> Any:
        """Shapes and types of all parameters, without computing any."""

        def init() -> Any:
            key, frames = jax.random.key(0), jnp.ones((1,), jnp.int32)
            wave = jnp.zeros((1, FRAME_SAMPLES))
            encoder = self._features.init(key, wave, frames)
            features = self._features.apply(encoder, wave, frames)
            quantizer = self._quantizer.init(key, *features, frames, frames)
            params = {"encoder": encoder["params"], "quantizer": quantizer["params"]}
            if self._entropy_shapes:
                zeros = {k: jnp.zeros(shape) for k, shape in self._entropy_shapes.items()}
                params[model_folder.ENTROPY_MODEL] = zeros
            if self._flow is None:
                return params
            bins = self._flow.config.bins
            return {
                **params,
                "decoder": init_decoder(self._flow, self._quantizer.config.width, key),
                "spectrum": {name: jnp.zeros((bins,)) for name in ("mean", "scale")},
            }

        return jax.eval_shape(init)

    def _check(self, tokens: Tokens | Header) -> None:
        if tokens.fingerprint != self.fingerprint:
            raise UserError(
                f"these tokens were made by model {tokens.fingerprint.hex()}, but "
                f"'{self.config['name']}' is {self.fingerprint.hex()}; decode with the model "
                "that encoded them"
            )

    def _sampling(
        self,
        seed: int,
        steps: int | None,
        solver: str | None,
        guidance: float | None,
        temperature: float | None,
    ) -> Sampling:
        given = (seed, steps, solver, guidance, temperature)
        interval = self.require_decoder().config.interval
        return choose(self.config["sampling"], self.num_codebooks, interval, *given)

    def _batched(
        self,
        jobs: Iterable[Job],
        window_of: Callable[[Job], Window],
        run: Callable[[list[Job], int], np.ndarray],
    ) -> Iterator[tuple[Job, np.ndarray]]:
        """Runs jobs in batches of one bucket; yields each job with its result.

        Jobs of a bucket keep their order, and so do those of a single clip: only its last window
        may be of another bucket.
        """
        waiting: dict[int, list[Job]] = {}
        for job in jobs:
            bucket = window_of(job).bucket
            group = waiting.setdefault(bucket, [])
            group.append(job)
            if len(group) == self.batch_size:
                yield from zip(group, run(group, bucket), strict=False)
                waiting[bucket] = []
        for bucket, group in waiting.items():
            yield from zip(group, run(group, bucket) if group else (), strict=False)

    def _run_encode(self, jobs: list[tuple[Window, int, np.ndarray]], bucket: int) -> np.ndarray:
        waves = np.zeros((self.batch_size, bucket * FRAME_SAMPLES), np.float32)
        frames = np.zeros((self.batch_size,), np.int32)
        for row, (window, _, piece) in enumerate(jobs):
            waves[row], frames[row] = piece, window.frames
        return np.asarray(self._encode_windows(self._params, waves, frames))

    def _run_decode(self, sampling: Sampling, jobs: list[Any], bucket: int) -> np.ndarray:
        codes = np.zeros((self.batch_size, self.num_codebooks, bucket), np.int32)
        rate, frames, start = np.zeros((3, self.batch_size), np.int32)
        for row, job in enumerate(jobs):
            window, all_codes = job[0], job[-1]
            codes[row, : len(all_codes), : window.frames] = all_codes[:, window.start : window.end]
            rate[row], frames[row] = len(all_codes) - 1, window.frames
            start[row] = window.start * SPECTRA_PER_FRAME
        wave = self._decode_windows(
            self._params,
            codes,
            rate,
            frames,
            start,
            np.uint32(sampling.seed),
            flow.time_grid(sampling.steps),
            np.array(sampling.guidance, np.float32),
            np.float32(sampling.temperature),
            np.float32(sampling.contrast),
            solver=sampling.solver,
            guided=set(sampling.guidance) != {1.0},
        )
        return np.asarray(wave)

    def _encode(self, params: Any, wave: jax.Array, frames: jax.Array) -> jax.Array:
        """(B, bucket * 2560) samples to (B, K, bucket) codes."""
        semantic, acoustic = self._features.apply({"params": params["encoder"]}, wave, frames)
        return self._quantizer.apply(
            {"params": params["quantizer"]}, semantic, acoustic, frames, method="codes"
        )

    def _decode(
        self,
        params: Any,
        codes: jax.Array,
        rate: jax.Array,
        frames: jax.Array,
        start: jax.Array,
        seed: jax.Array,
        times: jax.Array,
        guidance: jax.Array,
        temperature: jax.Array,
        contrast: jax.Array,
        solver: str,
        guided: bool,
    ) -> jax.Array:
        """(B, K, bucket) codes to (B, bucket * 2560) samples: Eq. 11, then phases that fit.

        A frame whose semantic code is -1 was lost.
        """
        decoder, variables = self.require_decoder(), {"params": params["decoder"]}
        lost = codes[:, 0] < 0
        embedding = self._quantizer.apply(
            {"params": params["quantizer"]}, jnp.maximum(codes, 0), rate, method="embed"
        )

        def condition(keep: bool) -> Condition:
            kept = jnp.full(rate.shape, keep)
            given = (embedding, rate, kept, lost, frames)
            return decoder.apply(variables, *given, method="condition")

        def velocity(
            condition: Condition, x: jax.Array, t: jax.Array, until: jax.Array
        ) -> jax.Array:
            t, until = (jnp.broadcast_to(time, (x.shape[0],)) for time in (t, until))
            lengths = jnp.tile(frames, x.shape[0] // frames.shape[0])
            return flow.velocity(decoder.apply(variables, x, t, condition, lengths, until), x, t)

        with_codes = condition(True)
        velocity_fn: flow.VelocityFn = partial(velocity, with_codes)
        if guided:
            both = jax.tree.map(lambda *x: jnp.concatenate(x), with_codes, condition(False))
            doubled = partial(velocity, both)
            weight = guidance[rate][:, None, None]
            velocity_fn = flow.guided(velocity_fn, doubled, weight)
        length, bins = codes.shape[2] * SPECTRA_PER_FRAME, decoder.config.bins
        noise = flow.frame_noise(seed, start, length, 2 * bins)
        standardised = flow.solve(velocity_fn, temperature * noise[..., :bins], times, solver)
        mean, scale = (params["spectrum"][name][None, None] for name in ("mean", "scale"))
        level = mean + scale * with_codes.spectrum(standardised)
        valid = jnp.arange(2 * length)[None] < frames[:, None] * (2 * SPECTRA_PER_FRAME)
        level = voiced(contrasted(level, contrast), self._pitch(params, codes, rate), valid)
        first_phases = noise[..., bins:].reshape(codes.shape[0], -1)
        magnitude = jnp.where(valid[:, :, None], magnitudes(level), 0.0)
        return griffin_lim(magnitude, first_phases)

    def _pitch(self, params: Any, codes: jax.Array, rate: jax.Array) -> Pitch:
        """What codes (B, K, N) tell of the pitch of 8 N spectra; nothing where they were lost."""
        partials = self._quantizer.apply(
            {"params": params["quantizer"]}, jnp.maximum(codes, 0), rate, method="partials"
        )
        told = jnp.where(codes[:, 0, :, None] < 0, 0.0, partials[:, :, -FEATURES:])
        return from_features(told)


def _mask(lost: npt.ArrayLike, tokens: Tokens) -> np.ndarray:
    mask = np.asarray(lost, bool)
    if mask.shape != (tokens.num_frames,):
        raise UserError(f"lost must tell of {tokens.num_frames} frames, not {mask.shape}")
    return mask


def _in_order(pieces: Iterable[tuple[int, Job]]) -> list[Job]:
    """Sorts the windows of a clip, which were computed in the order in which batches filled."""
    return [piece for _, piece in sorted(pieces, key=lambda pair: pair[0])]


def _normalised(stream: Blocks, levels: np.ndarray) -> Iterator[np.ndarray]:
    """Divides blocks by the loudness curve; digital silence stays zero."""
    position = 0
    for block in stream:
        yield normalise(block, levels, position)
        position += block.size
