"""Checks that every machine of a run can write to the run's home and sees what the others write there."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from gat_sweep import cluster
from gat_sweep.errors import UserError
from gat_sweep.files.storage import Place, remove_folder, write

WROTE = "node-"  # prefix of the files that nodes write


def check_writable(home: Place) -> None:
    """Writes and reads a file in the home. Raises UserError if it cannot be written or returns something else."""
    with _probe_folder(home) as folder:
        try:
            write(folder / "probe", b"probe")
            if (folder / "probe").read_bytes() != b"probe":
                raise UserError(f"--home {home} returns other bytes than were written; use another one")
        except OSError as error:
            raise UserError(
                f"--home {home} cannot be written: {error}; use another one, or fix its permissions"
            ) from None


def probe_nodes(home: Place) -> str:
    """Makes every node of the connected cluster write to the home and read what this process wrote there.

    Returns a line for the user. Raises UserError, which names the first node that cannot, or that sees another folder
    of the same name.
    """
    with _probe_folder(home) as folder:
        token = uuid.uuid4().hex
        write(folder / "driver", token.encode())
        answers = cluster.on_every_node(_probe, folder, token)
        wrong = {node: answer for node, answer in answers.items() if not answer.startswith(WROTE)}
        for node in answers.keys() - wrong.keys():
            if not (folder / answers[node]).exists():
                wrong[node] = "its file is not visible here"
    if wrong:
        node, answer = next(iter(wrong.items()))
        raise UserError(
            f"{len(wrong)} of {len(answers)} nodes cannot use --home {home}: {node}: {answer}; use a folder that all "
            "nodes share, or s3://bucket/prefix"
        )
    return f"{len(answers)} nodes write and read {home}"


def _probe(folder: Place, token: str) -> str:
    """Runs on a node; returns the name of the file that it wrote, or what is wrong."""
    name = WROTE + uuid.uuid4().hex
    try:
        if (folder / "driver").read_bytes().decode() != token:
            return "it sees another folder of that name"
        write(folder / name, b"here")
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return name


@contextmanager
def _probe_folder(home: Place) -> Iterator[Place]:
    folder = home / f".probe-{uuid.uuid4().hex}"
    try:
        yield folder
    finally:
        remove_folder(folder)
