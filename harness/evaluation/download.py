"""The public evaluation bundle: fetched once, resumed where it broke off, checked, unpacked safely."""

from __future__ import annotations

import hashlib
import shutil
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from harness.storage.locks import exclusive
from model.config_validation import ConfigError

URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"
# As several public projects have pinned it; its core.yaml begins 463f6ae0, its eval_meta_data.csv 84e279cd.
SHA256 = "90a7c19e28ee7a52b4f6e1f87658deb9fde7f63deba2379045bdb1fe9ea5d200"
Progress = Callable[[str, float], None]


def public_bundle(
    cache: Path,
    *,
    url: str = URL,
    sha256: str = SHA256,
    progress: Progress = lambda stage, fraction: None,
) -> Path:
    """Return the folder of the public bundle under `cache`, downloaded on first use.

    A download that broke off is continued. Raises ConnectionError when it cannot be fetched, ConfigError when
    its checksum is another or it would write outside its folder; nothing of it is kept then.
    """
    folder = cache / f"eval_bundle-{sha256[:8]}"
    cache.mkdir(parents=True, exist_ok=True)
    with exclusive(cache / "eval_bundle.lock", wait=True):
        if not folder.exists():
            archive = cache / f"eval_bundle-{sha256[:8]}.zip"
            _fetch(url, archive, progress)
            _check(archive, sha256, url)
            unpack(archive, folder)
            archive.unlink()
    return folder


def _fetch(url: str, archive: Path, progress: Progress) -> None:
    held = archive.stat().st_size if archive.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={held}-"} if held else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            if held and reply.status != 206:  # the server does not continue: from the start
                held = 0
            total = held + int(reply.headers.get("Content-Length", 0))
            with archive.open("ab" if held else "wb") as target:
                while block := reply.read(1 << 20):
                    target.write(block)
                    held += len(block)
                    progress("downloading the evaluation bundle", held / max(total, held))
            if held < total:
                raise OSError(f"broke off after {held} of {total} bytes")
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing is left to fetch
            raise ConnectionError(f"{url} answers {error.code}: take the bundle from bundle=FOLDER") from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise ConnectionError(
            f"{url} cannot be fetched ({reason}): run the same command again, or set bundle=FOLDER"
        ) from None


def _check(archive: Path, sha256: str, url: str) -> None:
    with archive.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if found != sha256:
        archive.unlink()
        raise ConfigError(f"{url} has the SHA-256 {found}, not {sha256}: it is another bundle, or damaged")


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip file so that `folder` is the bundle in it.

    Raises ConfigError for a file that is no zip, a member that would land outside, or no core.yaml.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as members:
            for name in members.namelist():
                path = PurePosixPath(name.replace("\\", "/"))
                if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
                    raise ConfigError(f"{archive}: member {name} lies outside its folder: not unpacked")
            members.extractall(partial)
        tops = [
            path.parent for path in [partial / "core.yaml", *partial.glob("*/core.yaml")] if path.exists()
        ]
        if not tops:
            raise ConfigError(f"{archive} is no evaluation bundle: it holds no core.yaml")
        tops[0].rename(folder)
    except zipfile.BadZipFile as error:
        raise ConfigError(f"{archive} is no zip file: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
