"""How long a run of a million clips takes before its first batch, and what it holds in memory.

    python benchmarks/startup.py --clips=1000000

Makes a manifest of clips that do not exist, then does what `gac_jax.train` does with it, in a fresh
process. Prints a JSON line and a table: seconds of the clock and of the processor, both from the
start of the process, and MiB resident, after each step.
"""

from __future__ import annotations

import csv
import json
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from absl import app, flags

_CLIPS = flags.DEFINE_integer("clips", 1_000_000, "Clips in the manifest.", 1)
_MANIFEST = flags.DEFINE_string("manifest", "", "One to be opened instead.")

SENTENCE = "and then the rain came down upon a house of stone by the old river road"


def main(_: list[str]) -> None:
    """Measures a manifest that is named, or makes one and measures it in a process of its own."""
    if _MANIFEST.value:
        measure(_MANIFEST.value)
        return
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder, "manifest.csv")
        write_manifest(manifest, _CLIPS.value)
        command = [sys.executable, __file__, f"--manifest={manifest}"]
        subprocess.run(command, check=True)


def write_manifest(path: Path, count: int) -> None:
    """Half of it speech with a sentence each, 50 clips a speaker; half sounds with labels."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        names = "path,domain,text,label,speaker,lang,licence,source,native_sr,bw_hz,dur_s"
        writer.writerow(names.split(","))
        for index in range(count):
            seconds = f"{1 + index % 19_000 / 1_000:.3f}"
            if index % 2:
                domain = "sound" if index % 4 == 1 else "music"
                facts = ["", f"label {index % 500}", "", "", "CC0-1.0", "made up", 44_100]
            else:
                text = f"{index} {SENTENCE[index % 20 :]}"
                speaker = f"speaker-{index // 100:06d}"
                domain = "speech"
                facts = [text, "", speaker, "en", "CC-BY-4.0", "made up", 16_000]
            name = f"{domain}/collection-{index % 20:02d}/{index:09d}.flac"
            writer.writerow([name, domain, *facts, 4_000 + index % 12_000, seconds])


def measure(manifest: str) -> None:
    """Prints what each step of a start takes."""
    steps = {"process": _state()}
    from ml_collections import ConfigDict

    from gac_jax.data.pipeline import train_batches
    from gac_jax.data.sources import open_source
    from gac_jax.data.summary import summarise

    steps["imports"] = _state()
    weights = {"speech": 0.4, "sound": 0.3, "music": 0.3}
    data = ConfigDict({"root": manifest, "domain_weights": weights, "validation_percent": 3.0})
    data.update({"gain_jitter_db": 6.0, "num_threads": 8})
    source = open_source(manifest)
    steps["manifest"] = _state()
    summarise(data)
    steps["summary"] = _state()
    with closing(train_batches(data, batch_size=64, crop_samples=327_680, seed=0)):
        steps["stream of batches"] = _state()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"clips": len(source), "peak_mib": peak, "steps": steps}))
    lines = ["| after | clock, s | processor, s | MiB |", "|---|---|---|---|"]
    start = steps["process"]["clock_s"]
    for name, state in steps.items():
        clock, busy, held = state["clock_s"] - start, state["processor_s"], state["mib"]
        lines.append(f"| {name} | {clock:.1f} | {busy:.1f} | {held:.0f} |")
    print("\n".join(lines), file=sys.stderr)


def _state() -> dict[str, float]:
    held = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "clock_s": time.monotonic(),
        "processor_s": time.process_time(),
        "mib": held / 2**20,
    }


if __name__ == "__main__":
    app.run(main)
