"""The scripts for clusters, as far as they can be looked at without one."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from avs_jax.config import check_fields, read_config

LAUNCH = Path(__file__).parents[2] / "launch"
PLACE = {"TPU": "slice", "ZONE": "us-central1-a", "TYPE": "v5litepod-16", "REPOSITORY": "https://x"}


def dry_run(*arguments, **environment):
    command = ["bash", str(LAUNCH / "tpu_vm.sh"), *arguments]
    return subprocess.run(
        command, env=os.environ | PLACE | environment, capture_output=True, text=True
    )


def words(*arguments, **environment):
    found = dry_run("--dry-run", *arguments, **environment)
    assert found.returncode == 0, found.stderr
    # As bash reads it: it quotes new lines as shlex does not.
    split = ["bash", "-c", f"printf '%s\\0' {found.stdout}"]
    return subprocess.run(split, capture_output=True, text=True).stdout.split("\0")[:-1]


def test_a_slice_is_created_and_deleted():
    start = ["gcloud", "compute", "tpus", "tpu-vm"]
    where = ["slice", "--zone=us-central1-a"]
    made = words("create")
    assert made[:6] == [*start, "create", "slice"] and "--accelerator-type=v5litepod-16" in made
    assert "--spot" not in made and "--spot" in words("create", SPOT="1")
    assert words("delete") == [*start, "delete", *where, "--quiet"]
    assert words("logs")[4:8] == ["ssh", *where, "--worker=0"]


def test_every_host_runs_the_same_command_with_its_arguments_as_given():
    given = ["--config", "configs/avesformer.py:subset=s4", "--workdir", "/mnt/two words/s4"]
    found = words("run", *given)
    assert found[4:8] == ["ssh", "slice", "--zone=us-central1-a", "--worker=all"]
    script = found[8].removeprefix("--command=")
    (line,) = [x for x in script.splitlines() if "local.sh" in x]
    told = shlex.split(line.partition("2>&1")[0])
    assert told == ["bash", "launch/local.sh", "--distributed", *given]


def test_every_host_is_set_up():
    assert "git clone --quiet https://x avs_jax" in words("setup")[-1]


@pytest.mark.parametrize("arguments", [(), ("start",), ("--dry-run",), ("--dry-run", "run")])
def test_an_unknown_verb_shows_how_it_is_used(arguments):
    found = dry_run(*arguments)
    assert found.returncode == 2 and "tpu_vm.sh create" in found.stderr


def test_a_place_that_is_not_named_is_asked_for():
    found = dry_run("--dry-run", "delete", TPU="")
    assert found.returncode != 0 and "name of the TPU" in found.stderr


def test_the_jobset_is_one_and_starts_the_program_on_every_host_of_its_slice(monkeypatch):
    """By JobSet's and batch/v1's schemas as far as this file uses them: no unknown field."""
    jobset = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset.keys() == {"apiVersion", "kind", "metadata", "spec"}
    known = {"replicatedJobs", "network", "successPolicy", "failurePolicy", "startupPolicy"}
    known |= {"suspend", "coordinator", "managedBy", "ttlSecondsAfterFinished"}
    assert jobset["spec"].keys() <= known
    assert jobset["spec"]["failurePolicy"].keys() <= {"maxRestarts", "rules", "restartStrategy"}
    (replicated,) = jobset["spec"]["replicatedJobs"]
    assert replicated.keys() <= {"name", "template", "replicas", "groupName", "dependsOn"}

    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = int(container["resources"]["limits"]["google.com/tpu"])
    rows, columns = map(int, topology.split("x"))
    assert job["parallelism"] == job["completions"] == rows * columns // chips
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} <= volumes

    program = container["command"]
    assert program[:4] == ["python", "-m", "avs_jax.train", "--distributed"]
    options = dict(option.removeprefix("--").split("=", 1) for option in program[4:])
    spec = options.pop("config")
    assert options.pop("workdir")
    monkeypatch.chdir(LAUNCH.parent)
    config = read_config(spec)
    check_fields(config, [name.removeprefix("config.") for name in options])  # all are known
    assert int(options["config.batch_size"]) % (rows * columns) == 0
