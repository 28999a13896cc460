"""Download of the public evaluation bundle: once, resumed after interruption, verified, unpacked safely."""

from __future__ import annotations

import hashlib
import shutil
import urllib.error
import urllib.request
import zipfile
from pathlib import Path, PurePosixPath

from harness.data.dataset import Progress
from harness.storage.files import exclusive
from model.config_validation import ConfigError

URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"
# Pinned by several public projects. SHA-256 of core.yaml begins 463f6ae0, of eval_meta_data.csv 84e279cd.
SHA256 = "90a7c19e28ee7a52b4f6e1f87658deb9fde7f63deba2379045bdb1fe9ea5d200"


def public_bundle(
    cache: Path,
    *,
    url: str = URL,
    sha256: str = SHA256,
    progress: Progress = lambda stage, fraction: None,
) -> Path:
    """Return the folder of the public bundle under `cache`, downloaded on first use.

    An interrupted download is resumed.

    Raises
    ------
    ConnectionError : the bundle cannot be downloaded.
    ConfigError : the checksum differs, or a member lies outside the folder; the download is discarded.
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
            if held and reply.status != 206:  # the server does not support ranges: start again
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
        if error.code != 416:  # 416: the archive is already complete
            raise ConnectionError(f"{url} answers {error.code}: take the bundle from bundle=FOLDER") from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise ConnectionError(
            f"{url} cannot be fetched ({reason}): run the same command again, or set bundle=FOLDER"
        ) from None


def _check(archive: Path, sha256: str, url: str) -> None:
    with archive.open("rb") as handle:
        actual = hashlib.file_digest(handle, "sha256").hexdigest()
    if actual != sha256:
        archive.unlink()
        raise ConfigError(f"{url} has the SHA-256 {actual}, not {sha256}: it is another bundle, or damaged")


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the bundle in a zip file to `folder`, atomically.

    Raises
    ------
    ConfigError : the file is not a zip, a member lies outside its folder, or there is no core.yaml.
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
