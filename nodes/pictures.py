"""Pictures as files and pixels: read, brought to a size, and to the channels of another. Knows no models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nodes.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

    from nodes.artifacts import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif", ".ppm", ".pgm")
MAX_PIXELS = 2 * 89_478_485
"""No larger picture is opened (Pillow's own limit against decompression bombs): about 13,000 × 13,000 pixels."""


def read_picture(file: Path) -> PilImage:
    """The picture in `file`, upright, in a mode that `Image.from_pil` keeps the values of.

    Raises:
        InputError: the file is absent, no picture, truncated, or larger than `MAX_PIXELS`.
    """
    import warnings

    from PIL import Image as pil
    from PIL import ImageOps, UnidentifiedImageError

    # Between once and twice its limit Pillow only warns; such pictures are wanted here.
    warnings.filterwarnings("ignore", category=pil.DecompressionBombWarning)
    try:
        with pil.open(file) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise InputError(f"{file}: {picture.width}×{picture.height} pixels are more than {MAX_PIXELS}")
            picture.load()
            upright = ImageOps.exif_transpose(picture)
            return _eight_bits(_srgb(upright), file)
    except InputError:
        raise
    except pil.DecompressionBombError:
        raise InputError(f"{file}: more than {MAX_PIXELS} pixels") from None
    except FileNotFoundError:
        raise InputError(f"{file}: no such file") from None
    except UnidentifiedImageError:
        raise InputError(f"{file}: not a picture Pillow can read: unknown format") from None
    except Exception as error:  # on damaged files Pillow's parsers raise nearly anything: OSError, struct.error …
        raise InputError(f"{file}: not a picture Pillow can read: {error}") from error


def _eight_bits(picture: PilImage, file: Path) -> PilImage:
    """Grey of 16 bits scaled to 8, since Pillow's own conversion cuts off everything above 255."""
    if picture.mode == "F":
        raise InputError(f"{file}: a floating-point picture has no known range; save it with 8 or 16 bits a channel")
    if not picture.mode.startswith("I"):
        return picture
    import numpy as np
    from PIL import Image as pil

    values = np.asarray(picture).astype(np.int64)
    return pil.fromarray(((values.clip(0, 65535) + 128) // 257).astype(np.uint8))


def _srgb(picture: PilImage) -> PilImage:
    """The colours of an embedded profile as sRGB; a profile that cannot be used is left out, as viewers do."""
    profile = picture.info.get("icc_profile")
    if not profile or picture.mode not in ("L", "RGB", "RGBA", "CMYK"):
        return picture
    import io

    from PIL import ImageCms

    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(own):
            return picture
        mode = "RGB" if picture.mode == "CMYK" else picture.mode
        if mode == "L":  # a grey profile has no RGB counterpart to go to and back
            return picture
        alpha = picture.getchannel("A") if mode == "RGBA" else None
        colours = picture.convert("RGB") if alpha else picture
        found = ImageCms.profileToProfile(colours, own, ImageCms.createProfile("sRGB"), outputMode="RGB")
        if found is None:
            return picture
        if alpha:
            found.putalpha(alpha)
        return found
    except (ImageCms.PyCMSError, OSError, ValueError):
        return picture


def resized(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """uint8 (height, width, 3), by Lanczos; the same array where the size is right already."""
    from PIL import Image as pil

    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(pil.fromarray(pixels).resize((width, height), pil.Resampling.LANCZOS))


def like(image: Image, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The colours of `rgb` (H, W, 3) in the channels of `image`: grey for grey, and its own alpha kept."""
    from PIL import Image as pil

    if image.pixels.shape[2] == 1:
        return np.asarray(pil.fromarray(rgb).convert("L"))[..., None]
    return np.concatenate([rgb, image.pixels[..., 3:]], axis=2)
