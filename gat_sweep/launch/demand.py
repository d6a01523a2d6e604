"""Places that a running trial could use and no machine has yet, as requests that Ray's autoscaler sees."""

from typing import Any

from gat_sweep.config import Workers


class Demand:
    """Requests for places of workers. They hold a place that comes, and end with the launch."""

    def __init__(self) -> None:
        self._asked: list[tuple[Workers, Any]] = []

    def release(self) -> None:
        """Gives back the places that have come, for a trial to take."""
        from ray.util import remove_placement_group

        for asked in list(self._asked):
            if asked[1].wait(0):
                remove_placement_group(asked[1])
                self._asked.remove(asked)

    def ask(self, wanted: list[Workers]) -> None:
        """Asks for a place for each of these workers, and no longer for others."""
        from ray.util import placement_group, remove_placement_group

        wanted = list(wanted)
        for asked in list(self._asked):
            if asked[0] in wanted:
                wanted.remove(asked[0])
            else:
                remove_placement_group(asked[1])
                self._asked.remove(asked)
        for workers in wanted:
            has = {"CPU": workers.cpus, "GPU": workers.gpus}
            self._asked.append((workers, placement_group([{name: each for name, each in has.items() if each}])))
