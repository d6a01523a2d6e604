"""Input of each iteration: real images with their teacher tokens, latent codes, and all random numbers of the step.

Everything is a function of the config's seed and the step, so a trial can stop and resume at any step. The random
numbers are drawn for the whole batch and then divided, so they do not depend on the number of workers either.
"""

from collections.abc import Callable

import torch

from gat_sweep.config import TrialConfig
from gat_sweep.data.condition import captioned, condition, trial_encoder
from gat_sweep.data.dataset import Dataset
from gat_sweep.data.loader import Loader
from gat_sweep.data.sampler import share
from gat_sweep.train.batch import Batch
from gat_sweep.train.engine import draw
from gat_sweep.vision.teacher import taught, teacher_tokens, trial_teacher


class Feed:
    """One worker's batches.

    say: receives a line when something takes long.
    Raises UserError when the teacher's or the text encoder's weights cannot be loaded, or the latter is not the data's.
    """

    def __init__(
        self,
        config: TrialConfig,
        dataset: Dataset,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
        say: Callable[[str], None] = lambda text: None,
    ):
        self.config, self.device, self.mine = config, device, share(config.train.batch, rank, world)
        self.random = torch.Generator(device)
        self.teacher = trial_teacher(config, device)
        self.encoder = trial_encoder(config, device)
        dataset = captioned(taught(config, dataset, device, say), self.encoder)
        self.loader = Loader(config, dataset, device, rank, world)

    def batch(self, step: int) -> Batch:
        """This worker's batch of a step."""
        config, random, device, size = self.config, self.random, self.device, self.config.train.batch
        random.manual_seed(_mix(config.seed, step))
        rows = self.loader.batch(step)
        real, y = rows.latents(random, size, self.mine), condition(config, rows, self.encoder)
        z = torch.randn(size, config.model.z_dim, generator=random, device=device)[self.mine]
        draws_d = draw(config, size, random, penalty=True).part(self.mine)
        draws_g = draw(config, size, random, penalty=False).part(self.mine)
        assert draws_d.augment is not None
        with torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bfloat16"):
            tokens = teacher_tokens(self.teacher, config, rows, draws_d.augment)
        return Batch(real, y, z, tokens, draws_d, draws_g)


def _mix(seed: int, step: int) -> int:
    """One 63-bit seed from two numbers, different for every (seed, step) that can occur."""
    return (seed * 1_000_003 + step) * 65_537 & (2**63 - 1)
