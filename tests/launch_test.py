"""Runs the scripts of launch/ with stand-ins for the programs of a cluster."""

import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
PROGRAMS = ("gcloud", "git", "kubectl", "scancel", "scontrol", "sleep", "srun", "train")
REQUIRED = {"ZONE": "us-west4-a", "IMAGE": "registry/gac_jax:1"}
FLAGS = (
    "--config=configs/large.py",
    "--workdir=/data/it's large",
    "--config.data.root=/data/packed",
    "--config.stages=('generation',)",
)
PATIENCE = 120  # seconds for a script to get anywhere; it needs a tenth of one

Launch = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Stand-ins before all other programs: each appends what it was called with to a log."""
    for name in PROGRAMS:
        stub = tmp_path / "bin" / name
        stub.parent.mkdir(exist_ok=True)
        stub.write_text(f'#!/bin/bash\necho "{name} $*" >> "$LOG"\n{STUBS.get(name, "")}')
        stub.chmod(0o755)
    log = tmp_path / "log"
    log.touch()
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    return {"PATH": path, "LOG": str(log), "PYTHON": "train", "SLURM_JOB_ID": "7", **REQUIRED}


# What the stand-ins do besides: answer, wait for a signal, or fail with the code that a test wants.
WAIT = """[[ $WAIT ]] || exit "${CODE:-0}"
trap 'echo stopped >> "$LOG"; exit 143' TERM
echo waiting >> "$LOG"
for ((i = 0; i < 5000; i++)); do /bin/sleep 0.02; done
"""
STUBS = {
    "gcloud": """
case "$*" in
  *describe*) [[ -e $LOG.state ]] && cat "$LOG.state" ;;
  *create*) echo ACTIVE > "$LOG.state" ;;
  *delete*) rm "$LOG.state" ;;
  *pkill*) kill -TERM "$(cat "$LOG.pid")" ;;
  *gac_jax.train*) echo $$ > "$LOG.pid"; """
    + WAIT
    + """;;
esac
""",
    "kubectl": '[[ $1 != create ]] || cat > "$LOG.yaml"\n',
    "scancel": 'kill -TERM "$(cat "$LOG.pid")"\n',
    "srun": 'echo $$ > "$LOG.pid"\n' + WAIT,
    "train": WAIT,
}


@pytest.fixture
def launch(environment: dict[str, str]) -> Launch:
    def launch(script: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(ROOT / "launch" / script), *arguments]
        return subprocess.run(
            command,
            env={**environment, **settings},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    return launch


@pytest.fixture(scope="module")
def train_flags() -> set[str]:
    command = [sys.executable, "-m", "gac_jax.train", "--help"]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    return set(re.findall(r"^ +--(\w+):", result.stdout, re.MULTILINE))


def words_of_training(text: str) -> list[str]:
    """The words after `-m gac_jax.train` in the manifest or the last command of a dry run."""
    if text.startswith("# kubectl"):
        return pod(text)["command"][3:]
    words = shlex.split(text.splitlines()[-1])
    if words[0] == "gcloud":  # a command for the hosts
        (command,) = [w.removeprefix("--command=") for w in words if w.startswith("--command=")]
        words = shlex.split(command)
    return words[words.index("gac_jax.train") + 1 :]


def pod(manifest: str) -> dict:
    (job,) = yaml.safe_load(manifest)["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    return container


@pytest.mark.parametrize("script", [path.name for path in SCRIPTS])
def test_a_dry_run_prints_a_training_command_and_runs_nothing(
    script: str, launch: Launch, environment: dict[str, str], train_flags: set[str]
) -> None:
    result = launch(script, "--dry_run", *FLAGS)
    assert (result.returncode, result.stderr) == (0, "")
    assert Path(environment["LOG"]).read_text() == ""
    words = words_of_training(result.stdout)
    assert words == list(FLAGS)
    names = {word.split("=")[0].removeprefix("--") for word in words}
    assert {name.split(".")[0] for name in names} <= train_flags


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_the_settings_of_a_script_are_documented(path: Path) -> None:
    script = path.read_text(encoding="utf-8")
    assert os.access(path, os.X_OK) and "\nset -euo pipefail\n" in script
    settings = re.findall(r'^: "\$\{(\w+):=', script, re.MULTILINE)
    readme = (ROOT / "launch" / "README.md").read_text(encoding="utf-8")
    assert settings
    assert [name for name in settings if f"`{name}`" not in readme] == []


def test_the_documented_commands_name_what_there_is(train_flags: set[str]) -> None:
    texts = [path.read_text(encoding="utf-8") for path in (*SCRIPTS, ROOT / "launch/README.md")]
    flags = set(
        re.findall(r" --(config[\w.]*|workdir|coordinator|num_\w+|process_id)\b", str(texts))
    )
    configs = set(re.findall(r"configs/\w+\.py", str(texts)))
    assert {name.split(".")[0] for name in flags} <= train_flags
    assert configs and {name for name in configs if not (ROOT / name).is_file()} == set()
    config = runpy.run_path(str(ROOT / "configs/base.py"))["get_config"]()
    for name in flags:
        field = config
        for part in name.split(".")[1:]:
            assert part in field, name
            field = field[part]


@pytest.mark.parametrize(("script", "name"), [("tpu_pod.sh", "ZONE"), ("jobset.sh", "IMAGE")])
def test_a_setting_that_must_be_made_is_asked_for(script: str, name: str, launch: Launch) -> None:
    result = launch(script, *FLAGS, **{name: ""})
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: set {name} ") and result.stderr.count("\n") == 1


def test_a_manifest_for_tpus_leaves_the_group_to_jax(launch: Launch) -> None:
    text = launch("jobset.sh", "--dry_run", *FLAGS, HOSTS="16", SLICES="2", TOPOLOGY="8x8").stdout
    (job,) = yaml.safe_load(text)["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert (job["replicas"], spec["parallelism"], spec["completions"]) == (2, 16, 16)
    assert "8x8" in spec["template"]["spec"]["nodeSelector"].values()
    assert pod(text)["resources"] == {"limits": {"google.com/tpu": 4}}
    assert pod(text)["env"] == []


def test_a_manifest_for_gpus_names_the_first_pod_to_all(launch: Launch) -> None:
    text = launch("jobset.sh", "--dry_run", *FLAGS, TPU="none", HOSTS="2", NAME="run").stdout
    assert pod(text)["resources"] == {"limits": {"nvidia.com/gpu": 4}}
    assert {item["name"]: item["value"] for item in pod(text)["env"]} == {
        "JAX_COORDINATOR_ADDRESS": "run-host-0-0.run:8476",
        "JAX_NUM_PROCESSES": "2",
    }


def test_a_jobset_takes_the_place_of_its_forerunner(
    launch: Launch, environment: dict[str, str]
) -> None:
    assert launch("jobset.sh", *FLAGS).returncode == 0
    log = Path(environment["LOG"])
    assert log.read_text().splitlines() == [
        "kubectl delete jobset gac-jax --ignore-not-found",
        "kubectl create -f -",
    ]
    created = Path(f"{log}.yaml").read_text()
    assert created in launch("jobset.sh", "--dry_run", *FLAGS).stdout
    assert pod(created)["command"][3:] == list(FLAGS)


@pytest.mark.parametrize(
    ("state", "done"),
    [("", ["create"]), ("ACTIVE", []), ("SUSPENDED", ["delete", "create"])],
    ids=["none", "active", "taken away"],
)
def test_a_slice_is_made_where_there_is_none(
    state: str, done: list[str], launch: Launch, environment: dict[str, str]
) -> None:
    log = Path(environment["LOG"])
    if state:
        Path(f"{log}.state").write_text(state)
    assert launch("tpu_pod.sh", *FLAGS, SETUP="mount /mnt").returncode == 0
    lines = log.read_text().splitlines()
    changes = [line.split()[4] for line in lines if " queued-resources " in line]
    assert [change for change in changes if change != "describe"] == done
    assert "--worker=all --command=mount /mnt" in lines[-2]
    assert "gac_jax.train" in lines[-1]


def test_a_job_whose_time_is_up_is_queued_again(
    launch: Launch, environment: dict[str, str]
) -> None:
    log = Path(environment["LOG"])
    assert launch("slurm.sh", *FLAGS, CODE="143").returncode == 143
    assert log.read_text().splitlines()[-1] == "scontrol requeue 7"
    log.write_text("")
    assert launch("slurm.sh", *FLAGS, CODE="2").returncode == 2
    assert "scontrol" not in log.read_text()


@pytest.mark.parametrize("script", ["gpus.sh", "slurm.sh", "tpu_pod.sh"])
def test_sigterm_reaches_the_training_and_is_waited_for(
    script: str, environment: dict[str, str]
) -> None:
    log = Path(environment["LOG"])
    process = subprocess.Popen(
        ["bash", str(ROOT / "launch" / script), *FLAGS],
        env={**environment, "WAIT": "yes"},
        stdout=subprocess.DEVNULL,
    )
    try:
        while "waiting" not in log.read_text():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 143
    finally:
        process.kill()
        process.wait()
    assert log.read_text().splitlines()[-1] == "stopped"
