"""Errors of Metal, CUDA and memory, raised by a stand-in: one line, and finished pictures stay."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import image2image
import txt2image
from stable_diffusion import overflow
from stable_diffusion.cli import convert, main, run
from stable_diffusion.cli.mlx_errors import (
    DRIVER_IS_UNSUITABLE,
    EXPLANATIONS,
    GPU_IS_INTERRUPTED,
    GPU_IS_LOST,
    GPU_IS_TAKEN,
    IN_BACKGROUND,
    LESS_MEMORY,
    NO_GPU,
    TOO_LITTLE_MEMORY,
)
from stable_diffusion.overflow import Fault, FaultyResultError

FULL = f"{TOO_LITTLE_MEMORY}: {LESS_MEMORY}"
BUFFER = "[METAL] Command buffer execution failed: "
NAME = "kIOGPUCommandBufferCallbackError"
MESSAGES = {
    # The allocators of MLX.
    "[malloc_or_wait] Unable to allocate 9663676416 bytes.": FULL,
    "[malloc] Unable to allocate 64 bytes.": FULL,
    "[malloc_async] Unable to allocate 64 bytes.": FULL,
    "[metal::malloc] Attempting to allocate 8589934592 bytes which is greater than the maximum "
    "allowed buffer size of 5726623061 bytes.": FULL,
    "[metal::malloc] Resource limit (499000) exceeded.": FULL,
    # Metal.
    f"{BUFFER}Insufficient Memory (00000008:{NAME}OutOfMemory)": FULL,
    f"{BUFFER}Impacting Interactivity (0000000e:{NAME}ImpactingInteractivity)": GPU_IS_INTERRUPTED,
    f"{BUFFER}Caused GPU Timeout Error (00000002:{NAME}Timeout)": GPU_IS_INTERRUPTED,
    f"{BUFFER}Caused GPU Hang Error (00000003:{NAME}Hang)": GPU_IS_INTERRUPTED,
    f"{BUFFER}Discarded (victim of GPU error/recovery) (00000005:{NAME}InnocentVictim)": (
        GPU_IS_LOST
    ),
    f"{BUFFER}Ignored (for causing prior/excessive GPU errors) (00000004:{NAME}Submissions"
    "Ignored)": GPU_IS_LOST,
    f"{BUFFER}Caused GPU Address Fault Error (0000000b:{NAME}PageFault)": GPU_IS_LOST,
    f"{BUFFER}Insufficient Permission (to submit GPU work from background) (00000006:{NAME}"
    "BackgroundExecutionNotPermitted)": IN_BACKGROUND,
    "[metal::load_device] No Metal device available. This typically occurs in headless, sandboxed, "
    "or virtualized macOS sessions where the GPU is not accessible.": NO_GPU,
    # CUDA.
    "cudaMallocManaged(&new_data, buf.size) failed: out of memory": FULL,
    "cudaGraphInstantiate(&graph_exec, graph_, NULL, NULL, 0) failed: out of memory": FULL,
    "cudaMallocManaged failed: CUDA-capable device(s) is/are busy or unavailable.": GPU_IS_TAKEN,
    "cudaSetDevice(i) failed: no CUDA-capable device is detected": NO_GPU,
    "Device 0 does not support synchronization in managed memory.": NO_GPU,
    "cudaGraphLaunch(graph_exec, stream_) failed: unspecified launch failure": GPU_IS_LOST,
    "cudaStreamSynchronize(stream_) failed: device-side assert triggered": GPU_IS_LOST,
    "cudaMallocManaged failed: an illegal memory access was encountered.": GPU_IS_LOST,
    "cudaMemcpy(a, b, n, d) failed: uncorrectable ECC error encountered": GPU_IS_LOST,
    "cudaGraphLaunch(g, s) failed: the launch timed out and was terminated": GPU_IS_INTERRUPTED,
    "cudaMemGetInfo(&free, &total) failed: CUDA driver version is insufficient for CUDA runtime "
    "version": DRIVER_IS_UNSUITABLE,
    "cudaGraphLaunch(g, s) failed: no kernel image is available for execution on the device": (
        DRIVER_IS_UNSUITABLE
    ),
    "cudnnCreate(&handle) failed: CUDNN_STATUS_NOT_INITIALIZED.": DRIVER_IS_UNSUITABLE,
    "graph.build() failed: CUDNN_STATUS_ALLOC_FAILED.": FULL,
    "graph.encode_graph(encoder) failed: CUDNN_STATUS_EXECUTION_FAILED.": GPU_IS_LOST,
    "cublasLtMatmul( handle_, matmul_desc_) failed with code: 3.": FULL,
    "cublasLtMatmul( handle_, matmul_desc_) failed with code: 13.": GPU_IS_LOST,
    "cublasLtCreate(&handle) failed with code: 1.": DRIVER_IS_UNSUITABLE,
    # The system.
    "can't start new thread": FULL,
    "Resource temporarily unavailable": FULL,
    "[read] Unable to read 64 bytes at 0": "a weight file changed while it was read: get it again",
}
UNKNOWN = (
    "[conv] Invalid input array with type float16.",
    f"{BUFFER}Invalid Resource (00000009:{NAME}InvalidResource)",
    "cudaMemcpyAsync(a) failed: invalid argument",
    "cublasLtMatmul( handle_) failed with code: 7.",  # CUBLAS_STATUS_INVALID_VALUE
    "graph.build() failed: CUDNN_STATUS_BAD_PARAM.",
)


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(("message", "line"), MESSAGES.items())
def test_errors_are_lines(capsys, message, line):
    assert main.report_errors(lambda: fail(RuntimeError(message))) == main.FAILED
    assert capsys.readouterr().err == f"error: {line}\n"


def test_too_little_memory_for_python(capsys):
    assert main.report_errors(lambda: fail(MemoryError("std::bad_alloc"))) == main.FAILED
    assert capsys.readouterr().err == f"error: {FULL}\n"


def test_every_explanation_has_a_message():
    found = {line.removesuffix(f": {LESS_MEMORY}") for line in MESSAGES.values()}
    assert found == EXPLANATIONS.keys()


@pytest.mark.parametrize("message", UNKNOWN)
def test_what_may_be_an_error_of_ours_is_a_traceback(message):
    with pytest.raises(RuntimeError) as raised:
        main.report_errors(lambda: fail(RuntimeError(message)))
    assert str(raised.value) == message


# --- runs -----------------------------------------------------------------------------------------

USUAL = ("a red circle", "--model=tiny", "--steps=1", "--cfg=1", "--seed=5")
OUT_OF_MEMORY = f"{BUFFER}Insufficient Memory (00000008:{NAME}OutOfMemory)"
LOST = f"{BUFFER}Discarded (victim of GPU error/recovery) (00000005:{NAME}InnocentVictim)"
PHASES = {  # the function that a phase calls for each batch or picture, by what the phase does
    "load": (run, "open_model"),
    "encode": (overflow, "start_checked"),
    "denoise": (overflow, "denoise_checked"),
    "decode": (overflow, "decode_checked"),
}


@pytest.fixture
def fail_at(monkeypatch):
    """Return a function that makes call n of a phase, from 1, raise an error."""

    def prepare(phase: str, n: int, error: Exception) -> None:
        module, name = PHASES[phase]
        function, calls = getattr(module, name), []

        def call(*arguments, **options):
            calls.append(1)
            if len(calls) == n:
                raise error
            return function(*arguments, **options)

        monkeypatch.setattr(module, name, call)

    return prepare


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(("message", "line"), [(OUT_OF_MEMORY, FULL), (LOST, GPU_IS_LOST)])
def test_a_run_that_fails_at_once(tmp_path, capsys, fail_at, phase, message, line):
    fail_at(phase, 1, RuntimeError(message))
    output = tmp_path / "o.png"
    assert txt2image.main([*USUAL, "--n_images=2", f"--output={output}"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {line}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("phase", "batch_size"), [("denoise", 1), ("decode", 1), ("decode", 3)])
def test_finished_pictures_are_written(tmp_path, capsys, fail_at, phase, batch_size):
    """The third of four pictures fails, alone or in a batch with the first two."""
    fail_at(phase, 3, RuntimeError(OUT_OF_MEMORY))
    options = [*USUAL, "--n_images=4", f"--batch-size={batch_size}"]
    assert txt2image.main([*options, f"--output={tmp_path}/"]) == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0001.png", "0002.png"]
    rest = "2 of 4 pictures are finished, and kept: the same command with --seed 7 --n_images 2"
    assert f"error: {FULL}; {rest} makes the others\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [RuntimeError(LOST), MemoryError(), FaultyResultError("latents", Fault.CONSTANT)],
    ids=lambda error: type(error).__name__,
)
def test_the_grid_has_the_finished_pictures(tmp_path, capsys, fail_at, error):
    complete, part = tmp_path / "a.png", tmp_path / "b.png"
    options = [*USUAL, "--n_images=3", "--batch-size=1"]
    assert txt2image.main([*options, f"--output={complete}"]) == 0
    fail_at("denoise", 3, error)
    assert txt2image.main([*options, f"--output={part}"]) == 1
    rest = "--seed 7 --n_images 1 and another --output makes the others"
    assert capsys.readouterr().err.strip().endswith(rest)
    pictures = np.asarray(Image.open(part))
    assert pictures.shape[1] == 160  # two pictures of 64 pixels with margins of 8
    assert np.array_equal(pictures, np.asarray(Image.open(complete))[:, :160])


def test_the_picture_to_start_from_is_too_large(tmp_path, capsys, fail_at):
    Image.new("RGB", (64, 64), "orange").save(tmp_path / "i.png")
    fail_at("encode", 1, RuntimeError(OUT_OF_MEMORY))
    arguments = [
        str(tmp_path / "i.png"),
        *USUAL,
        "--strength=0.5",
        f"--output={tmp_path / 'o.png'}",
    ]
    assert image2image.main(arguments) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {FULL}"


def test_converting(tmp_path: Path, monkeypatch, capsys):
    """The line does not suggest options that the command does not have."""
    monkeypatch.setattr(
        convert, "convert_model", lambda *_, **__: fail(RuntimeError(OUT_OF_MEMORY))
    )
    assert convert.main(["tiny", str(tmp_path / "m")]) == 1
    assert capsys.readouterr().err == f"error: {TOO_LITTLE_MEMORY}: {convert.LESS_MEMORY}\n"
