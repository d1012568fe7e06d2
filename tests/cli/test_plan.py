"""Which pictures are made together."""

from dataclasses import replace

import pytest
from gpu import as_on

from stable_diffusion.cli.arguments.parse import parse, txt2image_parser
from stable_diffusion.cli.job import CompleteJob
from stable_diffusion.cli.plan import Plan, make_batches, make_plan
from stable_diffusion.cli.ranks import Ranks
from stable_diffusion.device.backend import Backend

JOB = CompleteJob("a", seed=1, width=64, height=64, steps=4, cfg=7.5, sampler="euler")


def batch_seeds(jobs: list[CompleteJob], size: int, n_shares: int = 1) -> list[list[int]]:
    """Return the seeds of each batch."""
    batches = make_batches(jobs, lambda _: size, n_shares)
    return [[job.seed for job in batch.jobs] for batch in batches]


def test_batches_are_even_and_share_their_settings():
    many = [replace(JOB, prompt=str(i), negative_prompt=str(-i), seed=i) for i in range(7)]
    assert batch_seeds(many, 3) == [[0, 1], [2, 3], [4, 5, 6]]
    assert batch_seeds(many, 8) == [[*range(7)]]
    assert batch_seeds(many, 8, n_shares=2) == [[0, 1, 2], [3, 4, 5, 6]]
    assert batch_seeds(many[:2], 8, n_shares=4) == [[0], [1]]
    mixed = [replace(job, steps=4 + job.seed % 2) for job in many]
    assert batch_seeds(mixed, 8) == [[0, 2, 4, 6], [1, 3, 5]]


def test_long_prompts_are_alone():
    """In a batch with a longer prompt they would get more windows than alone."""
    jobs = [replace(JOB, long_prompt=True, prompt=p, seed=i) for i, p in enumerate("aba")]
    assert batch_seeds(jobs, 8) == [[0, 2], [1]]


def test_memory_decides_how_many_at_once():
    plan = Plan([], None, None, batch_size=None)
    assert [plan.count_at_once(n) for n in (0, 1, 3, 9)] == [1, 1, 3, 8]
    assert replace(plan, batch_size=5).count_at_once(1) == 5


@pytest.mark.parametrize(("kind", "batch_size"), [(Backend.CPU, 4), (Backend.METAL, None)])
def test_a_grid_is_one_batch_on_a_cpu(kind, batch_size, tmp_path):
    """On a GPU memory decides, as for pictures that have files."""
    options = ["a cat", "--n_images=4", f"--output={tmp_path / 'grid.png'}"]
    with as_on(kind):
        plan = make_plan(parse(txt2image_parser(), options), Ranks())
        wanted = make_plan(parse(txt2image_parser(), [*options, "--batch-size=3"]), Ranks())
    assert plan.batch_size == batch_size and wanted.batch_size == 3
