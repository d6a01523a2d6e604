"""A stand-in for srun: the command once on each of two "nodes", n1 and n2, which are this machine.

As srun does, it gives its input to both tasks and labels their lines. It ends when both have ended.
"""

import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO

OPTIONS = {"--overlap", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpu-bind=none", "--label"}
OPTIONS |= {"--no-kill", "--kill-on-bad-exit=0", "--wait=0"}


def label(task: int, lines: IO[bytes]) -> None:
    for line in lines:
        sys.stdout.buffer.write(f"{task}: ".encode() + line)
        sys.stdout.buffer.flush()


def feed(inputs: list[IO[bytes]]) -> None:
    while data := os.read(0, 4096):
        for each in inputs:
            with suppress(BrokenPipeError):  # its task has ended
                each.write(data)
                each.flush()
    for each in inputs:
        with suppress(BrokenPipeError):
            each.close()


def main() -> int:
    folder = Path(os.environ["STAND_IN"])
    begins = sys.argv.index("bash")
    assert set(sys.argv[1:begins]) == OPTIONS, sys.argv
    seen = {"arguments": sys.argv, "environment": dict(os.environ)}
    (folder / f"srun-{os.getpid()}.json").write_text(json.dumps(seen))
    tasks = []
    for number, name in enumerate(("n1", "n2")):
        here = {"SLURM_NODEID": str(number), "SLURMD_NODENAME": name, "SLURM_CPUS_ON_NODE": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        task = subprocess.Popen(sys.argv[begins:], env=os.environ | here, **pipes)
        (folder / f"task-{name}").write_text(str(task.pid))
        threading.Thread(target=label, args=(number, task.stdout)).start()
        tasks.append(task)
    threading.Thread(target=feed, args=([task.stdin for task in tasks],), daemon=True).start()
    return max(task.wait() for task in tasks)


if __name__ == "__main__":
    sys.exit(main())
