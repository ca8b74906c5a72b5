"""Checks .github: that its files can be read, and that each part of .ci/run is in one job, and each job's parts exist."""

import json
import pathlib
import re
import subprocess
import sys

import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
COMMAND = ".ci/run ${{ matrix.parts }}"


def jobs(path):
    """The jobs of a workflow, which must have what GitHub asks for."""
    workflow = yaml.safe_load(path.read_text())
    # YAML takes the word for a truth value.
    assert workflow["name"] and workflow[True], f"{path} has no name, or nothing starts it"
    for name, job in workflow["jobs"].items():
        assert job["runs-on"] and job["timeout-minutes"], f"{path}: {name}"
        yield job


def parts_of(job):
    """The parts that a job runs."""
    steps = job["steps"]
    for step in steps:
        local = step.get("uses", "").removeprefix("./")
        if step.get("uses", "").startswith("./"):
            action = yaml.safe_load((ROOT / local / "action.yml").read_text())
            assert action["runs"]["using"] == "composite" and action["runs"]["steps"], local
        assert ("uses" in step) != ("run" in step), step
    assert any(step.get("run", "").endswith(COMMAND) for step in steps), steps
    return [part for parts in job["strategy"]["matrix"]["parts"] for part in parts.split()]


def main():
    known = subprocess.run([ROOT / ".ci/run", "--list"], capture_output=True, text=True, check=True).stdout.split()
    workflows = sorted((ROOT / ".github/workflows").glob("*.yml"))
    run = [part for path in workflows for job in jobs(path) for part in parts_of(job)]
    if sorted(run) != sorted(known):
        sys.exit(f".ci/run has the parts {sorted(known)}, and the workflows run {sorted(run)}")
    container = (ROOT / ".devcontainer/devcontainer.json").read_text()
    json.loads(re.sub(r"^\s*//.*$", "", container, flags=re.M))


if __name__ == "__main__":
    main()
