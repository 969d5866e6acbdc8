"""Where inputs come from: rows of an array, or encoded images decoded a batch at a time."""

from __future__ import annotations

import hashlib
import io
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from smidgen.data.preprocess import Preprocess
from smidgen.errors import DataError, one_line

if TYPE_CHECKING:
    from PIL import Image

# Below Pillow's own warning threshold; the largest phone cameras in common use give 50 million.
MAX_PIXELS = 2**26
FORMATS = ("JPEG", "PNG", "BMP", "WEBP")  # other decoders of Pillow see less scrutiny and are never tried
# 16- and 32-bit pixels ("I;16", "I", "F") would be clipped by a conversion, so they are refused.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_ROWS = 1024  # inputs scanned at once: bounds the float32 copy of a float64 set


class Items(ABC):
    """A numbered row of inputs, read and prepared on demand."""

    def __init__(self) -> None:
        self._digests: dict[int, bytes] = {}  # kept, as a folder of photographs takes seconds to read

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def raw(self, index: int) -> bytes:
        """The stored bytes of one input; its identity."""

    def digest(self, index: int) -> bytes:
        """SHA-256 of the stored bytes of one input."""
        if index not in self._digests:
            self._digests[index] = hashlib.sha256(self.raw(index)).digest()
        return self._digests[index]

    @abstractmethod
    def prepare(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """The network's inputs at these places, at least one, the batch axis first."""

    def declared(self) -> dict[str, Any] | None:
        """The preprocessing as JSON holds it, for reports; None for inputs that are ready for the network."""
        return None


class ArrayItems(Items):
    """Inputs given ready for the network, as floating-point numbers.

    Args:
        values: (N, …), finite.
        where: what to call it in messages.

    Raises:
        DataError: a value is NaN or infinite in float32; the first such input is named.
    """

    def __init__(self, values: NDArray[np.floating[Any]], where: str) -> None:
        super().__init__()
        self._values = values
        for start in range(0, len(values), _ROWS):
            with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite and is reported here
                finite = np.isfinite(values[start : start + _ROWS].astype(np.float32, copy=False))
            if not finite.all():
                index = start + int(np.argmin(finite.reshape(len(finite), -1).all(axis=1)))
                raise DataError(f"data: {where!r} input {index} holds NaN or infinite values; remove it or repair it")

    def __len__(self) -> int:
        return len(self._values)

    def raw(self, index: int) -> bytes:
        return np.ascontiguousarray(self._values[index], dtype="<f4").tobytes()

    def prepare(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.ascontiguousarray(self._values[indices], dtype=np.float32)


class PixelItems(Items):
    """Images of one size, given as 8-bit pixels.

    Args:
        pixels: (N, H, W, C), C one or three (RGB).
        preprocess: applied to every batch.
    """

    def __init__(self, pixels: NDArray[np.uint8], preprocess: Preprocess) -> None:
        super().__init__()
        self._pixels, self._preprocess = pixels, preprocess

    def __len__(self) -> int:
        return len(self._pixels)

    def raw(self, index: int) -> bytes:
        return self._pixels[index].tobytes()

    def prepare(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._preprocess.batch(self._pixels[indices])

    def declared(self) -> dict[str, Any]:
        return self._preprocess.to_dict()


class EncodedItems(Items):
    """Images in encoded form (JPEG, PNG, …), decoded when asked for.

    Args:
        names: what to call each image in messages.
        read: gives the encoded bytes of one image.
        preprocess: applied to every image.
        max_pixels: larger images are refused before they are decoded.
    """

    def __init__(
        self, names: Sequence[str], read: Callable[[int], bytes], preprocess: Preprocess, max_pixels: int = MAX_PIXELS
    ) -> None:
        super().__init__()
        self._names, self._read, self._preprocess, self._max_pixels = names, read, preprocess, max_pixels
        self._expected: tuple[int, int, int] | None = None  # height, width after fitting, and who set it

    def declared(self) -> dict[str, Any]:
        return self._preprocess.to_dict()

    def __len__(self) -> int:
        return len(self._names)

    def raw(self, index: int) -> bytes:
        return self._read(index)

    def prepare(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of harmless metadata; what matters is raised
            first = self._decode(int(indices[0]))
            pixels = np.empty((len(indices), *first.shape), np.uint8)
            pixels[0] = first
            for row, index in enumerate(indices[1:].tolist(), start=1):
                pixels[row] = self._decode(index)
        return self._preprocess.arithmetic(pixels)

    def check_header(self, index: int, stream: io.BufferedIOBase) -> None:
        """Raise for an image that is unreadable, too large or of another size, from its first bytes alone."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._open(index, stream)

    def _decode(self, index: int) -> NDArray[np.uint8]:
        image, orientation = self._open(index, io.BytesIO(self._read(index)))
        try:
            # Palettes go through RGBA: their transparency has no direct conversion. Alpha is then dropped.
            image = image.convert("RGBA") if image.mode in ("P", "PA") else image
            mode = "L" if self._preprocess.channels == "gray" else "RGB"
            image = image if image.mode == mode else image.convert(mode)
            image = _upright(image) if orientation != 1 else image
            image.load()
        except Exception as error:  # decoders of damaged bytes raise anything
            raise self._unreadable(index, error) from error
        pixels = np.asarray(self._preprocess.fit(image))
        return pixels.reshape(*pixels.shape[:2], -1)

    def _open(self, index: int, stream: io.BufferedIOBase) -> tuple[Image.Image, int]:
        """The image, checked but not yet decoded, and its EXIF orientation."""
        from PIL import Image

        try:
            image = Image.open(cast(IO[bytes], stream), formats=FORMATS)
            small = image.size[0] * image.size[1] <= self._max_pixels
            # Not asked of bombs, nor where the header has no metadata: Pillow decodes a PNG to look behind its pixels.
            tag = image.getexif().get(_ORIENTATION) if small and _METADATA & image.info.keys() else 1
            orientation = tag if isinstance(tag, int) and tag in _ORIENTATIONS else 1
        except Exception as error:  # decoders of damaged bytes raise anything
            raise self._unreadable(index, error) from error
        name = self._names[index]
        if image.mode not in _MODES:
            raise DataError(f"data: {name!r} has pixels of kind {image.mode!r}; save it with 8 bits a channel")
        width, height = image.size[::-1] if orientation in _TURNED else image.size
        try:
            fitted = self._preprocess.output_size(height, width)
        except DataError as error:
            raise DataError(f"data: {name!r}: {error}") from error
        # The fitted size counts too: a shorter side of 256 makes a 1×60000 strip 256×15 million.
        if max(width * height, fitted[0] * fitted[1]) > self._max_pixels:
            raise DataError(
                f"data: {name!r} has {width}×{height} pixels, more than max_pixels={self._max_pixels}; scale it down"
            )
        self._expect(index, fitted)
        return image, orientation

    def _expect(self, index: int, size: tuple[int, int]) -> None:
        if self._expected is None:
            self._expected = (*size, index)
        height, width, first = self._expected
        if size != (height, width):
            raise DataError(
                f"data: {self._names[first]!r} is {height}×{width} and {self._names[index]!r} is {size[0]}×{size[1]} "
                "(height × width); give --resize and --crop so that all are alike"
            )

    def _unreadable(self, index: int, error: Exception) -> DataError:
        reason = one_line(error, 80) or type(error).__name__
        return DataError(f"data: {self._names[index]!r} cannot be read as an image ({reason}); replace or remove it")


_ORIENTATION = 0x0112  # the EXIF tag
_METADATA = {"exif", "Raw profile type exif", "Raw profile type APP1", "xmp", "XML:com.adobe.xmp"}
_ORIENTATIONS = range(1, 9)
_TURNED = (5, 6, 7, 8)  # orientations that exchange height and width


def _upright(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)
