"""The programs that are measured, each in one precision."""

from dataclasses import dataclass

from processor import is_installed, multiplies_bfloat16
from tasks import Task

FLOAT32, BFLOAT16, FLOAT16, QUANTIZED = "float32", "bfloat16", "float16", "quantized"
NETWORKS = frozenset({"text", "unet", "decode", "encode"})
EVERYTHING = NETWORKS | {"load", "control", "picture"}


@dataclass(frozen=True)
class Program:
    """One column of the table.

    Attributes:
        title: the name in the table.
        precision: of the products.
        module: the file that runs its tasks.
        parts: those of `Task.part` that it runs.
        models: those of `Task.model` that it runs; every one if empty.
        largest_batch: it runs tasks of no larger batch.
        tells_parts: one process makes a picture and tells the seconds of each part.
        package: what must be installed for it; "" if nothing more than for the others.
    """

    title: str
    precision: str
    module: str
    parts: frozenset[str]
    models: frozenset[str] = frozenset()
    largest_batch: int = 1000
    tells_parts: bool = False
    package: str = ""

    def runs(self, task: Task) -> bool:
        """Return whether it runs a task that does not name its programs."""
        fits = not self.models or task.model in self.models
        return fits and task.part in self.parts and task.batch <= self.largest_batch


def _sd_cpp(precision: str) -> Program:
    """Return stable-diffusion.cpp, which tells the times of the parts of one picture.

    It does not compute batches: pictures of a batch come one after the other.
    """
    return Program(
        f"stable-diffusion.cpp, {precision}",
        precision,
        "tasks_sd_cpp",
        frozenset({"text", "unet", "decode"}),
        models=frozenset({"sd"}),
        largest_batch=1,
        tells_parts=True,
        package="cyllama",
    )


PROGRAMS = {
    "ours": Program("this program, float32", FLOAT32, "tasks_mlx", EVERYTHING),
    "ours-bf16": Program("this program, `--float16`", BFLOAT16, "tasks_mlx", EVERYTHING),
    "diffusers": Program("diffusers, float32", FLOAT32, "tasks_diffusers", EVERYTHING),
    "diffusers-bf16": Program("diffusers, bfloat16", BFLOAT16, "tasks_diffusers", EVERYTHING),
    "openvino": Program(
        "OpenVINO, float32", FLOAT32, "tasks_openvino", NETWORKS, package="openvino"
    ),
    "openvino-bf16": Program(
        "OpenVINO, bfloat16", BFLOAT16, "tasks_openvino", NETWORKS, package="openvino"
    ),
    "sd.cpp": _sd_cpp(FLOAT32),
    "sd.cpp-f16": _sd_cpp(FLOAT16),
    # Only for tasks that name it.
    "quantized": Program("this program, `-q`", QUANTIZED, "tasks_mlx", frozenset()),
}


def find_reason_to_leave_out(program: Program) -> str | None:
    """Return why a program cannot be measured here; None if it can be."""
    if program.package and not is_installed(program.package):
        return (
            f"{program.package} is not installed (pip install -r benchmarks/requirements-peers.txt)"
        )
    if program.precision == BFLOAT16 and not multiplies_bfloat16():
        return "this processor does not multiply bfloat16"
    return None


def list_programs(task: Task, chosen: list[str]) -> list[str]:
    """Return the names of those chosen programs that run a task, in the order of `PROGRAMS`."""
    if task.programs:
        return [name for name in task.programs if name in chosen]
    return [name for name in PROGRAMS if name in chosen and PROGRAMS[name].runs(task)]
