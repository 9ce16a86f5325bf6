"""Where a case runs, and what it may leave: files elsewhere, half-written ones, calls are found."""

from __future__ import annotations

import ast
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx

from fuzz.seeds import OUT, Target
from gdu_compile import trial_load

SECRET = b"a secret that lies outside of the folder, and that nobody may read " * 4
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGING = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link",
            "os.truncate", "os.chmod", "os.chown", "os.utime", "os.mkfifo"}  # fmt: skip
RUNNING = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen",
           "socket.connect", "socket.bind", "socket.getaddrinfo", "ctypes.dlopen"}  # fmt: skip


class Arena:
    """A tree of folders: secret.bin outside, the present folder below, the output below that.

    Attributes:
        seeds: the good files.
        here: the present folder of a case.
        temp: for temporary files; empty after a case.
    """

    def __init__(self, root: Path, seeds: Path) -> None:
        self.root, self.seeds = root, seeds
        self.around, self.temp = root / "around", root / "temp"
        self.here = self.around / "here"
        self.before: dict[str, tuple[int, ...]] = {}
        self.watch = Watch(self)

    def lay_out(self, target: Target) -> None:
        """Fresh copies of what the command reads; the present folder."""
        self.root.mkdir(exist_ok=True)
        os.chdir(self.root)
        for folder in (self.around, self.temp):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        (self.here / OUT).mkdir(parents=True)
        (self.around / "secret.bin").write_bytes(SECRET)
        for name in target.reads(self.seeds):
            shutil.copy(self.seeds / name, self.here)
        os.chdir(self.here)
        tempfile.tempdir = str(self.temp)

    def begin(self) -> None:
        """Remember every file, and watch."""
        self.before = self.everything()
        self.watch.begin()

    def everything(self) -> dict[str, tuple[int, ...]]:
        """Every file and folder → what would change with its contents."""
        found = {}
        for folder, folders, files in os.walk(self.root):
            for name in (*folders, *files):
                path = Path(folder, name)
                facts = path.lstat()
                changes = () if name in folders else (facts.st_size, facts.st_mtime_ns)
                found[str(path.relative_to(self.root))] = (facts.st_ino, *changes)
        return found

    def problems(self, code: int) -> list[str]:
        """What the case should not have done."""
        self.watch.end()
        after = self.everything()
        output = str((self.here / OUT).relative_to(self.root)) + os.sep
        problems = list(self.watch.seen)
        for path in sorted(self.before.keys() | after.keys()):
            if self.before.get(path) == after.get(path):
                continue
            if path.startswith(("temp/torchinductor", "temp/__pycache__")):
                continue  # torch's cache
            if not path.startswith(output):
                problems.append(f"changed outside of the output folder: {path}")
            elif code not in (0, 1):
                problems.append(f"exit {code}, but written: {path}")
        return problems + (self.result_problems() if code == 0 else [])

    def result_problems(self) -> list[str]:
        """What was written must be whole, and must say nothing that the files did not hold."""
        problems = []
        for path in sorted((self.here / OUT).iterdir()):
            content = path.read_bytes()
            if SECRET[:40] in content:
                problems.append(f"{path.name} holds the secret")
            try:
                if path.suffix == ".onnx":
                    onnx.load(path)
                elif path.suffix == ".py":
                    problems += source_problems(content.decode())
            except Exception as error:  # any error is the finding
                problems.append(f"{path.name} cannot be read back: {type(error).__name__}")
        return problems


def source_problems(text: str) -> list[str]:
    """Names of a hostile file that became code in the emitted Python source."""
    words = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    return [f"the source runs {word}" for word in words & {"__import__", "eval", "exec", "os"}]


class Watch:
    """An audit hook: writes outside of the allowed folders, programs, connections."""

    def __init__(self, arena: Arena) -> None:
        self.allowed = [str(arena.here / OUT), str(arena.temp)]
        self.secret = str(arena.around / "secret.bin")
        self.seen: list[str] = []
        self.on = self.added = False

    def begin(self) -> None:
        """Watch from now on; a hook stays for the life of the process."""
        if not self.added:
            sys.addaudithook(self.hook)
            self.added = True
        self.seen, self.on = [], True

    def end(self) -> None:
        """Watch no more."""
        self.on = False

    def hook(self, event: str, given: tuple[Any, ...]) -> None:
        """Note what may not be."""
        if not self.on:
            return
        if event in RUNNING and not is_ours(event, given):
            self.seen.append(f"{event} {str(given)[:100]}")
        elif event in CHANGING or (event == "open" and (given[2] or 0) & WRITING):
            for path, folder in places(event, given):
                self.look(event, path, folder)
        elif event == "open" and isinstance(given[0], str) and self.is_secret(given[0]):
            self.seen.append(f"read {given[0][:100]}")

    def is_secret(self, path: str) -> bool:
        """Whether it is the file outside."""
        return "secret" in path and os.path.realpath(path) == self.secret

    def look(self, event: str, path: Any, folder: object) -> None:
        """Note a path that is not allowed; ``folder`` is a descriptor where it begins, or −1."""
        if isinstance(path, int) or path == os.devnull:
            return
        start = f"/proc/self/fd/{folder}" if isinstance(folder, int) and folder >= 0 else ""
        full = os.path.realpath(os.path.join(start, os.fsdecode(path)))  # noqa: PTH118
        inside = any(full == there or full.startswith(there + os.sep) for there in self.allowed)
        if not inside:
            self.seen.append(f"{event} of {full[:200]}")


def is_ours(event: str, given: tuple[Any, ...]) -> bool:
    """Whether it is ctypes' own library, or the process in which a model is loaded on trial."""
    if event == "subprocess.Popen":
        return list(given[1][:4]) == [sys.executable, "-P", "-c", trial_load.LOADS]
    return event == "ctypes.dlopen" and given[0] is None


def places(event: str, given: tuple[Any, ...]) -> list[tuple[Any, Any]]:
    """The paths of an audit event, each with the descriptor of the folder where it begins."""
    if event in ("os.rename", "os.link"):
        return [(given[0], given[2]), (given[1], given[3])]
    return [(given[0], -1 if event == "open" or len(given) < 2 else given[-1])]


@contextmanager
def captured() -> Iterator[list[bytes]]:
    """What the process and its libraries write to standard output and error, in the list."""
    said: list[bytes] = []
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    files = [os.memfd_create(name) for name in ("out", "err")]
    try:
        for number, file in enumerate(files, 1):
            os.dup2(file, number)
        yield said
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, (old, file) in enumerate(zip(kept, files, strict=True), 1):
            os.dup2(old, number)
            said.append(os.pread(file, 1 << 22, 0))
            os.close(old)
            os.close(file)
