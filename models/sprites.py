"""Brings the 24 objects that scenes are drawn from: Microsoft's 3-D Fluent emoji (MIT), from an npm package.

Run as `python -m models.sprites`; it needs `npm` on the PATH.
"""

import subprocess
import tarfile
import tempfile
from pathlib import Path

from models.scenes import CODE_POINTS

PACKAGE = "@lobehub/fluent-emoji-3d@1.1.0"
FOLDER = Path(__file__).parent / "sprites"


def fetch_sprites(folder: Path = FOLDER) -> list[Path]:
    """Write `<kind>.webp` for each kind into `folder`, and return the paths.

    Raises:
        FileNotFoundError: there is no `npm` on the PATH.
        subprocess.CalledProcessError: the package could not be fetched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with tempfile.TemporaryDirectory() as temporary:
        subprocess.run(["npm", "pack", PACKAGE, "--silent"], cwd=temporary, check=True, stdout=subprocess.DEVNULL)
        (archive,) = Path(temporary).glob("*.tgz")
        with tarfile.open(archive) as package:
            for kind, code_point in CODE_POINTS.items():
                member = package.extractfile(f"package/assets/{code_point}.webp")
                if member is None:
                    raise FileNotFoundError(f"{PACKAGE} has no assets/{code_point}.webp, the {kind}")
                path = folder / f"{kind}.webp"
                path.write_bytes(member.read())
                written.append(path)
    return written


if __name__ == "__main__":
    print(f"{len(fetch_sprites())} objects in {FOLDER}")
