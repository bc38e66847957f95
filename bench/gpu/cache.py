"""What a run on a GPU has compiled and tried, for the next run on a machine that begins with empty caches.

    python -m bench.gpu.cache pack out/cache.tar.xz      # there, at the end
    python -m bench.gpu.cache unpack out/cache.tar.xz    # on the next machine, before `bench.gpu.check`

Compiling takes most of the minutes of a first run.  The file has Triton's binaries, without the code that they were
made from, and the verdicts of `kernels.verification`.  Triton takes a binary only for the same kernel, version and
architecture, and a verdict holds for the same device, driver and source only: what does not suit is made anew.  Like
any program, a binary from somebody else must not be trusted.
"""

import argparse
import json
import os
import tarfile
import tempfile
from pathlib import Path

from activefreq_engine.kernels import verification

KEPT = (".cubin", ".json", ".so")
GROUP = "__grp__"
"""A file of this name in Triton's cache has the paths of the files of one kernel."""


def triton_folder() -> Path:
    """Where Triton keeps what it has compiled."""
    return Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")


def pack(file: Path, triton: Path, verdicts: Path | None) -> int:
    """Write both caches to a file; returns the number of binaries."""
    binaries = 0
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w:xz", preset=3) as archive:
        for path in sorted(triton.glob("*/*")):
            if path.suffix in KEPT and path.is_file():
                archive.add(path, f"triton/{path.parent.name}/{path.name}")
                binaries += path.suffix == ".cubin"
        for path in sorted(verdicts.rglob("*.json")) if verdicts is not None else ():
            archive.add(path, f"verdicts/{path.relative_to(verdicts)}")
    return binaries


def unpack(file: Path, triton: Path, verdicts: Path | None) -> int:
    """Put the content of a file where Triton and engines look for it; returns the number of binaries."""
    with tempfile.TemporaryDirectory() as work, tarfile.open(file) as archive:
        archive.extractall(work, filter="data")
        for name, folder in (("triton", triton), ("verdicts", verdicts)):
            for path in sorted(Path(work, name).rglob("*")) if folder is not None else ():
                if path.is_file():
                    to = folder / path.relative_to(Path(work, name))
                    to.parent.mkdir(parents=True, exist_ok=True)
                    to.write_bytes(_moved(path, to.parent) if path.name.startswith(GROUP) else path.read_bytes())
        return len(list(Path(work, "triton").rglob("*.cubin")))


def _moved(group: Path, to: Path) -> bytes:
    """The content of a group file for another folder, without the files that were left out."""
    content = json.loads(group.read_bytes())
    names = [name for name in content["child_paths"] if (group.parent / name).exists()]
    return json.dumps({**content, "child_paths": {name: str(to / name) for name in names}}).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("pack", "unpack"))
    parser.add_argument("file", type=Path, help="a tar file, compressed with xz")
    arguments = parser.parse_args()
    work = pack if arguments.what == "pack" else unpack
    print(f"{arguments.file}: {work(arguments.file, triton_folder(), verification.folder())} binaries")


if __name__ == "__main__":
    main()
