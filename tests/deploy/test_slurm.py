"""The batch script for Slurm, with stand-ins for srun and scontrol: two nodes, which are this machine."""

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.processes import left_behind, marked
from helpers.trials import TINY, rows

from gat_sweep.run.alive import signs
from gat_sweep.run.journal import read_records
from gat_sweep.run.saved import saved_step
from gat_sweep.run.stop import EXIT_STOPPED
from gat_sweep.run.trial import Trial
from gat_sweep.sweep import load_sweep

SCRIPT = Path(__file__).parents[2] / "deploy" / "slurm" / "sweep.sbatch"
BASH = str(shutil.which("bash"))
VENV = Path(sys.executable).parent
Figures = Callable[..., None]

PROGRAMS = {
    "srun": f'exec "{sys.executable}" "{Path(__file__).parent / "stand_in_srun.py"}" "$@"',
    "hostname": "echo 127.0.0.1",  # which the script leaves to Ray
    "scontrol": """
        case $1 in
            show) [[ $2 == hostnames ]] && printf 'n1\\nn2\\n' || cat "$STAND_IN/state" ;;
            requeue) echo "$2" >> "$STAND_IN/requeued" ;;
        esac""",
}
# Of the system. Nothing else is in the PATH, as a Slurm may be installed here.
TOOLS = ("bash", "cat", "dirname", "grep", "head", "mkfifo", "mktemp", "rm", "sleep", "stat", "tail", "tr")
# Without Ray: a `ray` that writes its address where Ray does, and a sweep that ends as it is told to.
FAKES = {
    "python": f'exec "{sys.executable}" "$@"',
    "ray": """
        token=$RAY_AUTH_TOKEN_PATH
        printf '%s\\n' "$@" "token=$(stat -c %a "$token") $(< "$token")" > "$STAND_IN/ray-$$"
        fails=$STAND_IN/fails-${SLURMD_NODENAME:-head}
        if [[ -s $fails ]]; then rm "$fails"; exit 1; fi
        if [[ -e $fails ]]; then echo "no route to Ray"; exit 1; fi
        for word; do [[ $word != --temp-dir=* ]] || echo 10.0.0.1:6379 > "${word#*=}/ray_current_cluster"; done
        trap 'exit 0' TERM
        while :; do sleep 0.1; done""",
    "gat-sweep": """
        printf '%s\\n' "$@" > "$STAND_IN/sweep-$$"
        [[ ! -e $STAND_IN/ends ]] || exit "$(< "$STAND_IN/ends")"
        trap 'exit "$(< "$STAND_IN/ends-when-told")"' TERM
        echo begun
        while :; do sleep 0.1; done""",
}


def write_programs(folder: Path, programs: dict[str, str]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in programs.items():
        (folder / name).write_text(f"#!{BASH}\n{text}\n")
        (folder / name).chmod(0o755)
    return folder


class Slurm:
    """Jobs of one user on two nodes."""

    def __init__(self, folder: Path, *bins: Path):
        self.folder = folder
        self.bins = [write_programs(folder / "slurm", PROGRAMS), *bins]
        self.jobs: list[subprocess.Popen[str]] = []
        self.say(state="JobState=RUNNING Reason=None")

    def say(self, **files: str) -> None:
        for name, text in files.items():
            (self.folder / name.replace("_", "-")).write_text(text)

    def submit(self, *arguments: str, number: int = 7, **more: str) -> "subprocess.Popen[str]":
        job = {"SLURM_JOB_ID": str(number), "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]"}
        path = ":".join(map(str, self.bins))
        environment = marked(self.folder) | {"PATH": path, "STAND_IN": str(self.folder)} | job | more
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        # In a session of its own, as a batch script runs.
        self.jobs.append(
            subprocess.Popen([BASH, str(SCRIPT), *arguments], env=environment, start_new_session=True, **pipes)
        )
        return self.jobs[-1]

    @property
    def requeued(self) -> list[str]:
        file = self.folder / "requeued"
        return file.read_text().split() if file.exists() else []

    def starts(self) -> list[dict[str, Any]]:
        """What each `ray start` of the stand-in was given: its options, and the token with the mode of its file."""
        found = []
        for file in sorted(self.folder.glob("ray-*")):
            words = file.read_text().splitlines()
            found.append({name: value for name, _, value in (word.partition("=") for word in words)})
        return found

    def close(self) -> None:
        """Ends what is left, of these jobs only."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("GAT_SWEEP_TEST") == str(self.folder):
                    process.kill()
        for job in self.jobs:
            job.wait()
            job.stdout.close()


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    """Slurm with stand-ins for Ray and gat-sweep too."""
    (tmp_path / "tools").mkdir()
    for tool in TOOLS:
        (tmp_path / "tools" / tool).symlink_to(str(shutil.which(tool)))
    there = Slurm(tmp_path, write_programs(tmp_path / "venv", FAKES), tmp_path / "tools")
    yield there
    there.close()


def begun(job: "subprocess.Popen[str]") -> None:
    """Waits until the stand-in of gat-sweep runs."""
    for line in job.stdout:
        if line == "begun\n":
            return
    raise AssertionError(job.wait())


def ended(job: "subprocess.Popen[str]", seconds: float = 60) -> tuple[int, str]:
    out, _ = job.communicate(timeout=seconds)
    return job.returncode, out


# ---------------------------------------------------------------- input


@pytest.mark.parametrize(
    ("arguments", "environment", "line"),
    [
        (["run", "widths"], {"SLURM_JOB_ID": ""}, "this is not a Slurm job; start it as: sbatch"),
        ([], {}, "give a sweep, not ''"),
        (["status", "widths"], {}, "give a sweep, not 'status'"),
    ],
)
def test_wrong_input_is_one_line(slurm: Slurm, arguments: list[str], environment: dict[str, str], line: str) -> None:
    code, out = ended(slurm.submit(*arguments, **environment))
    assert code == 2 and line in out and out.count("\n") == 1
    assert slurm.starts() == []


@pytest.mark.parametrize("program", ["gat-sweep", "srun", "scontrol", "ray"])
def test_a_missing_program_is_named(slurm: Slurm, program: str) -> None:
    for folder in slurm.bins:
        (folder / program).unlink(missing_ok=True)
    code, out = ended(slurm.submit("run", "widths"))
    assert code == 2 and f"no {program} " in out and out.count("\n") == 1


# ---------------------------------------------------------------- ends


@pytest.mark.parametrize("code", [0, 1, 2, EXIT_STOPPED])
def test_a_sweep_that_ends_by_itself_is_not_queued_again(slurm: Slurm, code: int) -> None:
    """Done, failed, refused, or stopped by `gat-sweep stop`."""
    slurm.say(ends=str(code))
    assert ended(slurm.submit("run", "widths", "--set", "a=b c")) == (code, "")
    (arguments,) = (file.read_text().splitlines() for file in slurm.folder.glob("sweep-*"))
    assert arguments == ["run", "widths", "--set", "a=b c", "--address", "10.0.0.1:6379"]
    assert slurm.requeued == [] and left_behind(slurm.folder) == []


@pytest.mark.parametrize(
    ("number", "state", "answers", "code", "requeued"),
    [
        (signal.SIGUSR1, "RUNNING", EXIT_STOPPED, EXIT_STOPPED, ["7"]),  # the limit is near
        (signal.SIGUSR1, "RUNNING", 143, EXIT_STOPPED, ["7"]),  # it was still starting
        (signal.SIGUSR1, "RUNNING", 0, 0, []),  # the last trial was done
        (signal.SIGUSR1, "RUNNING", 1, 1, []),  # it failed
        (signal.SIGTERM, "RUNNING", EXIT_STOPPED, EXIT_STOPPED, ["7"]),  # preempted
        (signal.SIGTERM, "COMPLETING", EXIT_STOPPED, EXIT_STOPPED, []),  # scancel
    ],
)
def test_a_job_that_is_told_to_end_saves_first(
    slurm: Slurm, number: int, state: str, answers: int, code: int, requeued: list[str]
) -> None:
    slurm.say(state=f"JobState={state} Reason=None", ends_when_told=str(answers))
    job = slurm.submit("run", "widths")
    begun(job)
    job.send_signal(number)
    result, out = ended(job)
    assert result == code and slurm.requeued == requeued
    assert "told to end" in out and ("queued again" in out) == bool(requeued)
    assert left_behind(slurm.folder) == []


def test_a_preemption_that_only_the_tasks_hear_ends_the_sweep_too(slurm: Slurm) -> None:
    slurm.say(ends_when_told=str(EXIT_STOPPED))
    job = slurm.submit("run", "widths")
    begun(job)
    for node in ("n1", "n2"):
        os.kill(int((slurm.folder / f"task-{node}").read_text()), signal.SIGTERM)
    code, out = ended(job)
    assert code == EXIT_STOPPED and slurm.requeued == ["7"] and out.count("told to end") == 1


def test_a_signal_before_the_sweep_begins_queues_the_job_again(slurm: Slurm) -> None:
    job = slurm.submit("run", "widths")
    while not slurm.starts():
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    assert ended(job)[0] == EXIT_STOPPED
    assert slurm.requeued == ["7"] and not list(slurm.folder.glob("sweep-*")) and left_behind(slurm.folder) == []


# ---------------------------------------------------------------- nodes


def test_a_node_that_does_not_join_is_named(slurm: Slurm) -> None:
    slurm.say(fails_n2="", ends="0")
    code, out = ended(slurm.submit("run", "widths"))
    assert code == 0 and re.fullmatch(r"sweep.sbatch: node n2 has not joined: 1: no route to Ray .*\n", out)


def test_a_node_that_is_slow_once_joins_at_its_second_try(slurm: Slurm) -> None:
    slurm.say(fails_n2="once", ends="0")
    assert ended(slurm.submit("run", "widths")) == (0, "")
    assert len(slurm.starts()) == 4


def test_without_nodes_or_a_head_the_job_fails(slurm: Slurm) -> None:
    slurm.say(fails_n1="", fails_n2="")
    code, out = ended(slurm.submit("run", "widths"))
    assert code == 1 and "no node has joined" in out and not list(slurm.folder.glob("sweep-*"))
    slurm.say(fails_head="")
    code, out = ended(slurm.submit("run", "widths"))
    assert (code, out) == (1, "sweep.sbatch: the head of Ray did not start: no route to Ray \n")
    assert slurm.requeued == [] and left_behind(slurm.folder) == []


@pytest.mark.parametrize(("kind", "where"), [("--head", "the first node"), ("--address", "every node")])
def test_a_sweep_whose_ray_has_ended_does_not_wait_for_ever(slurm: Slurm, kind: str, where: str) -> None:
    job = slurm.submit("run", "widths")
    begun(job)
    for file in slurm.folder.glob("ray-*"):
        if kind in file.read_text():
            os.kill(int(file.name.removeprefix("ray-")), signal.SIGKILL)
    code, out = ended(job)
    assert code == 1 and f"Ray has ended on {where}" in out and slurm.requeued == []
    assert left_behind(slurm.folder) == []


def test_two_jobs_of_a_user_do_not_meet(slurm: Slurm) -> None:
    slurm.say(ends_when_told=str(EXIT_STOPPED))
    # What the user has for another cluster counts for neither.
    others = {"RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_ADDRESS": "10.9.9.9:6379"}
    jobs = [slurm.submit("run", "widths", number=number, **others) for number in (7, 8)]
    for job in jobs:
        begun(job)
    starts = slurm.starts()
    folders = {Path(start["--temp-dir"]) for start in starts}
    assert len(starts) == len(folders) == 6
    assert all(folder.stat().st_mode & 0o77 == 0 for folder in folders)
    modes, tokens = zip(*(start["token"].split() for start in starts), strict=True)
    assert set(modes) == {"600"} and sorted(map(tokens.count, set(tokens))) == [3, 3]
    assert others["RAY_AUTH_TOKEN"] not in tokens
    heads = [start for start in starts if "--head" in start]
    assert [head["--port"] for head in heads] == ["0", "0"]
    assert len({head["--ray-client-server-port"] for head in heads}) == 2
    assert {head["--resources"] for head in heads} == {'{"sweep_driver": 64}'}
    for start in starts:
        assert start["--num-cpus"] == ("0" if "--head" in start else "1") and start["--num-gpus"] == "0"
        chosen_by_ray = ("--min-worker-port", "--max-worker-port", "--dashboard-agent-listen-port")
        assert [start[name] for name in chosen_by_ray] == ["0", "0", "0"]
    # The token is in no command line and no environment.
    seen = [file.read_text() for file in slurm.folder.glob("srun-*.json")]
    assert len(seen) == 2 and not any(token in text for token in tokens for text in seen)
    for job in jobs:
        job.send_signal(signal.SIGUSR1)
    assert [ended(job)[0] for job in jobs] == [EXIT_STOPPED] * 2
    assert sorted(slurm.requeued) == ["7", "8"]
    assert not any(folder.exists() for folder in folders) and left_behind(slurm.folder) == []


# ---------------------------------------------------------------- with Ray

STEPS = 600
SWEEP = (
    "about: two trials on two nodes\n"
    f"set: {json.dumps({**TINY, 'train.steps': STEPS, 'train.eval_every': 300, 'train.log_every': 20})}\n"
    "seeds: [0, 1]\n"
)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.reliability
def test_a_sweep_goes_on_after_the_limit(home: Path, tmp_path: Path, figures: Figures) -> None:
    """The batch script for Slurm, on a real head and two raylets by a stand-in for srun: trials train on both nodes. At
    the signal ahead of the limit they save, and the job is queued again; it goes on from these steps to the end."""
    slurm = Slurm(tmp_path, VENV, Path("/usr/bin"), Path("/bin"))
    sweep = tmp_path / "two.yaml"
    sweep.write_text(SWEEP)
    trials = [
        Trial(name, "two-digits", "two", config, home) for name, config in load_sweep(sweep, "digits").trials.items()
    ]
    arguments = ["run", str(sweep), "--recipe=digits", f"--home={home}", "--set=workers.save_minutes=0.02"]
    try:
        job = slurm.submit(*arguments)
        deadline = time.monotonic() + 900
        while not all(saved_step(trial.folder / "checkpoints") for trial in trials):
            assert job.poll() is None and time.monotonic() < deadline, job.communicate()
            time.sleep(0.1)
        workers = [psutil.Process(signs(trial.folder / "alive")[0]["pid"]).environ() for trial in trials]
        job.send_signal(signal.SIGUSR1)
        code, out = ended(job, 300)
        assert code == EXIT_STOPPED and slurm.requeued == ["7"], out
        assert {worker["SLURMD_NODENAME"] for worker in workers} == {"n1", "n2"}
        assert left_behind(tmp_path) == []
        assert not any(Path(worker["RAY_AUTH_TOKEN_PATH"]).parent.exists() for worker in workers)
        saved = [saved_step(trial.folder / "checkpoints") for trial in trials]
        assert all(0 < step < STEPS for step in saved)

        code, out = ended(slurm.submit(*arguments), 900)
        assert code == 0 and slurm.requeued == ["7"], out
        assert left_behind(tmp_path) == []
    finally:
        slurm.close()
    assert [(rows(trial)[-1]["status"], rows(trial)[-1]["step"]) for trial in trials] == [("done", STEPS)] * 2
    attempts = [[r["step"] for _, r in read_records(t.folder) if r.get("status") == "running"] for t in trials]
    assert attempts == [[0, step] for step in saved]
    figures(nodes=2, trials_finished=2, jobs_requeued=1, steps_lost=0, processes_left=0)
