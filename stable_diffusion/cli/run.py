"""What the phases of a run need: the settings, and the model that they name."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..control import LoadedControl
from ..device import backend, cpu_kernels, memory
from ..model_io.loaders import open_model
from ..model_io.model import describe_downloads
from ..model_io.weight_files import STEMS
from ..pipeline import StableDiffusion, pipeline_class
from ..rrdbnet import RRDBNet
from ..utils.size import Size
from ..vae_strips import Vae
from .controls import load_controls, open_controls, warn_of_pictures
from .few_step import adopt_few_step
from .job import CompleteJob
from .larger import load_upscalers
from .output.preview import load_preview_vae
from .plan import Plan
from .recipe.record import Record
from .settings import Settings
from .start import Start, make_start
from .terminal.console import say
from .terminal.progress import Progress

NETWORKS = {  # attributes of a pipeline, in the order in which they are needed
    "text_encoder": "text encoder",
    "text_encoder_1": "first text encoder",
    "text_encoder_2": "second text encoder",
    "unet": "UNet",
    "autoencoder": "VAE",
}


@dataclass(frozen=True)
class Run:
    """What the phases of a run need.

    Attributes:
        settings: the command line.
        progress: shows how far the run is.
        jobs: the pictures to make.
        sd: the model, with the LoRAs and textual inversions of the settings.
        record: what the files say of how their pictures were made.
        start: what the pictures start from; None if they start from noise.
        preview_vae: the VAE that the settings name for previews, if they name one.
        controls: the control networks, by the names that the settings give them.
        upscalers: the networks that enlarge pictures, by the names of their files.
    """

    settings: Settings
    progress: Progress
    jobs: Sequence[CompleteJob]
    sd: StableDiffusion
    record: Record
    start: Start | None = None
    preview_vae: Vae | None = None
    controls: Mapping[str, LoadedControl] = field(default_factory=dict)
    upscalers: dict[str, RRDBNet] = field(default_factory=dict)

    @property
    def upscaler(self) -> RRDBNet | None:
        """Return the network that enlarges the finished pictures, if there is one."""
        file = self.settings.upscale
        return None if file is None else self.upscalers[str(file)]

    @property
    def starts_flat(self) -> bool:
        """Return whether there is a picture to start from, and it has one colour."""
        pixels = None if self.start is None else self.start.pixels
        return pixels is not None and bool((pixels == pixels[0, 0]).all())

    @property
    def adapter_files(self) -> list[Path]:
        """Return the files of LoRAs and textual inversions."""
        loras = [Path(file) for file, _ in self.settings.lora]
        return loras + [file for _, file in self.settings.embedding]

    def keep_upscalers(self, jobs: Iterable[CompleteJob]) -> None:
        """Free the upscalers that neither the second passes of these jobs nor `--upscale` need."""
        needed = {job.second_pass.upscale for job in jobs if job.second_pass is not None}
        if self.settings.upscale is not None:
            needed.add(str(self.settings.upscale))
        for name in self.upscalers.keys() - needed:
            del self.upscalers[name]

    def finish_pictures(self, pictures: np.ndarray) -> np.ndarray:
        """Return pictures, uint8 [B, h, w, 3], as they are in the files, [B, H, W, 3]."""
        if self.start is None:
            return pictures
        return np.stack([self.start.finish(picture) for picture in pictures])

    def read_networks(self, names: Iterable[str]) -> None:
        """Read the weights of those networks that the model has."""
        for name in names:
            if hasattr(self.sd, name):
                self.progress.read_network(NETWORKS[name], getattr(self.sd, name))

    def read_controls(self) -> None:
        """Read the weights of the control networks."""
        for name, control in self.controls.items():
            self.progress.read_network(f"control network {name}", control.network)

    def preload(self) -> None:
        """Read the weights of all networks, if the settings ask for it."""
        if self.settings.preload_models:
            with self.progress.measure("loading"):
                self.read_networks(NETWORKS)
                self.read_controls()

    def read_decoder(self) -> None:
        """Read the weights of the VAE's decoder."""
        self.progress.read_network("VAE's decoder", self.sd.autoencoder.decoder)


def prepare_run(settings: Settings, plan: Plan, progress: Progress) -> Run:
    """Open the model, check that everything suits it, and load it; weights are read later."""
    options = {name: getattr(settings, name) for name in ("vae", "unet", "prediction_type")}
    model = open_model(settings.model, **options, on_message=say)
    float16 = _choose_precision(settings)
    for line in describe_downloads(model, STEMS, float16):
        say(line)
    opened = open_controls(settings.controls, model, float16)
    jobs = plan.complete_jobs(settings, adopt_few_step(settings, model))
    warn_of_pictures(settings.controls, (Size(job.width, job.height) for job in jobs))
    start = None
    if settings.start is not None:  # all jobs have its size
        size = Size(jobs[0].width, jobs[0].height)
        start = make_start(settings.start, size, model.config.autoencoder.factor)
    preview_vae = load_preview_vae(settings, model, float16)
    memory.limit_cache()
    if cpu_kernels.needs_compiling():
        say("Compiling the kernels for this processor, once …")
    if settings.verbose and (float16 or settings.vae_float16):
        say(f"Multiplying weights in half precision in {_describe_products()}.")
    sd = pipeline_class(model.config)(model, float16, vae_float16=settings.vae_float16)
    controls = load_controls(sd, opened, settings.controls)
    _adapt(sd, settings)
    record = Record(settings, model, float16, opened)
    upscalers = load_upscalers(settings, (job.second_pass for job in jobs))
    return Run(settings, progress, jobs, sd, record, start, preview_vae, controls, upscalers)


def _choose_precision(settings: Settings) -> bool:
    """Return whether to use half precision: as the user says, or if there is a GPU."""
    if settings.float16 is not None:
        return settings.float16
    if backend.is_gpu():
        return True
    say("Computing in float32, which is fastest on a CPU (--float16 stores the weights in half).")
    return False


def _describe_products() -> str:
    """Return the precision in which weights in half precision are multiplied."""
    if cpu_kernels.multiplies_halves():
        return "bfloat16, with float32 sums"
    return "float32" if cpu_kernels.is_used() else "float16"


def _adapt(sd: StableDiffusion, settings: Settings) -> None:
    """Quantize the model, and add the LoRAs and textual inversions of the settings."""
    if settings.quantize:
        sd.quantize(settings.unet_bits, settings.text_encoder_bits)
    for name, file in settings.embedding:  # before the words in LoRA files, which may be the same
        sd.load_embedding(name, file)
    for lora, scale in settings.lora:
        sd.load_lora(lora, scale, merged=settings.merge_loras)
