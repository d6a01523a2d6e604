"""Places that a running trial could use and no machine has yet, as requests that Ray's autoscaler sees."""

from typing import Any

from gat_sweep.config import Workers


class Demand:
    """Requests for places of single workers. A place that comes is held; all end with the launch."""

    def __init__(self) -> None:
        self._asked: list[tuple[Workers, Any]] = []

    def held(self) -> list[Workers]:
        """The places that have come."""
        return [workers for workers, group in self._asked if group.wait(0)]

    def ask(self, wanted: list[Workers]) -> None:
        """Asks for a place for each of these workers, and gives back all others."""
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
