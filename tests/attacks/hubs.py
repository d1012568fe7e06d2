"""A Hub that gives bad answers."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import huggingface_hub.constants as constants
from hub_server import Bad, HubServer

from attacks.harness import Case, attack, require
from attacks.hostile import damaged, json_text
from stable_diffusion.model_io import hub

REPO = "org/model"
UNET = "unet/diffusion_pytorch_model.safetensors"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TIMEOUT = 1  # seconds


@contextmanager
def served(cache: Path, files: dict[str, bytes]) -> Iterator[HubServer]:
    """Run a Hub with one repository, and use an empty cache, as environment variables set them."""
    with HubServer() as server:
        server.add(REPO, files)
        settings = {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(cache),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DOWNLOAD_TIMEOUT": TIMEOUT,
            "HF_HUB_ETAG_TIMEOUT": TIMEOUT,
        }
        before = {name: getattr(constants, name) for name in settings}
        timeout, hub.HUB_TIMEOUT = hub.HUB_TIMEOUT, float(TIMEOUT)
        try:
            for name, value in settings.items():
                setattr(constants, name, value)
            yield server
        finally:
            hub.HUB_TIMEOUT = timeout
            for name, value in before.items():
                setattr(constants, name, value)


def bad_information(rng: Random) -> Bad | int | str | float:
    """Return a bad answer to the request for a repository's information."""
    paths = ["../x", "/etc/passwd", "unet/../../x", UNET, "unet/config.json", "\0", ""]
    info = {
        "id": REPO,
        "sha": rng.choice([COMMIT, COMMIT, "../../x", "", "main", COMMIT[:-1], 7, None]),
        "siblings": rng.choice(
            [[{"rfilename": path} for path in rng.sample(paths, 3)], [], None, [{}], {"a": 1}, [1]]
        ),
    }
    match rng.randrange(6):
        case 0:
            return rng.choice([401, 403, 404, 429, 500, 503, "GatedRepo", "RevisionNotFound"])
        case 1:
            return Bad(body=json_text(info, rng))
        case 2:
            return Bad(body=damaged(json.dumps(info).encode(), rng))
        case 3:
            return Bad(cut=rng.randrange(200), length=rng.choice([None, 10, 10_000]))
        case 4:
            loop = {"Location": f"/api/models/{REPO}/revision/main"}
            headers = [loop, {"Content-Encoding": "gzip"}, {"Content-Type": "text/html"}]
            return Bad(status=302 if rng.random() < 0.5 else 200, headers=rng.choice(headers))
    return Bad(body=json.dumps(info).encode())


def bad_file(rng: Random) -> Bad | int | str:
    """Return a bad answer to the request for a file."""
    match rng.randrange(5):
        case 0:
            return rng.choice([401, 403, 404, "GatedRepo", "EntryNotFound", "RepoNotFound"])
        case 1:
            return Bad(body=rng.choice([b"", b"<html>sign in</html>", rng.randbytes(5000)]))
        case 2:
            return Bad(length=rng.choice([0, 10, 1999]))
        case 3:
            headers = [
                {"ETag": rng.choice(["", '""', '"../../x"', '"a/b"', "\\"])},
                {"X-Repo-Commit": rng.choice(["", "../../evil", "main", "\\"])},
                {"Location": f"/{REPO}/resolve/main/{UNET}"},
                {"Content-Encoding": "gzip"},
            ]
            return Bad(headers=rng.choice(headers), status=rng.choice([200, 200, 302, 307]))
    return Bad(headers={"Content-Range": "bytes 5-9/3"})


def check(case: Case, part: str, answer: object, files: dict[str, bytes]) -> None:
    """Check that a download gives the Hub's files, or an error of one line.

    A second run, with a good Hub, must succeed.
    """
    cache = case.folder / "cache"
    with served(cache, files) as server:
        server.answers[part] = answer
        try:
            found = hub.open_source(REPO).weights("unet", float16=False)
            require(found[0].read_bytes() == files[UNET], "another file")
        finally:
            outside = {path.name for path in case.folder.iterdir()} - {"cache"}
            require(not outside, f"written outside of the cache: {outside}")
            server.answers.clear()
            found = hub.open_source(REPO).weights("unet", float16=False)
            require(found[0].read_bytes() == files[UNET], "the second run gives another file")


@attack("hub", cases=200)
def information(case: Case) -> None:
    """Answer the request for a repository's information badly."""
    check(case, "/api/", bad_information(case.rng), {UNET: case.rng.randbytes(2000)})


@attack("hub", cases=200)
def files(case: Case) -> None:
    """Answer requests for files badly."""
    check(case, UNET, bad_file(case.rng), {UNET: case.rng.randbytes(2000)})
