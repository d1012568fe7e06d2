"""The names of options in other programs: diffusers, the web UIs, stable-diffusion.cpp, mflux, …

They are for error messages that say what such an option is called here. Long names are written with
hyphens and in lower case; a name of one letter is a short option, and its case matters.
"""

import re

# Our option, and its names in other programs.
SAME = {
    "--n_images": (
        "b batch-count n-iter n-iters num num-images num-images-per-prompt num-outputs iterations "
        "count images n-samples samples"
    ),
    "--negative_prompt": "n np uc",
    "--prompts-file": "prompt-file from-file prompts",
    "--cfg": "cfg-scale guidance guidance-scale cfg-weight scale unconditional-guidance-scale",
    "--image-cfg": "image-cfg-scale image-guidance-scale image-guidance cfg-image img-cfg-scale",
    "--guidance-rescale": "rescale-cfg cfg-rescale rescale",
    "--cfg-range": (
        "guidance-interval guidance-range guidance-start guidance-end cfg-interval cfg-start "
        "cfg-end skip-early-cfg"
    ),
    "--reuse": "deepcache deep-cache cache-interval",
    "--steps": (
        "num-inference-steps inference-steps num-steps n-steps sampling-steps sample-steps "
        "ddim-steps ddim-step"
    ),
    "--sampler": "plms sampler-name sampling-method sample-method sampler-type",
    "--schedule": "scheduler scheduler-name schedule-type timestep-spacing",
    "--timesteps": "custom-timesteps timestep-list sigmas",
    "--eta": "ddim-eta eta-ddim",
    "--seed": "s seeds rng-seed manual-seed generator",
    "--width": "W w size resolution image-size",
    "--height": "H",
    "--strength": (
        "denoise denoising denoising-strength denoise-strength image-strength img-strength "
        "init-image-strength init-strength img2img-strength"
    ),
    "--fit": "resize-mode",
    "--mask": "init-mask",
    "--invert-mask": "mask-invert inpainting-mask-invert",
    "--mask-blur": "blur-mask mask-blur-x mask-blur-y mask-overlay-blur feather mask-feather",
    "--mask-crop": (
        "padding-mask-crop mask-padding only-masked inpaint-full-res inpaint-full-res-padding "
        "inpaint-area"
    ),
    "--outpaint": "image-outpaint-padding extend uncrop",
    "--model": (
        "m ckpt ckpt-name ckpt-path checkpoint model-id model-path model-name sd-model base-model "
        "diffusion-model pretrained-model-name-or-path sd-model-checkpoint"
    ),
    "--vae": "vae-path vae-name sd-vae taesd tae taesd-decoder",
    "--unet": "unet-name unet-path sd-unet",
    "--prediction-type": "prediction parameterization v-prediction",
    "--lora": (
        "loras lora-path lora-paths lora-model lora-name lora-weights lora-scale lora-scales "
        "lora-strength lora-model-dir lora-dir lora-style"
    ),
    "--embedding": "embeddings embd-dir embeddings-dir textual-inversion textual-inversions ti",
    "--clip-skip": "clip-stop-at-last-layers clip-last-layer",
    "--prompt-weights": "emphasis prompt-weighting compel",
    "--output": (
        "o out outdir outfile output-dir output-path output-file out-dir out-file filename "
        "filename-prefix save-path save-dir"
    ),
    "--n_rows": "rows n-row grid-rows",
    "--force": "overwrite",
    "--no-metadata": "disable-metadata skip-metadata",
    "--from-image": "config-from-metadata from-metadata png-info",
    "--preview-vae": "preview-method taesd-preview taesd-preview-only preview-decoder",
    "--preview": "preview-interval stepwise-image-output-dir live-previews show-progress",
    "--quantize": "quant type int8 q8 q4",
    "--unet-bits": "bits quantize-bits",
    "--float16": "fp16 half half-precision",
    "--no-float16": "no-half precision full-precision fp32 float32 force-fp32 upcast-sampling",
    "--no-vae-float16": "no-half-vae fp32-vae upcast-vae vae-fp32",
    "--vae-float16": "fp16-vae vae-fp16 half-vae",
    "--tiled": (
        "vae-tiling tiling-vae tile-vae enable-vae-tiling vae-slicing vae-tile-size tiled-vae"
    ),
    "--low-memory": (
        "lowvram medvram lowram low-ram low-vram novram medvram-sdxl cpu-offload offload "
        "enable-model-cpu-offload enable-sequential-cpu-offload offload-to-cpu vae-on-cpu "
        "clip-on-cpu"
    ),
    "--no-low-memory": "highvram normalvram high-vram gpu-only",
    "--hires": (
        "hires-fix hires-scale hires-upscale-by hr-scale hr-upscale enable-hr highres-fix hrf "
        "upscale-by hires-resize"
    ),
    "--hires-strength": (
        "hires-denoising-strength hires-denoise hr-strength hr-denoising-strength hires-denoising"
    ),
    "--hires-steps": "hr-second-pass-steps hires-second-pass-steps hr-steps",
    "--hires-upscale": "hires-upscaler hr-upscaler hires-upscale-method",
    "--upscale": "upscaler upscale-model upscaler-model upscaler-1 esrgan realesrgan esrgan-model",
    "--decoding_batch_size": "decode-batch-size vae-batch-size",
    "--verbose": "debug log-level stats",
    "--list-models": "models ls models-list",
    "--list-controls": "list-controlnets controlnets",
}

# What to say before the name of our option, if the two do not mean quite the same.
EXPLANATIONS = {
    "size": "give it with --height and",
    "resolution": "give it with --height and",
    "image-size": "give it with --height and",
    "scheduler": "choose the sampler with --sampler, and the spacing of timesteps with",
    "scheduler-name": "choose the sampler with --sampler, and the spacing of timesteps with",
    "sigmas": "give timesteps in place of noise levels with",
    "v-prediction": "v_prediction is a value of",
    "lora-scale": "give the file and its scale as NAME:SCALE with",
    "lora-scales": "give the file and its scale as NAME:SCALE with",
    "lora-strength": "give the file and its scale as NAME:SCALE with",
    "lora-dir": "name each file with",
    "lora-model-dir": "name each file with",
    "embd-dir": "name each file with",
    "embeddings-dir": "name each file with",
    "inpaint-full-res": "give how many pixels to draw around the mask with",
    "only-masked": "give how many pixels to draw around the mask with",
    "inpaint-area": "give how many pixels to draw around the mask with",
    "seeds": "the seeds of the pictures count up from",
}
USUAL_EXPLANATION = "use"

# Options that do not exist here: why, or what to do instead.
IMAGE = "the picture to start from is the first argument of image2image.py"
PROMPT = "write the prompt alone, in quotes"
CONTROL = "write --control MODEL=IMAGE:SCALE, such as --control canny=edges.png:0.8"
SECOND_PASS = "the networks, prompts and samplers of a second pass are those of the first one"
OTHER_MODELS = "only Stable Diffusion 1.x, 2.x and XL are supported"
ALREADY_FAST = "attention is always computed in the fastest way"
DEVICES = "the GPU is used if there is one, otherwise all cores of the CPU"
NOISE = "the noise is always the same as PyTorch's on a CPU"
NO_SERVER = "there is neither a server nor a graphical interface"

ABSENT = {
    PROMPT: "p prompt text positive positive-prompt",
    IMAGE: (
        "i image img images-dir init init-img init-image image-path init-image-path input "
        "input-image image-paths init-images source-image start-image"
    ),
    "the number of columns follows from --n_rows": "columns cols n-cols grid-columns",
    "every picture has its own seed, random unless --seed is given": "auto-seeds random-seed",
    "the noise that samplers add cannot be scaled": "s-churn s-noise s-tmin s-tmax",
    DEVICES: "t threads device device-id n-threads cpu gpu cuda mps use-cpu num-threads backend",
    ALREADY_FAST: (
        "xformers attention-slicing opt-sdp-attention opt-sdp-no-mem-attention diffusion-fa "
        "opt-split-attention use-pytorch-cross-attention use-split-cross-attention flash-attention "
        "enable-xformers-memory-efficient-attention enable-attention-slicing compile torch-compile"
    ),
    "the VAE runs on the same device as the other networks": "cpu-vae",
    NOISE: "rng fixed-code subseed subseed-strength variation variation-seed variation-amount",
    "recipes are written into the pictures": "metadata save-metadata",
    "config files come with the model": "config original-config model-config",
    OTHER_MODELS: "t5xxl clip-l clip-g llm qwen2vl flow-shift shift max-sequence-length high-noise",
    "the safety checker is not run": "safety-checker disable-safety-checker nsfw-filter no-nsfw",
    "seamless tiles are not supported": "tile tiling seamless seamless-x seamless-y circular",
    "restoring faces is not supported": (
        "restore-faces gfpgan codeformer face-restoration gfpgan-strength"
    ),
    "each script has one task, as its name says": "mode M task",
    "each picture is written as soon as it is finished": (
        "skip-grid skip-save display open grid-only"
    ),
    "pickled files are never loaded": "use-safetensors disable-safe-unpickle allow-pickle",
    "the fp16 variant of a model is downloaded if there is one": "variant revision",
    NO_SERVER: "server share listen port api gradio webui host gui autolaunch ui",
    SECOND_PASS: (
        "hires-checkpoint hires-sampler hires-scheduler hires-prompt hires-negative-prompt "
        "hires-cfg-scale hr-checkpoint-name hr-sampler-name hr-scheduler hr-prompt "
        "hr-negative-prompt hr-cfg hr-resize-x hr-resize-y"
    ),
    "an upscaler enlarges as many times as it was made to": "upscale-repeats upscale-tile-size",
    "merging tokens is not supported": "tome token-merging-ratio tome-ratio freeu",
}

# The same, for all long names with these beginnings.
ABSENT_BEGINNINGS = {
    "control": CONTROL,
    "canny": CONTROL,
    "t2i-adapter": CONTROL,
    "ip-adapter": "IP-Adapter is not supported",
    "redux": OTHER_MODELS,
    "photo-maker": "PhotoMaker is not supported",
    "refiner": "the SDXL refiner is not supported",
    "hypernet": "hypernetworks are not supported",
    "slg-": OTHER_MODELS,
    "skip-layer": OTHER_MODELS,
    "video": "videos are not supported",
    "animate": "videos are not supported",
}
SAME_BEGINNINGS = {
    "neg": "--negative_prompt",
    "mask": "--mask",
    "inpaint": "--mask",
    "outpaint": "--outpaint",
}

# An option, which may have its value in the same word: `--x=y`, `-x=y`, `-s42`.
NAME = re.compile(
    r"(?P<dashes>--?)(?P<name>[^=\s]+?)(?:=.*|(?<=^-[A-Za-z])[0-9][0-9.]*)?", re.DOTALL
)

_OUR_OPTIONS = {each: ours for ours, theirs in SAME.items() for each in theirs.split()}
_REASONS = {each: why for why, theirs in ABSENT.items() for each in theirs.split()}


def explain_option(word: str) -> tuple[str | None, str] | None:
    """Return what to say about an option of another program; None if the option is not known.

    Returns:
        Our option and what to say before its name; or None and why there is no such option.
    """
    found = NAME.fullmatch(word)
    if found is None:
        return None
    name = found["name"].replace("_", "-")
    is_long = found["dashes"] == "--"
    if len(name) > 1:
        name = name.lower()
    if name in _OUR_OPTIONS:
        return _OUR_OPTIONS[name], EXPLANATIONS.get(name, USUAL_EXPLANATION)
    if name in _REASONS:
        return None, _REASONS[name]
    if is_long:
        for start, ours in SAME_BEGINNINGS.items():
            if name.startswith(start):
                return ours, USUAL_EXPLANATION
        for start, why in ABSENT_BEGINNINGS.items():
            if name.startswith(start):
                return None, why
    return None
