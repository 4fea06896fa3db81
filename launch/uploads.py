"""Copies of a run's checkpoints in another place, say S3: sent in the background, fetched at a start.

    ADDRESS/stage1/step-00001000/     the files of the local folder, its manifest last, so that a
                                      copy is complete or absent
    .../manifest.json.aside-TIME      in place of the manifest of a copy that the run went back behind:
                                      the copy counts no more, and stays until its step is sent again

Neither an outage nor a slow line stops training: a checkpoint that waits while another one is being
sent gives way to a newer one, and what failed is tried again until a newer one is there; those of
t2i.training.keep_at wait until they are sent, and their copies are never removed. The files being
sent are hard links, so a run may remove its old checkpoints at any time; the disk must have room for
two more than ``keep_checkpoints``.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from data_pipeline.storage.interface import StorageConfig
from data_pipeline.storage.stores import open_storage
from launch.config import UploadConfig
from t2i.console import format_seconds, get_logger, progress
from t2i.training import checkpoint
from t2i.training.checkpoint import MANIFEST, Checkpoint

ASIDE = f"{MANIFEST}.aside-"
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between attempts; doubled after each

logger = get_logger("uploads")


class RemoteCheckpoints:
    """The copies of one stage's checkpoints."""

    def __init__(
        self,
        config: UploadConfig,
        stage: int,
        storage: StorageConfig,
        keep_at: Sequence[int] = (),
    ) -> None:
        """Nothing is touched yet. ``keep_at``: steps whose copies are never removed.

        Raises:
            ValueError: the address is of an unknown kind.
        """
        self.config = config
        self.milestones = {checkpoint.folder_name(step) for step in keep_at}
        address = f"{config.address.rstrip('/')}/stage{stage}"
        self.storage = open_storage(address, storage)
        # The threads of a transfer would keep the process from ending, see `_all_at_once`.
        one_thread = storage.model_copy(update={"transfer_threads": 1})
        self._sender = open_storage(address, one_thread)

    @property
    def url(self) -> str:
        """The address."""
        return self.storage.url

    def names(self) -> list[str]:
        """The complete checkpoints, newest first."""
        folders = _folders(self.storage.list("step-"))
        return sorted((name for name in folders if MANIFEST in folders[name]), reverse=True)

    def send(self, folder: Path, name: str) -> None:
        """Copy a local checkpoint here as ``name``, unless the same one is here already."""
        manifest = (folder / MANIFEST).read_bytes()
        try:
            if self._sender.get(f"{name}/{MANIFEST}") == manifest:
                return
        except FileNotFoundError:
            pass
        self._sender.delete(f"{name}/{MANIFEST}")  # of a damaged one, which is now replaced
        _all_at_once(
            lambda file: self._sender.put_file(f"{name}/{file}", folder / file),
            list(checkpoint.manifest_files(folder)),
        )
        self._sender.put(f"{name}/{MANIFEST}", manifest)

    def trim(self, newest: str) -> None:
        """Remove what interrupted uploads left, and all but ``config.keep`` up to ``newest``.

        Milestones stay.
        """
        names = self.names()
        old = [name for name in names if name <= newest][self.config.keep :]
        for name, files in _folders(self.storage.list("step-")).items():
            is_aside = any(file.startswith(ASIDE) for file in files)
            is_old = name in old and name not in self.milestones
            if is_old or (name not in names and not is_aside):
                for file in sorted(files, key=lambda file: file != MANIFEST):  # the manifest first
                    self.storage.delete(f"{name}/{file}")

    def fetch_newer(self, folder: Path, than: Checkpoint | None) -> Checkpoint | None:
        """Copy the newest checkpoint that verifies into ``folder``, if it is newer; else ``than``.

        The other processes wait meanwhile, no longer than t2i.training.timeout_minutes.

        Raises:
            OSError: this place cannot be read, and there is no ``than`` to go on from.
        """
        try:
            for name in self.names():
                if than is not None and name <= than.path.name:
                    break
                problem = self.fetch(name, folder)
                if problem is None:
                    return checkpoint.open_checkpoint(folder / name)
                logger.warning("%s/%s is damaged and passed over: %s", self.url, name, problem)
        except Exception as error:  # boto3 has no common class for what a network can do
            if than is None:
                raise OSError(
                    f"no checkpoint can be fetched from {self.url} ({error}); to start without "
                    "looking there: --set launch.train.upload=null"
                ) from error
            logger.error("%s cannot be read, going on from %s: %s", self.url, than.path, error)
        return than

    def set_aside(self, after: str) -> list[str]:
        """Hide the copies that are newer than ``after``; returns their addresses, newest first.

        Raises:
            OSError: this place cannot be reached; perhaps some are hidden already.
        """
        hidden = []
        with self.errors_named():
            for name in self.names():
                if name > after:
                    manifest = self.storage.get(f"{name}/{MANIFEST}")
                    self.storage.put(f"{name}/{ASIDE}{int(time.time())}", manifest)
                    self.storage.delete(f"{name}/{MANIFEST}")
                    hidden.append(f"{self.url}/{name}")
        return hidden

    @contextmanager
    def errors_named(self) -> Iterator[None]:
        """Any error of the network becomes an OSError that names this place."""
        try:
            yield
        except Exception as error:  # boto3 has no common class for what a network can do
            raise OSError(f"{self.url} cannot be reached ({error}); try again later") from error

    def fetch(self, name: str, folder: Path) -> str | None:
        """Copy a checkpoint into ``folder``; what is wrong with it, or None."""
        temporary = folder / f"{name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        problem = self._download(name, temporary) or checkpoint.find_damage(temporary)
        if problem is None:
            checkpoint.publish(temporary)
        else:
            shutil.rmtree(temporary)
        return problem

    def _download(self, name: str, temporary: Path) -> str | None:
        """Copy the files that the manifest lists; what is wrong with them, or None."""
        self.storage.get_file(f"{name}/{MANIFEST}", temporary / MANIFEST)
        try:
            files = checkpoint.manifest_files(temporary)
            total = sum(entry.bytes for entry in files.values())
            with progress(f"fetching {self.url}/{name}", total // 2**20, "MiB") as bar:
                for file, entry in files.items():
                    self.storage.get_file(f"{name}/{file}", temporary / file)
                    bar.update(entry.bytes // 2**20)
        except (ValueError, FileNotFoundError) as error:
            return str(error)
        return None


class Uploads:
    """Sends checkpoints in a thread of its own, one at a time, the newest first.

    Of those that wait, the older ones are dropped unless they are milestones.
    """

    def __init__(self, remote: RemoteCheckpoints, links: Path) -> None:
        """``links``: a folder of its own, on the disk of the checkpoints."""
        self.remote, self.links = remote, links
        shutil.rmtree(links, ignore_errors=True)
        self._changed = threading.Condition()
        self._waiting: list[Path] = []  # folders of links, oldest first
        self._is_sending = False
        self._closed = False
        self._behind: list[str] = []  # checkpoints newer than the last copy, oldest first
        threading.Thread(target=self._run, name="uploads", daemon=True).start()

    def add(self, path: Path) -> None:
        """Send the checkpoint at ``path`` when it is its turn; returns at once, raises nothing."""
        with self._changed:
            self._behind.append(path.name)
            try:
                linked = _link_files(path, self.links / path.name)
            except OSError as error:
                logger.error("%s is not uploaded: %s", path, error)
                return
            for waiting in list(self._waiting):
                if waiting.name not in self.remote.milestones:
                    logger.warning("%s gives way to %s: not uploaded", waiting.name, path.name)
                    shutil.rmtree(waiting, ignore_errors=True)
                    self._waiting.remove(waiting)
            self._waiting.append(linked)
            self._changed.notify_all()

    def finish(self, seconds: float) -> bool:
        """Wait for the last upload, but no longer than ``seconds``; say what is not uploaded."""
        with self._changed:
            if self._is_busy() and seconds > 0:
                logger.info("waiting up to %s for the last upload", format_seconds(seconds))
            self._changed.wait_for(lambda: not self._is_busy(), seconds)
            self._closed = True
            self._changed.notify_all()
            if not self._is_busy():
                shutil.rmtree(self.links, ignore_errors=True)
            if self._behind:
                logger.error(
                    "not uploaded to %s: %s; the same command sends the newest",
                    self.remote.url,
                    ", ".join(self._behind),
                )
            return not self._behind

    def _is_busy(self) -> bool:
        return self._is_sending or bool(self._waiting)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting) or self._closed)
                if self._closed:
                    return
                folder = self._waiting.pop()
                self._is_sending = True
            is_sent = self._send(folder)
            if is_sent:
                self._trim(folder.name)
            with self._changed:
                if is_sent or folder.name not in self.remote.milestones:
                    shutil.rmtree(folder, ignore_errors=True)
                else:
                    self._waiting.insert(0, folder)
                self._is_sending = False
                self._changed.notify_all()

    def _send(self, folder: Path) -> bool:
        """Try until it is sent, a newer one waits or nobody does any more; whether it was sent."""
        pause = FIRST_PAUSE
        while True:
            started = time.monotonic()
            try:
                self.remote.send(folder, folder.name)
            except Exception as error:  # whatever it is, training goes on
                reason = f"{type(error).__name__}: {error}"
            else:
                self._count_as_sent(folder.name, time.monotonic() - started)
                return True
            with self._changed:
                logger.error(
                    "upload of %s failed, %d checkpoint(s) behind, again in %s: %s",
                    *(folder.name, len(self._behind), format_seconds(pause), reason),
                )
                self._changed.wait_for(lambda: self._is_outdated(folder) or self._closed, pause)
                if self._is_outdated(folder) or self._closed:
                    return False
            pause = min(2 * pause, LONGEST_PAUSE)

    def _is_outdated(self, folder: Path) -> bool:
        """Whether a newer one waits; names rise with the step."""
        return any(waiting.name > folder.name for waiting in self._waiting)

    def _count_as_sent(self, name: str, seconds: float) -> None:
        """Older ones gave way, but for milestones."""
        milestones = self.remote.milestones
        with self._changed:
            self._behind = [
                other
                for other in self._behind
                if other > name or (other < name and other in milestones)
            ]
        logger.info("%s is at %s, after %s", name, self.remote.url, format_seconds(seconds))

    def _trim(self, newest: str) -> None:
        try:
            self.remote.trim(newest)
        except Exception as error:  # the next one tries again
            logger.error("old checkpoints at %s not removed: %s", self.remote.url, error)


@contextmanager
def uploading(
    remote: RemoteCheckpoints, folder: Path, start: Checkpoint | None
) -> Iterator[Callable[[Path], None] | None]:
    """Within the context, what it gives uploads a checkpoint of the run ``folder``.

    Entered by all processes together; the first alone uploads, the others get None. ``start``, which
    the run goes on from, and milestones are uploaded if they are not there yet. At the end the last upload is waited
    for; after an error it is not.
    """
    from torch import distributed

    if distributed.get_rank() == 0:
        uploads = Uploads(remote, folder / "uploading")
        checkpoints = folder / "checkpoints"
        for path in reversed(checkpoint.checkpoint_paths(checkpoints)):
            if path.name in remote.milestones and (start is None or path != start.path):
                uploads.add(path)
        if start is not None:
            uploads.add(start.path)
        seconds = 0.0
        try:
            yield uploads.add
            seconds = 60 * remote.config.wait_minutes
        finally:
            uploads.finish(seconds)
    else:
        yield None
    distributed.barrier()  # a launcher ends all processes when one has ended with EXIT_STOPPED


def _link_files(path: Path, links: Path) -> Path:
    """A folder of hard links to the files of a checkpoint."""
    shutil.rmtree(links, ignore_errors=True)
    links.mkdir(parents=True)
    for file in path.iterdir():
        os.link(file, links / file.name)
    return links


def _folders(keys: Sequence[str]) -> dict[str, list[str]]:
    """Checkpoint folder -> its files, of the keys of a storage."""
    folders: dict[str, list[str]] = {}
    for key in keys:
        name, _, file = key.partition("/")
        if checkpoint.step_of(name) is not None:
            folders.setdefault(name, []).append(file)
    return folders


def _all_at_once(action: Callable[[str], None], names: Sequence[str]) -> None:
    """Do ``action`` for all names in parallel; raises the first error after all have ended.

    The threads of an executor, unlike these, would be waited for when the process ends.
    """
    errors: list[Exception] = []

    def attempt(name: str) -> None:
        try:
            action(name)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=attempt, args=(n,), daemon=True) for n in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
