"""report.html: tables, figures, and clips to listen to and look at, in one file without links."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

import matplotlib.image
import numpy as np
import soundfile

from gac_jax import spectrogram
from gac_jax.evaluation.clips import Reference
from gac_jax.evaluation.suite import Suite
from gac_jax.evaluation.summary import Contestant, Line
from gac_jax.evaluation.systems import REFERENCE
from gac_jax.evaluation.tables import HEADS, cells, columns_of, head, notes, present
from gac_jax.rates import SAMPLE_RATE
from gac_jax.signal.audio_io import read_audio

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; margin: 2rem auto; max-width: 1500px;
       padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #ddd; text-align: right;
         white-space: nowrap; }
th { cursor: pointer; border-bottom: 2px solid #888; vertical-align: bottom; white-space: normal;
     min-width: 3.5rem; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
tr:hover td { background: #f3f6fa; }
.clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(280px, 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-weight: 600; }
.clips img { width: 100%; height: 120px; display: block; } audio { width: 100%; height: 32px; }
.figure { width: 100%; max-width: 1100px; } small, li { color: #555; }
"""
# A click on a head sorts by the numbers below it, a second click the other way round; dashes last.
SCRIPT = """
document.querySelectorAll('th').forEach(th => th.onclick = () => {
  const body = th.closest('table').tBodies[0], column = th.cellIndex;
  const sign = th.dataset.sign = th.dataset.sign === '1' ? -1 : 1;
  const value = row => row.cells[column].dataset.value;
  [...body.rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === '' || y === '') return (x === '') - (y === '');
    const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
    return sign * order;
  }).forEach(row => body.append(row));
});
"""


def page(
    title: str,
    suite: Suite,
    lines: Sequence[Line],
    figures: Mapping[str, bytes],
    texts: Mapping[str, str],
    shown: Sequence[Reference],
    systems: Sequence[Contestant],
) -> str:
    """The report as HTML.

    Args:
      title: what was evaluated.
      suite: metrics.
      lines: of all domains.
      figures: PNG files by caption.
      texts: plain text by its heading.
      shown: clips to play and draw.
      systems: that play them.
    """
    tables = [f"<h2>{domain}</h2>{_table(suite, lines, domain)}" for domain in present(lines)]
    pictures = [
        f'<p><img class="figure" src="{_data(data, "image/png")}" alt="{escape(caption)}"><br>'
        f"<small>{escape(caption)}</small></p>"
        for caption, data in figures.items()
    ]
    written = [f"<h2>{escape(name)}</h2><pre>{escape(text)}</pre>" for name, text in texts.items()]
    clips = [_clip(reference, systems) for reference in shown]
    remarks = "".join(f"<li>{escape(note)}</li>" for note in notes(suite, lines))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style><h1>{escape(title)}</h1>"
        "<p>A click on the head of a column sorts by it.</p>"
        f"{''.join(tables)}<ul>{remarks}</ul>"
        f"<h2>Quality against rate</h2>{''.join(pictures)}{''.join(written)}"
        f"<h2>Clips</h2><p>Mel spectrograms up to 16 kHz, on one scale for each clip.</p>"
        f"{''.join(clips)}<script>{SCRIPT}</script></html>\n"
    )


def _table(suite: Suite, lines: Sequence[Line], domain: str) -> str:
    columns = columns_of(suite, lines, domain)
    heads = "".join(f"<th>{escape(x)}</th>" for x in [*HEADS, *(head(c) for c in columns)])
    rows = []
    for line in (line for line in lines if line.domain == domain):
        size = sum(line.parameters.values()) or float("nan")
        rates = [line.kbps, size, line.encode_rtf, line.decode_rtf]
        values = [line.clips, *rates, *(line.value(column).mean for column in columns)]
        keys = [line.system, *("" if np.isnan(value) else f"{value:.9g}" for value in values)]
        filled = zip(keys, cells(line, columns), strict=True)
        tds = (f'<td data-value="{escape(key)}">{escape(cell)}</td>' for key, cell in filled)
        rows.append(f"<tr>{''.join(tds)}</tr>")
    return (
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _clip(reference: Reference, systems: Sequence[Contestant]) -> str:
    """A clip as the original and every system have it, on one scale of decibels."""
    paths = {REFERENCE: systems[0].folder.wave(reference.id)}
    paths |= {system.title: system.folder.wave(reference.id, system.name) for system in systems}
    waves = {name: read_audio(path) for name, path in paths.items() if path.is_file()}
    panels = {name: spectrogram.log_mel(wave) for name, wave in waves.items()}
    top = float(panels[REFERENCE].max())
    figures = [
        f"<figure><figcaption>{escape(name)}</figcaption>"
        f'<img src="{_data(_image(panels[name], top), "image/png")}" alt="spectrogram">'
        f'<audio controls preload="none" src="{_data(_flac(wave), "audio/flac")}"></audio></figure>'
        for name, wave in waves.items()
    ]
    facts = (reference.clip.path, reference.clip.text or reference.clip.label)
    return (
        f"<h3>{escape(reference.id)}</h3><p>{escape(': '.join(filter(None, facts)))}</p>"
        f'<div class="clips">{"".join(figures)}</div>'
    )


def _image(panel: np.ndarray, top: float) -> bytes:
    """A spectrogram without axes: mel bands up to 16 kHz, time from left to right."""
    buffer = io.BytesIO()
    bottom = top - spectrogram.DYNAMIC_RANGE
    matplotlib.image.imsave(
        buffer, panel[:, ::2], format="png", cmap="magma", vmin=bottom, vmax=top, origin="lower"
    )
    return buffer.getvalue()


def _flac(wave: np.ndarray) -> bytes:
    """What was measured, bit for bit: browsers play it, and it is smaller than WAV."""
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def _data(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
