"""Every system on every clip, then every metric on what came out; what is done is not done again.

Systems come first and alone, so that their times are theirs.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from gac_jax import atomic
from gac_jax.clock import CompileClock
from gac_jax.evaluation.clips import Reference
from gac_jax.evaluation.folder import Folder, Ledger, Row
from gac_jax.evaluation.suite import Suite
from gac_jax.evaluation.systems import REFERENCE, System
from gac_jax.metrics.metric import Excerpt, SetMetric
from gac_jax.signal.audio_io import AudioWriter, read_audio

Item = TypeVar("Item")
_BAR = "{desc:<24.24} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {elapsed}"


def transmit(
    systems: Sequence[System],
    references: Sequence[Reference],
    folder: Folder,
    ledger: Ledger,
    workers: int,
) -> None:
    """Sends every clip through every system and keeps what comes out.

    A clip that a system fails at becomes a row with the error, and is tried again by the next run.

    Args:
      systems: to run, one after the other.
      references: originals, which are in the folder.
      folder: of the run.
      ledger: of the same folder; gets a row for each system and clip.
      workers: clips at a time, for systems that allow it.
    """
    todo = {
        system.name: [r for r in references if not _is_sent(system.name, r, folder, ledger)]
        for system in systems
    }
    clock, total = CompileClock(), len(systems) * len(references)
    done = total - sum(map(len, todo.values()))
    with clock.running(), tqdm(total=total, initial=done, disable=None, bar_format=_BAR) as bar:
        for system in systems:
            bar.set_description_str(system.name)
            send = partial(_send, system, folder, clock)
            for row in _parallel(send, todo[system.name], workers if system.concurrent else 1):
                ledger.add(row)
                bar.update()


def measure(
    suite: Suite, references: Sequence[Reference], folder: Folder, ledger: Ledger, workers: int
) -> None:
    """Measures all that came out, as far as it has not been measured.

    A metric that fails at a clip leaves an error in its row, and is tried again by the next run.

    Args:
      suite: metrics.
      references: originals.
      folder: of the run.
      ledger: of the same folder; its rows of these originals are measured.
      workers: clips at a time.
    """
    by_id = {reference.id: reference for reference in references}
    rows = [row for row in ledger.rows.values() if row["clip"] in by_id and "error" not in row]
    originals = {(REFERENCE, id_): {"system": REFERENCE, "clip": id_} for id_ in by_id}
    todo = [row for row in [*originals.values(), *rows] if _is_open(row, by_id, suite, folder)]
    with tqdm(total=len(rows) + len(originals), disable=None, bar_format=_BAR) as bar:
        bar.set_description_str("measuring")
        bar.update(bar.total - len(todo))
        work = partial(_measure, suite, folder, by_id)
        for row in _parallel(work, todo, workers):
            if row["system"] != REFERENCE:
                ledger.add(row)
            bar.update()


def _is_sent(system: str, reference: Reference, folder: Folder, ledger: Ledger) -> bool:
    row = ledger.rows.get((system, reference.id), {"error": "not run"})
    return "error" not in row and folder.wave(reference.id, system).is_file()


def _send(system: System, folder: Folder, clock: CompileClock, reference: Reference) -> Row:
    row = {
        "system": system.name,
        "clip": reference.id,
        "domain": reference.clip.domain,
        "seconds": reference.seconds,
    }
    try:
        wave = read_audio(folder.wave(reference.id))
        start = clock.now()
        data = system.encode(wave)
        middle = clock.now()
        decoded = system.decode(data, len(wave))
        end = clock.now()
        folder.forget(reference.id, system.name)
        atomic.write(folder.bits(reference.id, system.name), data)
        with AudioWriter(folder.wave(reference.id, system.name)) as writer:
            writer.write(decoded)
    except Exception as error:  # whatever a system does wrong, the others go on
        return {**row, "error": _told(error)}
    return {
        **row,
        "bytes": len(data),
        "encode_seconds": middle - start,
        "decode_seconds": end - middle,
        "parameters": dict(system.parameters),
        "measured": [],
        "values": {},
        "errors": {},
    }


def _is_open(row: Row, by_id: dict[str, Reference], suite: Suite, folder: Folder) -> bool:
    domain = by_id[row["clip"]].clip.domain
    return bool(_described_anew(row, domain, suite, folder)) or (
        row["system"] != REFERENCE and bool(_measured_anew(row, domain, suite))
    )


def _measured_anew(row: Row, domain: str, suite: Suite) -> list[str]:
    metrics = suite.of_clips.items()
    return [name for name, m in metrics if domain in m.domains and name not in row["measured"]]


def _described_anew(row: Row, domain: str, suite: Suite, folder: Folder) -> list[str]:
    return [
        name
        for name, metric in suite.of_sets.items()
        if domain in metric.domains
        and not folder.description(row["clip"], name, row["system"]).is_file()
    ]


def _measure(suite: Suite, folder: Folder, by_id: dict[str, Reference], row: Row) -> Row:
    """The row with what is new to it; describes its audio for metrics of sets as well."""
    clip, errors = by_id[row["clip"]].clip, {}
    decoded = read_audio(folder.wave(row["clip"], row["system"]))
    for name in _described_anew(row, clip.domain, suite, folder):
        try:
            description = _npz(suite.of_sets[name], decoded)
        except Exception as error:  # whatever a metric does wrong, the others go on
            errors[name] = _told(error)
        else:
            atomic.write(folder.description(row["clip"], name, row["system"]), description)
    if row["system"] == REFERENCE:
        return row
    excerpt = Excerpt(clip, read_audio(folder.wave(row["clip"])), decoded)
    values = dict(row["values"])
    names = _measured_anew(row, clip.domain, suite)
    for name in names:
        try:
            values |= _finite(suite.of_clips[name].measure(excerpt))
        except Exception as error:  # likewise
            errors[name] = _told(error)
    measured = sorted({*row["measured"], *names} - set(errors))
    return {**row, "measured": measured, "values": values, "errors": errors}


def _finite(values: dict[str, float]) -> dict[str, float]:
    """What JSON can hold; a value that is not finite is none."""
    return {name: float(value) for name, value in values.items() if np.isfinite(value)}


def _npz(metric: SetMetric, wave: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **metric.describe(wave))  # type: ignore[arg-type]  # its flags are no arrays
    return buffer.getvalue()


def _told(error: Exception) -> str:
    """One line of what an error says."""
    return " ".join(str(error).split()) or type(error).__name__


def _parallel(work: Callable[[Item], Any], items: Sequence[Item], workers: int) -> Iterator[Any]:
    """Results as they are done; what has not begun is dropped where the caller stops."""
    pool = ThreadPoolExecutor(workers)
    try:
        for future in as_completed([pool.submit(work, item) for item in items]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)
